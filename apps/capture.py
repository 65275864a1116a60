"""The app that keeps packets for alerts: those that edges copy of a VM, until there are enough or
the time is over. Each is cut after SNAP bytes.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from apps.context import Southbound
from apps.framework import MAIN, App, PacketInEvent, hub, on, spawn
from controller.act.dataplane.openflow.decode import PacketIn
from controller.act.dataplane.pipeline import Owner, owner_of
from controller.model.nouns import Capture
from controller.store import samples
from controller.store.transaction import Transaction

log = logging.getLogger(__name__)

#: Seconds between two looks at what is complete.
POLL_S = 0.5


class Captures(App):
    """Copies of packets in, files out."""

    _CONTEXTS = {"southbound": Southbound}  # noqa: RUF012 - the framework's own name and form

    def __init__(self, *args: Any, southbound: Southbound, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.southbound = southbound
        #: Packets by the capture that they are for, each with when it came (Unix seconds).
        self._found: dict[Capture, list[tuple[float, bytes]]] = {}
        spawn(southbound.forever, self._poll)

    @on(PacketInEvent, MAIN)
    def packet_in(self, event: Any) -> None:
        """A copy of what a VM sends or receives."""
        packet: PacketIn = event.msg.packet
        if owner_of(packet.cookie) is not Owner.CAPTURE:
            return
        ends = {packet.data[at : at + 6].hex(":") for at in (0, 6)}
        state = self.southbound.view.state
        for capture in state.captures.values():
            machine = state.vms.get(capture.vm)
            found = self._found.setdefault(capture, [])
            if machine is None or len(found) >= capture.packets:
                continue
            if any(nic.mac in ends for nic in machine.nics):
                found.append((time.time(), packet.data))

    def _poll(self) -> None:
        hub.sleep(POLL_S)
        now = time.time()
        wanted = tuple(self.southbound.view.state.captures.values())
        for capture in [one for one in self._found if one not in wanted]:
            del self._found[capture]
        for capture in wanted:
            found = self._found.get(capture, [])
            if now >= capture.until or len(found) >= capture.packets:
                self._keep(capture, found, now)

    def _keep(self, capture: Capture, found: list[tuple[float, bytes]], now: float) -> None:
        def change(tx: Transaction) -> None:
            if tx.get(Capture, capture.vm) == capture:
                tx.delete(Capture, capture.vm)
                samples.put(tx, capture.alert, now, found)

        self.southbound.write(change)
        fields = {"vm": capture.vm, "alert": capture.alert, "packets": len(found)}
        log.info("packets are kept for an alert", extra=fields)
