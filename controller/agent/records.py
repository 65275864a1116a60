"""What does the agent know? What it saw, what it read, and what it has to tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from controller.history.samples import Batch
from controller.observe.cloudevents import EventType


class SourceAway(Exception):  # noqa: N818 - it is a state, which is told and waited for
    """What the agent reads cannot be read now: what it is, why, and what to do."""

    def __init__(self, what: str, cause: str, mend: str) -> None:
        super().__init__(f"{what}: {cause}")
        self.what = what
        self.cause = cause
        self.mend = mend


@dataclass(frozen=True, slots=True)
class Machine:
    """A VM at this host: the ports that its NICs are plugged into, and their MACs, in the
    same order. `arriving` is whether it is stopped here while its memory is under way,
    `migrated` whether it runs here since it came from another host."""

    vm: str
    ports: tuple[str, ...] = ()
    macs: tuple[str, ...] = ()
    arriving: bool = False
    migrated: bool = False


@dataclass(frozen=True, slots=True)
class Raw:
    """What a source read of one VM or host: `gauges` by metric; `counts` by counter and
    device, as they stand; `shares` by metric, as seconds used by device and what of it there
    is in a second."""

    gauges: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    shares: Mapping[str, tuple[Mapping[str, float], float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """Values of a VM, host or port at a time (Unix seconds), by metric or counter."""

    subject: str
    at: float
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Fact:
    """Something to tell, as it was seen: an event without what only the controller knows (the
    order of its NICs, where a VM comes from). `at` is Unix seconds."""

    id: str
    type: EventType
    at: float
    vm: str
    host: str
    ports: tuple[str, ...] = ()
    macs: tuple[str, ...] = ()
    migration: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Told:
    """What the controller was last told of a VM here; `migration` while it is arriving."""

    ports: tuple[str, ...]
    migration: str | None = None


def batch_of(rows: Sequence[Row]) -> Batch:
    """`rows` as a batch, not yet of a sender and a number."""
    subjects = tuple(dict.fromkeys(row.subject for row in rows))
    code = {name: number for number, name in enumerate(subjects)}
    columns = tuple(dict.fromkeys(name for row in rows for name in row.values))
    at = {name: number for number, name in enumerate(columns)}
    values = np.full((len(rows), len(columns)), np.nan, order="F")
    given = np.zeros(values.shape, np.bool_, order="F")
    for number, row in enumerate(rows):
        for name, value in row.values.items():
            values[number, at[name]] = value
            given[number, at[name]] = True
    return Batch(
        "agent",
        0,
        None,
        subjects,
        np.array([code[row.subject] for row in rows], np.int32),
        np.array([round(row.at * 1000) for row in rows], np.int64),
        columns,
        values,
        given,
    )


def joined(batches: Sequence[Batch], sender: str, sequence: int, sent_at: float) -> Batch:
    """All of `batches` as the one batch `sequence` of `sender`, sent at `sent_at`."""
    subjects = _union(batch.subjects for batch in batches)
    columns = _union(batch.columns for batch in batches)
    count = sum(len(batch.times) for batch in batches)
    values = np.full((count, len(columns)), np.nan, order="F")
    given = np.zeros(values.shape, np.bool_, order="F")
    codes, first = [], 0
    for batch in batches:
        rows = slice(first, first + len(batch.times))
        where = [columns[name] for name in batch.columns]
        values[rows, where] = batch.values
        given[rows, where] = batch.given
        renamed = np.array([subjects[name] for name in batch.subjects], np.int32)
        codes.append(renamed[batch.codes])
        first = rows.stop
    return Batch(
        sender,
        sequence,
        sent_at,
        tuple(subjects),
        np.concatenate(codes),
        np.concatenate([batch.times for batch in batches]),
        tuple(columns),
        values,
        given,
    )


def _union(names: Iterable[Sequence[str]]) -> dict[str, int]:
    """Each name once, with its number."""
    found = dict.fromkeys(name for piece in names for name in piece)
    return {name: number for number, name in enumerate(found)}
