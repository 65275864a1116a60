"""Which samples of a batch are taken, and why not the others? Pure; each is judged alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from controller.history.counters import NEVER, rates
from controller.history.errors import BadBatch
from controller.history.samples import Batch, Rows
from controller.history.series import Floats
from controller.model.metrics import COUNTERS, METRICS, Metric, Scope

Mask = npt.NDArray[np.bool_]

#: No counter has more bits than 64.
_MOST_COUNTED = float(1 << 64)


class Reason(StrEnum):
    """Why a sample is not taken."""

    UNKNOWN_METRIC = "unknown-metric"
    UNKNOWN_SUBJECT = "unknown-subject"
    #: Of a VM that is not at the sender's host, or of another host.
    NOT_YOURS = "not-yours"
    FUTURE = "in-the-future"
    TOO_OLD = "too-old"
    NOT_FINITE = "not-finite"
    NEGATIVE = "negative"
    IMPLAUSIBLE = "implausible"
    #: A count that is older than one that was taken.
    OUT_OF_ORDER = "out-of-order"


@dataclass(frozen=True, slots=True)
class Refusal:
    """`count` samples were not taken; `detail` tells one of them."""

    reason: Reason
    count: int
    detail: str


@dataclass(frozen=True, slots=True)
class Counted:
    """Where the counters of one metric stand: subject to (Unix milliseconds, count)."""

    metric: str
    at: dict[str, tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Screened:
    """What is taken of a batch: `rows` by scope, where its counters stand now, how many
    samples were `accepted`, what was refused, and how many counters began anew (`resets`)."""

    rows: tuple[Rows, ...]
    counted: tuple[Counted, ...]
    accepted: int
    refused: tuple[Refusal, ...]
    resets: int


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a sample's time may lie from now, in milliseconds."""

    future_ms: int
    late_ms: int


#: What a sender may not tell of, by scope: a reason or None for each subject of the batch.
Rights = Mapping[Scope, Sequence[Reason | None]]
#: Where counters stood: metric to subject to (Unix milliseconds, count, whose count it is).
Standing = Mapping[str, Mapping[str, tuple[int, float, str]]]


def screen(
    batch: Batch, rights: Rights, standing: Standing, caller: str, now_ms: int, limits: Limits
) -> Screened:
    """Judge `batch` of `caller` as of `now_ms`, Unix milliseconds. What two callers count of a
    VM, as two hosts do while it moves, makes no rate. Raises BadBatch where a metric is sent
    both as a count and as a rate."""
    judge = _Judge(batch)
    columns = _columns(batch)
    known = np.array([metric is not None for metric, _ in columns], np.bool_)
    judge.refuse(Reason.UNKNOWN_METRIC, ~known[None, :])
    ahead = batch.times > now_ms + limits.future_ms
    judge.refuse(Reason.FUTURE, ahead[:, None], f"now is {now_ms / 1000:.3f}")
    old = batch.times < now_ms - limits.late_ms
    judge.refuse(Reason.TOO_OLD, old[:, None], f"taken for {limits.late_ms / 1000:g} s")
    _check_rights(judge, columns, rights)
    values = batch.values
    judge.refuse(Reason.NOT_FINITE, ~np.isfinite(values))
    with np.errstate(invalid="ignore"):
        judge.refuse(Reason.NEGATIVE, values < 0)
        most = [_MOST_COUNTED if counts or m is None else m.most for m, counts in columns]
        judge.refuse(Reason.IMPLAUSIBLE, values > np.array(most)[None, :])
    counted, resets = _count(judge, columns, standing, caller)
    accepted = int(np.count_nonzero(judge.taken))
    return Screened(
        tuple(_rows(judge, columns, scope) for scope in _scopes(columns)),
        counted,
        accepted,
        judge.refused,
        resets,
    )


Column = tuple[Metric | None, bool]


def _columns(batch: Batch) -> list[Column]:
    """For each column its metric, and whether it counts."""
    columns: list[Column] = []
    seen: set[str] = set()
    for name in batch.columns:
        metric = METRICS.get(name) or COUNTERS.get(name)
        if metric is not None and metric.name in seen:
            raise BadBatch(
                f"{metric.name} is sent both as a count and as a rate", "send one", f"/{name}"
            )
        seen.add(metric.name if metric is not None else name)
        columns.append((metric, name not in METRICS))
    return columns


