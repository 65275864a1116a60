"""Which VM is this? What hypervisor and switch call it, as the controller's id.

By MAC, the controller is asked, and its answers are kept on the disk for when it is away.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterable
from typing import Literal

from controller.agent.outbox import Outbox
from controller.client import Client, Problem
from controller.model.addresses import normalise_mac
from controller.model.nouns import Vm

log = logging.getLogger(__name__)

#: Seconds after which a MAC is asked for again: one that is known, and one that is not.
KNOWN_S = 3_600.0
UNKNOWN_S = 60.0
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}")
_KEPT = "macs"


class Names:
    """Finds ids, as the setting agent.identify says."""

    def __init__(
        self,
        by: Literal["name", "uuid", "mac"],
        outbox: Outbox,
        connect: Callable[[], Client],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._by = by
        self._outbox = outbox
        self._connect = connect
        self._clock = clock
        self._vms: dict[str, str | None] = json.loads(outbox.recall(_KEPT) or "{}")
        self._asked: dict[str, float] = {}

    def vm(self, name: str, uuid: str, macs: Iterable[str]) -> str | None:
        """The id of a VM; None where it has none, or it is not known yet."""
        if self._by == "mac":
            return next(filter(None, map(self._of_mac, macs)), None)
        found = name if self._by == "name" else uuid
        return found if _ID.fullmatch(found) else None

    def _of_mac(self, mac: str) -> str | None:
        try:
            mac = normalise_mac(mac)
        except ValueError:
            return None
        known = self._vms.get(mac)
        now = self._clock()
        age = now - self._asked.get(mac, float("-inf"))
        if age < (UNKNOWN_S if known is None else KNOWN_S):
            return known
        self._asked[mac] = now
        try:
            with self._connect() as client:
                found = next(iter(client.list(Vm, mac=mac)), None)
        except (Problem, OSError) as error:
            log.debug("a MAC could not be asked for", extra={"mac": mac, "cause": str(error)})
            return known
        vm = None if found is None else found.id
        if vm != known:
            self._vms[mac] = vm
            self._outbox.keep(_KEPT, json.dumps(self._vms))
        return vm
