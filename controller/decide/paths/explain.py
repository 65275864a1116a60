"""Why does traffic between two edges go as it goes? What `pleach paths A B` tells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from controller.decide.paths.classes import ClassPlan, Objective
from controller.decide.paths.plan import LinkLoad, Plan, Route


@dataclass(frozen=True, slots=True)
class Explanation:
    """A route, the loads foreseen on the links of its ways, and the reasons, a sentence each."""

    route: Route
    links: tuple[LinkLoad, ...]
    reasons: tuple[str, ...]


def explain(plan: Plan, ingress: str, egress: str) -> tuple[Explanation, ...]:
    """One explanation for each class; PathsError where an edge is unknown."""
    return tuple(
        _explain(plan, made, plan.route(ingress, egress, made.demand.traffic_class.name))
        for made in plan.classes
    )


def _explain(plan: Plan, made: ClassPlan, route: Route) -> Explanation:
    hops = {hop for way in route.ways for hop in zip(way.nodes, way.nodes[1:], strict=False)}
    links = tuple(plan.links[n] for n in sorted(plan.place[hop] for hop in hops))
    if not route.ways:
        reasons = [f"no way leads from {route.ingress} to {route.egress}"]
    else:
        pair = plan.ground.pair(route.ingress, route.egress)
        reasons = [
            _foreseen(route, made, pair),
            _aim(plan, made),
            *_fullest(links),
            *_held(plan, made, pair),
        ]
        if made.kept:
            reasons.append(
                f"the last weights were kept: new ones gain less than {plan.options.gain:.1%}"
            )
    return Explanation(route, links, (f"decided for: {plan.trigger}", *reasons, *plan.notes))


def _foreseen(route: Route, made: ClassPlan, pair: int) -> str:
    seen = (
        f"foreseen: {_rate(route.expected_bps)} on average, {_rate(route.high_bps)} in one of "
        f"twenty of {len(made.demand.scenarios)} scenarios"
    )
    if made.chosen[pair]:
        return seen
    return f"{seen}: too little to weigh, so split evenly over the shortest paths"


def _aim(plan: Plan, made: ClassPlan) -> str:
    if made.demand.traffic_class.objective is Objective.LATENCY:
        return (
            "ways of least latency that keep this class below "
            f"{plan.options.ceiling:.0%} of every link"
        )
    best = f", {plan.worst / plan.optimum:.3f} times the best possible" if plan.optimum else ""
    return (
        f"the worst link is expected at {plan.worst:.1%}{best}; split evenly over shortest "
        f"paths it would be at {plan.even_worst:.1%}"
    )


def _fullest(links: tuple[LinkLoad, ...]) -> list[str]:
    if not links:
        return []
    fullest = max(links, key=lambda link: link.utilisation)
    return [
        f"the fullest link of these ways is {fullest.source}->{fullest.target}: "
        f"{_rate(fullest.expected_bps)} of {_rate(fullest.capacity_bps)} "
        f"({fullest.utilisation:.1%})"
    ]


def _held(plan: Plan, made: ClassPlan, pair: int) -> list[str]:
    if made.held is None:
        return []
    where = np.flatnonzero(made.held[:, pair])
    if not len(where):
        return []
    names = ", ".join(plan.ground.network.links[link].name for link in where.tolist())
    return [
        f"the hedge allows no more of it on {names}: whatever comes, no link is to be loaded "
        f"more than {plan.options.ratio:g} times as much as the worst with even splits"
    ]


def _rate(bps: float) -> str:
    for unit, size in (("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3)):
        if bps >= size:
            return f"{bps / size:.3g} {unit}"
    return f"{bps:.3g} bit/s"
