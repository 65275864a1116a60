"""What answers at the ports of VMs? Agents tell here what they saw."""

from __future__ import annotations

import random
import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel
from starlette.responses import Response

from controller.api import FlowVerdict, FlowVerdicts, Page, RefusedVerdict, Role, VerdictsReply
from controller.model.nouns import Record, Service
from controller.model.state import State
from controller.northbound.auth import Principal
from controller.northbound.brain import Brain, parsed, principal, reply, validated, written
from controller.northbound.documents import body, replies
from controller.northbound.gate import SERVICES_PATH, read_body
from controller.northbound.record_routes import After, Filter, Key, Limit, no_such, page
from controller.northbound.samples import Movers
from controller.observe.applications import policy as policies
from controller.observe.applications import records as seen
from controller.observe.applications.ledger import Ledger, keep
from controller.store import Transaction

#: What these routes answer with and take, for the document.
MODELS: list[type[BaseModel]] = [Service, FlowVerdicts, VerdictsReply]

EXAMPLE: dict[str, Any] = {
    "verdicts": [
        {
            "vm": "web-1",
            "protocol": "tcp",
            "port": 443,
            "application": "TLS",
            "how": "confirmed",
            "category": "web server",
            "category_how": "confirmed",
            "packets": 5,
            "handshake_s": 0.0004,
            "response_s": 0.0021,
        }
    ]
}
#: Seconds after a move for which what the source tells of the VM is still taken.
LATE_S = 60.0

Application = Annotated[
    str | None,
    Query(max_length=100, description="nDPI's name; TLS finds what is in TLS too. In any case"),
]


def router(brain: Brain) -> APIRouter:
    """The routes of services. Raises SettingsError for the policy."""
    routes = APIRouter(tags=["services"])
    _add_reading(routes, brain)
    _add_telling(routes, brain)
    return routes


def _add_reading(routes: APIRouter, brain: Brain) -> None:
    async def answer(
        vm: str | None, application: str | None, category: str | None, after: str, limit: int
    ) -> Response:
        def wanted(record: Record) -> bool:
            return (
                isinstance(record, Service)
                and vm in (None, record.vm)
                and category in (None, record.category)
                and (application is None or _is(record, application))
            )

        return page(brain.replica.state, Service.kind, after, limit, wanted)

    @routes.get(SERVICES_PATH, operation_id="list_services", responses=replies(Page))
    async def listed(
        limit: Limit = 100,
        after: After = "",
        vm: Filter = None,
        application: Application = None,
        category: Filter = None,
    ) -> Response:
        """What is known to answer at the ports of VMs, page by page."""
        await brain.replica.refresh()
        return await answer(vm, application, category, after, limit)

    @routes.get(
        "/v1/vms/{key}/services",
        operation_id="list_services_of_vm",
        responses=replies(Page),
    )
    async def of_vm(key: Key, limit: Limit = 100, after: After = "") -> Response:
        """What is known to answer at the ports of one VM."""
        await brain.replica.refresh()
        if key not in brain.replica.state.vms:
            raise no_such("vm", key)
        return await answer(key, None, None, after, limit)


def _is(service: Service, application: str) -> bool:
    name, wanted = service.application.casefold(), application.casefold()
    return wanted in (name, name.partition(".")[0])


def _add_telling(routes: APIRouter, brain: Brain) -> None:
    settings = brain.settings.dpi
    rules = policies.load(settings.policy or policies.DEFAULT).rules()
    ledger = Ledger(rules, lambda: random.uniform(-1, 1))  # noqa: S311
    movers = Movers()

    @routes.post(
        SERVICES_PATH,
        operation_id="post_services",
        responses=replies(VerdictsReply),
        openapi_extra=body(FlowVerdicts, EXAMPLE),
    )
    async def told(request: Request) -> Response:
        """Tell what the first packets of flows to services say. Each verdict is judged alone: a
        hypervisor's token tells of the VMs of its own host."""
        who = principal(request)
        given = validated(FlowVerdicts, parsed(await read_body(request))).verdicts
        await brain.replica.refresh()
        state, now = brain.replica.state, time.time()
        refused = [_refused(n, verdict, state, who, movers, now) for n, verdict in enumerate(given)]
        taken = [v for v, no in zip(given, refused, strict=True) if no is None]
        settled = ledger.judge(state.services, [_flow(verdict, now) for verdict in taken], now)

        def work(tx: Transaction) -> int:
            keep(tx, settled)
            return tx.revision

        revision = await written(brain, work) if settled else state.revision
        return reply(
            VerdictsReply(
                accepted=len(taken),
                refused=tuple(no for no in refused if no is not None),
                settled=tuple(settled),
                revision=revision,
            ),
            revision=revision,
        )


def _refused(
    index: int, verdict: FlowVerdict, state: State, who: Principal, movers: Movers, now: float
) -> RefusedVerdict | None:
    if verdict.vm not in state.vms:
        return RefusedVerdict(index=index, reason="unknown_vm")
    placed = state.placements.get(verdict.vm)
    if who.role is Role.OPERATOR or (placed is not None and placed.host == who.host):
        return None
    if who.host is not None and movers.has(state, verdict.vm, who.host, now, LATE_S):
        return None
    return RefusedVerdict(index=index, reason="not_yours")


def _flow(told: FlowVerdict, now: float) -> tuple[seen.Service, seen.Verdict]:
    """A verdict as the ledger knows it. Who began the flow, the sender has seen to."""
    nobody = seen.Endpoint("", 0)
    verdict = seen.Verdict(
        scope=0,
        protocol=told.protocol,
        vlan=0,
        initiator=nobody,
        responder=nobody,
        direction=seen.Direction.SYN,
        application=told.application,
        kind=seen.Kind(told.how),
        category=told.category,
        category_kind=seen.Kind(told.category_how),
        confidence=told.confidence,
        method="",
        risks=told.risks,
        server_name="",
        first_seen=now,
        packets=told.packets,
        handshake_s=told.handshake_s,
        response_s=told.response_s,
    )
    return seen.Service(told.vm, told.protocol, told.port), verdict
