"""The southbound process: `python -m apps.southbound`.

It owns the OpenFlow connections, compiles the state of record into rules, keeps the switches
to them, and answers what the edge cannot answer by itself. Nothing in it forecasts or trains.
"""

from __future__ import annotations

import sys
import warnings

# That eventlet is in maintenance is known (see ARCHITECTURE.md), and no operator's concern.
warnings.filterwarnings("ignore", module="eventlet|apps.southbound", category=DeprecationWarning)
warnings.filterwarnings("ignore", message="(?s).*Eventlet is deprecated")

import eventlet

eventlet.monkey_patch()

import logging

from apps.context import settings_of_process
from apps.door import bind, context
from apps.framework import NAME, run
from controller.logs import configure
from controller.process import seldom_collect
from controller.settings import Problem, SettingsError
from controller.store.errors import StoreError

log = logging.getLogger(__name__)

APPS = [
    "apps.fabric",
    "apps.discovery",
    "apps.services",
    "apps.traffic",
    "apps.usage",
    "apps.dpi",
    "apps.capture",
    "apps.signatures",
]


def main() -> int:
    """Serve switches until told to stop; 0 then, 2 where settings or store cannot be used."""
    try:
        settings = settings_of_process()
        configure(settings.log.level, settings.log.format)
        south = settings.southbound
        if south.framework != NAME:
            cause = f"is {south.framework}, but {sys.executable} has {NAME}"
            hint = "start it by `pleach southbound`, which takes the right Python"
            raise SettingsError(Problem("settings", "southbound.framework", cause, hint))
        tls = context(south.tls)
        # Before the store is opened: a second process must not touch what the first has there.
        bound = bind(south.host, south.port)
        seldom_collect()
        host, port = bound.getsockname()[:2]
        log.info(
            "listening for switches",
            extra={"host": host, "port": port, "tls": tls is not None, "framework": NAME},
        )
        run(APPS, bound, tls)
    except (SettingsError, StoreError) as error:
        print(f"pleach southbound: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
