"""What a change may touch: which nouns have rules where, before the change and after it.

It is allowed to name too much, which costs a computation that changes nothing, and never too
little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from controller.act.dataplane.view import FabricView
from controller.model.nouns import (
    AccessRule,
    Bandwidth,
    CalendarEvent,
    Capture,
    Datapath,
    Host,
    Link,
    LinkSpeed,
    Marking,
    Migration,
    Placement,
    Port,
    RateLimit,
    Record,
    Reservation,
    Route,
    Service,
    Subnet,
    Tenant,
    Tunnel,
    Vm,
)
from controller.model.state import Change


class Unit(NamedTuple):
    """A noun that has rules: its kind in this module's terms, and its key."""

    kind: str
    key: str = ""


#: A unit at a datapath.
Spot = tuple[str, Unit]


def units_at(view: FabricView, datapath: str) -> Iterator[Unit]:
    """Every unit that may have rules at a datapath."""
    yield Unit("switch")
    yield Unit("paths")
    yield Unit("tap")
    if not view.is_edge(datapath):
        return
    yield Unit("observe")
    for key in view.state.tenants:
        if view.tenant_at(key, datapath):
            yield from tenant_units(view, key)
    for key in view.vms_at.get(datapath, ()):
        yield Unit("bandwidth", key)
        if key in view.state.captures:
            yield Unit("capture", key)


def tenant_units(view: FabricView, key: str) -> Iterator[Unit]:
    """Every unit of a tenant."""
    yield Unit("tenant", key)
    yield Unit("access", key)
    yield Unit("observe", key)
    for name in view.tenant_subnets.get(key, ()):
        yield Unit("subnet", name)
    for name in view.tenant_vms.get(key, ()):
        if name in view.places:  # a VM that is nowhere has no rules
            yield Unit("vm", name)
            if name in view.state.markings:
                yield Unit("marking", name)
            if view.vm_services.get(name):
                yield Unit("services", name)
            if observed(view, name):
                yield Unit("signatures", name)


def observed(view: FabricView, vm: str) -> bool:
    """Whether there are rules about whom a VM talks to."""
    return view.observed.concerns(vm) or any(p.grace for p in view.places.get(vm, ()))


def datapaths(view: FabricView) -> set[str]:
    """Every datapath that is known, or that a host names."""
    return {*view.state.datapaths, *(d for d, n in view.edges.items() if n > 0)}


