"""`POST /v1/events`: CloudEvents 1.0, structured, batched, or binary (HTTP binding, 3.1)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from urllib.parse import unquote

from fastapi import APIRouter, Request
from starlette.responses import Response

from controller.api import CLOUDEVENTS, BatchReply, EventReply, ProblemBody
from controller.northbound.applied import named
from controller.northbound.auth import Principal
from controller.northbound.brain import Brain, parsed, principal, reply
from controller.northbound.documents import EVENT_OPERATION
from controller.northbound.gate import read_body
from controller.northbound.ingest import Ingest
from controller.northbound.problems import MALFORMED, TOO_LARGE, Problem, of_any
from controller.observe.cloudevents import (
    Event,
    MigrationCompleted,
    MigrationStarted,
    VmPlaced,
    parse,
)

log = logging.getLogger("controller.northbound.events")

#: Events of a batch that are parsed before others get their turn.
_TURN = 32


def router(brain: Brain) -> APIRouter:
    """The route of events."""
    routes = APIRouter(tags=["events"])

    @routes.post("/v1/events", operation_id="post_events", **EVENT_OPERATION)
    async def post_events(request: Request) -> Response:
        """Tell what happened to VMs and hosts. Each event is applied once, whatever is sent twice.

        The reply's `revision` can be waited for by `GET /v1/vms/{id}?wait=applied`. In a batch
        each event has a result of its own, and a refused one does not disturb the others."""
        body = parsed(await read_body(request))
        who = principal(request)
        if request.headers.get("content-type", "").partition(";")[0].strip() == CLOUDEVENTS:
            return await _batch(brain, body, who)
        if "ce-specversion" in request.headers:
            body = _from_headers(request.headers, body)
        answer = await _take(brain, body, who)
        if isinstance(answer, Problem):
            raise answer
        return reply(answer, revision=answer.revision)

    return routes


async def _batch(brain: Brain, body: object, who: Principal) -> Response:
    if not isinstance(body, list):
        raise Problem(MALFORMED, "a batch is a JSON array of events", "Send an array.")
    limit = brain.settings.northbound.max_batch
    if len(body) > limit:
        raise Problem(
            TOO_LARGE,
            f"the batch has {len(body)} events, and at most {limit} are taken",
            "Send smaller batches, or raise northbound.max_batch.",
        )
    tasks = []
    for index, message in enumerate(body, 1):
        tasks.append(asyncio.ensure_future(_take(brain, message, who)))
        if index % _TURN == 0:
            await asyncio.sleep(0)
    results: list[EventReply | ProblemBody] = []
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, EventReply):
            results.append(outcome)
        elif isinstance(outcome, Exception):
            results.append(_told(outcome))
        else:
            raise outcome
    revision = max((r.revision for r in results if isinstance(r, EventReply)), default=0)
    return reply(BatchReply(revision=revision, results=tuple(results)), revision=revision)


def _told(error: Exception) -> ProblemBody:
    problem = of_any(error)
    if problem.status >= 500:
        log.error("event failed", exc_info=error if problem.status == 500 else None)
    return problem.body()


async def _take(brain: Brain, message: object, who: Principal) -> EventReply | Problem:
    """One event as far as its reply; what is refused is returned or raised."""
    event = parse(message)
    work = Ingest(event, who, time.time(), brain.settings.northbound.event_skew_s)
    answer = await brain.writer.submit(work)
    fields = {
        "type": event.type.value,
        "about": event.about,
        "source": event.source,
        "id": event.id,
        "actor": who.name,
    }
    if isinstance(answer, Problem):
        log.warning("event refused", extra={**fields, "cause": answer.detail})
        return answer
    log.info(
        "event taken",
        extra={
            **fields,
            "outcome": answer.outcome,
            "revision": answer.revision,
            "reason": answer.reason,
        },
    )
    if answer.outcome not in ("applied", "unchanged") or not _warnings(brain, event):
        return answer
    await brain.replica.refresh()  # so that nothing is warned of that has been mended just now
    warnings = _warnings(brain, event)
    return answer.model_copy(update={"warnings": warnings}) if warnings else answer


def _from_headers(headers: Mapping[str, str], data: object) -> dict[str, object]:
    """An event in binary mode: attributes are headers, the body is the data."""
    names = ("specversion", "id", "source", "type", "time")
    event: dict[str, object] = {
        name: unquote(headers[f"ce-{name}"]) for name in names if f"ce-{name}" in headers
    }
    event["data"] = data
    return event


def _warnings(brain: Brain, event: Event) -> tuple[str, ...]:
    """What will keep the event from having its effect at once."""
    match event.data:
        case VmPlaced(host=host, ports=ports):
            return _not_there(brain, host, ports)
        case MigrationStarted(target=host, ports=ports):
            return _not_there(brain, host, ports)
        case MigrationCompleted(target=str(host), ports=tuple(ports)):
            return _not_there(brain, host, ports)
    return ()


def _not_there(brain: Brain, host: str, ports: tuple[str, ...]) -> tuple[str, ...]:
    state = brain.replica.state
    known = state.hosts.get(host)
    if known is None:  # written a moment ago: the replica does not have it yet
        return ()
    dpid = known.datapath
    datapath = state.datapaths.get(dpid)
    if datapath is None or not datapath.connected:
        return (
            f"datapath {named(state, dpid)} of host {host} is not connected: rules follow when "
            "it connects",
        )
    return tuple(
        f"port {port} is not on datapath {named(state, dpid)} yet: rules follow when it appears"
        for port in ports
        if brain.replica.port_number(dpid, port) is None
    )
