"""Who talks to whom, and what was denied: as counted by the switches, hour by hour."""

from __future__ import annotations

import asyncio
import math
from dataclasses import asdict, replace
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel
from pydantic_core import from_json, to_json
from starlette.responses import Response

from controller.api import DenialInfo, Denials, SignatureInfo, Signatures
from controller.model.signatures import Refused, Talked
from controller.northbound.brain import Brain, reply
from controller.northbound.documents import replies
from controller.northbound.problems import INVALID, Problem
from controller.northbound.record_routes import Filter, Limit
from controller.store.signatures import Asked, find

#: What these routes answer with, for the document.
MODELS: list[type[BaseModel]] = [Signatures, Denials]

T = TypeVar("T", Talked, Refused)

_HOUR_S = 3_600
_LAST = 253_402_300_800  # the year 10000
Peer = Annotated[
    str | None, Query(max_length=127, description='A VM, a prefix such as 192.0.2.0/24, or "*"')
]
Port = Annotated[int | None, Query(ge=0, le=65_535)]
Protocol = Annotated[
    str | None,
    Query(max_length=10, description="tcp, udp, sctp, icmp, or the number of another one"),
]
Since = Annotated[
    float | None, Query(ge=0, le=_LAST, description="Hours from the one of this time on, Unix s")
]
Until = Annotated[
    float | None, Query(ge=0, le=_LAST, description="Hours that begin before this time, Unix s")
]
Hourly = Annotated[bool, Query(description="One item an hour, instead of sums")]
Following = Annotated[str, Query(description="`next` of the page before", max_length=500)]


async def _asked(  # a coroutine, as what is none is run in a thread
    vm: Filter = None,
    peer: Peer = None,
    protocol: Protocol = None,
    port: Port = None,
    tenant: Filter = None,
    since: Since = None,
    until: Until = None,
    hourly: Hourly = False,
) -> Asked:
    first = None if since is None else math.floor(since / _HOUR_S)
    last = None if until is None else math.ceil(until / _HOUR_S)
    return Asked(vm, peer, protocol, port, tenant, first, last, hourly)


Wanted = Annotated[Asked, Depends(_asked)]


def router(brain: Brain) -> APIRouter:
    """The routes of signatures and denials."""
    routes = APIRouter(tags=["signatures"])

    @routes.get("/v1/signatures", operation_id="list_signatures", responses=replies(Signatures))
    async def signatures(asked: Wanted, limit: Limit = 100, after: Following = "") -> Response:
        """Who talks to whom, page by page, with what has been counted."""
        await brain.replica.refresh()
        rows, following = await _page(brain, Talked, asked, limit, after)
        services = brain.replica.state.services
        items = []
        for row in rows:
            service = services.get(f"{row.peer}:{row.protocol}:{row.port}")
            application = None if service is None else service.application
            items.append(SignatureInfo(**_told(row), application=application))
        return reply(Signatures(items=tuple(items), next=following))

    @routes.get("/v1/denials", operation_id="list_denials", responses=replies(Denials))
    async def denials(asked: Wanted, limit: Limit = 100, after: Following = "") -> Response:
        """What access denied, page by page."""
        rows, following = await _page(brain, Refused, asked, limit, after)
        items = tuple(DenialInfo(**_told(row)) for row in rows)
        return reply(Denials(items=items, next=following))

    return routes


async def _page(
    brain: Brain, kind: type[T], asked: Asked, limit: int, after: str
) -> tuple[list[T], str | None]:
    if after:
        asked = replace(asked, after=_place(after, hourly=asked.hourly))

    def read() -> list[T]:
        with brain.store.reading() as connection:
            return find(connection, kind, asked, limit + 1)

    rows = await asyncio.to_thread(read)
    if len(rows) <= limit:
        return rows, None
    last: Talked | Refused = rows[limit - 1]
    key = [last.vm, last.peer, last.protocol, last.port, *([last.hour] if asked.hourly else [])]
    return rows[:limit], to_json(key).decode()


def _place(after: str, *, hourly: bool) -> tuple[str | int, ...]:
    """The key that `next` of a page told."""
    try:
        key = from_json(after)
    except ValueError:
        key = None
    kinds = (str, str, str, int, int) if hourly else (str, str, str, int)
    if (
        not isinstance(key, list)
        or len(key) != len(kinds)
        or not all(type(part) is kind for part, kind in zip(key, kinds, strict=True))
        or not all(abs(part) < 1 << 31 for part in key if isinstance(part, int))
        or any("\0" in part for part in key if isinstance(part, str))
    ):
        raise Problem(INVALID, "after is no place in the list", "Give `next` of the page before.")
    return tuple(key)


def _told(row: Talked | Refused) -> dict[str, object]:
    return {**asdict(row), "hour": float(row.hour * _HOUR_S)}