class Impact:
    """The units that a run of changes may touch: `spots`, or `everything`. `topology` says
    that `reroute` has to add what depends on paths."""

    def __init__(self, view: FabricView) -> None:
        self.view = view
        self.spots: set[Spot] = set()
        #: Ports, by datapath and number, that a VM was newly plugged into.
        self.arrived: set[tuple[str, int]] = set()
        self.topology = False
        self.everything = False

    def note(self, change: Change) -> None:
        """Apply one change to the view, noting what depends on it before and after."""
        before = self.view.state.table(change.kind).get(change.key)
        after = change.record
        if before == after:
            self.view.state.apply(change)
            return
        record = after if after is not None else before
        handler: Callable[[Change, Record | None, Record | None], None] = getattr(
            self, f"_{change.kind}"
        )
        if record is not None:
            handler(change, before, after)

    # One method a kind. Each applies the change itself, between its two looks.

    def _tenant(self, change: Change, before: Tenant | None, after: Tenant | None) -> None:
        self.view.state.apply(change)
        self.whole_tenant(change.key, self.view.edges_of_tenant(change.key))

    def _subnet(self, change: Change, before: Subnet | None, after: Subnet | None) -> None:
        known = after or before
        if known is None:
            return
        self.view.state.apply(change)
        subnets = self.view.tenant_subnets.setdefault(known.tenant, set())
        if after is None:
            subnets.discard(change.key)
        else:
            subnets.add(change.key)
        self.whole_tenant(known.tenant, self.view.edges_of_tenant(known.tenant), {change.key})

    def _access_rule(
        self, change: Change, before: AccessRule | None, after: AccessRule | None
    ) -> None:
        self.view.state.apply(change)
        for known, present in ((before, False), (after, True)):
            if known is None:
                continue
            rules = self.view.tenant_rules.setdefault(known.tenant, set())
            if present:
                rules.add(known.id)
            else:
                rules.discard(known.id)
            for datapath in self.view.edges_of_tenant(known.tenant):
                self.spots.add((datapath, Unit("access", known.tenant)))

    def _host(self, change: Change, before: Host | None, after: Host | None) -> None:
        self.view.state.apply(change)
        if before and after and before.datapath == after.datapath:
            if before.dpi_port != after.dpi_port:
                self.spots.add((after.datapath, Unit("tap")))
            return
        if before:
            self.view.edges[before.datapath] -= 1
        if after:
            self.view.edges[after.datapath] += 1
        for vm_key in self._vms_on(change.key):
            self.view.settle(vm_key)
        self.everything = True

    def _vms_on(self, host: str) -> set[str]:
        state = self.view.state
        placed = {p.vm for p in state.placements.values() if p.host == host}
        moving = {m.vm for m in self.view.moving.values() if host in (m.source, m.target)}
        return placed | moving

    def _vm(self, change: Change, before: Vm | None, after: Vm | None) -> None:
        with _Watch(self, change.key):
            if before:
                self.view.unindex_vm(before)
            self.view.state.apply(change)
            if after:
                self.view.index_vm(after)
            self.view.settle(change.key)

    def _placement(self, change: Change, before: Placement | None, after: Placement | None) -> None:
        with _Watch(self, change.key):
            self.view.state.apply(change)
            self.view.settle(change.key)

    def _migration(self, change: Change, before: Migration | None, after: Migration | None) -> None:
        known = after or before
        if known is None:
            return
        with _Watch(self, known.vm):
            self.view.state.apply(change)
            if after is not None and after.open:
                self.view.moving[known.vm] = after
            elif (current := self.view.moving.get(known.vm)) and current.id == known.id:
                del self.view.moving[known.vm]
            self.view.settle(known.vm)

    def _port(self, change: Change, before: Port | None, after: Port | None) -> None:
        vms: set[str] = set()
        for known in (before, after):
            if known is not None:
                vms |= self.view.named.get((known.datapath, known.name), set())
        watches = [_Watch(self, key) for key in sorted(vms)]
        for watch in watches:
            watch.__enter__()
        self.view.state.apply(change)
        numbers = self.view.port_numbers
        if before is not None:
            numbers[before.datapath, before.name].discard(before.number)
        if after is not None:
            numbers.setdefault((after.datapath, after.name), set()).add(after.number)
        for key in vms:
            self.view.settle(key)
        for watch in watches:
            watch.__exit__()
        told = {(k.datapath, k.name) for k in (before, after) if k is not None}
        if any((h.datapath, h.dpi_port) in told for h in self.view.state.hosts.values()):
            self.spots.update((datapath, Unit("tap")) for datapath, _ in told)

    def _link(self, change: Change, before: Link | None, after: Link | None) -> None:
        self.view.state.apply(change)
        if before and after and _leads(before) == _leads(after):
            return  # how long it takes, or how it is watched
        self.topology = True
        for known in (before, after):
            if known is not None:  # whose ports are uplinks
                self.spots.add((known.datapath, Unit("paths")))

    def _route(self, change: Change, before: Route | None, after: Route | None) -> None:
        self.view.state.apply(change)
        self.view.rechoose()
        self.topology = True

    def _link_speed(
        self, change: Change, before: LinkSpeed | None, after: LinkSpeed | None
    ) -> None:
        self.view.state.apply(change)  # for those who choose routes

    def _tunnel(self, change: Change, before: Tunnel | None, after: Tunnel | None) -> None:
        self.view.state.apply(change)

    def _reservation(
        self, change: Change, before: Reservation | None, after: Reservation | None
    ) -> None:
        self.view.state.apply(change)

    def _calendar_event(
        self, change: Change, before: CalendarEvent | None, after: CalendarEvent | None
    ) -> None:
        self.view.state.apply(change)

    def _datapath(self, change: Change, before: Datapath | None, after: Datapath | None) -> None:
        self.view.state.apply(change)
        if before is None or after is None or before.number != after.number:
            self.everything = True

    def _service(self, change: Change, before: Service | None, after: Service | None) -> None:
        self.view.state.apply(change)
        for known, present in ((before, False), (after, True)):
            if known is None:
                continue
            keys = self.view.vm_services.setdefault(known.vm, set())
            if present:
                keys.add(known.key)
            else:
                keys.discard(known.key)
            for place in self.view.places.get(known.vm, ()):
                self.spots.add((place.datapath, Unit("services", known.vm)))

    def _rate_limit(
        self, change: Change, before: RateLimit | None, after: RateLimit | None
    ) -> None:
        self._metered(change)

    def _bandwidth(self, change: Change, before: Bandwidth | None, after: Bandwidth | None) -> None:
        self._metered(change)

    def _metered(self, change: Change) -> None:
        self.view.state.apply(change)
        for place in self.view.places.get(change.key, ()):
            self.spots.add((place.datapath, Unit("bandwidth", change.key)))

    def _capture(self, change: Change, before: Capture | None, after: Capture | None) -> None:
        self.view.state.apply(change)
        for place in self.view.places.get(change.key, ()):
            self.spots.add((place.datapath, Unit("capture", change.key)))

    def _marking(self, change: Change, before: Marking | None, after: Marking | None) -> None:
        self.view.state.apply(change)
        machine = self.view.state.vms.get(change.key)
        if machine is not None:
            edges = self.view.edges_of_tenant(machine.tenant)
            self.spots.update((datapath, Unit("marking", change.key)) for datapath in edges)

    # What depends on what.

    def whole_tenant(self, key: str, where: Iterable[str], also: Iterable[str] = ()) -> None:
        units = {*tenant_units(self.view, key), *(Unit("subnet", name) for name in also)}
        self.spots.update((datapath, unit) for datapath in where for unit in units)

    def reroute(self) -> None:
        """Compute the paths afresh, and note what depends on those that differ: labels and
        groups, and floods."""
        before = self.view.routes
        self.view.reroute()
        for datapath in datapaths(self.view):
            if not before.differ(self.view.routes, datapath):
                continue
            self.spots.add((datapath, Unit("paths")))
            if not before.floods_differ(self.view.routes, datapath):
                continue  # only what was chosen for the traffic
            for key in self.view.state.subnets:
                if self.view.subnet_at(key, datapath):
                    self.spots.add((datapath, Unit("subnet", key)))


