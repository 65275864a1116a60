"""The score of the Numenta Anomaly Benchmark, written from its published definition: Lavin and
Ahmad 2015, "Evaluating Real-time Anomaly Detection Algorithms", section II, and NAB's wiki
("NAB scoring"). Pure, but for `load`.

A series has windows in which an anomaly lies. Of the detections in one, only the earliest counts,
the more the earlier it comes; a detection outside is a false positive, a small one just
behind a window and a whole one far from it. What is detected in the probationary part counts
neither way.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

#: The probationary part: this share of a series, and of no more than so many records.
PROBATION_SHARE = 0.15
PROBATION_MOST = 5_000
#: Costs of the standard profile.
TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE = 1.0, 0.11, 1.0


@dataclass(frozen=True, slots=True)
class Series:
    """One file: Unix seconds (UTC), values, and windows as first and last record in them."""

    name: str
    at: tuple[float, ...]
    values: tuple[float, ...]
    windows: tuple[tuple[int, int], ...]

    @property
    def probation(self) -> int:
        """How many records at the start are for learning only."""
        return int(PROBATION_SHARE * min(len(self.at), PROBATION_MOST))


@dataclass(frozen=True, slots=True)
class Tally:
    """What detections were worth: `raw` in units of a window."""

    raw: float
    windows: int
    found: int
    false_positives: int

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.raw + other.raw,
            self.windows + other.windows,
            self.found + other.found,
            self.false_positives + other.false_positives,
        )

    @property
    def score(self) -> float:
        """100 for each window found at its left edge and nothing else, 0 for no detection."""
        null, perfect = -FALSE_NEGATIVE * self.windows, TRUE_POSITIVE * self.windows
        return 100.0 * (self.raw - null) / (perfect - null) if self.windows else math.nan


def load(folder: Path) -> list[Series]:
    """Every file that `windows.json` names."""
    windows = json.loads((folder / "windows.json").read_text())
    return [_read(folder / name, spans) for name, spans in sorted(windows.items())]


def tally(series: Series, detections: Sequence[int]) -> Tally:
    """What `detections` (numbers of records) are worth on one series."""
    counted = sorted(record for record in set(detections) if record >= series.probation)
    raw, found = 0.0, 0
    for first, last in series.windows:
        inside = [record for record in counted if first <= record <= last]
        if inside:
            found += 1
            place = -(last - inside[0] + 1) / (last - first + 1)
            raw += TRUE_POSITIVE * sigmoid(place) / sigmoid(-1.0)
        else:
            raw -= FALSE_NEGATIVE
    outside = [
        record
        for record in counted
        if not any(first <= record <= last for first, last in series.windows)
    ]
    raw += sum(FALSE_POSITIVE * _false_positive(series, record) for record in outside)
    return Tally(raw, len(series.windows), found, len(outside))


def sigmoid(place: float) -> float:
    """The scaled sigmoid: `place` is -1 at a window's left edge, and 0 at its right one."""
    return -1.0 if place > 3.0 else 2.0 / (1.0 + math.exp(5.0 * place)) - 1.0


def _false_positive(series: Series, record: int) -> float:
    before = [(first, last) for first, last in series.windows if last < record]
    if not before:
        return -1.0
    first, last = before[-1]
    return sigmoid((record - last) / max(1, last - first))


def _read(path: Path, spans: Sequence[tuple[str, str]]) -> Series:
    with path.open(newline="") as file:
        rows = [(_seconds(row["timestamp"]), float(row["value"])) for row in csv.DictReader(file)]
    at = tuple(row[0] for row in rows)
    windows = []
    for start, end in spans:
        inside = [i for i, when in enumerate(at) if _seconds(start) <= when <= _seconds(end)]
        windows.append((inside[0], inside[-1]))
    return Series(path.name, at, tuple(row[1] for row in rows), tuple(sorted(windows)))


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
