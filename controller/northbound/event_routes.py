"""`POST /v1/events`: CloudEvents 1.0, structured, batched, or binary (HTTP binding, 3.1)."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Mapping
from urllib.parse import unquote

from fastapi import APIRouter, Request
from starlette.responses import Response

from controller.api import CLOUDEVENTS, BatchReply, EventReply, ProblemBody
from controller.northbound.applied import named
from controller.northbound.auth import Principal
from controller.northbound.brain import Brain, parsed, principal, reply, shown
from controller.northbound.documents import EVENT_OPERATION
from controller.northbound.gate import EVENTS_PATH, Endpoint, read_body
from controller.northbound.ingest import Ingest
from controller.northbound.problems import INVALID, MALFORMED, TOO_LARGE, Problem, of_any
from controller.northbound.waiting import applied
from controller.observe.cloudevents import (
    Event,
    HostEvent,
    MigrationCompleted,
    MigrationStarted,
    VmPlaced,
    parse,
)

log = logging.getLogger("controller.northbound.events")

#: Events of a batch that are parsed before others get their turn.
_TURN = 32


def router(brain: Brain) -> APIRouter:
    """The route of events, for the document; the gate leads to the same endpoint directly."""
    routes = APIRouter(tags=["events"])
    routes.post(EVENTS_PATH, operation_id="post_events", **EVENT_OPERATION)(endpoint(brain))
    return routes


def endpoint(brain: Brain) -> Endpoint:
    """What answers `POST /v1/events`."""

    async def post_events(request: Request) -> Response:
        """Tell what happened to VMs and hosts. Each event is applied once, whatever is sent twice.

        With `wait=applied` the reply to an event about a VM comes once the switches have
        confirmed it; without, its `revision` can be waited for by
        `GET /v1/vms/{id}?wait=applied`. In a batch each event has a result of its own, and a
        refused one does not disturb the others."""
        body = parsed(await read_body(request))
        who = principal(request)
        patience_s = _patience(brain, request.query_params)
        if request.headers.get("content-type", "").partition(";")[0].strip() == CLOUDEVENTS:
            if patience_s is not None:
                raise _no_wait("a batch", "Wait for the VMs of its events one by one.")
            return await _batch(brain, body, who)
        if "ce-specversion" in request.headers:
            body = _from_headers(request.headers, body)
        event = parse(body)
        if patience_s is not None and isinstance(event.data, HostEvent):
            raise _no_wait(f"{event.type}, which changes no rule,", "Leave wait out.")
        answer = await _take(brain, event, who)
        if isinstance(answer, Problem):
            raise answer
        if patience_s is not None:
            answer = await _confirmed(brain, event.about, answer, patience_s)
        return reply(answer, revision=answer.revision)

    return post_events


def _patience(brain: Brain, query: Mapping[str, str]) -> float | None:
    """Seconds to wait for the switches at most, or None where nobody asks for that."""
    longest = brain.settings.northbound.wait_timeout_s
    wait, given = query.get("wait"), query.get("timeout")
    if wait is None:
        return None
    if wait != "applied":
        raise Problem(INVALID, f"wait is {shown(wait)}", "Write wait=applied, or leave it out.")
    try:
        seconds = longest if given is None else float(given)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise Problem(
            INVALID, f"timeout is {shown(given)}", f"Give seconds, from 0 to {longest:g}."
        )
    return min(seconds, longest)


def _no_wait(what: str, mend: str) -> Problem:
    return Problem(INVALID, f"wait=applied is not possible for {what}", mend)


async def _confirmed(brain: Brain, vm: str, answer: EventReply, patience_s: float) -> EventReply:
    """The answer to an event that is written, once the switches have confirmed it. Where they
    do not, the problem says that the event itself stands."""
    await brain.replica.reach(answer.revision)
    if vm not in brain.replica.state.vms:
        return answer
    try:
        told = await applied(brain, vm, answer.revision, patience_s)
    except Problem as problem:
        raise problem.after(
            f"the event was taken ({answer.outcome}, revision {answer.revision}), but "
        ) from None
    return answer.model_copy(update={"confirmed_at": told.confirmed_at})


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
        tasks.append(asyncio.ensure_future(_parsed_and_taken(brain, message, who)))
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


async def _parsed_and_taken(brain: Brain, message: object, who: Principal) -> EventReply | Problem:
    return await _take(brain, parse(message), who)


async def _take(brain: Brain, event: Event, who: Principal) -> EventReply | Problem:
    """One event as far as its reply; what is refused is returned or raised."""
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
