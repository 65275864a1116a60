"""`GET /v1/forecasts/{vm}`: what is a VM about to need, and why is that believed?"""

from __future__ import annotations

import asyncio
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel
from starlette.responses import Response

from controller.api import ForecastQuality, ForecastReply, ForecastSteps
from controller.loops.demand import DIRECTORY
from controller.model.calendar import Demanded
from controller.northbound.brain import Brain, reply
from controller.northbound.documents import replies
from controller.northbound.problems import NOT_FOUND, UNAVAILABLE, Problem
from controller.northbound.record_routes import Key, no_such
from controller.predict.demand.forecast import Forecast
from controller.predict.demand.latest import Latest, Sheet
from controller.predict.demand.ledger import Ledger
from controller.predict.demand.series import STEP, Metric
from controller.predict.demand.targets import QUANTILES, Target
from controller.predict.demand.work import latest_of, ledger_of

#: What these routes answer with, for the document.
MODELS: list[type[BaseModel]] = [ForecastReply]

#: Days of earlier forecasts whose quality is told.
_DAYS = 14

Horizon = Annotated[
    float, Query(gt=0, le=24, description="Hours ahead; the peak of the day is told in any case")
]


def router(brain: Brain) -> APIRouter:
    """The route of forecasts."""
    routes = APIRouter(tags=["forecasts"])
    place = brain.settings.state_dir / DIRECTORY
    latest = latest_of(place)

    @routes.get(
        "/v1/forecasts/{key}", operation_id="get_forecast", responses=replies(ForecastReply)
    )
    async def forecast(key: Key, metric: Demanded = "cpu", horizon: Horizon = 24.0) -> Response:
        """The newest forecasts of one metric of a VM: quantiles by step, the model and why it
        was chosen, the past that it saw, and how good earlier ones were."""
        await brain.replica.refresh()
        if key not in brain.replica.state.vms:
            raise no_such("vm", key)
        return reply(await asyncio.to_thread(_told, latest, place, key, Metric(metric), horizon))

    return routes


def _told(latest: Latest, place: Path, vm: str, metric: Metric, hours: float) -> ForecastReply:
    sheet = _sheet(latest, metric)
    found = sheet.of(vm) if sheet is not None else ()
    if sheet is None or not found:
        raise Problem(
            NOT_FOUND,
            f"there is no forecast of {metric} of {vm} yet",
            "Wait for the next round (forecast.round_s), and see that samples of it come in: "
            f"GET /v1/history/{vm}/{metric}.",
        )
    return ForecastReply(
        vm=vm,
        metric=metric.value,
        origin=sheet.origin,
        forecasts=tuple(_steps(forecast, hours) for forecast in found),
        quality=_quality(place, vm, metric, [forecast.target for forecast in found]),
    )


def _sheet(latest: Latest, metric: Metric) -> Sheet | None:
    try:
        return latest.get(metric)
    except ValueError as error:
        raise Problem(
            UNAVAILABLE, str(error), "The next round of forecasts replaces it."
        ) from error


def _steps(forecast: Forecast, hours: float) -> ForecastSteps:
    """`forecast` as far as `hours`: the steps that begin before, one at least."""
    seconds = forecast.target.seconds
    count = max(1, sum(step * seconds < hours * 3_600 for step in range(len(forecast.times))))
    why = forecast.reason
    return ForecastSteps(
        target=forecast.target.value,
        times=forecast.times[:count],
        step=seconds,
        quantiles={
            f"{level:g}": tuple(forecast.quantiles[:count, column].tolist())
            for column, level in enumerate(QUANTILES)
        },
        capacity=forecast.capacity,
        above_capacity=forecast.above_capacity[:count],
        model=why.model,
        losses=why.losses,
        known_s=why.known * STEP,
        first=why.first,
        last=why.last,
        notes=why.notes,
    )


def _quality(
    place: Path, vm: str, metric: Metric, targets: list[Target]
) -> tuple[ForecastQuality, ...]:
    path = ledger_of(place)
    if not path.exists():
        return ()
    since = int(time.time()) - _DAYS * 86_400
    with closing(Ledger(path)) as ledger:
        return tuple(
            ForecastQuality(target=target.value, **asdict(quality))
            for target in targets
            for quality in ledger.quality(vm, metric, target, since)
        )
