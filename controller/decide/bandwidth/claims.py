"""Who shares what? Claims and resources from the state of record and the policy, and what comes of
an allocation as records with reasons. Pure.

Shared are a host's uplink, where the policy tells its capacity; the links of an edge together,
where that of each is known: the edge spreads connections over them; and each link of the fabric
whose capacity is known, by what VMs send over it (`crossing.py`). A VM that moves claims at both
hosts. What VMs of one host say to each other counts as if it left.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from controller.decide.bandwidth.allocate import Allocation
from controller.decide.bandwidth.crossing import NOWHERE, Crossing
from controller.decide.bandwidth.qos import QosPolicy, Terms
from controller.decide.bandwidth.records import Claim, Direction, Resource, Uses
from controller.decide.paths.fabric import known_speed
from controller.model.nouns import Bandwidth, Phase, RateLimit, Vm
from controller.model.state import State

Key = tuple[str, Direction]

#: No meter is below this many kbit/s, nor below this share of an equal part of what limits it: a
#: VM that was idle can begin, whatever others want. So little more than there is may be given
#: away, and only while nobody begins.
LEAST_KBIT, LEAST_PART = 64, 0.05
_KILO = 1_000.0


@dataclass(frozen=True, slots=True)
class Ask:
    """All that bandwidth is decided on. `terms` are those of every VM that is placed, `edge_of`
    the edge that each sends from."""

    claims: tuple[Claim, ...]
    resources: tuple[Resource, ...]
    terms: Mapping[str, Terms]
    edge_of: Mapping[str, str]
    crossing: Crossing = NOWHERE

    def left(self, claims: Sequence[Claim]) -> tuple[Resource, ...]:
        """The resources with what links leave to those whom they hold back, when `claims` tell
        what all VMs want; no less than what these are promised, as far as there is so much."""
        wanted: dict[str, float] = {}
        promised: dict[str, float] = {}
        for claim in claims if self.crossing.capacity else ():
            if claim.direction is Direction.OUT and claim.vm in self.edge_of:
                edge = self.edge_of[claim.vm]
                wanted[edge] = wanted.get(edge, 0.0) + claim.demand_bps
            for name, share in claim.uses if claim.guarantee_bps else ():
                promised[name] = promised.get(name, 0.0) + share * claim.guarantee_bps
        left = {
            name: max(bps, min(promised.get(name, 0.0), self.crossing.capacity[name]))
            for name, bps in self.crossing.left(wanted).items()
        }
        return tuple(
            replace(resource, capacity_bps=left.get(resource.name, resource.capacity_bps))
            for resource in self.resources
        )


def ask(
    state: State,
    policy: QosPolicy,
    demand_bps: Mapping[Key, float],
    now: float,
    crossing: Crossing = NOWHERE,
) -> Ask:
    """The claims of all VMs that share something at `now` (Unix seconds), with the demands that
    are known (else 0); `crossing` tells which links they send over."""
    links = {name: Resource(name, bps) for name, bps in crossing.capacity.items()}
    resources = {**_uplinks(state, policy), **_edges(state, now), **links}
    moving = {
        move.vm: (move.source, move.target)
        for move in state.migrations.values()
        if move.phase in (Phase.STARTED, Phase.ACTIVATED)
    }
    terms: dict[str, Terms] = {}
    edge_of: dict[str, str] = {}
    claims: list[Claim] = []
    # VMs of one host share the same tuple: who allocates looks at each only once.
    known: dict[tuple[tuple[str, ...], Direction], Uses] = {}
    for vm in state.vms.values():
        placement = state.placements.get(vm.id)
        if placement is None:
            continue
        hosts = tuple(dict.fromkeys((placement.host, *moving.get(vm.id, ()))))
        if placement.host in state.hosts:
            edge_of[vm.id] = state.hosts[placement.host].datapath
        terms[vm.id] = policy.terms(vm.id, vm.tenant, vm.groups)
        for way in Direction:
            uses = known.get((hosts, way))
            if uses is None:
                uses = known[hosts, way] = _uses(state, hosts, way, resources, crossing)
            if uses:
                limit = _limit(state.rate_limits.get(vm.id), way)
                claims.append(
                    _claim(vm, way, terms[vm.id], limit, demand_bps.get((vm.id, way), 0.0), uses)
                )
    used = {name for uses in known.values() for name, _ in uses}
    shared = tuple(resources[name] for name in sorted(used))
    return Ask(tuple(claims), shared, terms, edge_of, crossing)


def _uses(
    state: State,
    hosts: Sequence[str],
    way: Direction,
    resources: Mapping[str, Resource],
    crossing: Crossing,
) -> Uses:
    """What VMs that are at `hosts` share with others."""
    found: dict[str, float] = {}
    for host in hosts:
        found[f"uplink of host {host}, {way}"] = 1.0
        edge = state.hosts[host].datapath if host in state.hosts else ""
        found[f"links of edge {edge}, {way}"] = 1.0
        for name, share in crossing.bound.get(edge, ()) if way is Direction.OUT else ():
            found[name] = max(share, found.get(name, 0.0))
    return tuple((name, share) for name, share in found.items() if name in resources)


def records(
    state: State, asked: Ask, allocation: Allocation, claims: Iterable[Claim]
) -> dict[str, Bandwidth]:
    """What each VM may send and receive, and why. `claims` are those that were allocated on."""
    known = {(claim.vm, claim.direction): claim for claim in claims}
    alike = Counter(claim.uses for claim in known.values())
    users: Counter[str] = Counter()
    for uses, many in alike.items():
        for name, _ in uses:
            users[name] += many
    capacity = {resource.name: resource.capacity_bps for resource in asked.resources}
    parts = {
        uses: LEAST_PART * min(capacity[name] / share / users[name] for name, share in uses)
        for uses in alike
    }
    found: dict[str, dict[Direction, tuple[int, str]]] = {}
    for meter in allocation.meters:
        terms = asked.terms.get(meter.vm)
        if terms is None:
            continue
        claim = known[meter.vm, meter.direction]
        reason = _share(terms, meter.limited_by, capacity, users, claim)
        bps = min(max(meter.rate_bps, parts[claim.uses]), claim.ceiling_bps)
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
    claim: Claim,
) -> str:
    wants = f"it wants {claim.demand_bps / 1e6:.3g} Mbit/s"
    if terms.guarantee_bps:
        wants += f", is promised {terms.guarantee_bps / 1e6:.3g}"
    if limited_by is None or limited_by not in capacity:
        return f"its own ceiling ({wants}; priority {terms.priority})"
    share = dict(claim.uses)[limited_by]
    part = f", where {share:.2g} of what it sends goes" if share < 1 else ""
    return (
        f"its share of {limited_by}, {capacity[limited_by] / 1e6:.4g} Mbit/s for "
        f"{users[limited_by]} VMs{part} ({wants}; priority {terms.priority}, "
        f"weight {terms.weight:g})"
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
    uses: Uses,
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
                bps = known_speed(state, tunnels, link, now)
                total[end, way] = total.get((end, way), 0.0) + (bps or 0.0)
                if bps is None:
                    unknown.add((end, way))
    return {
        name: Resource(name, bps)
        for (edge, way), bps in total.items()
        if (edge, way) not in unknown and (name := f"links of edge {edge}, {way}")
    }
