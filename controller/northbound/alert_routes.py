"""`/v1/alerts`: what is out of the ordinary, who has seen to it, and the evidence; and how the
loops of the brain fare."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel
from pydantic_core import from_json, to_json
from sqlalchemy import Connection
from starlette.responses import Response

from controller.api import (
    JSON,
    AlertDelivery,
    AlertInfo,
    AlertmanagerAlerts,
    AlertNote,
    Alerts,
    AlertStatus,
    Investigation,
    LoopInfo,
    LoopsInfo,
    Role,
)
from controller.northbound.brain import Brain, parsed, principal, reply, validated, written
from controller.northbound.documents import body, replies
from controller.northbound.gate import read_body
from controller.northbound.problems import CONFLICT, FORBIDDEN, NOT_FOUND, Problem
from controller.northbound.reading_routes import Timeout
from controller.observe.anomalies import book
from controller.observe.anomalies.alerts import Kind, Severity, State, WrongStateError
from controller.observe.anomalies.rendering import alertmanager
from controller.settings import masked
from controller.store import Transaction, samples

#: What these routes take and answer with, for the document.
MODELS: list[type[BaseModel]] = [
    Alerts,
    AlertStatus,
    AlertNote,
    AlertInfo,
    AlertmanagerAlerts,
    Investigation,
    LoopsInfo,
]
NOTE_EXAMPLE: dict[str, Any] = {"note": "a backup that ran by day; moved to the night"}
#: As registered (https://www.iana.org/assignments/media-types/application/vnd.tcpdump.pcap).
PCAP = "application/vnd.tcpdump.pcap"
_BINARY = {"type": "string", "format": "binary"}
#: The largest that the store can hold.
MAX_NUMBER = (1 << 63) - 1

T = TypeVar("T")
Number = Annotated[int, Path(ge=1, le=MAX_NUMBER, description="Id of an alert")]
Limit = Annotated[int, Query(ge=1, le=1_000, description="Alerts in one page")]
Vm = Annotated[str | None, Query(max_length=127)]
Before = Annotated[int | None, Query(ge=0, le=MAX_NUMBER, description="`next` of the page before")]
Since = Annotated[
    int | None, Query(ge=0, le=MAX_NUMBER, description="Wait for changes after this version")
]


def router(brain: Brain) -> APIRouter:
    """The routes of alerts and loops."""
    routes = APIRouter(tags=["alerts"])
    _add_listing(routes, brain)
    _add_reading(routes, brain)
    _add_packets(routes, brain)
    _add_moving(routes, brain)
    _add_loops(routes, brain)
    return routes


def _add_listing(routes: APIRouter, brain: Brain) -> None:
    @routes.get("/v1/alerts", operation_id="list_alerts", responses=replies(Alerts))
    async def listed(
        state: State | None = None,
        kind: Kind | None = None,
        severity: Severity | None = None,
        vm: Vm = None,
        limit: Limit = 100,
        before: Before = None,
        since: Since = None,
        timeout: Timeout = None,
    ) -> Response:
        """Alerts, the newest first. With `since`, those that changed after that version; where
        there is none yet, waits for one up to `timeout`."""
        asked = book.Asked(state, kind, severity, vm, before, since)
        if since is not None:
            await _wait(brain, asked, timeout)

        def look(connection: Connection) -> Alerts:
            found = book.find(connection, asked, limit + 1)
            more = len(found) > limit
            found = found[:limit]
            newest = book.version(connection)
            if since is not None and more:
                newest = found[-1].version
            return Alerts(
                items=tuple(map(_info, found)),
                next=int(found[-1].alert.id) if more and since is None else None,
                version=newest,
            )

        return reply(await _read(brain, look))

    @routes.get(
        "/v1/alertmanager/alerts",
        operation_id="get_alertmanager_alerts",
        responses=replies(AlertmanagerAlerts),
    )
    async def for_alertmanager() -> Response:
        """What stands, and what was closed within the last minutes, as an Alertmanager takes
        it."""
        told, now = brain.settings.alerts, time.time()
        found = await _read(
            brain, lambda connection: book.lately(connection, now - book.OVER * told.resend_s)
        )
        rendered = alertmanager(found, now, told.resend_s, book.link(told))
        return Response(to_json(rendered), media_type=JSON)


def _add_reading(routes: APIRouter, brain: Brain) -> None:
    @routes.get("/v1/alerts/{key}", operation_id="get_alert", responses=replies(AlertStatus))
    async def one(key: Number) -> Response:
        """One alert, and what of it is not yet told."""
        targets = {book.digest(url): masked(url) for url in brain.settings.alerts.webhooks}

        def look(connection: Connection) -> AlertStatus:
            kept = book.get(connection, key)
            if kept is None:
                raise _no_such(key)
            waiting = []
            for delivery in book.deliveries(connection, key):
                fields = asdict(delivery) | {"target": targets.get(delivery.target)}
                waiting.append(AlertDelivery.model_validate(fields))
            return AlertStatus(alert=_info(kept), deliveries=tuple(waiting))

        return reply(await _read(brain, look))

    @routes.get(
        "/v1/alerts/{key}/investigation",
        operation_id="get_investigation",
        responses=replies(Investigation),
    )
    async def investigation(key: Number) -> Response:
        """The evidence around an alert."""
        found = await _read(brain, lambda connection: book.evidence(connection, key))
        if found is None:
            raise _no_such(key)
        held = from_json(found) if found else {}
        return reply(
            Investigation(
                alert=key,
                gathered_at=held.pop("gathered_at", None),
                complete=held.pop("complete", False),
                words=held.pop("words", ()),
                evidence=held,
            )
        )


def _add_packets(routes: APIRouter, brain: Brain) -> None:
    @routes.get(
        "/v1/alerts/{key}/packets.pcap",
        operation_id="get_packets",
        response_class=Response,
        responses={200: {"description": "A pcap file", "content": {PCAP: {"schema": _BINARY}}}},
    )
    async def packets(key: Number) -> Response:
        """Some packets of the VM, copied when the alert opened."""
        found = await _read(brain, lambda connection: samples.get(connection, key))
        if found is None:
            raise Problem(
                NOT_FOUND,
                f"no packets are kept for alert {key}",
                "They take half a minute after it opened, and a VM that is placed.",
            )
        return Response(found.pcap, media_type=PCAP)


def _add_moving(routes: APIRouter, brain: Brain) -> None:
    async def move(key: int, to: State, request: Request) -> Response:
        note = validated(AlertNote, parsed(await read_body(request))).note
        actor, telling = principal(request).name, book.telling(brain.settings.alerts)

        def work(transaction: Transaction) -> book.Kept:
            now = time.time()
            try:
                kept = book.move(transaction, key, to, now, actor, telling)
            except WrongStateError as error:
                mend = "See GET /v1/alerts for those that stand."
                raise Problem(CONFLICT, str(error), mend) from None
            if kept is None:
                raise _no_such(key)
            detail: dict[str, object] = {"vm": kept.alert.vm, "note": note}
            transaction.audit(now, actor, f"alert.{to}", f"alert {key}", detail)
            return kept

        return reply(_info(await written(brain, work)))

    @routes.post(
        "/v1/alerts/{key}/acknowledge",
        operation_id="acknowledge_alert",
        responses=replies(AlertInfo),
        openapi_extra=body(AlertNote, NOTE_EXAMPLE),
    )
    async def acknowledge(key: Number, request: Request) -> Response:
        """Say that somebody sees to it; it then stays until it is closed by hand."""
        return await move(key, State.ACKNOWLEDGED, request)

    @routes.post(
        "/v1/alerts/{key}/close",
        operation_id="close_alert",
        responses=replies(AlertInfo),
        openapi_extra=body(AlertNote, NOTE_EXAMPLE),
    )
    async def close(key: Number, request: Request) -> Response:
        """Say that it is over; what is found after that is a new alert."""
        return await move(key, State.CLOSED, request)


def _add_loops(routes: APIRouter, brain: Brain) -> None:
    @routes.get(
        "/v1/loops", operation_id="get_loops", tags=["health"], responses=replies(LoopsInfo)
    )
    async def loops(request: Request) -> Response:
        """How each loop of the brain fares; for operators."""
        who = principal(request)
        if who.role is not Role.OPERATOR:
            raise Problem(
                FORBIDDEN,
                f"token {who.name} has the role {who.role} and may not see how loops fare",
                "Use a token with the role operator.",
            )
        found = (LoopInfo(**asdict(status)) for status in brain.loops.status())
        return reply(LoopsInfo(items=tuple(found)))


async def _wait(brain: Brain, asked: book.Asked, timeout: float | None) -> None:
    """Until there is something of what is asked for, or the time is over."""
    longest = brain.settings.northbound.wait_timeout_s
    deadline = time.monotonic() + (longest if timeout is None else min(timeout, longest))
    with brain.waiting():
        while not brain.stopping:
            if await _read(brain, lambda connection: book.find(connection, asked, 1)):
                return
            left = deadline - time.monotonic()
            if left <= 0:
                return
            await brain.replica.changed(left)


async def _read(brain: Brain, look: Callable[[Connection], T]) -> T:
    def reading() -> T:
        with brain.store.reading() as connection:
            return look(connection)

    return await asyncio.to_thread(reading)


def _info(kept: book.Kept) -> AlertInfo:
    fields = asdict(kept.alert) | {"version": kept.version}
    fields |= {"metric": kept.alert.metric or None, "by": kept.alert.by or None}
    fields |= {name: str(fields[name]) for name in ("kind", "state", "severity")}
    return AlertInfo(**fields | {"id": int(kept.alert.id)})


def _no_such(key: int) -> Problem:
    return Problem(NOT_FOUND, f"there is no alert {key}", "See GET /v1/alerts.")
