"""What is computed in a process of its own: a plan, the routes that it asks for, and its words."""

from __future__ import annotations

import pickle
import time

from controller.decide.paths.classes import Objective, Options, TrafficClass
from controller.decide.paths.explain import explain
from controller.decide.paths.network import Network
from controller.decide.paths.plan import Plan, decide
from controller.loops.paths.asked import Answer, Question
from controller.loops.paths.matrices import as_if_moved, matrices
from controller.loops.paths.routes import routes_of
from controller.model.nouns import RouteClass, route_key
from controller.store.decisions import Decided, DecidedLink, Decision

#: How each class is routed.
CLASSES = {
    RouteClass.INTERACTIVE: TrafficClass(RouteClass.INTERACTIVE.value, Objective.LATENCY),
    RouteClass.BULK: TrafficClass(RouteClass.BULK.value, Objective.UTILISATION),
}


def answer(question: Question) -> Answer:
    """Decide. Raises PathsError and SolverError."""
    begin = time.monotonic()
    fabric = question.fabric
    past, ends = matrices(question.rows, fabric.edges, question.every_s, question.keep)
    past = as_if_moved(past, ends, fabric.edges, question.moves, question.rates)
    # Ours, of a moment ago, and kept by the brain alone.
    last: Plan | None = pickle.loads(question.last) if question.last else None  # noqa: S301
    plan = decide(
        Network(fabric.nodes, fabric.links),
        fabric.edges,
        {CLASSES[kind]: found for kind, found in past.items()},
        options=Options(ratio=question.hedge, ceiling=question.ceiling),
        trigger=question.trigger,
        last=last,
    )
    routes = routes_of(plan, question.standing)
    differ = [
        key
        for key in {*routes, *question.standing}
        if routes.get(key) != question.standing.get(key)
    ]
    decision = Decision(
        at=question.at,
        trigger=question.trigger,
        worst=plan.worst,
        even_worst=plan.even_worst,
        optimum=plan.optimum,
        edges=len(fabric.edges),
        scenarios=len(plan.classes[0].demand.scenarios),
        changed=len(differ),
        took_s=round(time.monotonic() - begin, 3),
        notes=plan.notes,
        links=tuple(
            DecidedLink(k.source, k.target, k.capacity_bps, k.expected_bps, k.high_bps)
            for k in plan.links
        ),
    )
    return Answer(pickle.dumps(plan), routes, decision, _words(plan))


def _words(plan: Plan) -> dict[str, Decided]:
    """What was foreseen for each pair of edges and class, and the reasons."""
    said = {}
    for ingress in plan.ground.names:
        for egress in plan.ground.names:
            if ingress == egress:
                continue
            for told in explain(plan, ingress, egress):
                route = told.route
                key = route_key(ingress, egress, RouteClass(route.traffic_class))
                said[key] = Decided(route.expected_bps, route.high_bps, told.reasons)
    return said
