"""The resources that an operator writes: tenants, subnets, VMs, hosts, access rules."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, cast

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from controller.api import RESOURCES, Fault, Page
from controller.model.addresses import format_dpid, parse_dpid
from controller.model.nouns import Datapath, Host, Link, Migration, Placement, Port, Record, Vm
from controller.model.state import State
from controller.northbound.brain import Brain, parsed, principal, reply, shown, validated, written
from controller.northbound.checks import check
from controller.northbound.documents import RECORD_EXAMPLES, body, replies
from controller.northbound.gate import read_body
from controller.northbound.problems import (
    CONFLICT,
    DUPLICATE,
    INVALID,
    MALFORMED,
    NOT_FOUND,
    Problem,
)
from controller.observe.case import clock_of_groups, clock_of_nics
from controller.store import Transaction

R = TypeVar("R", bound=Record)

Key = Annotated[str, Path(max_length=127)]
Limit = Annotated[int, Query(ge=1, le=1_000, description="Records in one page")]
After = Annotated[str, Query(description="`next` of the page before", max_length=200)]
Filter = Annotated[str | None, Query(max_length=127)]


def router(brain: Brain) -> APIRouter:
    """The routes of every resource that is written."""
    routes = APIRouter()
    for path, cls in RESOURCES.items():
        _add_reading(routes, brain, path, cls)
        _add_writing(routes, brain, path, cls)
        _add_deleting(routes, brain, path, cls)
    _add_forgetting(routes, brain)
    return routes


def page(
    state: State, kind: str, after: str, limit: int, wanted: Callable[[Record], bool]
) -> Response:
    """One page of the records of a kind that are `wanted`."""
    table = state.table(kind)
    keys = sorted(key for key, record in table.items() if key > after and wanted(record))
    items = tuple(table[key] for key in keys[:limit])
    following = keys[limit - 1] if len(keys) > limit else None
    return reply(Page[Any](items=items, next=following, revision=state.revision))


def no_such(kind: str, key: str) -> Problem:
    """There is no record of that kind with that key."""
    name = kind.replace("_", " ")
    return Problem(NOT_FOUND, f"there is no {name} {key}", f"See the list of {name}s.")


def _add_reading(routes: APIRouter, brain: Brain, path: str, cls: type[Record]) -> None:
    kind = cls.kind

    @routes.get(
        f"/v1/{path}",
        operation_id=f"list_{kind}s",
        tags=[path],
        responses=replies(Page, text="One page"),
    )
    async def listed(
        limit: Limit = 100,
        after: After = "",
        tenant: Filter = None,
        subnet: Filter = None,
        host: Filter = None,
        mac: Filter = None,
    ) -> Response:
        """The records by ascending key, page by page; filters that a kind lacks match none."""
        await brain.replica.refresh()
        state = brain.replica.state

        def wanted(record: Record) -> bool:
            return (
                (tenant is None or getattr(record, "tenant", None) == tenant)
                and (subnet is None or _on_subnet(record, subnet))
                and (host is None or _at_host(state, record, host))
                and (mac is None or _with_mac(record, mac))
            )

        return page(state, kind, after, limit, wanted)

    if cls is Vm:
        return  # told with its status, by another route

    @routes.get(
        f"/v1/{path}/{{key}}", operation_id=f"get_{kind}", tags=[path], responses=replies(cls)
    )
    async def got(key: Key) -> Response:
        """One record."""
        await brain.replica.refresh()
        record = brain.replica.state.table(kind).get(key)
        if record is None:
            raise no_such(kind, key)
        return reply(record, revision=brain.replica.state.revision)


def _on_subnet(record: Record, subnet: str) -> bool:
    return isinstance(record, Vm) and any(nic.subnet == subnet for nic in record.nics)


def _with_mac(record: Record, mac: str) -> bool:
    return isinstance(record, Vm) and any(nic.mac == mac.lower() for nic in record.nics)


def _at_host(state: State, record: Record, host: str) -> bool:
    placement = state.placements.get(record.key) if isinstance(record, Vm) else None
    return placement is not None and placement.host == host


def _add_writing(routes: APIRouter, brain: Brain, path: str, cls: type[Record]) -> None:
    kind = cls.kind
    takes = body(cls, RECORD_EXAMPLES[path])

    async def write(request: Request, key: str | None) -> Response:
        record = _record(cls, parsed(await read_body(request)), key)
        actor = principal(request).name
        stored, made, revision = await written(brain, _Put(record, key is None, actor))
        answer = reply(stored, 201 if made else 200, revision)
        if made:
            answer.headers["location"] = f"/v1/{path}/{stored.key}"
        return answer

    @routes.put(
        f"/v1/{path}/{{key}}",
        operation_id=f"put_{kind}",
        tags=[path],
        responses={**replies(cls), **replies(cls, 201, "Made")},
        openapi_extra=takes,
    )
    async def put(key: Key, request: Request) -> Response:
        """Make the record, or replace it; the same again changes nothing."""
        return await write(request, key)

    @routes.post(
        f"/v1/{path}",
        operation_id=f"create_{kind}",
        tags=[path],
        status_code=201,
        responses=replies(cls, 201, "Made"),
        openapi_extra=takes,
    )
    async def create(request: Request) -> Response:
        """Make the record; refused where its id is taken."""
        return await write(request, None)


def _record(cls: type[R], told: object, key: str | None) -> R:
    """The record that a body holds; its id may be left to the path, its number is ours."""
    if not isinstance(told, dict):
        raise Problem(MALFORMED, f"the body is no object: {shown(told)}", "Send a JSON object.")
    fields = {**told}
    if key is not None and fields.setdefault("id", key) != key:
        raise Problem(
            INVALID,
            f"the body's id {shown(fields['id'])} is not that of the path, {key}",
            "Leave the id out of the body, or make them equal.",
            (Fault(pointer="/id", detail=f"is not {key}"),),
        )
    if "number" in cls.model_fields:
        fields.pop("number", None)
    return validated(cls, fields)


class _Put:
    """Work for the writer: the record, whether it was made, and the revision."""

    def __init__(self, record: Record, only_new: bool, actor: str) -> None:
        self._record = record
        self._only_new = only_new
        self._actor = actor

    def __call__(self, transaction: Transaction) -> tuple[Record, bool, int]:
        record = self._record
        before = transaction.get(type(record), record.key)
        if before is not None and self._only_new:
            raise Problem(
                DUPLICATE,
                f"{record.kind} {record.key} is there already",
                "Choose another id, or PUT it to replace it.",
                (Fault(pointer="/id", detail="is taken"),),
            )
        if isinstance(record, Host) and isinstance(before, Host):
            # What the host said of itself stays, unless the state is given.
            record = _with_state(record, before)
        check(transaction, record)
        stored = transaction.put(record)
        if stored != before:
            now = time.time()
            action = "create" if before is None else "replace"
            detail = cast("dict[str, object]", stored.model_dump(mode="json"))
            subject = f"{record.kind} {record.key}"
            transaction.audit(now, self._actor, f"{record.kind}.{action}", subject, detail)
            if isinstance(stored, Vm):
                _note(transaction, stored, before, now)
        return stored, before is None, transaction.revision


def _with_state(record: Host, before: Host) -> Host:
    if "state" in record.model_fields_set:
        return record
    return record.model_copy(update={"state": before.state})


def _note(transaction: Transaction, vm: Vm, before: Record | None, now: float) -> None:
    """An event dated before this change must not undo it."""
    if not isinstance(before, Vm) or before.nics != vm.nics:
        transaction.note_event(clock_of_nics(vm.id), now)
    if not isinstance(before, Vm) or before.groups != vm.groups:
        transaction.note_event(clock_of_groups(vm.id), now)


def _add_deleting(routes: APIRouter, brain: Brain, path: str, cls: type[Record]) -> None:
    kind = cls.kind

    @routes.delete(
        f"/v1/{path}/{{key}}", operation_id=f"delete_{kind}", tags=[path], status_code=204
    )
    async def delete(
        key: Key,
        request: Request,
        force: Annotated[bool, Query(description="VMs: also where it is placed")] = False,
    ) -> Response:
        """Remove the record; refused where another refers to it."""
        actor = principal(request).name

        def work(transaction: Transaction) -> int:
            if transaction.get(cls, key) is None:
                raise no_such(kind, key)
            if cls is Vm:
                _unplace(transaction, key, force)
            transaction.delete(cls, key)
            transaction.audit(time.time(), actor, f"{kind}.delete", f"{kind} {key}", {})
            return transaction.revision

        revision = await written(brain, work)
        return Response(status_code=204, headers={"pleach-revision": str(revision)})


def _unplace(transaction: Transaction, vm: str, force: bool) -> None:
    """End what hangs on a VM, before its definition goes."""
    placement = transaction.get(Placement, vm)
    if placement is not None and not force:
        raise Problem(
            CONFLICT,
            f"vm {vm} is placed at {placement.host}",
            "Send vm.removed first, or delete with force=true.",
        )
    transaction.delete(Placement, vm)
    for migration in transaction.where(Migration, vm=vm):
        transaction.delete(Migration, migration.id)


def _add_forgetting(routes: APIRouter, brain: Brain) -> None:
    @routes.delete(
        "/v1/datapaths/{dpid}",
        operation_id="delete_datapath",
        tags=["topology"],
        status_code=204,
    )
    async def forget(dpid: Key, request: Request) -> Response:
        """Forget a decommissioned switch with its ports and links; refused while it is
        connected or a host is attached to it."""
        try:
            key = format_dpid(parse_dpid(dpid))
        except ValueError as error:
            raise Problem(INVALID, str(error), "Write 16 hex digits.") from None
        actor = principal(request).name

        def work(transaction: Transaction) -> int:
            _forget_datapath(transaction, key)
            transaction.audit(time.time(), actor, "datapath.delete", f"datapath {key}", {})
            return transaction.revision

        revision = await written(brain, work)
        return Response(status_code=204, headers={"pleach-revision": str(revision)})


def _forget_datapath(transaction: Transaction, dpid: str) -> None:
    datapath = transaction.get(Datapath, dpid)
    if datapath is None:
        raise no_such("datapath", dpid)
    if datapath.connected:
        raise Problem(
            CONFLICT,
            f"datapath {dpid} is connected",
            "Take it off the controller first (ovs-vsctl del-controller).",
        )
    hosts = transaction.where(Host, datapath=dpid)
    if hosts:
        raise Problem(
            CONFLICT,
            f"host {hosts[0].id} is attached to datapath {dpid}",
            f"PUT host {hosts[0].id} with its new datapath, or delete it, first.",
        )
    links = transaction.where(Link, datapath=dpid) + transaction.where(Link, to_datapath=dpid)
    for link in links:
        transaction.delete(Link, link.key)
    for port in transaction.where(Port, datapath=dpid):
        transaction.delete(Port, port.key)
    transaction.delete(Datapath, dpid)
