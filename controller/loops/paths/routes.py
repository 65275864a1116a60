"""Which routes of record does a plan ask for? Trees get numbers that packets under way do not
contradict, and buckets stay where they are as far as weights let them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

import numpy as np

from controller.act.dataplane.pipeline import WEIGHTED
from controller.decide.paths.classes import ClassPlan, Objective
from controller.decide.paths.network import Ints
from controller.decide.paths.plan import Plan
from controller.decide.paths.robust import shortest
from controller.model.nouns import Route, RouteClass, Way, route_key

Nodes = tuple[str, ...]
#: Next node by node.
Hops = dict[str, str]
#: A way that a plan asks for: its nodes, its tree in the plan, its buckets.
Asked = tuple[Nodes, int, int]


#: What is less than this share of the slowest link is not worth a route: a rest of traffic that
#: has ended, which no longer says anything.
_NEGLIGIBLE = 1e-6


def routes_of(plan: Plan, standing: Mapping[str, Route]) -> dict[str, Route]:
    """The routes that `plan` asks for, by key. `standing` are those in force."""
    asked = _asked(plan)
    routes: dict[str, Route] = {}
    for egress in {egress for _, egress, _ in asked}:
        here = {key: ways for key, ways in asked.items() if key[1] == egress}
        numbers = _numbers(here.values(), [r for r in standing.values() if r.egress == egress])
        for (ingress, _, kind), ways in here.items():
            key = route_key(ingress, egress, kind)
            held = _held(standing.get(key))
            buckets = settled(held, {nodes: count for nodes, _, count in ways})
            routes[key] = Route(
                ingress=ingress,
                egress=egress,
                traffic_class=kind,
                ways=tuple(
                    Way(nodes=nodes, tree=numbers[tree], buckets=buckets[nodes])
                    for nodes, tree, _ in ways
                ),
            )
    return routes


def settled(
    held: Mapping[Nodes, tuple[int, ...]], counts: Mapping[Nodes, int]
) -> dict[Nodes, tuple[int, ...]]:
    """Buckets for each way, so many as `counts` says, numbered from 0: as many as can be stay
    with the way that has `held` them, for each that moves takes connections along."""
    total = sum(counts.values())
    kept = {
        nodes: [b for b in held.get(nodes, ()) if b < total][:count]
        for nodes, count in counts.items()
    }
    taken = {bucket for buckets in kept.values() for bucket in buckets}
    free = iter(sorted(set(range(total)) - taken))
    return {
        nodes: tuple(sorted([*kept[nodes], *(next(free) for _ in range(count - len(kept[nodes])))]))
        for nodes, count in counts.items()
    }


def _held(route: Route | None) -> dict[Nodes, tuple[int, ...]]:
    return {way.nodes: way.buckets for way in route.ways} if route else {}


def _asked(plan: Plan) -> dict[tuple[str, str, RouteClass], list[Asked]]:
    """What to lay. A pair of too little traffic to weigh stays on the planned trees; urgent
    traffic has the quickest way even before there is any, where latencies are known."""
    base = plan.ground
    asked: dict[tuple[str, str, RouteClass], list[Asked]] = {}
    for made in plan.classes:
        kind = RouteClass(made.demand.traffic_class.name)
        buckets = _buckets(plan, made)
        for path in np.flatnonzero(buckets).tolist():
            ingress, egress = base.pair_names(int(base.paths.pair[path]))
            nodes = tuple(base.paths.nodes(base.network, base.forest, path))
            way = nodes, int(base.paths.tree[path]), int(buckets[path])
            asked.setdefault((ingress, egress, kind), []).append(way)
    return asked


def _buckets(plan: Plan, made: ClassPlan) -> Ints:
    """(paths,): buckets to be laid for a class."""
    paths = plan.ground.paths
    least = _NEGLIGIBLE * float(plan.ground.network.capacity.min())
    chosen = (made.chosen & (made.demand.expected > least))[paths.pair]
    urgent = made.demand.traffic_class.objective is Objective.LATENCY
    if urgent and plan.ground.network.latency.any():
        quickest = shortest(paths, paths.latency + 1e-9 * paths.cost)
        usual = (plan.options.buckets * quickest).astype(np.int64)
    else:
        usual = np.zeros_like(made.buckets)
    return np.where(chosen, made.buckets, usual)


def _numbers(asked: Iterable[list[Asked]], standing: Iterable[Route]) -> dict[int, int]:
    """A number of WEIGHTED for each tree of the plan towards one egress. One whose packets go
    on as the new tree does is best, then one that no route has; only where all are taken, one
    that is about to be given up, whose packets under way may go astray."""
    wanted: dict[int, Hops] = {}
    for ways in asked:
        for nodes, tree, _ in ways:
            wanted.setdefault(tree, {}).update(pairwise(nodes))
    present: dict[int, Hops] = {}
    for route in standing:
        for way in route.ways:
            present.setdefault(way.tree, {}).update(pairwise(way.nodes))
    alike = sorted(
        (
            (sum(present[number].get(node) == to for node, to in hops.items()), number, tree)
            for number in present
            for tree, hops in wanted.items()
            if number in WEIGHTED
            and all(present[number].get(node, to) == to for node, to in hops.items())
        ),
        key=lambda match: (-match[0], match[1], match[2]),
    )
    numbers: dict[int, int] = {}
    for _, number, tree in alike:
        if tree not in numbers and number not in numbers.values():
            numbers[tree] = number
    unused = [n for n in WEIGHTED if n not in present]
    given_up = [n for n in WEIGHTED if n in present and n not in numbers.values()]
    left = iter([*unused, *given_up])
    for tree in sorted(wanted.keys() - numbers.keys()):
        numbers[tree] = next(left)
    return numbers
