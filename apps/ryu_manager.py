"""A `ryu-manager` that works: `python -m apps.ryu_manager [OPTION | APP]...`, in Ryu's environment.

Ryu's own cannot start on Python 3.11 with any eventlet: what the one lacks, the other does not
have any more. Beside what `framework_base` mends, a process that cannot listen ends here, instead
of waiting for switches that cannot come, and one that is told to stop closes its apps.

Pleach's apps can be run by it too. They then listen where Ryu's options say, and have OpenFlow
1.5 for themselves.
"""

from __future__ import annotations

import sys
import warnings

warnings.filterwarnings("ignore", message="(?s).*Eventlet is deprecated")

import eventlet

eventlet.monkey_patch()

import inspect
import logging
import signal
import socket
from pathlib import Path
from typing import Any

from eventlet import hubs

from apps import door
from apps.framework_base import app_manager, cfg, controller, module, serve, spawn
from controller.logs import fields
from controller.process import seldom_collect
from controller.settings import SettingsError, Tls
from controller.store.errors import StoreError

log = logging.getLogger(__name__)

manager = module("cmd.manager")
ryu_log = module("log")

#: Ryu's options for what is set otherwise, where a fault is told.
_OPTIONS = {
    "southbound.tls.certificate": "--ctl-cert",
    "southbound.tls.key": "--ctl-privkey",
    "southbound.tls.client_ca": "--ca-certs",
    "southbound.tls": "--ctl-cert",
    "southbound.port or host": "--ofp-tcp-listen-port or --ofp-listen-host",
    "southbound.port": "--ofp-tcp-listen-port",
}
#: Ryu's options that hold in the place of settings of the section southbound.
_INSTEAD = {
    "host": "--ofp-listen-host",
    "port": "--ofp-tcp-listen-port or --ofp-ssl-listen-port",
    "tls": "--ctl-privkey, --ctl-cert and --ca-certs",
}


class Stop(Exception):  # noqa: N818 - it ends the process, wrong or not
    """The process is to end: because of what is wrong, or because it was told to."""

    def __init__(self, wrong: str | None = None) -> None:
        self.wrong = wrong


class Formatter(logging.Formatter):
    """Ryu's lines, each followed by the fields of its event."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        more = "".join(f" {name}={value}" for name, value in fields(record).items())
        return super().formatMessage(record) + more


def main(words: list[str]) -> int:
    """Run apps until told to stop; 0 then, 2 where something that they need cannot be had."""
    sys.path.append(str(Path.cwd()))  # where users look for modules that they name
    seldom_collect()
    _log_fields()
    stop = _Stopper()
    _listen_ourselves(stop)
    _tell_what_is_left_out()
    wrong: str | None = None
    try:
        manager.main(words, prog="pleach ryu-manager")
    except Stop as stopped:
        wrong = stopped.wrong
    except (SettingsError, StoreError) as error:
        wrong = str(error)
    except ModuleNotFoundError as error:
        if not any(word == error.name or word.startswith(f"{error.name}.") for word in words):
            raise
        wrong = f"{error.name}: there is neither a file nor a module of that name"
    if wrong is None:
        return 0
    print(f"pleach ryu-manager: {wrong}", file=sys.stderr)  # noqa: T201
    return 2


def _log_fields() -> None:
    theirs = ryu_log.init_log

    def init_log() -> None:
        theirs()
        for handler in logging.getLogger().handlers:
            if handler.formatter is None:
                handler.setFormatter(Formatter())

    ryu_log.init_log = init_log


class _Stopper:
    """Ends `main` wherever it waits, from any greenthread and on SIGTERM and SIGINT."""

    def __init__(self) -> None:
        self._main = eventlet.getcurrent()
        self._bell, ringing = socket.socketpair()
        ringing.setblocking(False)
        self._ringing = ringing
        # A handler of Python's runs on whichever greenthread is running, and does not wake
        # the hub from its sleep; the descriptor does.
        signal.set_wakeup_fd(ringing.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        spawn(self._wait)

    def _wait(self) -> None:
        self._bell.recv(1)
        self(None)

    def __call__(self, wrong: str | None) -> None:
        hubs.get_hub().schedule_call_global(0, self._main.throw, Stop(wrong))


def _listen_ourselves(stop: _Stopper) -> None:
    def server_loop(_: Any, tcp_port: int, ssl_port: int) -> None:
        try:
            tls = door.context(_tls())
            bound = door.bind(cfg.CONF.ofp_listen_host, tcp_port if tls is None else ssl_port)
            door.listen(bound)
        except SettingsError as error:
            wrong = str(error)
            for setting, option in _OPTIONS.items():
                wrong = wrong.replace(setting, option)
            stop(wrong)
            return
        serve(bound, tls)

    controller.OpenFlowController.server_loop = server_loop


def _tell_what_is_left_out() -> None:
    """Where our apps are loaded: which of them are not, and which settings do not hold."""
    theirs = app_manager.AppManager.load_apps

    def load_apps(self: Any, names: list[str]) -> None:
        theirs(self, names)
        # By their files: an app that is named by its path is a module of another name.
        loaded = {Path(inspect.getfile(app)).resolve() for app in self.applications_cls.values()}
        here = Path(__file__).resolve().parent
        if here / "fabric.py" not in loaded:
            return
        # Here, because nobody else's apps need what comes with it.
        from apps.context import settings_of_process
        from apps.southbound import APPS

        files = [here.parent / f"{name.replace('.', '/')}.py" for name in APPS]
        if missing := [f"{here.name}/{file.name}" for file in files if file not in loaded]:
            log.warning(
                "not all of Pleach's apps are loaded, and what the others do is not done: name "
                "them too, unless they are left out on purpose: %s",
                " ".join(missing),
            )
        for name in sorted(_INSTEAD.keys() & settings_of_process().southbound.model_fields_set):
            log.warning(
                "the setting southbound.%s does not hold under ryu-manager: use %s",
                name,
                _INSTEAD[name],
            )

    app_manager.AppManager.load_apps = load_apps


def _tls() -> Tls:
    """What Ryu's options say of TLS: without both certificate and key it is off."""
    conf = cfg.CONF
    if conf.ctl_privkey is None or conf.ctl_cert is None:
        return Tls()
    authority = None if conf.ca_certs is None else Path(conf.ca_certs)
    return Tls(certificate=Path(conf.ctl_cert), key=Path(conf.ctl_privkey), client_ca=authority)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
