"""How fast and how exactly is bandwidth shared out?

`solver` is the pure part: meters for 10,000 VMs (both directions, uplinks of 500 hosts, the
fabric's links by what share of each VM's traffic is on them, guarantees, ceilings and weights)
from records to records, and the largest difference of any rate to max-min fairness solved from
its definition on a smaller fabric. `bandwidth_live` is what a lab shows.
"""

from __future__ import annotations

import time

import numpy as np
from scipy.sparse import csr_matrix

from controller.decide.bandwidth.allocate import decide
from controller.decide.bandwidth.fill import fill
from controller.decide.bandwidth.records import Claim, Direction, Resource
from tests.benchmarks import bandwidth_live
from tests.benchmarks.harness import Json, Options, say
from tests.benchmarks.maxmin import by_definition

SEED = 11
#: Uplinks and links, bit/s.
UPLINK, LINK = 25e9, 100e9
#: Links that a VM's traffic is spread over.
SPREAD = 8


def run(options: Options) -> Json:
    """All that is measured."""
    return solver(options) | bandwidth_live.run(options.quick)


def solver(options: Options) -> Json:
    """`solve_s` (wall), `solve_cpu_s`, `max_min_gap`, and how much of the fabric was used."""
    vms = 1_000 if options.quick else 10_000
    claims, resources = made_up(vms, vms // 20, np.random.default_rng(SEED))
    # The least of three, for others may use the machine as well.
    took = []
    for _ in range(3):
        begin, cpu = time.perf_counter(), time.process_time()
        allocation = decide(claims, resources)
        took.append((time.perf_counter() - begin, time.process_time() - cpu))
    seconds, cpu = min(took)
    again = time.process_time()
    decide(claims, resources, last=allocation)
    again = time.process_time() - again
    assert not allocation.conflicts, allocation.conflicts
    limited = sum(meter.limited_by is not None for meter in allocation.meters)
    result: Json = {
        "vms": vms,
        "rates": len(allocation.meters),
        "resources": len(resources),
        "limited_by_a_resource": limited,
        "solve_s": round(seconds, 3),
        "solve_cpu_s": round(cpu, 3),
        "again_cpu_s": round(again, 3),
        "max_min_gap": _gap(20 if options.quick else 60),
    }
    say("bandwidth", result)
    return result


def made_up(
    vms: int, hosts: int, random: np.random.Generator
) -> tuple[list[Claim], list[Resource]]:
    """VMs on hosts under a fabric that is too small for all demands."""
    links = max(SPREAD, hosts // 4)
    resources = [Resource(f"host{h} {way}", UPLINK) for h in range(hosts) for way in Direction]
    resources += [Resource(f"link{n}", LINK * vms / 10_000 * 5 / links * 40) for n in range(links)]
    claims = []
    for vm in range(vms):
        host = int(random.integers(hosts))
        for way in Direction:
            used = random.choice(links, size=SPREAD, replace=False).tolist()
            share = random.dirichlet(np.ones(SPREAD)).tolist()
            fabric = tuple((f"link{n}", part) for n, part in zip(used, share, strict=True))
            guarantee = float(random.choice([0.0, 0.0, 1e8, 3e8]))
            claims.append(
                Claim(
                    f"vm{vm}",
                    way,
                    demand_bps=float(random.lognormal(20.5, 1.5)),
                    weight=float(random.choice([0.25, 1.0, 4.0, 8.0])),
                    guarantee_bps=guarantee,
                    ceiling_bps=float(random.choice([1e9, 5e9, 25e9])),
                    uses=((f"host{host} {way}", 1.0), *fabric),
                )
            )
    return claims, resources


def _gap(vms: int) -> float:
    """Largest difference to the definition, as a share of the rate, over a few problems."""
    worst = 0.0
    for seed in range(5):
        claims, resources = made_up(vms, max(3, vms // 10), np.random.default_rng(seed))
        index = {resource.name: number for number, resource in enumerate(resources)}
        rows = [index[name] for claim in claims for name, _ in claim.uses]
        columns = [number for number, claim in enumerate(claims) for _ in claim.uses]
        shares = [share for claim in claims for _, share in claim.uses]
        usage = csr_matrix((shares, (rows, columns)), shape=(len(resources), len(claims)))
        problem = (
            usage,
            np.array([resource.capacity_bps for resource in resources]) / 8,
            np.array([claim.weight for claim in claims]),
            np.array([min(claim.guarantee_bps, claim.demand_bps) for claim in claims]) / 8,
            np.array([claim.demand_bps for claim in claims]),
        )
        exact = by_definition(*problem)
        found = fill(*problem).rates
        worst = max(worst, float((np.abs(found - exact) / np.maximum(exact, 1.0)).max()))
    return worst
