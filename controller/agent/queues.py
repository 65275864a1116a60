"""The queues on the ports of this host's switch: made when ports come, looked at again and again,
and taken off where the settings ask for none."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from controller.act.queues import tc
from controller.act.queues.plan import Plan
from controller.agent.records import SourceAway

log = logging.getLogger(__name__)


class Queues:
    """The task. `ports` names the ports of the switch, or raises SourceAway; `wanted` is what each
    is to have, None for nothing of ours."""

    name = "queues"

    def __init__(
        self, ports: Callable[[], tuple[str, ...]], wanted: Plan | None, look_s: float
    ) -> None:
        self._ports = ports
        self._wanted = wanted
        self._look_s = look_s
        #: Ports that were complained of, each with what was wrong.
        self._told: dict[str, str] = {}

    def run(self, stopping: threading.Event) -> None:
        """Look, and look again, until `stopping` is set. Queues stay when the agent ends."""
        while not stopping.is_set():
            self.look()
            stopping.wait(self._look_s)

    def look(self) -> list[str]:
        """Make all ports as they are to be; those that were changed. A port that cannot be is told
        of once, and keeps no other from it."""
        try:
            ports = self._ports()
        except SourceAway:
            return []  # told of by who watches the switch
        changed, wrong = [], {}
        for port in ports:
            try:
                if tc.clear(port) if self._wanted is None else tc.apply(port, self._wanted):
                    changed.append(port)
            except tc.QueueError as error:
                wrong[port] = str(error)
                if self._told.get(port) != str(error):
                    log.warning("a port has no queues: %s; %s", error, error.mend)
        self._told = wrong
        if changed:
            log.info("queues were changed", extra={"ports": changed})
        return changed
