"""`/v1/paths`: by which paths does traffic go, how full are they, and why? And what was decided
when."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel
from starlette.responses import Response

from controller.act.dataplane.view import FabricView
from controller.api import (
    PathDecision,
    PathDecisions,
    PathLink,
    PathOpinion,
    PathRoute,
    PathsBetween,
    PathWay,
)
from controller.loops.paths.loop import unchosen
from controller.model.addresses import format_dpid, parse_dpid
from controller.model.nouns import Link, RouteClass, route_key
from controller.model.state import State
from controller.northbound.brain import Brain, reply
from controller.northbound.documents import replies
from controller.northbound.problems import INVALID, NOT_FOUND, Problem
from controller.store.decisions import Decided, Decision, decided, decisions

#: What these routes answer with, for the document.
MODELS: list[type[BaseModel]] = [PathsBetween, PathDecisions]

_MAX_ID = (1 << 63) - 1
#: Switches that a way is followed over: more than any has.
_LONGEST = 64
End = Annotated[str, Query(max_length=127, description="A datapath, host or VM")]


def router(brain: Brain) -> APIRouter:
    """The routes of paths and decisions."""
    routes = APIRouter(tags=["paths"])

    @routes.get("/v1/paths", operation_id="get_paths", responses=replies(PathsBetween))
    async def between(
        source: Annotated[str, Query(alias="from", max_length=127, description="As `to`")],
        to: End,
        history: Annotated[int, Query(ge=0, le=20, description="Earlier decisions to tell")] = 0,
    ) -> Response:
        """The paths from one edge to another for each class: shares, latencies, loads, reasons."""
        await brain.replica.refresh()
        state = brain.replica.state
        ingress, egress = edge_of(state, source), edge_of(state, to)
        if ingress == egress:
            raise Problem(
                INVALID,
                f"{source} and {to} are at the same edge, {ingress}: nothing crosses the fabric",
                "Name two that are at different edges.",
            )
        # Of its own, and of what paths depend on alone: the replica goes on meanwhile.
        fabric = State.of(
            [
                *(*state.datapaths.values(), *state.links.values(), *state.ports.values()),
                *(*state.hosts.values(), *state.routes.values()),
            ],
            state.revision,
        )
        return reply(await asyncio.to_thread(_between, brain, fabric, ingress, egress, history))

    @routes.get(
        "/v1/paths/decisions", operation_id="list_path_decisions", responses=replies(PathDecisions)
    )
    async def listed(
        limit: Annotated[int, Query(ge=1, le=1_000, description="Decisions in one page")] = 20,
        before: Annotated[
            int | None, Query(ge=0, le=_MAX_ID, description="`next` of the page before")
        ] = None,
    ) -> Response:
        """What was decided on paths, newest first."""
        found = await asyncio.to_thread(decisions, brain.store, limit, before)
        items = tuple(_told(decision) for decision in found)
        following = found[-1].id if len(found) == limit else None
        await brain.replica.refresh()
        why = _unchosen(brain, brain.replica.state)
        return reply(PathDecisions(items=items, next=following, unchosen=why))

    return routes


def edge_of(state: State, name: str) -> str:
    """The edge that `name` is, or that the host or VM of that name is at. Raises Problem."""
    placement = state.placements.get(name)
    host = state.hosts.get(placement.host if placement else name)
    if host is not None:
        return host.datapath
    if name in state.vms:
        raise Problem(INVALID, f"vm {name} is placed nowhere", "Name one that runs.")
    edges = {host.datapath for host in state.hosts.values()}
    try:
        dpid = format_dpid(parse_dpid(name))
    except ValueError:
        named = [d.dpid for d in state.datapaths.values() if d.name == name]
        dpid = named[0] if named else ""
    if dpid in edges:
        return dpid
    raise Problem(
        NOT_FOUND,
        f"there is no edge, host or VM {name}",
        "Name a datapath that a host is attached to, a host, or a VM that is placed.",
    )


def _unchosen(brain: Brain, state: State) -> str:
    """Why no paths are chosen, "" where they are."""
    edges = {host.datapath for host in state.hosts.values()} & state.datapaths.keys()
    return unchosen(brain.settings.paths, len(edges))


def _between(brain: Brain, state: State, ingress: str, egress: str, history: int) -> PathsBetween:
    view = FabricView.of(state)
    newest = next(iter(decisions(brain.store, 1)), None)
    links = {(k.source, k.target): PathLink(**asdict(k)) for k in newest.links} if newest else {}
    routes = []
    used: dict[tuple[str, str], PathLink] = {}
    for kind in RouteClass:
        said = decided(brain.store, route_key(ingress, egress, kind), history + 1)
        route = _route(view, ingress, egress, kind, said, _unchosen(brain, state))
        routes.append(route)
        hops = [hop for way in route.ways for hop in pairwise(way.nodes)]
        used |= {hop: links[hop] for hop in hops if hop in links}
    return PathsBetween(
        revision=state.revision,
        ingress=ingress,
        egress=egress,
        routes=tuple(routes),
        links=tuple(used.values()),
        decision=_told(newest) if newest else None,
    )


def _route(
    view: FabricView,
    ingress: str,
    egress: str,
    kind: RouteClass,
    said: list[tuple[Decision, Decided]],
    not_chosen: str,
) -> PathRoute:
    weighted = view.routes.weighted.buckets(ingress, egress, kind)
    chosen = bool(weighted)
    if kind is RouteClass.INTERACTIVE and not chosen:
        # Without a group of its own a class goes with the bulk.
        weighted = view.routes.weighted.buckets(ingress, egress, RouteClass.BULK)
    trees = weighted or view.routes.trees(egress, ingress)
    shares: dict[int, int] = {}
    for tree, _ in trees:
        shares[tree] = shares.get(tree, 0) + 1
    ways = {tree: _follow(view, ingress, egress, tree) for tree in sorted(shares)}
    now, earlier = (said[0][1], said[1:]) if said else (None, [])
    return PathRoute(
        traffic_class=kind,
        chosen=chosen,
        ways=tuple(_ways(ways, shares)),
        expected=now.expected if now else None,
        high=now.high if now else None,
        reasons=(
            *_cut(ways.values()),
            *_reasons(view, ingress, egress, kind, chosen, now, not_chosen),
        ),
        earlier=tuple(
            PathOpinion(
                decision=decision.id,
                at=decision.at,
                expected=opinion.expected,
                high=opinion.high,
                reasons=opinion.reasons,
            )
            for decision, opinion in earlier
        ),
    )


def _reasons(
    view: FabricView,
    ingress: str,
    egress: str,
    kind: RouteClass,
    chosen: bool,
    now: Decided | None,
    not_chosen: str,
) -> Iterable[str]:
    if not_chosen and not chosen:
        yield not_chosen
        return
    asked = view.state.routes.get(route_key(ingress, egress, kind))
    if asked is not None and not chosen:
        yield "none of the ways that were chosen works now: the planned trees are used until then"
    elif not chosen:
        yield "no paths were chosen for it: it is spread evenly over the planned trees"
    if now is None:
        yield "nothing was decided on it yet"
    else:
        yield from now.reasons


@dataclass(frozen=True, slots=True)
class _Followed:
    """The switches that packets on a tree come by, what each link takes in seconds, and those
    that do not work."""

    nodes: tuple[str, ...]
    latencies: tuple[float | None, ...]
    down: tuple[str, ...]


def _cut(ways: Collection[_Followed]) -> Iterable[str]:
    """That no way works, where none does: packets stay on them, and wait for a link."""
    if all(way.down for way in ways):
        links = sorted({link for way in ways for link in way.down})
        known = f": mend one of {', '.join(links)}" if links else ": none leads there"
        yield f"no way between them works now{known}"


def _ways(ways: Mapping[int, _Followed], shares: Mapping[int, int]) -> Iterable[PathWay]:
    total = sum(shares.values())
    for tree, way in ways.items():
        known = [latency for latency in way.latencies if latency is not None]
        latency = sum(known) if known and len(known) == len(way.latencies) else None
        count = shares[tree]
        yield PathWay(
            nodes=way.nodes, tree=tree, buckets=count, share=count / total, latency_s=latency
        )


def _follow(view: FabricView, ingress: str, egress: str, tree: int) -> _Followed:
    kind = (RouteClass.BULK, RouteClass.INTERACTIVE)
    begun = [b for k in kind for b in view.routes.weighted.buckets(ingress, egress, k)]
    first = dict([*view.routes.trees(egress, ingress), *begun])
    nodes: list[str] = [ingress]
    latencies: list[float | None] = []
    down = []
    while nodes[-1] != egress and len(nodes) < _LONGEST:
        here = nodes[-1]
        hop = first[tree] if here == ingress else view.routes.carried(here)[egress, tree]
        links = [view.state.links[f"{here}:{port}"] for port in hop.ports]
        if not any(_works(view.state, link) for link in links):
            down.append(f"{here}->{links[0].to_datapath}")
        nodes.append(links[0].to_datapath)
        latencies.append(links[0].latency_s)
    return _Followed(tuple(nodes), tuple(latencies), tuple(down))


def _works(state: State, link: Link) -> bool:
    back = state.links.get(f"{link.to_datapath}:{link.to_port}")
    return link.up and back is not None and back.up


def _told(decision: Decision) -> PathDecision:
    fields = asdict(decision)
    fields["links"] = tuple(PathLink(**link) for link in fields["links"])
    return PathDecision(**fields)
