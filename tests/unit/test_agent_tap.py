"""What the agent makes of the packets at a DPI port, and how it tells it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import pytest

from controller.agent.tap import Owners, Tap, verdicts
from controller.agent.tasks import Workplace
from controller.api import FlowVerdict, ProblemBody, RefusedVerdict, VerdictsReply
from controller.client import Client, Problem
from controller.model.nouns import Nic, Vm
from controller.observe.applications.records import Direction, Kind, Service
from controller.settings import DpiSettings
from tests.unit.test_applications_services import verdict

SERVICE = Service("web", "tcp", 443)
A, B, GATEWAY = (bytes.fromhex(f"0200000000{n:02x}") for n in (1, 2, 9))


def vm(key: str, mac: bytes, tenant: str = "red") -> Vm:
    return Vm(id=key, tenant=tenant, nics=(Nic(mac=mac.hex(":"), subnet="s"),))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def frame(destination: bytes, source: bytes) -> bytes:
    return destination + source + b"\x08\x00"


def problem(status: int) -> Problem:
    return Problem(ProblemBody(type="x", title="x", status=status, detail="no", mend=""))


def test_owners_are_asked_for_when_somebody_is_not_known() -> None:
    there, asked, clock = [vm("a", A)], [0], Clock()

    def ask() -> Iterable[Vm]:
        asked[0] += 1
        return there

    owners = Owners(ask, clock)
    for one in (frame(A, GATEWAY), frame(GATEWAY, A), frame(A, B)):
        found = owners.of_frame(one)
        assert found == ("a", "red")
    assert asked == [1]
    there.append(vm("b", B, "blue"))
    assert owners.of_frame(frame(GATEWAY, B)) is None  # it was asked a moment ago
    clock.now += 3
    assert owners.of_frame(frame(GATEWAY, B)) == ("b", "blue")
    assert owners.of(B) == ("b", "blue")
    clock.now += 100
    del there[0]
    assert owners.of_frame(frame(A, GATEWAY)) is None
    assert asked == [3]


def test_a_controller_that_is_away_leaves_what_was_known(
    caplog: pytest.LogCaptureFixture,
) -> None:
    away, clock = [False], Clock()

    def ask() -> Iterable[Vm]:
        if away[0]:
            raise problem(0)
        return [vm("a", A)]

    owners = Owners(ask, clock)
    assert owners.of_frame(frame(A, GATEWAY)) is not None
    away[0], clock.now = True, 1_000.0
    assert owners.of_frame(frame(A, GATEWAY)) is not None
    assert "the VMs of this host are not told" in caplog.text


def test_what_is_told(caplog: pytest.LogCaptureFixture) -> None:
    good = verdict("TLS", risks=("r",), response=0.01)
    first = good._replace(direction=Direction.FIRST)
    [told] = verdicts([(SERVICE, verdict()), (SERVICE, first), (SERVICE, good)])
    assert (told.vm, told.port, told.application) == ("web", 443, "TLS")
    assert (told.how, told.risks, told.response_s) == ("confirmed", ("r",), 0.01)
    assert told.packets == good.packets
    assert verdicts([(SERVICE, good._replace(application=""))]) == []
    assert "a verdict is dropped" in caplog.text
    unknown = verdict("unknown", Kind.UNKNOWN, "unknown", response=0.1)
    assert [one.how for one in verdicts([(SERVICE, unknown)])] == ["unknown"]


class FakeClient:
    def __init__(self) -> None:
        self.told: list[int] = []
        self.fails: Problem | None = None

    def tell_flows(self, told: Sequence[FlowVerdict]) -> VerdictsReply:
        self.told.append(len(told))
        if self.fails is not None:
            raise self.fails
        refused = (RefusedVerdict(index=0, reason="not_yours"),)
        return VerdictsReply(accepted=len(told) - 1, refused=refused, revision=1)


@pytest.fixture
def tap() -> Tap:
    work: Any = None  # nothing of it is needed to tell
    made = Tap(cast("Workplace", work), DpiSettings(), "dpi0")
    made._waiting.extend(verdicts([(SERVICE, verdict("TLS", response=0.01))] * 1_500))
    return made


def tell(tap: Tap, client: FakeClient) -> None:
    tap._not_before = 0.0
    tap._tell(cast("Client", client))


def test_verdicts_are_told_in_batches(tap: Tap, caplog: pytest.LogCaptureFixture) -> None:
    client = FakeClient()
    with caplog.at_level("INFO"):
        tell(tap, client)
    tell(tap, client)
    tell(tap, client)
    assert client.told == [1_000, 500]
    assert "a verdict was refused" in caplog.text


@pytest.mark.parametrize(("status", "left"), [(0, 1_500), (503, 1_500), (429, 1_500), (400, 500)])
def test_what_is_not_taken_waits_unless_it_is_wrong(tap: Tap, status: int, left: int) -> None:
    client = FakeClient()
    client.fails = problem(status)
    tell(tap, client)
    assert len(tap._waiting) == left
    tap._tell(cast("Client", client))  # not at once again
    assert client.told == [1_000]
