"""What do all routes work with? The store's writer and replica, who calls, and the settings."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json
from starlette.responses import Response

from controller.api import JSON, REVISION_HEADER
from controller.loops import Ground, Loops, Pool
from controller.loops.all import loops_of
from controller.model.nouns import Migration
from controller.northbound.auth import Authenticator, Principal
from controller.northbound.problems import MALFORMED, UNAVAILABLE, Problem, of_validation
from controller.northbound.replica import Replica
from controller.northbound.timeseries import Timeseries
from controller.northbound.writer import Work, Writer
from controller.settings import Settings
from controller.store import Store, StoreError, Transaction

log = logging.getLogger(__name__)

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

#: Seconds between two rounds of forgetting old events and compacting the feed.
HOUSEKEEPING_S = 60.0
#: Seconds between two checkpoints of the store.
CHECKPOINT_S = 30.0
#: Requests that may wait for something at the same time.
MAX_WAITERS = 1_000


class Brain:
    """The northbound process, but for its routes."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self.settings = settings
        self.store = store
        self.replica = Replica(store)
        self.writer = Writer(store, self.replica.committed)
        self.auth = Authenticator(store)
        self.timeseries = Timeseries(settings)
        self.loops = Loops(
            loops_of(settings),
            Ground(
                settings,
                store,
                lambda: self.replica.state,
                self.writer.submit,
                self.timeseries.history,
                Pool(settings.log),
                Pool(settings.log),
            ),
        )
        self.stopping = False
        #: Requests that wait for something now.
        self.waiters = 0
        self._housekeeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to follow and write the store. Raises StoreError."""
        await self.replica.start()
        self.writer.start()
        self.timeseries.start()
        self.loops.start()
        self._housekeeping = asyncio.create_task(self._keep_house(), name="housekeeping")

    def begin_stop(self) -> None:
        """Let those who wait go, so that the server can end."""
        self.stopping = True
        self.replica.poke()

    async def stop(self) -> None:
        """End, after all that was taken is written."""
        self.begin_stop()
        if self._housekeeping is not None:
            self._housekeeping.cancel()
            with suppress(asyncio.CancelledError):
                await self._housekeeping
        await self.loops.stop()
        await self.timeseries.stop()
        await self.writer.stop()
        await self.replica.stop()

    def waiting(self) -> _Waiting:
        """A place among those who wait, to be used by `with`. Raises Problem (UNAVAILABLE)."""
        return _Waiting(self)

    async def _keep_house(self) -> None:
        due = 0.0
        while True:
            try:
                if time.monotonic() >= due:
                    due = time.monotonic() + HOUSEKEEPING_S
                    await self.writer.submit(self._forget)
                    await asyncio.to_thread(self.store.compact)
                await asyncio.to_thread(self.store.checkpoint)
            except (StoreError, Problem) as error:
                log.error("housekeeping failed", extra={"cause": str(error)})
            await asyncio.sleep(CHECKPOINT_S)

    def _forget(self, transaction: Transaction) -> None:
        now = time.time()
        transaction.forget_events(now - self.settings.northbound.event_memory_s)
        oldest = now - self.settings.migration.memory_s
        for migration in transaction.all(Migration):
            if migration.ended_at is not None and migration.ended_at < oldest:
                transaction.delete(Migration, migration.key)


@dataclass(slots=True)
class _Waiting:
    brain: Brain

    def __enter__(self) -> None:
        if self.brain.waiters >= MAX_WAITERS:
            raise Problem(
                UNAVAILABLE,
                f"{MAX_WAITERS} requests are waiting already",
                "Wait for less at once, or follow GET /v1/changes instead.",
                headers={"retry-after": "1"},
            )
        self.brain.waiters += 1

    def __exit__(self, *_: object) -> None:
        self.brain.waiters -= 1


def principal(request: Request) -> Principal:
    """Who calls; the gate has seen to it that there is somebody."""
    who = request.scope["state"]["principal"]
    assert isinstance(who, Principal)
    return who


async def written(brain: Brain, work: Work[T]) -> T:
    """The result of `work` once it is on the disk."""
    return await brain.writer.submit(work)


def reply(body: BaseModel, status: int = 200, revision: int | None = None) -> Response:
    """`body` as JSON, with the store's revision that holds it."""
    headers = {REVISION_HEADER: str(revision)} if revision is not None else None
    return Response(to_json(body), status, headers, JSON)


def parsed(raw: bytes) -> object:
    """`raw` as JSON. Raises Problem (MALFORMED), also for nesting that is too deep."""
    try:
        return from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise Problem(MALFORMED, f"the body is no JSON: {error}", "Send JSON.") from None


def validated(model: type[M], data: object) -> M:
    """`data`, decoded JSON, as a `model`. Raises Problem with each fault's place."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise of_validation(error) from None


def shown(value: object) -> str:
    """A value as it is written in JSON, for a message."""
    return json.dumps(value)[:80]
