"""The state of record seen as a fabric: who is plugged in where, which edge must know which
tenant, and how switches hang together. Derived, kept current change by change, and never
written to by anyone else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from controller.act.dataplane import paths
from controller.act.dataplane.trees import Adjacency, Plan
from controller.act.dataplane.trees import Place as PortPlace
from controller.act.dataplane.weighted import Laid, lay, weigh
from controller.model.nouns import (
    Host,
    Migration,
    Nic,
    Phase,
    Placement,
    Subnet,
    Tenant,
    Vm,
)
from controller.model.signatures import Observed
from controller.model.state import State


@dataclass(frozen=True, slots=True)
class Place:
    """One NIC of a VM at one port of an edge. `port` is None while the switch has no port
    of that name. At a standby place (the target of a migration that has not been seen to
    arrive) the first packet sent tells of the VM's arrival; `grace` lets established
    connections through there though this edge has not seen them begin."""

    vm: str
    tenant: str
    nic: Nic
    datapath: str
    port_name: str
    port: int | None
    standby: bool = False
    grace: bool = False
    migration: str | None = None


@dataclass(slots=True)
class FabricView:
    """The state and what follows from it."""

    state: State = field(default_factory=State)
    #: Who talks to whom, as far as it is counted: no record of the state, and not derived.
    observed: Observed = field(default_factory=Observed)
    #: Port numbers by (datapath, name): more than one only while a port is being replaced.
    port_numbers: dict[tuple[str, str], set[int]] = field(default_factory=dict)
    #: Open migration of a VM.
    moving: dict[str, Migration] = field(default_factory=dict)
    #: VM to its places, and (datapath, port number) to a place.
    places: dict[str, tuple[Place, ...]] = field(default_factory=dict)
    plugged: dict[tuple[str, int], Place] = field(default_factory=dict)
    #: (VM, MAC) to the datapaths that packets for that NIC are to be sent to: one, or both
    #: while the VM moves. After activation the source, still draining, receives no more.
    located: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    #: How many places of a tenant or subnet an edge has.
    tenant_edges: dict[str, Counter[str]] = field(default_factory=dict)
    subnet_edges: dict[str, Counter[str]] = field(default_factory=dict)
    #: Places by (subnet, datapath), and VMs by (datapath, port name), known port or not.
    subnet_places: dict[tuple[str, str], set[Place]] = field(default_factory=dict)
    named: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    #: How many places of each VM a datapath has.
    vms_at: dict[str, Counter[str]] = field(default_factory=dict)
    #: VMs of a tenant; VMs with a NIC in a subnet.
    tenant_vms: dict[str, set[str]] = field(default_factory=dict)
    subnet_vms: dict[str, set[str]] = field(default_factory=dict)
    tenant_subnets: dict[str, set[str]] = field(default_factory=dict)
    tenant_rules: dict[str, set[str]] = field(default_factory=dict)
    #: Keys of the services that are known of a VM.
    vm_services: dict[str, set[str]] = field(default_factory=dict)
    #: Whether packets are copied to learn what VMs offer.
    tapping: bool = True
    edges: Counter[str] = field(default_factory=Counter)
    routes: paths.Routes = field(default_factory=lambda: paths.Routes(Plan({}, ())))
    #: What the routes of record ask for, and of which plan.
    _laid: tuple[Plan, Laid] | None = None

    @classmethod
    def of(
        cls, state: State, observed: Observed | None = None, *, tapping: bool = True
    ) -> FabricView:
        """A view of a whole state, which belongs to the view from now on."""
        view = cls(state, observed or Observed(), tapping=tapping)
        for port in state.ports.values():
            view.port_numbers.setdefault((port.datapath, port.name), set()).add(port.number)
        for host in state.hosts.values():
            view.edges[host.datapath] += 1
        for subnet in state.subnets.values():
            view.tenant_subnets.setdefault(subnet.tenant, set()).add(subnet.id)
        for rule in state.access_rules.values():
            view.tenant_rules.setdefault(rule.tenant, set()).add(rule.id)
        for service in state.services.values():
            view.vm_services.setdefault(service.vm, set()).add(service.key)
        for migration in state.migrations.values():
            if migration.open:
                view.moving[migration.vm] = migration
        for vm in state.vms.values():
            view.index_vm(vm)
            view.settle(vm.id)
        view.reroute()
        return view

    # --- What there is ---------------------------------------------------------------

    def tenant(self, key: str) -> Tenant | None:
        """The tenant, if known."""
        return self.state.tenants.get(key)

    def subnet(self, key: str) -> Subnet | None:
        """The subnet, if known."""
        return self.state.subnets.get(key)

    def number(self, datapath: str) -> int:
        """The datapath's number in labels; 0 while the store has not met it."""
        known = self.state.datapaths.get(datapath)
        return known.number if known else 0

    def is_edge(self, datapath: str) -> bool:
        """Whether VMs attach here."""
        return self.edges[datapath] > 0

    def edges_of_tenant(self, tenant: str) -> frozenset[str]:
        """Datapaths where the tenant has a place."""
        return frozenset(d for d, n in self.tenant_edges.get(tenant, {}).items() if n > 0)

    def edges_of_subnet(self, subnet: str) -> frozenset[str]:
        """Datapaths where the subnet has a place."""
        return frozenset(d for d, n in self.subnet_edges.get(subnet, {}).items() if n > 0)

    def tenant_at(self, tenant: str, datapath: str) -> bool:
        """Whether a VM of the tenant is, or is about to be, plugged in at the datapath."""
        return self.tenant_edges.get(tenant, Counter())[datapath] > 0

    def subnet_at(self, subnet: str, datapath: str) -> bool:
        """Whether a VM of the subnet is, or is about to be, plugged in at the datapath."""
        return self.subnet_edges.get(subnet, Counter())[datapath] > 0

    def places_at(self, datapath: str, vm: str) -> list[Place]:
        """The VM's places at one datapath whose port is known."""
        return [p for p in self.places.get(vm, ()) if p.datapath == datapath and p.port]

    def dpi_port(self, datapath: str) -> int | None:
        """Number of the port to which copies of packets go, if one of the hosts there names a
        port that is up: that of the first host."""
        for host in sorted(self.state.hosts.values(), key=lambda host: host.id):
            if host.datapath != datapath or host.dpi_port is None:
                continue
            numbers = self.port_numbers.get((datapath, host.dpi_port), set())
            up = [n for n in numbers if self.state.ports[f"{datapath}:{n}"].up]
            if up:
                return max(up)
        return None

    # --- Upkeep ----------------------------------------------------------------------

    def index_vm(self, vm: Vm) -> None:
        """Enter a VM in the indexes by tenant and subnet."""
        self.tenant_vms.setdefault(vm.tenant, set()).add(vm.id)
        for nic in vm.nics:
            self.subnet_vms.setdefault(nic.subnet, set()).add(vm.id)

    def unindex_vm(self, vm: Vm) -> None:
        """Take a VM out of the indexes."""
        self.tenant_vms.get(vm.tenant, set()).discard(vm.id)
        for nic in vm.nics:
            self.subnet_vms.get(nic.subnet, set()).discard(vm.id)

    def reroute(self) -> None:
        """Compute the paths afresh: the plan where other links or edges are there, and what is
        used of it."""
        adjacency, down = self._fabric()
        edges = tuple(sorted(e for e in self.edges if self.edges[e] > 0 and self.number(e)))
        plan = self.routes.plan
        if (plan.adjacency, plan.edges) != (adjacency, edges):
            plan = paths.plan(adjacency, edges)
        if self._laid is None or self._laid[0] is not plan:
            self._laid = plan, lay(plan, self.state.routes.values())
        self.routes = paths.choose(plan, down, weigh(self._laid[1], down))

    def rechoose(self) -> None:
        """Other routes are asked for: the next `reroute` is to lay them."""
        self._laid = None

    def _fabric(self) -> tuple[Adjacency, set[PortPlace]]:
        """The links that are known in both directions, and the ends of those of them that are
        not up in both."""
        links = self.state.links
        ports: dict[str, dict[str, set[int]]] = {}
        down: set[PortPlace] = set()
        for link in links.values():
            back = links.get(f"{link.to_datapath}:{link.to_port}")
            ends = {(link.datapath, link.port), (link.to_datapath, link.to_port)}
            if back is None or (back.to_datapath, back.to_port) not in ends:
                continue  # one of the two has been plugged elsewhere since
            if not ends.isdisjoint(self.plugged):
                continue  # into a VM, whatever it claims
            ports.setdefault(link.datapath, {}).setdefault(link.to_datapath, set()).add(link.port)
            if not (link.up and back.up):
                down |= ends
        adjacency = {
            switch: {near: tuple(sorted(numbers)) for near, numbers in neighbours.items()}
            for switch, neighbours in ports.items()
        }
        return adjacency, down

    def settle(self, vm_id: str) -> None:
        """Compute a VM's places afresh, and count them."""
        for place in self.places.pop(vm_id, ()):
            self._count(place, -1)
            self.located.pop((vm_id, place.nic.mac), None)
        vm = self.state.vms.get(vm_id)
        if vm is None:
            return
        placement = self.state.placements.get(vm_id)
        found = tuple(self._places(vm, placement, self.moving.get(vm_id)))
        if found:
            self.places[vm_id] = found
        migration = self.moving.get(vm_id)
        left = migration is not None and migration.phase is Phase.ACTIVATED
        for place in found:
            self._count(place, +1)
            if not left or place.migration:
                key = (vm_id, place.nic.mac)
                self.located[key] = tuple(
                    dict.fromkeys((*self.located.get(key, ()), place.datapath))
                )

    def _count(self, place: Place, by: int) -> None:
        self.tenant_edges.setdefault(place.tenant, Counter())[place.datapath] += by
        self.subnet_edges.setdefault(place.nic.subnet, Counter())[place.datapath] += by
        here = self.vms_at.setdefault(place.datapath, Counter())
        here[place.vm] += by
        if not here[place.vm]:
            del here[place.vm]
        same_subnet = self.subnet_places.setdefault((place.nic.subnet, place.datapath), set())
        same_name = self.named.setdefault((place.datapath, place.port_name), set())
        if by > 0:
            same_subnet.add(place)
            same_name.add(place.vm)
        else:
            same_subnet.discard(place)
            same_name.discard(place.vm)
        if place.port is None:
            return
        where = (place.datapath, place.port)
        if by > 0:
            self.plugged[where] = place
        elif self.plugged.get(where) == place:
            del self.plugged[where]

    def _places(
        self, vm: Vm, placement: Placement | None, migration: Migration | None
    ) -> Iterator[Place]:
        if placement is None:
            return
        if migration is None:
            yield from self._at(vm, placement.host, placement.ports)
        elif migration.phase is Phase.STARTED:
            yield from self._at(vm, migration.source, migration.source_ports)
            yield from self._at(vm, migration.target, migration.ports, migration, standby=True)
        elif migration.phase is Phase.ACTIVATED:
            yield from self._at(vm, migration.target, migration.ports, migration)
            yield from self._at(vm, migration.source, migration.source_ports)
        else:
            yield from self._at(vm, placement.host, placement.ports, migration)

    def _at(
        self,
        vm: Vm,
        host_id: str,
        ports: tuple[str, ...],
        migration: Migration | None = None,
        *,
        standby: bool = False,
    ) -> Iterator[Place]:
        host: Host | None = self.state.hosts.get(host_id)
        if host is None:
            return
        for nic, name in zip(vm.nics, ports, strict=False):
            yield Place(
                vm=vm.id,
                tenant=vm.tenant,
                nic=nic,
                datapath=host.datapath,
                port_name=name,
                port=max(self.port_numbers.get((host.datapath, name), ()), default=None),
                standby=standby,
                grace=migration is not None,
                migration=migration.id if migration else None,
            )