def _leads(link: Link) -> tuple[str, int, bool]:
    """What paths depend on."""
    return link.to_datapath, link.to_port, link.up


class _Watch:
    """Notes what depends on where one VM is, before and after a change to that."""

    def __init__(self, impact: Impact, vm_key: str) -> None:
        self.impact = impact
        self.key = vm_key
        self.presence: dict[Unit, frozenset[str]] = {}
        self.where: frozenset[str] = frozenset()
        self.ports: list[frozenset[tuple[str, int]]] = []

    def _look(self) -> dict[Unit, frozenset[str]]:
        """Mark what depends on the VM as it is now; where its tenant and subnets are."""
        view, spots = self.impact.view, self.impact.spots
        places = view.places.get(self.key, ())
        self.where |= {p.datapath for p in places}
        self.ports.append(frozenset((p.datapath, p.port) for p in places if p.port))
        spots.update((p.datapath, Unit("subnet", p.nic.subnet)) for p in places)
        spots.update((p.datapath, Unit("bandwidth", self.key)) for p in places)
        if self.key in view.state.captures:
            spots.update((p.datapath, Unit("capture", self.key)) for p in places)
        if view.vm_services.get(self.key):
            spots.update((p.datapath, Unit("services", self.key)) for p in places)
        if observed(view, self.key):
            spots.update((p.datapath, Unit("signatures", self.key)) for p in places)
        machine = view.state.vms.get(self.key)
        if machine is None:
            return {}
        edges = view.edges_of_tenant(machine.tenant)
        spots.update((datapath, Unit("vm", self.key)) for datapath in edges)
        if self.key in view.state.markings:
            spots.update((datapath, Unit("marking", self.key)) for datapath in edges)
        if view.tenant_rules.get(machine.tenant):
            spots.update((datapath, Unit("access", machine.tenant)) for datapath in edges)
        return {
            Unit("tenant", machine.tenant): edges,
            **{Unit("subnet", n.subnet): view.edges_of_subnet(n.subnet) for n in machine.nics},
        }

    def __enter__(self) -> None:
        self.presence = self._look()

    def __exit__(self, *_: object) -> None:
        now = self._look()
        for unit in {*self.presence, *now}:
            # Where only one look saw the noun, the VM's own datapaths are what may differ.
            if unit in now and unit in self.presence:
                differ = self.presence[unit] ^ now[unit]
            else:
                differ = self.where
            self._appeared(unit, differ)
        before, after = self.ports
        self.impact.arrived |= after - before
        for datapath, port in before ^ after:
            if f"{datapath}:{port}" in self.impact.view.state.links:
                self.impact.topology = True
                self.impact.spots.add((datapath, Unit("paths")))

    def _appeared(self, unit: Unit, where: frozenset[str]) -> None:
        """A tenant or subnet came to the datapaths `where`, or left them."""
        if not where:
            return
        view, spots = self.impact.view, self.impact.spots
        if unit.kind == "tenant":
            self.impact.whole_tenant(unit.key, where)
            return
        # Every edge floods to all the others; neighbours are answered where the subnet is.
        spots.update((d, unit) for d in view.edges_of_subnet(unit.key) | where)
        others = [Unit("vm", o) for o in view.subnet_vms.get(unit.key, ()) if o in view.places]
        spots.update((d, other) for d in where for other in others)
