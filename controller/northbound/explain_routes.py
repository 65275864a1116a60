"""`GET /v1/explain`: which rules are there for a VM, a switch or a cookie, and why?"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from controller.act.dataplane.explain import explain
from controller.api import Explained, ExplainedRule
from controller.model.addresses import format_dpid, parse_dpid
from controller.model.signatures import Observed
from controller.northbound.brain import Brain, reply
from controller.northbound.documents import replies
from controller.northbound.problems import INVALID, Problem
from controller.northbound.record_routes import no_such
from controller.observe.signatures.book import observed_of
from controller.store.signatures import readings


def router(brain: Brain) -> APIRouter:
    """The route of explanations."""
    routes = APIRouter(tags=["explain"])

    @routes.get("/v1/explain", operation_id="explain", responses=replies(Explained))
    async def explained(
        vm: Annotated[str | None, Query(max_length=127)] = None,
        datapath: Annotated[str | None, Query(max_length=18)] = None,
        cookie: Annotated[str | None, Query(pattern=r"^(0x[0-9a-fA-F]{1,16}|\d{1,20})$")] = None,
        limit: Annotated[int, Query(ge=1, le=100_000)] = 1_000,
    ) -> Response:
        """The flow entries for a VM, at a datapath, or with a cookie as a switch shows it."""
        if vm is None and datapath is None and cookie is None:
            raise Problem(
                INVALID, "nothing is asked for", "Give vm, datapath or cookie, or several."
            )
        dpid = None if datapath is None else _dpid(datapath)
        # Of its own, because compiling takes longer than the event loop may wait.
        state = await asyncio.to_thread(brain.store.snapshot)
        if vm is not None and vm not in state.vms:
            raise no_such("vm", vm)
        if dpid is not None and dpid not in state.datapaths:
            raise no_such("datapath", dpid)
        found = await asyncio.to_thread(
            explain,
            state,
            vm=vm,
            datapath=dpid,
            cookie=None if cookie is None else int(cookie, 0),
            tapping=brain.settings.dpi.tap,
            observed=await asyncio.to_thread(_observed, brain),
        )
        items = tuple(ExplainedRule(**asdict(rule)) for rule in found[:limit])
        return reply(Explained(revision=state.revision, total=len(found), items=items))

    return routes


def _observed(brain: Brain) -> Observed:
    with brain.store.reading() as connection:
        return observed_of(readings(connection), brain.settings.signatures)


def _dpid(text: str) -> str:
    try:
        return format_dpid(parse_dpid(text))
    except ValueError as error:
        raise Problem(INVALID, str(error), "Write 16 hex digits.") from None
