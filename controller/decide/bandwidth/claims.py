"""Who shares what? Claims and resources from the state of record and the policy, and what comes of
an allocation as records with reasons. Pure.

Shared are a host's uplink, where the policy tells its capacity, and the links of an edge
together, where that of each is known: the edge spreads connections over them. A VM that moves
claims at both hosts. What VMs of one host say to each other counts as if it left.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from controller.decide.bandwidth.allocate import Allocation
from controller.decide.bandwidth.qos import QosPolicy, Terms
from controller.decide.bandwidth.records import Claim, Direction, Resource
from controller.decide.paths.tunnels import reserved
from controller.model.nouns import Bandwidth, Link, Phase, RateLimit, Tunnel, Vm
from controller.model.state import State

Key = tuple[str, Direction]

#: No meter is below this many kbit/s, nor below this share of an equal part of what limits it: a
#: VM that was idle can begin, whatever others want. So little more than there is may be given
#: away, and only while nobody begins.
LEAST_KBIT, LEAST_PART = 64, 0.05
_KILO = 1_000.0


@dataclass(frozen=True, slots=True)
class Ask:
    """All that bandwidth is decided on. `terms` are those of every VM that is placed."""

    claims: tuple[Claim, ...]
    resources: tuple[Resource, ...]
    terms: Mapping[str, Terms]


def ask(state: State, policy: QosPolicy, demand_bps: Mapping[Key, float], now: float) -> Ask:
    """The claims of all VMs that share something at `now` (Unix seconds), with the demands that
    are known (else 0)."""
    resources = {**_uplinks(state, policy), **_edges(state, now)}
    moving = {
        move.vm: (move.source, move.target)
        for move in state.migrations.values()
        if move.phase in (Phase.STARTED, Phase.ACTIVATED)
    }
    claims, terms = [], {}
    for vm in state.vms.values():
        placement = state.placements.get(vm.id)
        if placement is None:
            continue
        hosts = dict.fromkeys((placement.host, *moving.get(vm.id, ())))
        terms[vm.id] = policy.terms(vm.id, vm.tenant, vm.groups)
        for way in Direction:
            names = [f"uplink of host {host}, {way}" for host in hosts]
            names += [
                f"links of edge {state.hosts[host].datapath}, {way}"
                for host in hosts
                if host in state.hosts
            ]
            uses = tuple((name, 1.0) for name in dict.fromkeys(names) if name in resources)
            if uses:
                limit = _limit(state.rate_limits.get(vm.id), way)
                claims.append(
                    _claim(vm, way, terms[vm.id], limit, demand_bps.get((vm.id, way), 0.0), uses)
                )
    used = {name for claim in claims for name, _ in claim.uses}
    return Ask(tuple(claims), tuple(resources[name] for name in sorted(used)), terms)


def records(
    state: State, asked: Ask, allocation: Allocation, claims: Iterable[Claim]
) -> dict[str, Bandwidth]:
    """What each VM may send and receive, and why. `claims` are those that were allocated on."""
    users: dict[str, int] = {}
    wants: dict[Key, float] = {}
    uses: dict[Key, tuple[str, ...]] = {}
    ceilings: dict[Key, float] = {}
    for claim in claims:
        wants[claim.vm, claim.direction] = claim.demand_bps
        ceilings[claim.vm, claim.direction] = claim.ceiling_bps
        uses[claim.vm, claim.direction] = tuple(name for name, _ in claim.uses)
        for name, _ in claim.uses:
            users[name] = users.get(name, 0) + 1
    capacity = {resource.name: resource.capacity_bps for resource in asked.resources}
    found: dict[str, dict[Direction, tuple[int, str]]] = {}
    for meter in allocation.meters:
        terms = asked.terms.get(meter.vm)
        if terms is None:
            continue
        reason = _share(
            terms, meter.limited_by, capacity, users, wants.get((meter.vm, meter.direction), 0.0)
        )
        part = LEAST_PART * min(
            (capacity[name] / users[name] for name in uses[meter.vm, meter.direction]), default=0.0
        )
        bps = min(max(meter.rate_bps, part), ceilings[meter.vm, meter.direction])
        found.setdefault(meter.vm, {})[meter.direction] = _kbit(bps), reason
    for vm, terms in asked.terms.items():
        if terms.ceiling_bps is not None:
            ceiling = _kbit(terms.ceiling_bps), f"the ceiling of its priority, {terms.priority}"
            for way in Direction:
                found.setdefault(vm, {}).setdefault(way, ceiling)
    return {
        vm: Bandwidth(
            vm=vm,
            **{
                f"{way.value}_{field}": value
                for way, (kbit, reason) in ways.items()
                for field, value in (("kbit", kbit), ("reason", reason))
            },
        )
        for vm, ways in found.items()
        if vm in state.vms
    }


def _share(
    terms: Terms,
    limited_by: str | None,
    capacity: Mapping[str, float],
    users: Mapping[str, int],
    wanted_bps: float,
) -> str:
    wants = f"it wants {wanted_bps / 1e6:.3g} Mbit/s"
    if terms.guarantee_bps:
        wants += f", is promised {terms.guarantee_bps / 1e6:.3g}"
    if limited_by is None or limited_by not in capacity:
        return f"its own ceiling ({wants}; priority {terms.priority})"
    return (
        f"its share of {limited_by}, {capacity[limited_by] / 1e6:.4g} Mbit/s for "
        f"{users[limited_by]} VMs ({wants}; priority {terms.priority}, weight {terms.weight:g})"
    )


def _kbit(bps: float) -> int:
    return max(LEAST_KBIT, min(int(bps / _KILO + 1e-6), 0xFFFF_FFFF))


def _limit(limit: RateLimit | None, way: Direction) -> float:
    kbit = None if limit is None else limit.out_kbit if way is Direction.OUT else limit.in_kbit
    return math.inf if kbit is None else kbit * _KILO


def _claim(
    vm: Vm,
    way: Direction,
    terms: Terms,
    limit_bps: float,
    demand_bps: float,
    uses: tuple[tuple[str, float], ...],
) -> Claim:
    ceiling = min(limit_bps, math.inf if terms.ceiling_bps is None else terms.ceiling_bps)
    guarantee = min(terms.guarantee_bps, ceiling)
    return Claim(vm.id, way, demand_bps, terms.weight, guarantee, ceiling, uses)


def _uplinks(state: State, policy: QosPolicy) -> dict[str, Resource]:
    found = {}
    for host in state.hosts:
        bps = policy.uplink_bps(host)
        if bps is not None:
            for way in Direction:
                name = f"uplink of host {host}, {way}"
                found[name] = Resource(name, bps)
    return found


def _edges(state: State, now: float) -> dict[str, Resource]:
    """The links of each edge, where of all of them somebody says what they carry; those that are
    down carry nothing."""
    edges = {host.datapath for host in state.hosts.values()}
    tunnels = {tunnel.link: tunnel for tunnel in state.tunnels.values()}
    total: dict[tuple[str, Direction], float] = {}
    unknown = set()
    for link in state.links.values():
        if not link.up:
            continue
        for end, way in ((link.datapath, Direction.OUT), (link.to_datapath, Direction.IN)):
            if end in edges:
                bps = _speed(state, tunnels, link, now)
                total[end, way] = total.get((end, way), 0.0) + (bps or 0.0)
                if bps is None:
                    unknown.add((end, way))
    return {
        name: Resource(name, bps)
        for (edge, way), bps in total.items()
        if (edge, way) not in unknown and (name := f"links of edge {edge}, {way}")
    }


def _speed(state: State, tunnels: Mapping[str, Tunnel], link: Link, now: float) -> float | None:
    """bit/s of a link for all: of a tunnel what is not reserved; as an operator says. What a port
    says of itself is not taken for a limit: a virtual one says whatever it likes."""
    back = f"{link.to_datapath}:{link.to_port}"
    for end, forward in ((link.key, True), (back, False)):
        if end in tunnels:
            taken = reserved(tunnels[end], state.reservations.values(), forward, now)
            # A resource is never nothing: who reserves all leaves a trickle.
            return max(float(tunnels[end].capacity - taken), _KILO * LEAST_KBIT)
    told = state.link_speeds.get(link.key)
    return float(told.speed if told is not None else link.capacity) or None
