"""What is acknowledged and not yet with the engine? Kept in memory as well as in the log."""

from __future__ import annotations

import threading
from collections import deque

from controller.history.samples import Rows


class Waiting:
    """Batches in the order of the log. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._batches: deque[tuple[int, tuple[Rows, ...]]] = deque()
        self._values = 0
        #: Set where somebody should look after it at once.
        self.wake = threading.Event()

    @property
    def values(self) -> int:
        """How many values wait."""
        return self._values

    def add(self, position: int, rows: tuple[Rows, ...]) -> None:
        """One more; `position` is that in the log."""
        with self._lock:
            self._batches.append((position, rows))
            self._values += sum(piece.count for piece in rows)

    def all(self) -> list[tuple[int, tuple[Rows, ...]]]:
        """All that wait, the oldest first, with their positions."""
        with self._lock:
            return list(self._batches)

    def first(self, values: int) -> tuple[list[Rows], int]:
        """The oldest, about so many values (at least one batch), and the position of the last
        of them; nothing and 0 where nothing waits."""
        rows: list[Rows] = []
        last = count = 0
        with self._lock:
            for position, pieces in self._batches:
                last = position
                rows += pieces
                count += sum(piece.count for piece in pieces)
                if count >= values:
                    break
        return rows, last

    def done(self, upto: int) -> None:
        """Those up to this position wait no more."""
        with self._lock:
            while self._batches and self._batches[0][0] <= upto:
                _, rows = self._batches.popleft()
                self._values -= sum(piece.count for piece in rows)
