"""`/v1/tunnels/…/reservations`: may so much of a tunnel be had, and for how long?"""

from __future__ import annotations

import time
import uuid

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from controller.api import NewReservation, Page, TunnelBandwidth, TunnelShare
from controller.decide.paths.tunnels import Refused, free, grant, reserved
from controller.model.nouns import Reservation, Tunnel
from controller.northbound.brain import Brain, parsed, principal, reply, validated, written
from controller.northbound.documents import body, replies
from controller.northbound.gate import read_body
from controller.northbound.problems import CONFLICT, Problem
from controller.northbound.record_routes import After, Filter, Key, Limit, no_such, page
from controller.store import Transaction

#: What these routes take and answer with, for the document.
MODELS: list[type[BaseModel]] = [NewReservation, TunnelBandwidth, Reservation]

_EXAMPLE = {"id": "mig-7", "rate": 2_000_000_000, "lifetime_s": 600, "purpose": "migration mig-7"}


def router(brain: Brain) -> APIRouter:
    """The routes of reservations."""
    routes = APIRouter(tags=["tunnels"])
    _add_reading(routes, brain)
    _add_granting(routes, brain)
    _add_releasing(routes, brain)
    return routes


def _add_reading(routes: APIRouter, brain: Brain) -> None:
    @routes.get(
        "/v1/tunnels/{key}/bandwidth",
        operation_id="get_tunnel_bandwidth",
        responses=replies(TunnelBandwidth),
    )
    async def bandwidth(key: Key) -> Response:
        """What of a tunnel is reserved, and what could still be."""
        await brain.replica.refresh()
        state = brain.replica.state
        tunnel = state.tunnels.get(key)
        if tunnel is None:
            raise no_such("tunnel", key)
        now, all_of_them = time.time(), state.reservations.values()
        forward, backward = (
            TunnelShare(
                capacity=tunnel.capacity,
                reserved=reserved(tunnel, all_of_them, way, now),
                free=free(tunnel, all_of_them, way, now),
            )
            for way in (True, False)
        )
        told = TunnelBandwidth(tunnel=key, forward=forward, backward=backward)
        return reply(told, revision=state.revision)

    @routes.get("/v1/reservations", operation_id="list_reservations", responses=replies(Page))
    async def listed(limit: Limit = 100, after: After = "", tunnel: Filter = None) -> Response:
        """What is reserved, by id, page by page; of one tunnel or of all."""
        await brain.replica.refresh()
        return page(
            brain.replica.state,
            "reservation",
            after,
            limit,
            lambda record: tunnel is None or getattr(record, "tunnel", None) == tunnel,
        )


def _add_granting(routes: APIRouter, brain: Brain) -> None:
    @routes.post(
        "/v1/tunnels/{key}/reservations",
        operation_id="reserve",
        status_code=201,
        responses=replies(Reservation, 201, "Granted"),
        openapi_extra=body(NewReservation, _EXAMPLE),
    )
    async def reserve(key: Key, request: Request) -> Response:
        """Reserve a part of a tunnel, all of it or nothing; the same id again takes the place of
        what it had. 409 tells how much is free instead."""
        asked = validated(NewReservation, parsed(await read_body(request)))
        actor = principal(request).name
        now = time.time()
        name = asked.id or f"r-{uuid.uuid4()}"

        def work(transaction: Transaction) -> tuple[Reservation, int]:
            tunnel = transaction.get(Tunnel, key)
            if tunnel is None:
                raise no_such("tunnel", key)
            wanted = Reservation(
                id=name,
                tunnel=tunnel.id,
                rate=asked.rate,
                forward=asked.forward,
                purpose=asked.purpose,
                expires_at=now + asked.lifetime_s,
            )
            held = transaction.get(Reservation, wanted.id)
            if held is not None and held.tunnel != key:
                raise Problem(
                    CONFLICT,
                    f"reservation {wanted.id} is of tunnel {held.tunnel}",
                    "Choose another id, or release that one first.",
                )
            refused = grant(tunnel, transaction.where(Reservation, tunnel=key), wanted, now)
            if refused is not None:
                raise _infeasible(tunnel, wanted, refused, now)
            stored = transaction.put(wanted)
            detail: dict[str, object] = stored.model_dump(mode="json")
            subject = f"reservation {stored.id}"
            transaction.audit(now, actor, "reservation.grant", subject, detail)
            return stored, transaction.revision

        stored, revision = await written(brain, work)
        return reply(stored, 201, revision)


def _infeasible(tunnel: Tunnel, wanted: Reservation, refused: Refused, now: float) -> Problem:
    way = "out of" if wanted.forward else "into"
    later = (
        f"wait {refused.free_at - now:.0f} s, when others end"
        if refused.free_at is not None
        else f"it never fits: {tunnel.reservable:.0%} of {_rate(tunnel.capacity)} can be reserved"
    )
    return Problem(
        CONFLICT,
        f"{_rate(wanted.rate)} of tunnel {tunnel.id} {way} {tunnel.link} cannot be had: "
        f"{_rate(refused.free)} are free",
        f"Ask for {_rate(refused.free)} or less, or {later}."
        if refused.free
        else f"Nothing is free: {later}.",
    )


def _rate(bps: int) -> str:
    """For people, and as REST takes it."""
    return f"{bps / 1e6:,.12g} Mbit/s ({bps} bit/s)"


def _add_releasing(routes: APIRouter, brain: Brain) -> None:
    @routes.delete("/v1/reservations/{key}", operation_id="release", status_code=204)
    async def release(key: Key, request: Request) -> Response:
        """Give back what was reserved."""
        actor = principal(request).name

        def work(transaction: Transaction) -> int:
            if not transaction.delete(Reservation, key):
                raise no_such("reservation", key)
            now = time.time()
            transaction.audit(now, actor, "reservation.release", f"reservation {key}", {})
            return transaction.revision

        revision = await written(brain, work)
        return Response(status_code=204, headers={"pleach-revision": str(revision)})
