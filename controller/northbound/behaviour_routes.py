"""`/v1/vms/{id}/behaviour` and `/v1/roles`: how VMs behave, and who behaves alike."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response

from controller.api import BehaviourInfo, MetricBehaviour, NearInfo, RoleInfo, Roles
from controller.northbound.brain import Brain, reply
from controller.northbound.documents import replies
from controller.northbound.record_routes import Key, no_such
from controller.observe.behaviour import album

#: What these routes answer with, for the document.
MODELS: list[type[BaseModel]] = [BehaviourInfo, Roles]


def router(brain: Brain) -> APIRouter:
    """The routes of behaviour."""
    routes = APIRouter(tags=["behaviour"])

    def look(vm: str) -> tuple[album.Behaviour | None, list[album.Role]]:
        with brain.store.reading() as connection:
            return album.latest(connection, vm), album.roles(connection)

    def all_roles() -> list[album.Role]:
        with brain.store.reading() as connection:
            return album.roles(connection)

    @routes.get(
        "/v1/vms/{key}/behaviour",
        operation_id="get_behaviour",
        responses=replies(BehaviourInfo),
    )
    async def behaviour(key: Key) -> Response:
        """How a VM behaves: its rhythms, how it varies, who behaves or behaved like that."""
        await brain.replica.refresh()
        if key not in brain.replica.state.vms:
            raise no_such("vm", key)
        found, roles = await asyncio.to_thread(look, key)
        role = next((role.id for role in roles if key in role.members), None)
        if found is None:
            return reply(BehaviourInfo(vm=key, at=None, role=role, metrics={}, near=()))
        metrics = {
            name: MetricBehaviour.model_validate(asdict(metric))
            for name, metric in found.metrics.items()
        }
        near = tuple(
            NearInfo(vm=one.vm, week_from=album.begins(one.week), distance=one.distance)
            for one in found.near
        )
        return reply(BehaviourInfo(vm=key, at=found.at, role=role, metrics=metrics, near=near))

    @routes.get("/v1/roles", operation_id="list_roles", responses=replies(Roles))
    async def roles() -> Response:
        """Groups of VMs that behave and communicate alike, the largest first."""
        found = await asyncio.to_thread(all_roles)
        return reply(Roles(items=tuple(RoleInfo(**asdict(role)) for role in found)))

    return routes
