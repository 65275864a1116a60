"""`POST /v1/samples`, and the history: what was measured, and how it is kept."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from dataclasses import asdict
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.responses import Response

from controller.api import (
    JSON,
    HistoryReply,
    HistoryStatus,
    MetricInfo,
    Metrics,
    RefusedSamples,
    SampleBatch,
    SampleReply,
)
from controller.history.errors import BadQuery
from controller.history.history import History
from controller.history.intake import Receipt
from controller.history.series import How, Series
from controller.model.metrics import METRICS, Scope, metrics_of
from controller.northbound.auth import Bucket, Principal
from controller.northbound.brain import Brain, principal, reply
from controller.northbound.documents import body, replies
from controller.northbound.gate import SAMPLES_PATH, Endpoint, read_body
from controller.northbound.problems import INVALID, NOT_FOUND, TOO_MANY, Problem
from controller.northbound.samples import Movers, decode, rights
from controller.settings import HistorySettings

log = logging.getLogger("controller.northbound.samples")

#: What these routes take and answer with, for the document.
MODELS: list[type[BaseModel]] = [SampleBatch, SampleReply, HistoryReply, HistoryStatus, Metrics]

EXAMPLE: dict[str, Any] = {
    "sender": "agent-hv1-7c1f",
    "sequence": 42,
    "sent_at": 1_900_000_060.2,
    "subjects": ["web-1", "web-2"],
    "times": [1_900_000_060, 1_900_000_060],
    "metrics": {"cpu": [0.31, 0.07], "net_rx_total": [88_213_345, None]},
}

#: Values of one answer.
MAX_VALUES = 1_000_000
#: Seconds between two log lines about what is refused of one token's samples.
TOLD_AGAIN_S = 60.0
#: Seconds that a clock may be off before that is logged.
CLOCK_S = 5.0
#: Tokens whose rates are remembered.
_MEMORY = 10_000

Subject = Annotated[str, Path(max_length=127, description="Id of a VM, host or port")]
Instant = Annotated[float, Query(gt=-1e11, lt=1e11, description="Unix seconds")]
Step = Annotated[
    float | None, Query(ge=1, lt=1e9, description="Seconds of a step; else samples as they are")
]
Statistic = Annotated[Literal["mean", "max"], Query(description="Of the samples of a step")]


def endpoint(brain: Brain) -> Endpoint:
    """Takes samples."""
    settings = brain.settings.history
    movers = Movers()
    rates = _Rates(settings)
    refusals = _Refusals()

    async def post(request: Request) -> Response:
        who = principal(request)
        rates.take(who, 0)  # before the work of reading it
        raw = await read_body(request)
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        coding = request.headers.get("content-encoding", "").strip().lower()
        history = await brain.timeseries.history()
        batch = await asyncio.to_thread(decode, raw, media, coding, settings)
        rates.take(who, int(np.count_nonzero(batch.given)))
        now = time.time()
        allowed = rights(batch, brain.replica.state, who, movers, now, settings.late_s)
        if any(reason is not None for reasons in allowed.values() for reason in reasons):
            await brain.replica.refresh()  # it may be defined, or there, since a moment ago
            allowed = rights(batch, brain.replica.state, who, movers, now, settings.late_s)
        taking = asyncio.wrap_future(history.take(batch, who.name, allowed, now))
        receipt = await asyncio.shield(taking)
        refusals.tell(who, batch.sender, receipt)
        return reply(
            SampleReply(
                outcome=receipt.outcome,
                accepted=receipt.accepted,
                refused=tuple(
                    RefusedSamples(reason=r.reason.value, count=r.count, detail=r.detail)
                    for r in receipt.refused
                ),
                resets=receipt.resets,
                clock_offset_s=receipt.clock_offset_s,
            )
        )

    return post


def router(brain: Brain) -> APIRouter:
    """The routes of samples and of the history."""
    routes = APIRouter(tags=["history"])
    taking = endpoint(brain)

    @routes.post(
        SAMPLES_PATH,
        operation_id="post_samples",
        responses=replies(SampleReply),
        openapi_extra=body(SampleBatch, EXAMPLE),
    )
    async def post_samples(request: Request) -> Response:
        """Tell samples, as JSON or application/vnd.msgpack, plain or compressed (gzip, zstd,
        snappy). Each sample is judged alone; what is accepted is on the disk with the reply."""
        return await taking(request)

    @routes.get("/v1/metrics", operation_id="get_metrics", responses=replies(Metrics))
    async def metrics() -> Response:
        """All metrics with their units and bounds."""
        return reply(Metrics(items=tuple(MetricInfo(**asdict(m)) for m in METRICS.values())))

    @routes.get("/v1/history", operation_id="get_history_status", responses=replies(HistoryStatus))
    async def status() -> Response:
        """How the history is."""
        history = await brain.timeseries.history()
        found = asdict(await asyncio.to_thread(history.status))
        return reply(HistoryStatus(**found.pop("engine"), **found))

    @routes.get(
        "/v1/history/{subject}", operation_id="get_history", responses=replies(HistoryReply)
    )
    async def several(
        subject: Subject,
        start: Instant,
        end: Instant,
        metric: Annotated[
            list[str] | None, Query(max_length=64, description="Else all of a VM")
        ] = None,
        step: Step = None,
        how: Statistic = "mean",
    ) -> Response:
        """Several metrics of a VM, host or port on the same times."""
        names = tuple(metric) if metric else tuple(m.name for m in metrics_of(Scope.VM))
        return await _series(brain, subject, names, start, end, step, how)

    @routes.get(
        "/v1/history/{subject}/{metric}",
        operation_id="get_history_metric",
        responses=replies(HistoryReply),
    )
    async def one(
        subject: Subject,
        metric: Annotated[str, Path(max_length=127)],
        start: Instant,
        end: Instant,
        step: Step = None,
        how: Statistic = "mean",
    ) -> Response:
        """One metric of a VM, host or port."""
        return await _series(brain, subject, (metric,), start, end, step, how)

    return routes


async def _series(
    brain: Brain,
    subject: str,
    names: tuple[str, ...],
    start: float,
    end: float,
    step: float | None,
    how: How,
) -> Response:
    for name in names:
        if name not in METRICS:
            raise Problem(NOT_FOUND, f"there is no metric {name}", "See GET /v1/metrics.")
    if end < start:
        raise Problem(INVALID, f"end {end} lies before start {start}", "Swap them.")
    if step is not None and (end - start) / step * len(names) > MAX_VALUES:
        raise Problem(
            INVALID,
            f"more than {MAX_VALUES} values are asked for",
            "Ask for a shorter span, a longer step or fewer metrics.",
        )
    history = await brain.timeseries.history()
    content, empty = await asyncio.to_thread(
        _document, history, subject, names, start, end, step, how
    )
    if empty:  # only then, since what is gone has its history still
        await brain.replica.refresh()
        state = brain.replica.state
        if not any(subject in table for table in (state.vms, state.hosts, state.ports)):
            raise Problem(
                NOT_FOUND,
                f"there is no vm, host or port {subject}, and no sample of one in that time",
                "See the lists of vms and hosts, and GET /v1/topology for ports.",
            )
    return Response(content, media_type=JSON)


def _document(
    history: History,
    subject: str,
    names: tuple[str, ...],
    start: float,
    end: float,
    step: float | None,
    how: How,
) -> tuple[bytes, bool]:
    """The reply, and whether there is no value in it."""
    found = history.read_metrics(subject, names, start, end, step, how)
    if sum(len(series.times) for series in found.values()) > MAX_VALUES:
        raise BadQuery(f"there are more than {MAX_VALUES} samples", "ask with a step")
    times = found[names[0]].times
    if step is None:  # each has times of its own
        times = np.unique(np.concatenate([series.times for series in found.values()]))
        found = {name: _spread(series, times) for name, series in found.items()}
    content = to_json(
        {
            "subject": subject,
            "step": step,
            "how": how,
            "times": times.tolist(),
            "metrics": {name: series.values.tolist() for name, series in found.items()},
        },
        inf_nan_mode="null",
    )
    return content, not any(np.isfinite(series.values).any() for series in found.values())


def _spread(series: Series, times: np.ndarray[Any, np.dtype[np.float64]]) -> Series:
    values = np.full(len(times), np.nan)
    values[np.searchsorted(times, series.times)] = series.values
    return Series(times, values)


class _Rates:
    """How many values each token may tell."""

    def __init__(self, settings: HistorySettings) -> None:
        self._rate = settings.values_per_s
        self._burst = settings.burst_values
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def take(self, who: Principal, values: int) -> None:
        """Raise Problem (TOO_MANY) where these are too many, or none at all may be told."""
        if self._rate == 0:
            return
        now = time.monotonic()
        bucket = self._buckets.get(who.name)
        if bucket is None:
            bucket = self._buckets[who.name] = Bucket(self._rate, self._burst, now)
            if len(self._buckets) > _MEMORY:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(who.name)
        wait = bucket.take(now, values)
        if not values and bucket.empty:
            wait = (1 - bucket.left) / self._rate
        if wait > 0:
            raise Problem(
                TOO_MANY,
                f"token {who.name} tells more than {self._rate:g} values per second, or more "
                f"than {self._burst} at once",
                f"Wait {wait:.1f} s and send the batch again, or have history.values_per_s and "
                "history.burst_values raised.",
                headers={"retry-after": str(max(1, round(wait + 0.5)))},
            )


class _Refusals:
    """Logs what is refused, and clocks that are off: once in a while for each token, since
    what is broken is broken in every batch."""

    def __init__(self) -> None:
        self._told: OrderedDict[tuple[str, str], float] = OrderedDict()

    def tell(self, who: Principal, sender: str, receipt: Receipt) -> None:
        """Log what is wrong with a batch."""
        fields = {"actor": who.name, "sender": sender}
        for refusal in receipt.refused:
            if self._due(who.name, refusal.reason.value):
                cause = f"{refusal.reason}: {refusal.detail}"
                log.warning(
                    "samples refused", extra={**fields, "count": refusal.count, "cause": cause}
                )
        offset = receipt.clock_offset_s
        if offset is not None and abs(offset) > CLOCK_S and self._due(who.name, "clock"):
            log.warning("clock is off", extra={**fields, "ahead_s": offset})

    def _due(self, name: str, what: str) -> bool:
        now = time.monotonic()
        if now - self._told.get((name, what), -TOLD_AGAIN_S) < TOLD_AGAIN_S:
            return False
        self._told[name, what] = now
        self._told.move_to_end((name, what))
        if len(self._told) > _MEMORY:
            self._told.popitem(last=False)
        return True
