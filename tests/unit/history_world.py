"""Histories for tests: batches, settings with short times, and a VictoriaMetrics of their own."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from controller.history.history import History
from controller.history.intake import Receipt
from controller.history.opening import opened
from controller.history.samples import Batch
from controller.history.screen import Rights
from controller.model.metrics import Scope
from controller.settings import Settings, load

#: A Monday, 00:00 UTC.
DAY = 1_893_456_000.0
HOUR = 3_600.0


def batch(
    sequence: int,
    times: Sequence[float],
    columns: Mapping[str, Sequence[float | None]],
    *,
    subjects: Sequence[str] | None = None,
    sender: str = "agent",
    sent_at: float | None = None,
) -> Batch:
    """A batch with a row for each time, of VM "web" where `subjects` does not say otherwise."""
    names = list(subjects) if subjects is not None else ["web"] * len(times)
    known = tuple(dict.fromkeys(names))
    values = np.full((len(times), len(columns)), np.nan, order="F")
    given = np.zeros(values.shape, np.bool_, order="F")
    for index, column in enumerate(columns.values()):
        given[:, index] = [value is not None for value in column]
        values[:, index] = [np.nan if value is None else value for value in column]
    return Batch(
        sender,
        sequence,
        sent_at,
        known,
        np.array([known.index(name) for name in names], np.int32),
        np.array([round(at * 1000) for at in times], np.int64),
        tuple(columns),
        values,
        given,
    )


def everything(found: Batch) -> Rights:
    """The rights of an operator."""
    return dict.fromkeys(Scope, [None] * len(found.subjects))


def take(history: History, found: Batch, now: float = DAY + HOUR, caller: str = "op") -> Receipt:
    """The receipt of a batch."""
    return history.take(found, caller, everything(found), now).result(20)


def settings_of(state_dir: Path, **history: object) -> Settings:
    """Settings that write at once and never for want of room refuse."""
    given = {"flush_s": 0.05, "settle_s": 0, "min_free_bytes": 0, **history}
    names = {f"PLEACH_HISTORY__{name.upper()}": str(value) for name, value in given.items()}
    return load(None, {"PLEACH_STATE_DIR": str(state_dir), **names})


def wait_until(condition: Callable[[], object], what: str, limit_s: float = 60.0) -> None:
    """Return once `condition` holds; fails where it does not."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"after {limit_s:g} s still not: {what}"
        time.sleep(0.02)


def handed_on(history: History) -> None:
    """Return once the engine has all that was taken."""
    wait_until(lambda: history.status().waiting_values == 0, "everything is with the engine")


@dataclass(slots=True)
class Victoria:
    """A VictoriaMetrics that can be stopped and started again."""

    directory: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"victoriametrics://127.0.0.1:{self.port}"

    def start(self) -> None:
        log = (self.directory / "victoria.log").open("ab")
        with log:
            self.process = subprocess.Popen(
                [
                    "victoria-metrics",
                    f"-storageDataPath={self.directory / 'victoria'}",
                    f"-httpListenAddr=127.0.0.1:{self.port}",
                    "-retentionPeriod=100y",
                    "-dedup.minScrapeInterval=1ms",
                    "-memory.allowedBytes=64MiB",
                    "-loggerLevel=WARN",
                ],
                stdout=log,
                stderr=log,
                cwd=self.directory,
            )
        wait_until(self._answers, "VictoriaMetrics answers")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)
            self.process = None

    def _answers(self) -> bool:
        assert self.process is not None
        log = (self.directory / "victoria.log").read_text()
        assert self.process.poll() is None, log
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@contextmanager
def victoria(directory: Path, port: int) -> Iterator[Victoria]:
    """A VictoriaMetrics on a port, with its files in `directory`."""
    server = Victoria(directory, port)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def history_in(state_dir: Path, **chosen: object) -> Iterator[History]:
    """A history with its files in `state_dir`."""
    with opened(settings_of(state_dir, **chosen)) as history:
        yield history
