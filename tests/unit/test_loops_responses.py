"""Response times of services become samples of their VMs."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from history_world import handed_on, history_in

from controller.history.history import History
from controller.loops.base import Ground
from controller.loops.responses import Responses, samples
from controller.model.nouns import Service
from controller.model.state import State


def service(port: int, at: float, response_s: float | None, vm: str = "web") -> Service:
    return Service(
        vm=vm,
        protocol="tcp",
        port=port,
        application="HTTP",
        how="confirmed",
        category="web server",
        category_how="confirmed",
        confidence=1.0,
        concluded_at=at,
        flows=1,
        packets=4,
        response_s=response_s,
        due=at + 9.0,
    )


def keyed(*services: Service) -> dict[str, Service]:
    return {one.key: one for one in services}


def test_the_mean_of_all_services_when_one_is_news() -> None:
    known = keyed(
        service(80, 5.0, 0.010),
        service(81, 9.0, 0.030),
        service(82, 9.5, None),
        service(80, 2.0, 0.5, vm="old"),
    )
    assert samples(known, 6.0) == {"web": (9.0, pytest.approx(0.020))}
    assert samples(known, 9.0) == {}
    assert set(samples(known, 0.0)) == {"web", "old"}


def ground(state: State, history: History) -> Ground:
    async def opened() -> History:
        return history

    standing: Any = SimpleNamespace(state=lambda: state, history=opened)
    return cast("Ground", standing)


def test_they_are_kept_once_whoever_tells_them(tmp_path: Path) -> None:
    at = round(time.time()) - 60.0
    state = State.of([service(80, at, 0.25)])

    async def told(history: History) -> None:
        for loop in (Responses(), Responses()):  # as after a restart
            await loop.turn(ground(state, history))
            await loop.turn(ground(state, history))

    with history_in(tmp_path) as history:
        asyncio.run(told(history))
        handed_on(history)
        found = history.read_metrics("web", ("response_time",), at - 10, at + 10, None, "mean")
        series = found["response_time"]
        assert series.times.tolist() == [at]
        assert series.values.tolist() == [0.25]
        assert history.status().refused == {}
