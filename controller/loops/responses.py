"""How fast do VMs answer? What is found out of services becomes the metric `response_time`.

A service is timed while it is looked at: when it is new, and again now and then. So a VM has a
sample whenever something was found out of one of its services, the mean of all that are known.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterable, Mapping
from statistics import fmean

import numpy as np

from controller.history.samples import Batch
from controller.loops.base import Ground
from controller.model.metrics import Scope
from controller.model.nouns import Service

METRIC = "response_time"
#: Seconds between two looks, and how old what is found out may be at the first.
EVERY_S, EARLIER_S = 30.0, 3_600.0


class Responses:
    """The loop that hands response times on."""

    name = "responses"
    every_s = EVERY_S

    def __init__(self) -> None:
        self._sender = f"brain-{uuid.uuid4()}"
        self._sequence = 0
        self._upto: float | None = None

    async def turn(self, ground: Ground) -> None:
        """Hand on what was found out since the last turn. Raises HistoryError."""
        now = time.time()
        since = now - EARLIER_S if self._upto is None else self._upto
        found = samples(ground.state().services, since)
        if found:
            history = await ground.history()
            batch = batch_of(self._sender, self._sequence, found)
            allowed = {Scope.VM: [None] * len(batch.subjects)}
            await asyncio.wrap_future(history.take(batch, "brain", allowed, now))
            self._sequence += 1
        self._upto = max([since, *(at for at, _ in found.values())])


def samples(services: Mapping[str, Service], since: float) -> dict[str, tuple[float, float]]:
    """When something was found out last, after `since`, and the mean response time in seconds, of
    each VM of which something was."""
    timed: dict[str, list[Service]] = {}
    for service in services.values():
        if service.response_s is not None:
            timed.setdefault(service.vm, []).append(service)
    told = {}
    for vm, several in timed.items():
        newest = max(service.concluded_at for service in several)
        if newest > since:
            told[vm] = (newest, fmean(_responses(several)))
    return told


def _responses(services: Iterable[Service]) -> list[float]:
    return [service.response_s for service in services if service.response_s is not None]


def batch_of(sender: str, sequence: int, found: Mapping[str, tuple[float, float]]) -> Batch:
    """A batch with a sample for each VM."""
    count = len(found)
    return Batch(
        sender=sender,
        sequence=sequence,
        sent_at=None,
        subjects=tuple(found),
        codes=np.arange(count, dtype=np.int32),
        times=np.array([round(at * 1_000) for at, _ in found.values()], np.int64),
        columns=(METRIC,),
        values=np.array([[value] for _, value in found.values()]),
        given=np.ones((count, 1), np.bool_),
    )
