"""What may each VM send and receive, and why? The operator's limits are written here too."""

from __future__ import annotations

import asyncio
import time

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from controller.act.dataplane.rules.bandwidth import effective
from controller.api import Bandwidths, VmBandwidth
from controller.model.nouns import RateLimit, Vm
from controller.model.state import State
from controller.northbound.brain import Brain, parsed, principal, reply, shown, validated, written
from controller.northbound.documents import body, replies
from controller.northbound.gate import read_body
from controller.northbound.problems import INVALID, MALFORMED, NOT_FOUND, Problem
from controller.northbound.record_routes import After, Key, Limit, no_such
from controller.store import Transaction
from controller.store.usage import read_usage

#: What these routes answer with and take, for the document.
MODELS: list[type[BaseModel]] = [Bandwidths, VmBandwidth, RateLimit]

_EXAMPLE = {"vm": "web-1", "out_kbit": 100_000, "in_kbit": 200_000}


def router(brain: Brain) -> APIRouter:
    """The routes of bandwidth."""
    routes = APIRouter(tags=["bandwidth"])
    _add_reading(routes, brain)
    _add_writing(routes, brain)
    return routes


def _add_reading(routes: APIRouter, brain: Brain) -> None:
    @routes.get("/v1/bandwidth", operation_id="list_bandwidths", responses=replies(Bandwidths))
    async def listed(limit: Limit = 100, after: After = "") -> Response:
        """VMs with a meter, a limit or a marking, by VM, page by page."""
        await brain.replica.refresh()
        state = brain.replica.state
        known = {*state.rate_limits, *state.bandwidths, *state.markings}
        keys = sorted(key for key in known if key > after)
        measured = await _measured(brain)
        items = tuple(told(state, key, measured) for key in keys[:limit])
        following = keys[limit - 1] if len(keys) > limit else None
        trouble = next((s.trouble for s in brain.loops.status() if s.name == "bandwidth"), "")
        told_of = Bandwidths(items=items, next=following, revision=state.revision, trouble=trouble)
        return reply(told_of)

    @routes.get("/v1/bandwidth/{key}", operation_id="get_bandwidth", responses=replies(VmBandwidth))
    async def got(key: Key) -> Response:
        """What one VM may send and receive, and why."""
        await brain.replica.refresh()
        state = brain.replica.state
        if key not in state.vms:
            raise no_such("vm", key)
        return reply(told(state, key, await _measured(brain)), revision=state.revision)


def _add_writing(routes: APIRouter, brain: Brain) -> None:
    @routes.put(
        "/v1/bandwidth/{key}",
        operation_id="put_bandwidth",
        responses=replies(RateLimit),
        openapi_extra=body(RateLimit, _EXAMPLE),
    )
    async def put(key: Key, request: Request) -> Response:
        """Limit a VM, at once and whatever is decided: it may get less, never more."""
        limit = _limit(parsed(await read_body(request)), key)
        actor = principal(request).name

        def work(transaction: Transaction) -> tuple[RateLimit, int]:
            if transaction.get(Vm, key) is None:
                raise no_such("vm", key)
            stored = transaction.put(limit)
            detail: dict[str, object] = stored.model_dump(mode="json")
            transaction.audit(time.time(), actor, "bandwidth.limit", f"vm {key}", detail)
            return stored, transaction.revision

        stored, revision = await written(brain, work)
        return reply(stored, revision=revision)

    @routes.delete("/v1/bandwidth/{key}", operation_id="delete_bandwidth", status_code=204)
    async def delete(key: Key, request: Request) -> Response:
        """Take the operator's limit off a VM."""
        actor = principal(request).name

        def work(transaction: Transaction) -> int:
            if not transaction.delete(RateLimit, key):
                raise Problem(NOT_FOUND, f"vm {key} has no limit", "See GET /v1/bandwidth.")
            transaction.audit(time.time(), actor, "bandwidth.unlimit", f"vm {key}", {})
            return transaction.revision

        revision = await written(brain, work)
        return Response(status_code=204, headers={"pleach-revision": str(revision)})


Passed = dict[tuple[str, bool], float]


async def _measured(brain: Brain) -> Passed:
    """kbit/s that each meter passed of late, by VM and whether it is of what the VM sends."""
    recent = time.time() - 3 * brain.settings.bandwidth.interval_s
    rows = await asyncio.to_thread(read_usage, brain.store, recent)
    return {
        (meter.vm, meter.out): meter.passed_bps / 1_000
        for row in sorted(rows, key=lambda row: row.at)
        for meter in row.meters
    }


def told(state: State, vm: str, measured: Passed) -> VmBandwidth:
    """What is known of a VM's bandwidth."""
    out, into = effective(state, vm)
    return VmBandwidth(
        vm=vm,
        out_kbit=out.kbit,
        in_kbit=into.kbit,
        out_reason=out.reason,
        in_reason=into.reason,
        limit=state.rate_limits.get(vm),
        out_passed_kbit=measured.get((vm, True)),
        in_passed_kbit=measured.get((vm, False)),
        marking=state.markings.get(vm),
    )


def _limit(told: object, key: str) -> RateLimit:
    if not isinstance(told, dict):
        raise Problem(MALFORMED, f"the body is no object: {shown(told)}", "Send a JSON object.")
    fields = {**told}
    if fields.setdefault("vm", key) != key:
        raise Problem(
            INVALID,
            f"the body's vm {shown(fields['vm'])} is not that of the path, {key}",
            "Leave vm out of the body, or make them equal.",
        )
    return validated(RateLimit, fields)
