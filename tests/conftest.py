"""What all tests share: the rule of the sandbox, free ports, and logs beside each failure."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from mininet_labs import sandbox

# How quick a machine is must not decide about a test.
settings.register_profile("pleach", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pleach")


def pytest_runtest_setup(item: pytest.Item) -> None:
    # A skipped fabric test would look like a passed one: outside of the sandbox it fails.
    if item.get_closest_marker("fabric") and not sandbox.inside():
        pytest.fail(
            "a fabric test runs inside the sandbox only: "
            "`python -m mininet_labs.sandbox -- python -m pytest` as root; "
            "without root, leave these tests out with -m 'not fabric'",
            pytrace=False,
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """What the processes of a deployment have logged stands beside a failure."""
    report = yield
    if report.failed:
        found = {place for value in getattr(item, "funcargs", {}).values() for place in _at(value)}
        for log in sorted(log for place in found for log in place.glob("*.log")):
            report.sections.append((str(log), log.read_text(errors="replace")[-20_000:]))
    return report


def _at(value: object) -> list[Path]:
    """Where a fixture's deployment, if it is or has one, keeps logs."""
    places = [value, getattr(getattr(value, "deployment", value), "directory", None)]
    return [place for place in places if isinstance(place, Path)]


@pytest.fixture
def make_port() -> Iterator[Callable[[], int]]:
    """Gives TCP ports of the loopback that nobody listens on, each call another.

    Each stays reserved by a socket that does not listen; a server that sets SO_REUSEADDR, as
    uvicorn, eventlet and asyncio do, binds it all the same.
    """
    held: list[socket.socket] = []

    def give() -> int:
        holder = socket.socket()
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        held.append(holder)
        return int(holder.getsockname()[1])

    yield give
    for holder in held:
        holder.close()


@pytest.fixture
def free_port(make_port: Callable[[], int]) -> int:
    """One TCP port of the loopback that nobody listens on."""
    return make_port()
