"""Which rate does each meter get? Predicted demand first, then what is left over.

Two fillings: up to the demands, guarantees first; then, so that no capacity lies idle while a
VM could use it, on to the ceilings. Meters that would hardly change keep their rate.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from controller.decide.bandwidth.fill import Floats, Ints, fill
from controller.decide.bandwidth.records import (
    BandwidthError,
    Claim,
    Conflict,
    Direction,
    Meter,
    Reservation,
    Resource,
    Uses,
)

if TYPE_CHECKING:
    from scipy.sparse import csc_matrix, csr_matrix

#: A meter keeps its rate when the new one differs by no more than this share.
HYSTERESIS = 0.05
#: Rounding errors of sums are let pass.
_EXACT = 1e-9


@dataclass(frozen=True, slots=True)
class Allocation:
    """Rates for all claims in order. `conflicts` is empty, or says why the last rates stand."""

    meters: tuple[Meter, ...]
    conflicts: tuple[Conflict, ...] = ()

    def rates(self) -> dict[tuple[str, Direction], float]:
        """Rate by VM and direction."""
        return {(meter.vm, meter.direction): meter.rate_bps for meter in self.meters}


def decide(
    claims: Sequence[Claim],
    resources: Sequence[Resource],
    *,
    reservations: Sequence[Reservation] = (),
    now: float = 0.0,
    last: Allocation | None = None,
    hysteresis: float = HYSTERESIS,
) -> Allocation:
    """Meters for `claims` at `now` (Unix seconds).

    Where guarantees and active reservations do not fit, the conflicts are told and the meters
    of `last` stand. BandwidthError names every claim, resource and reservation that makes no
    sense.
    """
    problem = _Problem.of(claims, resources, [r for r in reservations if r.active(now)])
    conflicts = problem.conflicts()
    if conflicts:
        return Allocation(last.meters if last else (), conflicts)
    filled = fill(
        problem.usage, problem.free, problem.weight,
        np.minimum(problem.guarantee, problem.demand), problem.demand,
    )  # fmt: skip
    spread = fill(problem.usage, problem.free, problem.weight, filled.rates, problem.ceiling)
    rates, stop = spread.rates, spread.bottleneck
    stop = np.where(stop >= 0, stop, problem.narrow)
    if last is not None:
        rates = _steady(problem, rates, last, hysteresis)
    meters = (
        Meter(c.vm, c.direction, rate, resources[by].name if by >= 0 else None)
        for c, rate, by in zip(claims, rates.tolist(), stop.tolist(), strict=True)
    )
    return Allocation(tuple(meters))


@dataclass(frozen=True)
class _Problem:
    """Claims and resources as arrays; `free` is what reservations leave."""

    claims: Sequence[Claim]
    resources: Sequence[Resource]
    reservations: Sequence[Reservation]
    usage: csr_matrix
    free: Floats
    weight: Floats
    guarantee: Floats
    demand: Floats
    ceiling: Floats

    #: (claims,): the resource without which a claim could have more than its ceiling, or -1.
    narrow: Ints

    @classmethod
    def of(
        cls,
        claims: Sequence[Claim],
        resources: Sequence[Resource],
        reservations: Sequence[Reservation],
    ) -> _Problem:
        # Here, because the brain names this module at its start, and allocates later in a thread.
        from scipy.sparse import csr_matrix

        index = {resource.name: number for number, resource in enumerate(resources)}
        kinds, kind = _kinds(claims)
        demand = np.array([claim.demand_bps for claim in claims], dtype=np.float64)
        weight = np.array([claim.weight for claim in claims], dtype=np.float64)
        guarantee = np.array([claim.guarantee_bps for claim in claims], dtype=np.float64)
        ceiling = np.array([claim.ceiling_bps for claim in claims], dtype=np.float64)
        problems = [
            *_wrong_resources(resources, index),
            *_wrong_numbers(claims, demand, weight, guarantee, ceiling),
            *_wrong_uses(claims, kinds, kind, index),
            *_wrong_reservations(reservations, index),
        ]
        if problems:
            raise BandwidthError(*problems)
        capacity = np.array([resource.capacity_bps for resource in resources])
        free = capacity.copy()
        for reservation in reservations:
            free[index[reservation.tunnel]] -= reservation.rate_bps
        usage = _usage(kinds, index)
        # Without a ceiling a VM may have what the narrowest thing that it uses can carry.
        most = [[capacity[index[n]] / s for n, s in uses if s > 0] for uses in kinds]
        narrowest = np.array([min(some, default=0.0) for some in most])[kind]
        where = np.array(
            [
                index[[n for n, s in uses if s > 0][some.index(min(some))]]
                for uses, some in zip(kinds, most, strict=True)
            ],
            dtype=np.int64,
        )[kind]
        narrow = np.where(ceiling > narrowest, where, -1)
        ceiling = np.minimum(ceiling, narrowest)
        return cls(
            claims=claims,
            resources=resources,
            reservations=reservations,
            usage=csr_matrix(usage[:, kind]),
            free=free,
            weight=weight,
            guarantee=guarantee,
            demand=np.minimum(demand, ceiling),
            ceiling=ceiling,
            narrow=narrow,
        )

    def conflicts(self) -> tuple[Conflict, ...]:
        """For each resource whose guarantees do not fit, the fewest that do not fit together.

        Promises are lower bounds, so each resource can be looked at alone. The largest ones
        until they are too many are such a set: without the last they fit, and without a larger
        one even more so.
        """
        promised = self.usage.multiply(self.guarantee[None, :]).tocsr()
        needed = np.asarray(promised.sum(axis=1)).reshape(-1)
        capacity = np.array([resource.capacity_bps for resource in self.resources])
        found = []
        for number in np.flatnonzero(needed > self.free + _EXACT * capacity).tolist():
            row = promised.getrow(number).tocoo()
            sizes = [
                (bps, self.claims[user].name)
                for user, bps in zip(row.col.tolist(), row.data.tolist(), strict=True)
            ]
            sizes += [
                (reservation.rate_bps, f"reservation {reservation.id}")
                for reservation in self.reservations
                if reservation.tunnel == self.resources[number].name
            ]
            members, total = [], 0.0
            for bps, name in sorted(sizes, key=lambda entry: (-entry[0], entry[1])):
                members.append(name)
                total += bps
                if total > capacity[number] * (1 + _EXACT):
                    break
            resource = self.resources[number]
            found.append(Conflict(resource.name, resource.capacity_bps, total, tuple(members)))
        return tuple(found)


def _kinds(claims: Sequence[Claim]) -> tuple[list[Uses], Ints]:
    """What claims use, each once, and (claims,) which of these each does. VMs of one host share
    the same tuple, which is looked at once."""
    kinds: dict[Uses, int] = {}
    seen: dict[int, int] = {}
    kind = np.empty(len(claims), dtype=np.int64)
    for number, claim in enumerate(claims):
        known = seen.get(id(claim.uses))
        if known is None:
            known = seen[id(claim.uses)] = kinds.setdefault(claim.uses, len(kinds))
        kind[number] = known
    return list(kinds), kind


def _usage(kinds: Sequence[Uses], index: Mapping[str, int]) -> csc_matrix:
    """(resources, kinds): the share of each."""
    from scipy.sparse import csc_matrix

    rows = np.array([index[name] for uses in kinds for name, _ in uses], dtype=np.int64)
    shares = np.array([share for uses in kinds for _, share in uses], dtype=np.float64)
    columns = np.repeat(np.arange(len(kinds)), [len(uses) for uses in kinds])
    return csc_matrix((shares, (rows, columns)), (len(index), len(kinds)))


def _steady(problem: _Problem, rates: Floats, last: Allocation, hysteresis: float) -> Floats:
    """`rates`, but the last ones where they are close and all resources still suffice."""
    known = last.rates()
    before = np.array([known.get((c.vm, c.direction), math.nan) for c in problem.claims])
    near = np.abs(before - rates) <= hysteresis * before
    near &= (before <= problem.ceiling) & (before >= np.minimum(problem.guarantee, problem.demand))
    mixed = np.where(near, before, rates)
    full = problem.usage @ mixed > problem.free * (1 + _EXACT)
    # Who keeps more than the new rate on a resource that this overloads takes the new rate:
    # rates fit, and nobody's load rises by that.
    overloading = np.asarray((problem.usage.T @ full.astype(np.float64)) > 0)
    return np.where(overloading & (mixed > rates), rates, mixed)


def _wrong_resources(resources: Sequence[Resource], index: Mapping[str, int]) -> Iterable[str]:
    if len(index) != len(resources):
        names = [resource.name for resource in resources]
        twice = sorted({name for name in names if names.count(name) > 1})
        yield f"resources {', '.join(twice)}: given twice: give each once"
    for resource in resources:
        if not (math.isfinite(resource.capacity_bps) and resource.capacity_bps > 0):
            yield (
                f"resource {resource.name}: capacity is {resource.capacity_bps} bit/s: it must be "
                "above 0; give it in the topology or take the port's speed"
            )


def _wrong_numbers(
    claims: Sequence[Claim], demand: Floats, weight: Floats, guarantee: Floats, ceiling: Floats
) -> Iterable[str]:
    twice = Counter((claim.vm, claim.direction) for claim in claims)
    if len(twice) < len(claims):
        for (vm, way), many in twice.items():
            if many > 1:
                yield f"claim {vm} {way}: given twice: give one for each VM and direction"
    for name, values in (("demand", demand), ("guarantee", guarantee), ("ceiling", ceiling)):
        good = (values >= 0) & ((name == "ceiling") | np.isfinite(values))
        for number in np.flatnonzero(~good).tolist():
            told = f"claim {claims[number].name}: {name} is {values[number]} bit/s"
            yield f"{told}: give a number from 0"
    for number in np.flatnonzero(~((weight > 0) & np.isfinite(weight))).tolist():
        yield f"claim {claims[number].name}: weight is {weight[number]:g}: give a number above 0"
    for number in np.flatnonzero(guarantee > ceiling).tolist():
        yield (
            f"claim {claims[number].name}: the guarantee of {guarantee[number]:.6g} bit/s is "
            f"above the ceiling of {ceiling[number]:.6g}: raise it or lower the guarantee"
        )


def _wrong_uses(
    claims: Sequence[Claim], kinds: Sequence[Uses], kind: Ints, index: Mapping[str, int]
) -> Iterable[str]:
    for number, uses in enumerate(kinds):
        wrong = [*_wrong(uses, index)]
        for claim in np.flatnonzero(kind == number).tolist() if wrong else ():
            yield from (f"claim {claims[claim].name}: {told}" for told in wrong)


def _wrong(uses: Uses, index: Mapping[str, int]) -> Iterable[str]:
    if not any(share > 0 for _, share in uses):
        yield "it uses no resource: name at least its host's uplink"
    if len({name for name, _ in uses}) < len(uses):
        yield "it uses a resource twice: add up the shares"
    for name, share in uses:
        if name not in index:
            yield f"it uses {name}, which is no resource: add it"
        if not 0 <= share <= 1:
            yield f"its share of {name} is {share}: give one from 0 to 1"


def _wrong_reservations(
    reservations: Sequence[Reservation], index: Mapping[str, int]
) -> Iterable[str]:
    for reservation in reservations:
        if reservation.tunnel not in index:
            yield (
                f"reservation {reservation.id}: {reservation.tunnel} is no resource: "
                "name a tunnel of the topology"
            )
        if not (math.isfinite(reservation.rate_bps) and reservation.rate_bps >= 0):
            yield (
                f"reservation {reservation.id}: its rate is {reservation.rate_bps} bit/s: "
                "give a number from 0"
            )
