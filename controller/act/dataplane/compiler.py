"""From the state of record to the entries of every datapath, change by change.

Rules are computed a unit at a time: a noun at a datapath. A change names the units that it
may touch, before it and after it; only those are computed afresh, and only entries that then
differ are reported. `compile_all` computes everything from nothing; that both ways end in
the same entries is what the property tests hold us to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from controller.act.dataplane.impact import Impact, Unit, datapaths, units_at
from controller.act.dataplane.openflow.records import Flow, Group, Match, Meter
from controller.act.dataplane.pipeline import zone
from controller.act.dataplane.rules.access import access
from controller.act.dataplane.rules.bandwidth import bandwidth, marking
from controller.act.dataplane.rules.base import Entries, Rules
from controller.act.dataplane.rules.capture import capture
from controller.act.dataplane.rules.signatures import observe, signatures
from controller.act.dataplane.rules.subnet import subnet, tenant
from controller.act.dataplane.rules.switch import paths, switch
from controller.act.dataplane.rules.tap import services, tap
from controller.act.dataplane.rules.vm import seen_from, vm
from controller.act.dataplane.view import FabricView
from controller.model.signatures import Observed
from controller.model.state import Change, State

Entry = Flow | Group | Meter


class FlowKey(NamedTuple):
    """Identity of a flow entry within one datapath."""

    table: int
    priority: int
    match: Match


class GroupKey(NamedTuple):
    """Identity of a group within one datapath."""

    group: int


class MeterKey(NamedTuple):
    """Identity of a meter within one datapath."""

    meter: int


Key = FlowKey | GroupKey | MeterKey


def key_of(entry: Entry) -> Key:
    """Identity of an entry within one datapath."""
    if isinstance(entry, Flow):
        return FlowKey(*entry.place)
    return GroupKey(entry.id) if isinstance(entry, Group) else MeterKey(entry.id)


_ROOMS: dict[str, Callable[[FabricView, str, str], Entries]] = {
    "switch": lambda view, _, datapath: switch(view, datapath),
    "paths": lambda view, _, datapath: paths(view, datapath),
    "tap": lambda view, _, datapath: tap(view, datapath),
    "tenant": tenant,
    "subnet": subnet,
    "vm": vm,
    "access": access,
    "bandwidth": bandwidth,
    "marking": marking,
    "services": services,
    "capture": capture,
    "observe": observe,
    "signatures": signatures,
}


@dataclass(slots=True)
class Desired:
    """What one datapath is to have, by unit and altogether, and whose each entry is."""

    units: dict[Unit, tuple[Key, ...]] = field(default_factory=dict)
    entries: dict[Key, Entry] = field(default_factory=dict)
    owners: dict[Key, Unit] = field(default_factory=dict)

    def refresh(self, unit: Unit, rules: Rules) -> set[Key]:
        """Put `rules` in the place of what the unit had; the keys that differ now."""
        changed: set[Key] = set()
        fresh: dict[Key, Entry] = {}
        entries: list[Entry] = [*rules.flows, *rules.groups, *rules.meters]
        for entry in entries:
            key = key_of(entry)
            fresh[key] = entry
            if self.entries.get(key) != entry:
                changed.add(key)
        for key in self.units.get(unit, ()):
            # What a VM left may already be another's, such as a port that was handed on.
            if key not in fresh and self.owners.get(key) == unit:
                del self.entries[key], self.owners[key]
                changed.add(key)
        self.entries.update(fresh)
        self.owners.update(dict.fromkeys(fresh, unit))
        if fresh:
            self.units[unit] = tuple(fresh)
        else:
            self.units.pop(unit, None)
        return changed

    def owner(self, key: Key) -> str:
        """Whom the entry at `key` serves, such as "vm web-1"; "nobody" where it is not wanted."""
        unit = self.owners.get(key)
        return f"{unit.kind} {unit.key}".strip() if unit else "nobody"

    def become(self, other: Desired) -> set[Key]:
        """Take over all that `other` has; the keys that differ now."""
        before = self.entries
        self.units, self.entries, self.owners = other.units, other.entries, other.owners
        return {key for key in {*before, *self.entries} if before.get(key) != self.entries.get(key)}


def compile_unit(view: FabricView, unit: Unit, datapath: str) -> Rules:
    """The entries of one unit at one datapath."""
    return Rules.of(_ROOMS[unit.kind](view, unit.key, datapath))


def compile_all(view: FabricView, datapath: str) -> Desired:
    """Everything for one datapath, computed from nothing."""
    desired = Desired()
    for unit in units_at(view, datapath):
        desired.refresh(unit, compile_unit(view, unit, datapath))
    return desired


class Applied(NamedTuple):
    """What changes mean, by datapath: the keys of entries that differ now, and the conntrack
    zones of ports that a VM was newly plugged into, which are to be forgotten first: what was
    known there is of another VM, or of the same one in an earlier stay. `paths` says that
    paths may differ, which switches have to follow in order (`rollout.py`)."""

    changed: dict[str, set[Key]]
    zones: dict[str, set[int]]
    paths: bool


class Compiler:
    """Keeps what every datapath is to have current."""

    def __init__(
        self, state: State, observed: Observed | None = None, *, tapping: bool = True
    ) -> None:
        self.view = FabricView.of(state, observed, tapping=tapping)
        self.desired = {d: compile_all(self.view, d) for d in datapaths(self.view)}

    def apply(self, changes: Iterable[Change]) -> Applied:
        """Make `changes` true, and say what that means for the switches."""
        impact = Impact(self.view)
        for change in changes:
            impact.note(change)
        zones = self._zones(impact.arrived)
        if impact.everything:
            return Applied(self._rebuild(), zones, True)
        if impact.topology:
            impact.reroute()
        changed: dict[str, set[Key]] = {}
        elsewhere: dict[object, Rules] = {}
        for datapath, unit in impact.spots:
            desired = self.desired.setdefault(datapath, Desired())
            keys = desired.refresh(unit, self._compiled(unit, datapath, elsewhere))
            if keys:
                changed.setdefault(datapath, set()).update(keys)
        return Applied(changed, zones, impact.topology)

    def _compiled(self, unit: Unit, datapath: str, elsewhere: dict[object, Rules]) -> Rules:
        """As `compile_unit`; a VM that is elsewhere looks the same from many datapaths, and is
        computed once for all of them."""
        seen = seen_from(self.view, unit.key, datapath) if unit.kind == "vm" else None
        if seen is None:
            return compile_unit(self.view, unit, datapath)
        rules = elsewhere.get(seen)
        if rules is None:
            rules = elsewhere[seen] = compile_unit(self.view, unit, datapath)
        return rules

    def _zones(self, ports: Iterable[tuple[str, int]]) -> dict[str, set[int]]:
        zones: dict[str, set[int]] = {}
        for datapath, port in ports:
            zones.setdefault(datapath, set()).add(zone(self.view.number(datapath), port))
        return zones

    def reload(self, state: State) -> Applied:
        """Go on from `state`, when the changes that led to it are no longer to be had."""
        self.view = FabricView.of(state, self.view.observed, tapping=self.view.tapping)
        return Applied(self._rebuild(), {}, True)

    def observe(self, vms: Iterable[str]) -> dict[str, set[Key]]:
        """What is observed of `vms` differs in `view.observed`: the keys of entries that differ
        now, by datapath."""
        changed: dict[str, set[Key]] = {}
        for key in vms:
            for datapath in {place.datapath for place in self.view.places.get(key, ())}:
                desired = self.desired.setdefault(datapath, Desired())
                unit = Unit("signatures", key)
                keys = desired.refresh(unit, compile_unit(self.view, unit, datapath))
                changed.setdefault(datapath, set()).update(keys)
        return changed

    def _rebuild(self) -> dict[str, set[Key]]:
        """Compute everything afresh: for changes in which datapaths there are."""
        self.view.reroute()
        known = datapaths(self.view)
        for datapath in known - self.desired.keys():
            self.desired[datapath] = Desired()
        fresh = {d: compile_all(self.view, d) if d in known else Desired() for d in self.desired}
        return {d: desired.become(fresh[d]) for d, desired in self.desired.items()}
