"""How are classes routed on a fabric with too many pairs to weigh each on its own?

Towards each edge the first tree is that of least latency, for the classes that want it; the
others share trees that decomposition finds for one high matrix, the same shares from every
ingress. Their ratio to the optimum is certified for that matrix; there is no hedge.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from controller.decide.paths.buckets import to_buckets
from controller.decide.paths.classes import ClassPlan, Demand, Objective, Options
from controller.decide.paths.columns import Spread, spread
from controller.decide.paths.ground import Ground, ground, positions
from controller.decide.paths.network import Floats, Network
from controller.decide.paths.trees import Forest

#: Every pair counts as sending at least this share of the mean, so that one which nobody
#: foresaw is spread too.
_UNFORESEEN = 0.05


def prepare(
    network: Network, edges: Sequence[str], urgent: Floats, bulk: Floats, options: Options
) -> tuple[Ground, Spread]:
    """Trees for `urgent` and `bulk` scenarios (scenarios, edges, edges) in bit/s, and how the
    bulk is spread: over the trees from the second on."""
    where = positions(network, edges)
    reachable = np.isfinite(network.towards(where, network.cost)[0][:, where]).T
    price = network.latency + 1e-9 * network.cost if network.latency.any() else network.cost
    quickest = np.maximum(network.towards(where, price)[1], -1)
    shortest = Forest(where, quickest[:, None, :])
    alone = ground(network, edges, forest=shortest)
    fast = alone.paths.loads(alone.even, _high(urgent, reachable).reshape(-1))
    high = _high(bulk, reachable)
    others = high[reachable & ~np.eye(len(where), dtype=bool)]
    floor = _UNFORESEEN * float(others.mean()) if len(others) else 0.0
    found = spread(
        network,
        where,
        np.where(reachable, np.maximum(high, floor), 0.0),
        background=fast,
        seed=options.seed,
        trees=max(1, options.trees - 1),
    )
    following = np.concatenate([shortest.following, found.forest.following], axis=1)
    return ground(network, edges, forest=Forest(where, following)), found


def plan_for(base: Ground, demand: Demand, found: Spread, options: Options) -> ClassPlan:
    """How a class is routed over the trees of `prepare`."""
    shares = np.zeros((len(base.edges), found.weights.shape[1] + 1))
    if demand.traffic_class.objective is Objective.LATENCY:
        shares[:, 0] = 1.0
    else:
        shares[:, 1:] = found.weights
    weights = np.zeros(len(base.paths.pair) + 1)
    egress = np.arange(len(base.reachable)) % len(base.edges)
    np.add.at(weights, base.paths.of_tree, shares[egress])
    weights = weights[:-1]
    sums = np.bincount(base.paths.pair, weights=weights, minlength=len(base.reachable))
    weights = weights / sums[base.paths.pair]
    buckets = to_buckets(base.paths.pair, weights, options.buckets)
    return ClassPlan(demand, weights, buckets, demand.expected > 0, False)


def _high(scenarios: Floats, reachable: np.ndarray[tuple[int, int], np.dtype[np.bool_]]) -> Floats:
    """One matrix for all scenarios: their mean and a deviation more."""
    high: Floats = np.where(reachable, scenarios.mean(axis=0) + scenarios.std(axis=0), 0.0)
    return high
