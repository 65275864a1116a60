"""1,000 VMs on 8 edges and 4 cores: how fast an event becomes rules, whether the core stays as
small as it was, who reaches whom, and who must not.
"""

from __future__ import annotations

import random

from mininet_labs.deployment import wait_until
from mininet_labs.traffic import probe
from tests.benchmarks.harness import Bench, Json, Options, bench, percentile, say
from topologies.generate import leaf_spine

EDGES, CORES, TENANTS = 8, 4, 10
#: Pairs probed of each kind.
PAIRS = 240
SEED = 1


def core_rules(running: Bench) -> int:
    """Flow entries of all core switches together, as the switches tell."""
    return sum(
        line.count("cookie=")
        for name in running.lab.cores
        for line in running.lab.ofctl("dump-flows", name).splitlines()
    )


def run(options: Options) -> Json:
    """Place all VMs, one event after another; then plug guests into some of the ports, and
    probe pairs of them."""
    total, guests = (200, 50) if options.quick else (1_000, 60)
    rng = random.Random(SEED)
    with bench(leaf_spine(EDGES, CORES, 1), tenants=TENANTS) as running:
        say("making", total, "ports")
        for index, edge in enumerate(running.lab.edges):
            names = [f"tap{n}" for n in range(total) if running.edge_of(n) == index]
            running.lab.silent_ports(edge, names)
        running.define(range(total))
        times = []
        at_10 = 0
        for number in range(total):
            times.append(running.place(number))
            if number == 9:
                at_10 = core_rules(running)
            if number % 100 == 99:
                say("placed", number + 1, f"p50 {percentile(times, 0.5):.1f} ms")
        at_all = core_rules(running)
        real = sorted(rng.sample(range(total), guests))
        say("plugging", guests, "guests in")
        plug(running, real)
        allowed, forbidden = pairs(running, real, rng)
        say("probing", len(allowed), "allowed and", len(forbidden), "forbidden pairs")
        vm = running.guests
        reach = probe([(vm[a], vm[b]) for a, b in allowed])
        leak = probe([(vm[a], vm[b]) for a, b in forbidden])
        rules = sum(
            running.lab.ofctl("dump-flows", name).count("cookie=") for name in running.lab.edges
        )
        return {
            "vms": total,
            "event_to_rules_ms_p50": round(percentile(times, 0.5), 2),
            "event_to_rules_ms_p99": round(percentile(times, 0.99), 2),
            "event_to_rules_ms_max": round(max(times), 2),
            "core_rules_at_10_vms": at_10,
            f"core_rules_at_{total}_vms": at_all,
            "edge_rules": rules,
            "pairs_allowed": len(allowed),
            "pairs_forbidden": len(forbidden),
            "pairs_reachable": len(reach.reachable) / len(allowed),
            "pairs_leaking": len(leak.heard),
            "rss_mb": round(
                sum(running.deployment.memory_mb(p) for p in ("brain", "southbound")), 1
            ),
        }


def plug(running: Bench, real: list[int]) -> None:
    """Put guests behind ports that were silent. The switch numbers these ports anew, so their
    rules change too; return once all switches have confirmed that."""
    for index, edge in enumerate(running.lab.edges):
        here = [f"tap{number}" for number in real if running.edge_of(number) == index]
        running.lab.remove_ports(edge, here)
    for number in real:
        running.guest(number)
    wanted = {(number, running.lab.port_number(f"tap{number}")) for number in real}

    def known() -> bool:
        ports = {port.name: port.number for port in running.client.topology().ports}
        return all(ports.get(f"tap{n}") == at for n, at in wanted)

    wait_until(known, "the new ports are known")
    for number in real:
        running.client.vm(f"vm{number}", wait=True)


def pairs(
    running: Bench, real: list[int], rng: random.Random
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Pairs of guests of one tenant, and of different ones."""
    ordered = [(a, b) for a in real for b in real if a != b]
    same = [p for p in ordered if running.tenant_of(p[0]) == running.tenant_of(p[1])]
    other = [p for p in ordered if running.tenant_of(p[0]) != running.tenant_of(p[1])]
    return rng.sample(same, min(PAIRS, len(same))), rng.sample(other, PAIRS)
