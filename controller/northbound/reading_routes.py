"""What is: a VM's status, placements, migrations, the topology, changes, health."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import Annotated, Literal, TypeVar

from fastapi import APIRouter, Query
from pydantic import BaseModel
from starlette.responses import Response

from controller import __version__
from controller.api import (
    ChangeEntry,
    Changes,
    EdgeProgress,
    Health,
    Page,
    Ready,
    Topology,
    VmStatus,
)
from controller.model.nouns import Migration, Placement
from controller.northbound.brain import Brain, reply
from controller.northbound.documents import replies
from controller.northbound.problems import INVALID, Problem
from controller.northbound.record_routes import After, Filter, Key, Limit, no_such, page
from controller.northbound.waiting import applied, stopping, vm_status

#: What these routes answer with, for the document.
MODELS: list[type[BaseModel]] = [
    VmStatus,
    Page,
    Topology,
    Changes,
    Health,
    Ready,
    Placement,
    Migration,
]

#: The largest that the store can hold.
MAX_REVISION = (1 << 63) - 1

T = TypeVar("T")
Timeout = Annotated[float | None, Query(ge=0, le=3_600, description="Seconds to wait at most")]


def router(brain: Brain) -> APIRouter:
    """The routes that only read."""
    routes = APIRouter()
    _add_vm(routes, brain)
    _add_places(routes, brain)
    _add_topology(routes, brain)
    _add_changes(routes, brain)
    _add_health(routes, brain)
    return routes


def _add_vm(routes: APIRouter, brain: Brain) -> None:
    @routes.get("/v1/vms/{key}", operation_id="get_vm", tags=["vms"], responses=replies(VmStatus))
    async def vm(
        key: Key,
        wait: Annotated[
            Literal["applied"] | None, Query(description="Return once the switches confirmed")
        ] = None,
        revision: Annotated[
            int | None,
            Query(ge=0, le=MAX_REVISION, description="What to wait for; else the newest revision"),
        ] = None,
        timeout: Timeout = None,
    ) -> Response:
        """A VM, where it is, and whether the fabric has confirmed that.

        `wait=applied` returns once the VM's own edges and every other connected datapath have
        confirmed `revision`; a problem tells which switch or port it lacked otherwise."""
        await brain.replica.refresh()
        if key not in brain.replica.state.vms:
            raise no_such("vm", key)
        newest = brain.replica.state.revision
        if revision is not None and revision > newest:
            raise Problem(
                INVALID,
                f"revision {revision} is not there yet: the newest is {newest}",
                "Give the revision that a reply told you.",
            )
        wanted = newest if revision is None else revision
        if wait is None:
            told, _ = vm_status(brain, key, wanted)
        else:
            longest = brain.settings.northbound.wait_timeout_s
            told = await applied(
                brain, key, wanted, longest if timeout is None else min(timeout, longest)
            )
        return reply(told, revision=newest)


def _add_places(routes: APIRouter, brain: Brain) -> None:
    @routes.get(
        "/v1/placements", operation_id="list_placements", tags=["vms"], responses=replies(Page)
    )
    async def placements(limit: Limit = 100, after: After = "", host: Filter = None) -> Response:
        """Where VMs are, by VM."""
        await brain.replica.refresh()
        return page(
            brain.replica.state,
            "placement",
            after,
            limit,
            lambda record: host is None or getattr(record, "host", None) == host,
        )

    @routes.get(
        "/v1/placements/{key}",
        operation_id="get_placement",
        tags=["vms"],
        responses=replies(Placement),
    )
    async def placement(key: Key) -> Response:
        """Where one VM is."""
        return await _one(brain, "placement", key)

    @routes.get(
        "/v1/migrations", operation_id="list_migrations", tags=["vms"], responses=replies(Page)
    )
    async def migrations(
        limit: Limit = 100, after: After = "", vm: Filter = None, open_only: bool = False
    ) -> Response:
        """Migrations by id, those that ended lately included."""
        await brain.replica.refresh()
        return page(
            brain.replica.state,
            "migration",
            after,
            limit,
            lambda record: (
                (vm is None or getattr(record, "vm", None) == vm)
                and (not open_only or bool(getattr(record, "open", False)))
            ),
        )

    @routes.get(
        "/v1/migrations/{key}",
        operation_id="get_migration",
        tags=["vms"],
        responses=replies(Migration),
    )
    async def migration(key: Key) -> Response:
        """One migration."""
        return await _one(brain, "migration", key)


async def _one(brain: Brain, kind: str, key: str) -> Response:
    await brain.replica.refresh()
    record = brain.replica.state.table(kind).get(key)
    if record is None:
        raise no_such(kind, key)
    return reply(record, revision=brain.replica.state.revision)


def _add_topology(routes: APIRouter, brain: Brain) -> None:
    @routes.get(
        "/v1/topology", operation_id="get_topology", tags=["topology"], responses=replies(Topology)
    )
    async def topology() -> Response:
        """Datapaths, ports and links as discovered, hosts, and how far each datapath is."""
        await brain.replica.refresh()
        state, progress = brain.replica.state, brain.replica.progress
        return reply(
            Topology.model_construct(
                revision=state.revision,
                datapaths=_by_key(state.datapaths),
                ports=_by_key(state.ports),
                links=_by_key(state.links),
                hosts=_by_key(state.hosts),
                progress=tuple(EdgeProgress(**asdict(progress[dpid])) for dpid in sorted(progress)),
            ),
            revision=state.revision,
        )


def _by_key(records: dict[str, T]) -> tuple[T, ...]:
    return tuple(records[key] for key in sorted(records))


def _add_changes(routes: APIRouter, brain: Brain) -> None:
    @routes.get(
        "/v1/changes", operation_id="get_changes", tags=["changes"], responses=replies(Changes)
    )
    async def changes(
        after: Annotated[
            int, Query(ge=0, le=MAX_REVISION, description="The revision known so far")
        ],
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1_000,
        timeout: Timeout = None,
    ) -> Response:
        """Changes after a revision; where there is none yet, waits for one up to `timeout`.

        410 where the feed does not reach back so far: read everything anew, then go on from
        the revision of that reply."""
        longest = brain.settings.northbound.wait_timeout_s
        wait_s = longest if timeout is None else min(timeout, longest)
        deadline = time.monotonic() + wait_s
        await brain.replica.refresh()
        with brain.waiting():
            while brain.replica.state.revision == after and not brain.stopping:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                await brain.replica.changed(left)
        found = await asyncio.to_thread(brain.store.changes, after, limit)
        told = Changes(
            revision=found[-1].revision if found else after,
            changes=tuple(
                ChangeEntry(
                    revision=change.revision,
                    kind=change.kind,
                    key=change.key,
                    record=change.record.model_dump(mode="json") if change.record else None,
                )
                for change in found
            ),
        )
        return reply(told, revision=told.revision)


def _add_health(routes: APIRouter, brain: Brain) -> None:
    @routes.get("/v1/health", operation_id="get_health", tags=["health"], responses=replies(Health))
    async def health() -> Response:
        """Whether the process answers; needs no token."""
        return reply(Health(version=__version__))

    @routes.get("/v1/ready", operation_id="get_ready", tags=["health"], responses=replies(Ready))
    async def ready() -> Response:
        """Whether the store can be read, and how many datapaths are connected."""
        if brain.stopping:
            raise stopping()
        await brain.replica.refresh()
        progress = brain.replica.progress.values()
        return reply(
            Ready(
                revision=brain.replica.state.revision,
                datapaths=len(brain.replica.state.datapaths),
                connected=sum(told.connected for told in progress),
            )
        )
