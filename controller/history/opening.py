"""How is the history of the settings opened, and how is it checked while nobody has it?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from controller.history import wal
from controller.history.duck import DuckEngine
from controller.history.engine import Engine
from controller.history.errors import HistoryError, HistoryUnavailable
from controller.history.history import LOG_DIRECTORY, History, Lock, Times
from controller.history.intake import Bounds
from controller.history.packing import Packing
from controller.history.plan import DAY_MS, Keep, Kind
from controller.history.screen import Limits
from controller.history.victoria import VictoriaEngine
from controller.history.wal import of_os
from controller.settings import HistorySettings, Settings, safe_directory

#: What to do where another process has it, for who wants to write, and for who wants to check.
_APART = "end the other brain, or give this one another state_dir or history.url"
_STOP = "stop Pleach first: what is being written cannot be checked"
#: Longest pause between two looks at what is due for packing, in seconds.
_HOUSE_S = 30.0


def directory_of(settings: Settings) -> Path:
    """Where the history's files lie; those of VictoriaMetrics only as far as it waits."""
    scheme, _, rest = settings.history.url.partition("://")
    return Path("/" + rest.lstrip("/")) if scheme == "duckdb" else settings.state_dir / "history"


@contextmanager
def opened(settings: Settings) -> Iterator[History]:
    """The history, closed at the end. Raises HistoryError and SettingsError where it cannot
    be used, and HistoryUnavailable where another process has it."""
    with _engine(settings, _APART) as engine:
        chosen = settings.history
        history = History(
            directory_of(settings),
            engine,
            Limits(round(chosen.skew_s * 1000), round(chosen.late_s * 1000)),
            Bounds(chosen.queue_values, chosen.min_free_bytes),
            Times(chosen.flush_s, min(_HOUSE_S, max(1.0, chosen.settle_s / 2))),
        )
        try:
            yield history
        finally:
            history.close()


def check(settings: Settings) -> list[str]:
    """Read everything that is kept; what is wrong. Raises HistoryError where that cannot be
    done, such as while a brain runs."""
    directory = directory_of(settings)
    if not directory.exists():
        raise HistoryUnavailable("nothing was kept here", "see state_dir", str(directory))
    with _engine(settings, _STOP) as engine:
        wrong = engine.check()
        try:
            wal.check(directory / LOG_DIRECTORY)
        except HistoryError as error:
            wrong.append(str(error))
        return wrong


@contextmanager
def _engine(settings: Settings, mend: str) -> Iterator[Engine]:
    """The engine, for as long as no other process has it; `mend` is told where one does."""
    directory = directory_of(settings)
    try:
        safe_directory(directory)
    except OSError as error:
        raise of_os(error, str(directory)) from error
    lock = Lock(directory, mend)
    try:
        engine = _open(settings.history, directory)
        try:
            yield engine
        finally:
            engine.close()
    finally:
        lock.close()


def _open(chosen: HistorySettings, directory: Path) -> Engine:
    if not chosen.url.startswith("duckdb:"):
        return VictoriaEngine(chosen.url, directory)
    ages = {
        Kind.RAW: chosen.raw_days,
        Kind.FIVE: chosen.five_minute_days,
        Kind.HOUR: chosen.hourly_days,
    }
    return DuckEngine(
        directory,
        Packing(
            round(chosen.settle_s * 1000),
            round(chosen.late_s * 1000),
            Keep({kind: round(days * DAY_MS) for kind, days in ages.items()}, chosen.max_bytes),
        ),
        memory_bytes=chosen.memory_bytes,
        threads=chosen.threads,
    )
