"""What a fabric is made of: switches, the cables and tunnels between them, hypervisors."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a switch is for: VMs attach to an edge; a core switch only carries labels."""

    EDGE = "edge"
    CORE = "core"


class CableKind(StrEnum):
    """How two switches are joined."""

    CABLE = "cable"
    #: Through somebody else's network: its bandwidth is limited and its latency is felt.
    TUNNEL = "tunnel"


@dataclass(frozen=True, slots=True)
class Switch:
    """A datapath. `dpid` lies between 1 and 2^64 - 1."""

    name: str
    dpid: int
    role: Role
    site: str = "default"


@dataclass(frozen=True, slots=True)
class Cable:
    """What joins switches `a` and `b`: `capacity_bps` in bit/s each way, `latency_s` in
    seconds one way."""

    a: str
    b: str
    capacity_bps: int = 10_000_000_000
    latency_s: float = 0.0
    kind: CableKind = CableKind.CABLE


@dataclass(frozen=True, slots=True)
class Hypervisor:
    """A host of VMs, attached to the fabric by the edge switch `edge`."""

    name: str
    edge: str


@dataclass(frozen=True, slots=True)
class Fabric:
    """A whole fabric, in an order that never changes, so that port numbers do not either."""

    name: str
    switches: tuple[Switch, ...]
    cables: tuple[Cable, ...]
    hosts: tuple[Hypervisor, ...]

    @property
    def sites(self) -> tuple[str, ...]:
        """The names of the sites, in the order in which switches first name them."""
        return tuple(dict.fromkeys(switch.site for switch in self.switches))

    def switch(self, name: str) -> Switch:
        """The switch called `name`; KeyError where there is none."""
        for switch in self.switches:
            if switch.name == name:
                return switch
        raise KeyError(f"fabric {self.name} has no switch {name!r}")

    def of_role(self, role: Role, site: str | None = None) -> tuple[Switch, ...]:
        """The switches of a role, at one site or at all."""
        return tuple(s for s in self.switches if s.role is role and site in (None, s.site))

    def hosts_on(self, edge: str) -> tuple[Hypervisor, ...]:
        """The hypervisors attached to the edge switch `edge`."""
        return tuple(host for host in self.hosts if host.edge == edge)


def islands(fabric: Fabric) -> list[list[str]]:
    """The names of switches that can reach each other, the largest group first.

    A fabric that is whole has one island.
    """
    neighbours: dict[str, set[str]] = {switch.name: set() for switch in fabric.switches}
    for cable in fabric.cables:
        if cable.a in neighbours and cable.b in neighbours:
            neighbours[cable.a].add(cable.b)
            neighbours[cable.b].add(cable.a)
    found: list[list[str]] = []
    unseen = dict.fromkeys(neighbours)
    while unseen:
        frontier, island = [next(iter(unseen))], set[str]()
        while frontier:
            name = frontier.pop()
            if name not in island:
                island.add(name)
                frontier.extend(neighbours[name] - island)
        found.append([name for name in neighbours if name in island])
        unseen = {name: None for name in unseen if name not in island}
    return sorted(found, key=len, reverse=True)
