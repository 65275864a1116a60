"""How is one class of traffic routed, above what other classes already load?"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

import numpy as np

from controller.decide.paths.buckets import BUCKETS, to_buckets
from controller.decide.paths.ground import Ground
from controller.decide.paths.hedge import Flags, Hedge
from controller.decide.paths.network import Floats, Ints
from controller.decide.paths.robust import Aim, Choice, choose
from controller.decide.paths.traffic import Sampling
from controller.decide.paths.trees import MAX_TREES

#: Short paths are preferred by this much of the objective.
_SHORT = 1e-3
#: What a ceiling exceeded by all of a link's capacity costs, against mean latency: nothing
#: that latency could gain is worth it.
_ABOVE_CEILING = 100.0


class Objective(StrEnum):
    """What a class of traffic wants of its paths."""

    #: The worst link is to be used as little as can be.
    UTILISATION = "utilisation"
    #: Paths are to be short in time.
    LATENCY = "latency"


@dataclass(frozen=True, slots=True)
class TrafficClass:
    """A class that is routed on its own."""

    name: str
    objective: Objective = Objective.UTILISATION


@dataclass(frozen=True, slots=True)
class Options:
    """How paths are decided."""

    #: Trees towards each edge.
    trees: int = MAX_TREES
    #: Equal buckets of a group.
    buckets: int = BUCKETS
    #: Whatever traffic comes, no link is loaded more than this many times the worst of ECMP.
    ratio: float = 4.0
    #: Share of a link that classes with the objective LATENCY may use together.
    ceiling: float = 0.5
    #: What new weights must gain before they replace the last ones, as a share.
    gain: float = 0.005
    #: Pairs that together are below this share of the traffic are split evenly.
    small: float = 5e-5
    #: Fabrics with more edges, or more links, are decided for one matrix, by decomposition, without
    #: a hedge: that has a column for each two links, and a program with more takes minutes (a
    #: fat-tree of k = 6 has 216 links, a network of 23 nodes that takes 4 s has 74).
    many: int = 25
    many_links: int = 80
    sampling: Sampling = field(default_factory=Sampling)
    #: Of the draws of scenarios.
    seed: int = 0


@dataclass(frozen=True)
class Demand:
    """What a class may send: `scenarios` (scenarios, pairs) in bit/s over pairs that have a
    way, their `weights`, and the `optimum` (scenarios,) of each with all classes together."""

    traffic_class: TrafficClass
    scenarios: Floats
    weights: Floats
    optimum: Floats

    @property
    def scale(self) -> Floats:
        """(scenarios,): what a worst utilisation is measured in; 1 where nothing is sent."""
        scale: Floats = np.where(self.optimum > 0, self.optimum, 1.0)
        return scale

    @cached_property
    def expected(self) -> Floats:
        """(pairs,): mean over the scenarios."""
        expected: Floats = self.weights @ self.scenarios
        return expected

    @cached_property
    def high(self) -> Floats:
        """(pairs,): exceeded in one scenario of twenty."""
        high: Floats = np.quantile(self.scenarios, 0.95, axis=0)
        return high


@dataclass(frozen=True)
class ClassPlan:
    """How a class is routed. Arrays over paths and pairs are in the order of the ground."""

    demand: Demand
    weights: Floats
    buckets: Ints
    #: (pairs,): weighed by the program; the others are split evenly.
    chosen: Flags
    #: Whether the last weights were kept, since new ones would have gained too little.
    kept: bool
    #: (links, pairs): where the hedge held a pair back.
    held: Flags | None = None


def choose_for(
    ground: Ground,
    demand: Demand,
    background: Floats,
    options: Options,
    last: ClassPlan | None = None,
) -> ClassPlan:
    """Weights for a class above `background` (scenarios, links) bit/s. `last` is how it was
    routed on the same ground."""
    chosen = _large_pairs(ground, demand.expected, options.small)
    if not chosen.any():
        return _planned(ground, demand, ground.even, chosen, options)
    mine = chosen[ground.paths.pair]
    paths = ground.paths.part(mine)
    fixed = np.where(mine, 0.0, ground.even)
    capacity = ground.network.capacity
    below = (background + loads(ground, fixed, demand.scenarios)) / capacity
    hedge = Hedge(
        options.ratio,
        ground.paths.shares(ground.even).toarray(),
        capacity,
        ground.paths.shares(fixed).toarray(),
    )
    near = None if last is None else Choice(last.weights[mine], last.held)
    aim = _aim(ground, demand, mine, below, options)
    choice = choose(paths, capacity, demand.scenarios, aim, hedge, near)
    weights = fixed.copy()
    weights[mine] = choice.weights
    if last is not None and _close(ground, demand, background, weights, last.weights, options):
        return _planned(ground, demand, last.weights, chosen, options, True, choice.hedged)
    return _planned(ground, demand, weights, chosen, options, False, choice.hedged)


def loads(ground: Ground, weights: Floats, scenarios: Floats) -> Floats:
    """(scenarios, links) in bit/s: what path weights make of `scenarios` (scenarios, pairs)."""
    each = weights * scenarios[:, ground.paths.pair]
    return np.asarray((ground.paths.incidence @ each.T).T)


def _worst(ground: Ground, demand: Demand, background: Floats, weights: Floats) -> Floats:
    """(scenarios,): utilisation of the worst link under path weights."""
    load = background + loads(ground, weights, demand.scenarios)
    level: Floats = (load / ground.network.capacity).max(axis=1)
    return level


def _planned(
    ground: Ground,
    demand: Demand,
    weights: Floats,
    chosen: Flags,
    options: Options,
    kept: bool = False,
    held: Flags | None = None,
) -> ClassPlan:
    buckets = to_buckets(ground.paths.pair, weights, options.buckets)
    return ClassPlan(demand, weights, buckets, chosen, kept, held)


def _large_pairs(ground: Ground, expected: Floats, small: float) -> Flags:
    """Pairs worth weighing: all but the smallest, which together are below `small`."""
    order = np.argsort(expected)
    large = np.zeros(len(expected), dtype=bool)
    large[order] = np.cumsum(expected[order]) > small * expected.sum()
    return large & ground.reachable & (expected > 0)


def _aim(ground: Ground, demand: Demand, mine: Flags, below: Floats, options: Options) -> Aim:
    paths = ground.paths
    if demand.traffic_class.objective is Objective.UTILISATION:
        cost = paths.cost[mine]
        short = _SHORT * cost / cost.mean() / len(ground.names) ** 2
        return Aim(short, demand.weights, demand.scale, -below)
    length = _length(ground)
    share = demand.expected / demand.expected.sum()
    cost = (length / length[mine].mean() * share[paths.pair])[mine]
    room = options.ceiling - below
    return Aim(cost, _ABOVE_CEILING * demand.weights, np.ones(len(below)), room)


def _length(ground: Ground) -> Floats:
    """(paths,): latency, or costs where none was measured."""
    return ground.paths.latency if ground.network.latency.any() else ground.paths.cost


def _close(
    ground: Ground,
    demand: Demand,
    background: Floats,
    new: Floats,
    old: Floats,
    options: Options,
) -> bool:
    """Whether the old weights are about as good as the new ones."""

    def score(weights: Floats) -> float:
        if demand.traffic_class.objective is Objective.UTILISATION:
            return float(
                demand.weights @ (_worst(ground, demand, background, weights) / demand.scale)
            )
        sent = demand.expected[ground.paths.pair] * weights
        over = _worst(ground, demand, background, weights) - options.ceiling
        late = float(sent @ _length(ground)) / float(sent.sum())
        return late + _ABOVE_CEILING * float(demand.weights @ np.maximum(over, 0.0))

    return score(old) <= (1.0 + options.gain) * score(new)
