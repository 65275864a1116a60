"""What does every engine do? Keeps what was taken, and finds it again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from controller.history.samples import Rows
from controller.history.series import Points, Query


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What an engine holds. Times are Unix seconds; None where it is empty or cannot tell."""

    engine: str
    place: str
    bytes: int | None
    oldest: float | None
    newest: float | None
    #: Hours whose samples are not yet packed into files.
    unpacked_hours: int | None


class Engine(Protocol):
    """Where time series are kept. `write` and `keep_house` are called by one thread, the
    others by any. All raise HistoryError."""

    @property
    def position(self) -> int:
        """Position in the log up to which everything is kept here, for good."""

    def write(self, rows: Sequence[Rows], position: int) -> None:
        """Keep `rows`, those of the log up to `position`: all or, where it raises, none, or
        such as are not told twice when they are written again."""

    def scan(self, query: Query) -> tuple[int, Iterator[Points]]:
        """The samples that `query` asks for, and the position up to which they are told."""

    def keep_house(self, now: float) -> bool:
        """Do one piece of what is due (packing, down-sampling, forgetting); whether there may
        be more. `now` is Unix seconds."""

    def check(self) -> list[str]:
        """Read everything; what is wrong."""

    def status(self) -> EngineStatus:
        """What is held."""

    def close(self) -> None:
        """Let go of files and connections."""
