"""Which paths should traffic take now? The entrance to all of this package.

Classes for which latency counts come first: theirs are the ways of least latency that keep the
links that they share below a ceiling. The others then keep the worst link as low as they can on
what is left, over all scenarios of what may come, inside the hedge. A fabric with very many
pairs or links is decided for one high matrix instead, by decomposition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from controller.decide.paths.classes import (
    ClassPlan,
    Demand,
    Objective,
    Options,
    TrafficClass,
    choose_for,
    loads,
)
from controller.decide.paths.ground import Ground, cut_note, ground
from controller.decide.paths.large import plan_for, prepare
from controller.decide.paths.network import Floats, Network, PathsError
from controller.decide.paths.optimum import optimum
from controller.decide.paths.traffic import Scenarios, mended, scenarios

DEFAULTS = Options()


@dataclass(frozen=True, slots=True)
class Way:
    """A path of a route: the nodes in order, the tree that its label names, its share and the
    buckets that make it, and its latency in seconds one way."""

    nodes: tuple[str, ...]
    tree: int
    weight: float
    buckets: int
    latency_s: float


@dataclass(frozen=True, slots=True)
class Route:
    """How the traffic of a class goes from one edge to another. `expected_bps` and `high_bps`
    (exceeded in one scenario of twenty) are what is foreseen; no ways where none leads."""

    ingress: str
    egress: str
    traffic_class: str
    expected_bps: float
    high_bps: float
    ways: tuple[Way, ...]


@dataclass(frozen=True, slots=True)
class LinkLoad:
    """What is foreseen on a link with this plan."""

    source: str
    target: str
    capacity_bps: float
    expected_bps: float
    high_bps: float

    @property
    def utilisation(self) -> float:
        """Expected share of the capacity."""
        return self.expected_bps / self.capacity_bps


@dataclass(frozen=True)
class Plan:
    """A decision on paths. `trigger` says what it was made for, `notes` what an operator
    should know about it."""

    ground: Ground
    classes: tuple[ClassPlan, ...]
    links: tuple[LinkLoad, ...]
    options: Options
    trigger: str
    notes: tuple[str, ...]
    #: Worst link, mean over the scenarios: with this plan, evenly over shortest paths, and at
    #: the optimum of each scenario, which is not computed for a large fabric.
    worst: float
    even_worst: float
    optimum: float | None

    @cached_property
    def place(self) -> Mapping[tuple[str, str], int]:
        """Where in `links` the one from a node to another is."""
        return {(link.source, link.target): n for n, link in enumerate(self.links)}

    def route(self, ingress: str, egress: str, traffic_class: str) -> Route:
        """One route; PathsError for names that the plan does not have."""
        pair = self.ground.pair(ingress, egress)
        plan = self.class_plan(traffic_class)
        paths = self.ground.paths
        first, end = np.searchsorted(paths.pair, (pair, pair + 1))
        used = first + np.flatnonzero(plan.buckets[first:end])
        ways = tuple(
            Way(
                tuple(paths.nodes(self.ground.network, self.ground.forest, path)),
                int(paths.tree[path]),
                float(plan.weights[path]),
                int(plan.buckets[path]),
                float(paths.latency[path]),
            )
            for path in used.tolist()
        )
        expected, high = float(plan.demand.expected[pair]), float(plan.demand.high[pair])
        return Route(ingress, egress, traffic_class, expected, high, ways)

    def class_plan(self, traffic_class: str) -> ClassPlan:
        """How a class is routed; PathsError for a class that the plan does not have."""
        for plan in self.classes:
            if plan.demand.traffic_class.name == traffic_class:
                return plan
        names = ", ".join(plan.demand.traffic_class.name for plan in self.classes)
        raise PathsError(f"{traffic_class}: no such class of traffic; there are {names}")


def decide(
    network: Network,
    edges: Sequence[str],
    past: Mapping[TrafficClass, npt.ArrayLike],
    *,
    options: Options = DEFAULTS,
    forecasts: Mapping[str, Floats] | None = None,
    trigger: str = "forecast",
    last: Plan | None = None,
) -> Plan:
    """Paths between `edges` for what may come after `past`: for each class its matrices
    (time, edges, edges) in bit/s, oldest first, equally many.

    `forecasts` (time + 1, edges, edges) by name of class, where there are better ones than a
    moving average. `last` is the plan in force: its trees stay where they are whole, and its
    weights where new ones would hardly be better. For a failure give the network without the
    failed links; for a migration, matrices as `traffic.moved` makes them. PathsError names
    whatever cannot be used.
    """
    if not network.links:
        raise PathsError("the network has no link that is up: mend one, or add links")
    notes: list[str] = []
    coming = _coming(past, edges, options, forecasts or {}, notes)
    if len(edges) > options.many or len(network.links) > options.many_links:
        return _decide_large(network, edges, coming, options, trigger, notes)
    before = last.ground if last else None
    base = ground(network, edges, last=before, trees=options.trees)
    demands = _demands(base, coming, _optima(base, coming))
    plans: list[ClassPlan] = []
    background = np.zeros((len(demands[0].scenarios), len(network.links)))
    for demand in demands:
        old = _old(last, base, demand.traffic_class)
        plans.append(choose_for(base, demand, background, options, old))
        background = background + loads(base, plans[-1].weights, demand.scenarios)
    best = float(demands[0].weights @ demands[0].optimum)
    return _plan(base, plans, options, trigger, [*notes, *_cut(base, coming)], best)


def _coming(
    past: Mapping[TrafficClass, npt.ArrayLike],
    edges: Sequence[str],
    options: Options,
    forecasts: Mapping[str, Floats],
    notes: list[str],
) -> dict[TrafficClass, Scenarios]:
    """Scenarios of each class, those that want latency first. The draws have the same seed, so
    scenario n of one class goes with scenario n of the others."""
    if not past:
        raise PathsError("no class of traffic is given: give at least one, with its matrices")
    coming = {}
    for kind in sorted(past, key=lambda kind: kind.objective is not Objective.LATENCY):
        try:
            mend = mended(past[kind], edges)
            ahead = forecasts.get(kind.name)
            coming[kind] = scenarios(mend.values, options.seed, options.sampling, ahead)
        except PathsError as error:
            raise PathsError(*(f"class {kind.name}: {text}" for text in error.problems)) from error
        notes.extend(f"class {kind.name}: {note}" for note in mend.notes)
    counts = {kind.name: len(found.demands) for kind, found in coming.items()}
    if len(set(counts.values())) > 1:
        raise PathsError(
            f"classes have different numbers of past matrices ({counts}): give as many"
        )
    return coming


def _optima(base: Ground, coming: Mapping[TrafficClass, Scenarios]) -> Floats:
    """(scenarios,): the least worst utilisation of each with all classes together."""
    count = len(base.names)
    yardstick = optimum(base.network, tuple(base.edges.tolist()))
    total = np.sum([found.demands for found in coming.values()], axis=0)
    reachable = base.reachable.reshape(count, count)
    return np.array([yardstick.of(np.where(reachable, matrix, 0.0)) for matrix in total])


def _demands(
    base: Ground, coming: Mapping[TrafficClass, Scenarios], optima: Floats
) -> list[Demand]:
    """What each class sends over pairs that have a way."""
    return [
        Demand(
            kind,
            np.where(base.reachable, found.demands.reshape(len(found.demands), -1), 0.0),
            found.weights,
            optima,
        )
        for kind, found in coming.items()
    ]


def _old(last: Plan | None, base: Ground, kind: TrafficClass) -> ClassPlan | None:
    """How the last plan routed a class, if it was on the same ground."""
    if last is None or last.ground is not base:
        return None
    return next((plan for plan in last.classes if plan.demand.traffic_class == kind), None)


def _decide_large(
    network: Network,
    edges: Sequence[str],
    coming: Mapping[TrafficClass, Scenarios],
    options: Options,
    trigger: str,
    notes: list[str],
) -> Plan:
    none = np.zeros_like(next(iter(coming.values())).demands)
    by_objective = {
        objective: sum(
            (found.demands for kind, found in coming.items() if kind.objective is objective), none
        )
        for objective in Objective
    }
    base, found = prepare(
        network,
        edges,
        by_objective[Objective.LATENCY],
        by_objective[Objective.UTILISATION],
        options,
    )
    optima = np.full(len(none), found.bound)
    plans = [plan_for(base, demand, found, options) for demand in _demands(base, coming, optima)]
    notes.append(
        f"{len(edges)} edges with {len(network.links)} links are too many to weigh all scenarios "
        f"at once ({options.many}, {options.many_links}): one high matrix was spread, to within "
        f"{found.over_bound - 1:.2%} of the best possible; no hedge bounds other traffic"
    )
    return _plan(base, plans, options, trigger, [*notes, *_cut(base, coming)], None)


def _cut(base: Ground, coming: Mapping[TrafficClass, Scenarios]) -> list[str]:
    note = cut_note(base, np.sum([found.mean for found in coming.values()], axis=0).reshape(-1))
    return [note] if note else []


def _plan(
    base: Ground,
    plans: Sequence[ClassPlan],
    options: Options,
    trigger: str,
    notes: list[str],
    best: float | None,
) -> Plan:
    weights = plans[0].demand.weights
    load = sum(loads(base, plan.weights, plan.demand.scenarios) for plan in plans)
    even = sum(loads(base, base.even, plan.demand.scenarios) for plan in plans)
    assert isinstance(load, np.ndarray)
    expected, high = weights @ load, np.quantile(load, 0.95, axis=0)
    capacity = base.network.capacity
    if not load.any():
        notes.append("no traffic is foreseen: all pairs are split evenly over shortest paths")
    links = tuple(
        LinkLoad(link.source, link.target, link.capacity_bps, float(mean), float(most))
        for link, mean, most in zip(base.network.links, expected, high, strict=True)
    )
    return Plan(
        ground=base,
        classes=tuple(plans),
        links=links,
        options=options,
        trigger=trigger,
        notes=tuple(notes),
        worst=float(weights @ (load / capacity).max(axis=1)),
        even_worst=float(weights @ (even / capacity).max(axis=1)),
        optimum=best,
    )
