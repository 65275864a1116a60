"""Which network is there to choose paths in? From the state of record: edges, the links that
work, what each can still carry, and how long it takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from controller.decide.paths.links import FabricLink
from controller.decide.paths.tunnels import reserved
from controller.model.nouns import Link, Tunnel
from controller.model.state import State

#: A link of which all is reserved keeps this share: programs are solved by ratios.
_LEAST = 1e-3


@dataclass(frozen=True)
class Fabric:
    """Nodes and links, and which of the nodes are edges, by dpid."""

    nodes: tuple[str, ...]
    links: tuple[FabricLink, ...]
    edges: tuple[str, ...]

    @property
    def joints(self) -> frozenset[tuple[str, str]]:
        """Which nodes are joined: what a failure changes."""
        return frozenset((link.source, link.target) for link in self.links)

    @property
    def capacities(self) -> tuple[float, ...]:
        """What the links can carry: what a tunnel or an operator changes."""
        return tuple(link.capacity_bps for link in self.links)


def fabric_of(state: State, default_bps: float, now: float) -> Fabric:
    """The fabric that `state` tells of at `now`, Unix seconds.

    A link counts where it is known in both directions, up in both, and no VM is plugged in at
    its ends. Of parallel links the speeds are added up, and the slowest tells the latency. A
    link whose latency nobody has measured has the median of the others; one whose speed
    nobody knows has `default_bps`.
    """
    joined: dict[tuple[str, str], list[Link]] = {}
    for link in sorted(_working(state), key=lambda link: link.key):
        joined.setdefault((link.datapath, link.to_datapath), []).append(link)
    known = [k.latency_s for links in joined.values() for k in links if k.latency_s is not None]
    unknown_s = median(known) if known else 0.0
    tunnels = {tunnel.link: tunnel for tunnel in state.tunnels.values()}
    links = tuple(
        FabricLink(
            source,
            target,
            sum(_speed(state, tunnels, link, default_bps, now) for link in parallel),
            max(unknown_s if link.latency_s is None else link.latency_s for link in parallel),
        )
        for (source, target), parallel in sorted(joined.items())
    )
    edges = {h.datapath for h in state.hosts.values() if h.datapath in state.datapaths}
    nodes = {end for link in links for end in (link.source, link.target)} | edges
    return Fabric(tuple(sorted(nodes)), links, tuple(sorted(edges)))


def _working(state: State) -> Iterable[Link]:
    plugged = _plugged(state)
    for link in state.links.values():
        back = state.links.get(f"{link.to_datapath}:{link.to_port}")
        if back is None or (back.to_datapath, back.to_port) != (link.datapath, link.port):
            continue
        if link.up and back.up and not plugged & {link.key, back.key}:
            yield link


def _plugged(state: State) -> set[str]:
    """Keys of the ports that VMs are plugged into."""
    number = {(port.datapath, port.name): port.key for port in state.ports.values()}
    found = set()
    for placement in state.placements.values():
        host = state.hosts.get(placement.host)
        for name in placement.ports if host else ():
            assert host is not None
            found.add(number.get((host.datapath, name), ""))
    return found


def known_speeds(state: State, now: float) -> dict[tuple[str, str], float]:
    """bit/s between nodes that are joined, where of all their working links somebody says it."""
    tunnels = {tunnel.link: tunnel for tunnel in state.tunnels.values()}
    found: dict[tuple[str, str], float | None] = {}
    for link in _working(state):
        joint = link.datapath, link.to_datapath
        speed, before = known_speed(state, tunnels, link, now), found.get(joint, 0.0)
        found[joint] = None if speed is None or before is None else before + speed
    return {joint: speed for joint, speed in found.items() if speed is not None}


def known_speed(
    state: State, tunnels: Mapping[str, Tunnel], link: Link, now: float
) -> float | None:
    """bit/s that a link has for all, where somebody says: as a tunnel less what is reserved, as
    an operator says, as the topology does. What a port says of itself is not taken for a limit:
    a virtual one says whatever it likes."""
    back = f"{link.to_datapath}:{link.to_port}"
    for end, forward in ((link.key, True), (back, False)):
        tunnel = tunnels.get(end)
        if tunnel is not None:
            taken = reserved(tunnel, state.reservations.values(), forward, now)
            return max(tunnel.capacity - taken, _LEAST * tunnel.capacity)
    told = state.link_speeds.get(link.key)
    return float(told.speed if told is not None else link.capacity) or None


def _speed(
    state: State, tunnels: Mapping[str, Tunnel], link: Link, default_bps: float, now: float
) -> float:
    """As `known_speed`; else as its ends say, else `default_bps`."""
    known = known_speed(state, tunnels, link, now)
    if known is not None:
        return known
    ports = (state.ports.get(link.key), state.ports.get(f"{link.to_datapath}:{link.to_port}"))
    speeds = [port.speed for port in ports if port is not None and port.speed]
    return float(min(speeds, default=0) or default_bps)
