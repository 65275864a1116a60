"""Tasks of the agent: begun again where they fail, and ended together."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from controller.agent import tasks
from controller.agent.outbox import Outbox
from controller.agent.records import Machine, Raw, SourceAway
from controller.agent.tasks import Crew
from controller.agent.watching import Watcher


class Failing:
    name = "failing"

    def __init__(self, times: int) -> None:
        self.left = times
        self.well = threading.Event()

    def run(self, stopping: threading.Event) -> None:
        if self.left:
            self.left -= 1
            raise ValueError("what nobody thought of")
        self.well.set()
        stopping.wait()


class Stubborn:
    name = "stubborn"

    def __init__(self) -> None:
        self.let_go = threading.Event()

    def run(self, stopping: threading.Event) -> None:
        self.let_go.wait()


def test_a_task_that_fails_is_begun_again_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tasks, "FIRST_PAUSE_S", 0.01)
    failing, fine, stubborn = Failing(3), Failing(0), Stubborn()
    crew = Crew([failing, fine, stubborn])
    crew.start()
    assert failing.well.wait(20)
    assert fine.well.wait(20)
    assert crew.stop(0.05) == ["stubborn"]
    stubborn.let_go.set()
    assert crew.stop(20) == []
    assert caplog.text.count("ValueError: what nobody thought of") == 3


class Fixed:
    """A source whose answers are given."""

    def __init__(self, name: str, answers: dict[str, Raw] | SourceAway) -> None:
        self.name = name
        self.answers = answers

    def machines(self) -> tuple[Machine, ...]:
        return tuple(Machine(vm, ("p1",)) for vm in self.measure())

    def measure(self) -> dict[str, Raw]:
        if isinstance(self.answers, SourceAway):
            raise self.answers
        return self.answers


def told(outbox: Outbox) -> dict[str, dict[str, float]]:
    package = outbox.package(10_000)
    assert package is not None
    outbox.delivered(package)
    found: dict[str, dict[str, Any]] = {}
    for batch in package.batches:
        for row, code in enumerate(batch.codes.tolist()):
            values = found.setdefault(batch.subjects[code], {})
            for column, name in enumerate(batch.columns):
                if batch.given[row, column]:
                    assert name not in values  # each is told once
                    values[name] = float(batch.values[row, column])
    return found


def test_what_one_source_tells_another_need_not(tmp_path: Path) -> None:
    first = Fixed("first", {"vm1": Raw(gauges={"memory": 1.0})})
    second = Fixed("second", {"vm1": Raw(gauges={"memory": 2.0, "connections": 3.0})})
    with closing(Outbox(tmp_path / "box", 1 << 20)) as outbox:
        watcher = Watcher("hv1", outbox, 10, 60)
        watcher.source, watcher.gauges = first, (first, second)
        watcher.measure()
        found = told(outbox)
        assert found["vm1"] == {"memory": 1.0, "connections": 3.0}
        assert found["hv1"]["host_cores"] >= 1
        first.answers = SourceAway("libvirt", "gone", "start it")
        watcher.measure()
        assert told(outbox)["vm1"] == {"memory": 2.0, "connections": 3.0}
        assert watcher.sight.troubles == {"first": ("libvirt: gone", "start it")}


def test_a_host_that_was_started_anew_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def events(boot: str) -> list[str]:
        monkeypatch.setattr("controller.agent.proc.boot_id", lambda: boot)
        with closing(Outbox(tmp_path / "box", 1 << 20)) as outbox:
            watcher = Watcher("hv1", outbox, 10, 60)
            stopping = threading.Event()
            stopping.set()
            watcher.run(stopping)
            found = outbox.events(9)
            outbox.took([one.number for one in found])
            return [one.fact.type.value for one in found]

    # The first time, it may be draining: only the controller knows.
    assert [events("one"), events("one"), events("two"), events("two")] == [[], [], ["host.up"], []]
