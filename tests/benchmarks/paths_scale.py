"""How long does it take to choose paths on large fabrics, and how far from the best are they?

All pairs of a fat-tree's edges (k = 8, 16) and of a wide-area network of 197 nodes, with skewed
traffic; the fat-trees once more after two cables of a hundred have failed. `solve_s` is
wall time from the network and a matrix to weighted paths in buckets, the paths' making
included, the least of a few runs; `solve_cpu_s` is the processor's in that run, and `waited_s`
the seconds in which it was ready and others had the processor: one thread computes, starts no
process and waits for nothing else, so these two make up the wall time.

`over_exact` is against the exact optimum over all paths there are (a program of flows by link
and destination) where that is solved in reasonable time, and else against a lower bound on it,
so that the true figure is at most that: whatever the routing, some link is used at least as
much as the traffic's cheapest ways cost when links are priced (weak duality). The bound is
computed again here from the prices alone.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra

from controller.decide.paths.buckets import BUCKETS, to_buckets
from controller.decide.paths.columns import Spread, spread
from controller.decide.paths.network import Floats, Network
from controller.decide.paths.optimum import Optimum
from controller.decide.paths.trees import path_set
from tests.benchmarks.harness import Json, Options, say
from tests.benchmarks.wide import gravity, tree, wan

SEED = 7
#: The worst link is to be this full at the optimum of an even spread; only ratios matter.
FILL = 0.3
#: Columns of an exact program that are solved in some seconds.
EXACT_COLUMNS = 20_000
FAILED = 0.02
#: Runs of each case, of which the quickest counts: others may use the machine as well.
RUNS = 3


def run(options: Options) -> Json:
    """Measure all, or with `--quick` the smaller ones."""
    cases: dict[str, tuple[Network, tuple[str, ...]]] = {}
    for k in (8,) if options.quick else (8, 16):
        network, edges = tree(k)
        cases[f"k{k}"] = network, edges
        cases[f"k{k}_failed"] = _failed(network), edges
    large = wan(60, 75, SEED) if options.quick else wan(197, 245, SEED)
    cases["wan60" if options.quick else "wan197"] = large, large.nodes
    return {name: _measure(name, *case) for name, case in cases.items()}


def _measure(name: str, network: Network, edges: tuple[str, ...]) -> Json:
    demand = gravity(len(edges), np.random.default_rng(SEED))
    demand *= FILL * network.capacity.sum() / network.cost.mean() / demand.sum() / 10
    where = network.numbers(edges)
    took = []
    for _ in range(RUNS):
        begin, cpu, waited = time.perf_counter(), time.process_time(), _waited()
        found = spread(network, where, demand)
        paths = path_set(network, found.forest)
        weights = np.zeros(len(paths.pair) + 1)
        egress = np.arange(len(edges) ** 2) % len(edges)
        np.add.at(weights, paths.of_tree, found.weights[egress])
        buckets = to_buckets(paths.pair, weights[:-1])
        seconds = time.perf_counter() - begin
        took.append((seconds, time.process_time() - cpu, _waited() - waited))
    seconds, cpu, waited = min(took)
    sent = demand.reshape(-1)
    worst = _worst(network, paths.loads(weights[:-1], sent))
    exact, by = _exact(network, where, demand, found)
    result: Json = {
        "solve_s": round(seconds, 3),
        "solve_cpu_s": round(cpu, 3),
        "waited_s": round(waited, 3),
        "over_exact": round(worst / exact, 5),
        "exact_by": by,
        "rounded_over_exact": round(
            _worst(network, paths.loads(buckets / BUCKETS, sent)) / exact, 5
        ),
        "even_over_exact": round(_worst(network, paths.loads(paths.even(), sent)) / exact, 5),
        "pairs": int((sent > 0).sum()),
        "links": len(network.links),
        "trees_most": int((found.weights > 0).sum(axis=1).max()),
    }
    say(name, result)
    return result


def _waited() -> float:
    """Seconds that this thread was ready to run and did not (Linux, sched-stats.rst)."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


def _worst(network: Network, loads: Floats) -> float:
    return float((loads / network.capacity).max())


def _exact(network: Network, where: Floats, demand: Floats, found: Spread) -> tuple[float, str]:
    if len(where) * len(network.links) <= EXACT_COLUMNS:
        return Optimum(network, where).of(demand), "arc program"
    size = len(network.nodes)
    price = found.prices / found.prices.sum() / network.capacity
    graph = csr_matrix((price, (network.source, network.target)), shape=(size, size))
    cheapest = dijkstra(graph, indices=where)[:, where]
    return float((cheapest * demand).sum()), "lower bound by prices"


def _failed(network: Network) -> Network:
    """The network without some cables, both directions of each."""
    cables = sorted({tuple(sorted((link.source, link.target))) for link in network.links})
    random = np.random.default_rng(SEED)
    gone = random.choice(len(cables), size=int(FAILED * len(cables)), replace=False)
    ends = [cables[index] for index in gone.tolist()]
    return network.without([*ends, *((b, a) for a, b in ends)])
