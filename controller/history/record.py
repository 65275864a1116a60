"""How is what was taken written into the log, and what is kept beside it? As MessagePack."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from controller.history.errors import HistoryCorrupt
from controller.history.samples import Rows
from controller.history.screen import Counted
from controller.history.senders import Seen, seen
from controller.history.wal import write_file
from controller.model.metrics import Scope


@dataclass(frozen=True, slots=True)
class Record:
    """One batch as it was taken: of which sender, when (Unix milliseconds), and what."""

    sender: str
    sequence: int
    at: int
    rows: tuple[Rows, ...]
    counted: tuple[Counted, ...]

    @property
    def values(self) -> int:
        """How many values it makes wait."""
        return sum(piece.count for piece in self.rows)


@dataclass(slots=True)
class Books:
    """What has to be known of earlier batches to judge the next, as of `position` in the log:
    which were taken, and where counters stood (Unix milliseconds, count, whose it is)."""

    position: int = 0
    senders: dict[str, Seen] = field(default_factory=dict)
    standing: dict[str, dict[str, tuple[int, float, str]]] = field(default_factory=dict)
    #: What was in no table before (only in what `enter` returns).
    absent: list[tuple[dict[str, Any], str]] = field(default_factory=list)

    def enter(self, record: Record) -> Books:
        """Enter what is now taken; returns what stood there before, for `take_back`."""
        before = Books(self.position)
        known = self.senders.get(record.sender)
        if known is not None:
            before.senders[record.sender] = known
        else:
            before.absent.append((self.senders, record.sender))
        self.senders[record.sender] = seen(known, record.sequence, record.at)
        for counted in record.counted:
            standing = self.standing.setdefault(counted.metric, {})
            old = before.standing.setdefault(counted.metric, {})
            caller = caller_of(record.sender)
            for subject, (at, count) in counted.at.items():
                if subject in standing:
                    old[subject] = standing[subject]
                else:
                    before.absent.append((standing, subject))
                standing[subject] = (at, count, caller)
        return before

    def take_back(self, before: Books) -> None:
        """Undo the last `enter`, which returned `before`."""
        self.position = before.position
        self.senders.update(before.senders)
        for metric, old in before.standing.items():
            self.standing[metric].update(old)
        for table, key in before.absent:
            del table[key]

    def forget(self, before: int) -> None:
        """Forget senders and counters not heard of since `before`, Unix milliseconds: of what
        they sent then, nothing would be taken any more."""
        self.senders = {name: s for name, s in self.senders.items() if s.at >= before}
        self.standing = {
            metric: {subject: entry for subject, entry in at.items() if entry[0] >= before}
            for metric, at in self.standing.items()
        }


def caller_of(sender: str) -> str:
    """Whose sender that is: names of senders are told apart by caller."""
    return sender.partition("/")[0]


def pack(record: Record) -> bytes:
    """`record` as bytes."""
    rows = [
        (
            piece.scope.value,
            piece.subjects,
            piece.codes.astype("<i4").tobytes(),
            piece.times.astype("<i8").tobytes(),
            piece.metrics,
            piece.values.astype("<f8").tobytes("F"),
        )
        for piece in record.rows
    ]
    counted = [(counted.metric, counted.at) for counted in record.counted]
    return bytes(msgpack.packb((record.sender, record.sequence, record.at, rows, counted)))


def unpack(payload: bytes) -> Record:
    """The record that `pack` made."""
    sender, sequence, at, rows, counted = msgpack.unpackb(payload)
    return Record(
        sender,
        sequence,
        at,
        tuple(_rows(*piece) for piece in rows),
        tuple(
            Counted(metric, {subject: (time, count) for subject, (time, count) in at.items()})
            for metric, at in counted
        ),
    )


def save(books: Books, file: Path) -> None:
    """Write `books` to `file` at once or not at all. Raises HistoryError."""
    senders = {
        name: (s.last, s.mask.to_bytes(s.mask.bit_length() // 8 + 1, "little"), s.at)
        for name, s in books.senders.items()
    }
    write_file(file, msgpack.packb((books.position, senders, books.standing)))


def load(file: Path) -> Books:
    """The books in `file`; new ones where there is none. Raises HistoryCorrupt."""
    try:
        position, senders, standing = msgpack.unpackb(file.read_bytes())
    except FileNotFoundError:
        return Books()
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise HistoryCorrupt(
            f"it cannot be read: {error}",
            "move it away: batches that are sent again may be counted twice then",
            str(file),
        ) from error
    return Books(
        position,
        {
            n: Seen(last, int.from_bytes(mask, "little"), at)
            for n, (last, mask, at) in senders.items()
        },
        {
            # Those of an earlier version are nobody's: they are followed by a gap.
            metric: {
                subject: (entry[0], entry[1], entry[2] if len(entry) > 2 else "")
                for subject, entry in at.items()
            }
            for metric, at in standing.items()
        },
    )


def _rows(
    scope: str,
    subjects: list[str],
    codes: bytes,
    times: bytes,
    metrics: list[str],
    values: bytes,
) -> Rows:
    at: Any = np.frombuffer(times, "<i8")
    return Rows(
        Scope(scope),
        tuple(subjects),
        np.frombuffer(codes, "<i4").astype(np.int32),
        at.astype(np.int64),
        tuple(metrics),
        np.frombuffer(values, "<f8").reshape((len(at), len(metrics)), order="F"),
    )
