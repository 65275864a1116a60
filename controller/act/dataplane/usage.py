"""What did the meters of VMs pass? From what a switch says that they have counted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from controller.act.dataplane.openflow.counters import Counted
from controller.act.dataplane.pipeline import is_vm_meter, port_of_meter
from controller.act.dataplane.view import FabricView


class Flowed(NamedTuple):
    """One direction of a VM: bit/s that passed its meter and that were dropped there."""

    vm: str
    out: bool
    passed_bps: float
    dropped_bps: float


class Counts:
    """The counters of one switch's meters, from reading to reading."""

    def __init__(self) -> None:
        self._before: dict[int, tuple[int, int]] = {}
        self._now: dict[int, tuple[int, int]] = {}
        self._at: float | None = None

    def take(self, items: Iterable[Counted]) -> None:
        """Take in a part of a reply."""
        for item in items:
            if is_vm_meter(item.id):
                self._now[item.id] = item.bytes, sum(octets for _, octets in item.parts)

    def flowed(self, view: FabricView, datapath: str, now: float) -> list[Flowed] | None:
        """What flowed since the reading before, when all of this one was taken in at `now`
        (monotonic seconds); None where it is the first. Open vSwitch counts from 0 again when
        a rate is changed, which happens right after a reading: what was counted since is told,
        over the whole interval."""
        counted, self._now = self._now, {}
        before, self._before = self._before, counted
        since, self._at = self._at, now
        if since is None or now <= since:
            return None
        found = []
        for meter, (octets, dropped) in counted.items():
            port, out = port_of_meter(meter)
            place = view.plugged.get((datapath, port))
            if place is None:
                continue
            had, lost = before.get(meter, (0, 0))
            if octets < had or dropped < lost:
                had = lost = 0
            drops = 8 * (dropped - lost) / (now - since)
            came = 8 * (octets - had) / (now - since)
            found.append(Flowed(place.vm, out, max(0.0, came - drops), drops))
        return found