def _scopes(columns: Sequence[Column]) -> list[Scope]:
    return list(dict.fromkeys(metric.scope for metric, _ in columns if metric is not None))


class _Judge:
    """What is still taken: `taken` [rows, columns], and what was refused so far."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.taken = batch.given.copy()
        #: As stored: what is counted is replaced by its rate.
        self.values = np.where(self.taken, batch.values, np.nan)
        self._refused: dict[Reason, Refusal] = {}

    @property
    def refused(self) -> tuple[Refusal, ...]:
        """What was refused, by reason."""
        return tuple(self._refused.values())

    def refuse(self, reason: Reason, mask: Mask, note: str = "") -> None:
        """Take nothing where `mask`, which is broadcast to all, says so."""
        if not mask.any():
            return
        found = self.taken & mask
        count = int(np.count_nonzero(found))
        if not count:
            return
        row, column = divmod(int(np.argmax(found)), found.shape[1])
        batch = self.batch
        detail = (
            f"{batch.columns[column]} of {batch.subjects[batch.codes[row]]} at "
            f"{batch.times[row] / 1000:.3f}: {batch.values[row, column]:g}"
        )
        told = Refusal(reason, count, f"{detail} ({note})" if note else detail)
        before = self._refused.get(reason)
        if before is not None:
            told = Refusal(reason, before.count + count, before.detail)
        self._refused[reason] = told
        self.taken &= ~mask
        self.values[found] = np.nan


def _check_rights(judge: _Judge, columns: Sequence[Column], rights: Rights) -> None:
    for scope in _scopes(columns):
        reasons = rights[scope]
        about = np.array([m is not None and m.scope is scope for m, _ in columns], np.bool_)
        for reason in dict.fromkeys(r for r in reasons if r is not None):
            who = np.array([found is reason for found in reasons], np.bool_)
            judge.refuse(reason, who[judge.batch.codes][:, None] & about[None, :])


def _count(
    judge: _Judge, columns: Sequence[Column], standing: Standing, caller: str
) -> tuple[tuple[Counted, ...], int]:
    """Replace counts by rates; where the counters stand now, and how many began anew."""
    batch = judge.batch
    counted = []
    resets = 0
    for column, (metric, counts) in enumerate(columns):
        at = np.flatnonzero(judge.taken[:, column])
        if metric is None or not counts or not len(at):
            continue
        before = standing.get(metric.name, {})
        stood = [_stood(before.get(subject), caller) for subject in batch.subjects]
        found = rates(
            batch.codes[at],
            batch.times[at],
            batch.values[at, column],
            np.array([time for time, _ in stood], np.int64),
            np.array([count for _, count in stood]),
        )
        resets += int(np.count_nonzero(found.fell))
        judge.values[at, column] = found.values
        judge.refuse(Reason.OUT_OF_ORDER, _at(judge, column, at, found.late))
        with np.errstate(invalid="ignore"):
            high = _at(judge, column, at, found.values > metric.most)
        judge.refuse(Reason.IMPLAUSIBLE, high, f"more than {metric.most:g} {metric.unit}")
        counted.append(
            Counted(
                metric.name,
                {
                    subject: (int(time), float(count))
                    for subject, (then, _), time, count in zip(
                        batch.subjects, stood, found.last_times, found.last_counts, strict=True
                    )
                    if time != then
                },
            )
        )
    return tuple(counted), resets


def _stood(entry: tuple[int, float, str] | None, caller: str) -> tuple[int, float]:
    return entry[:2] if entry is not None and entry[2] == caller else (NEVER, np.nan)


def _at(
    judge: _Judge, column: int, rows: npt.NDArray[np.intp], found: Mask | npt.NDArray[np.bool_]
) -> Mask:
    mask = np.zeros(judge.taken.shape, np.bool_)
    mask[rows[found], column] = True
    return mask


def _rows(judge: _Judge, columns: Sequence[Column], scope: Scope) -> Rows:
    about = [c for c, (metric, _) in enumerate(columns) if metric and metric.scope is scope]
    values: Floats = judge.values[:, about]
    told = ~np.isnan(values).all(axis=1)
    batch = judge.batch
    return Rows(
        scope,
        batch.subjects,
        batch.codes[told],
        batch.times[told],
        tuple(metric.name for c in about if (metric := columns[c][0])),
        np.asfortranarray(values[told]),
    )
