"""Which of a fabric's metrics leave their pattern? Banks of all series, kept over restarts.

Series come and go with VMs: each has a row in one of the banks. What a bank has learned is
written to a file of its own now and then (about 15 KB a series after two weeks), with the time
up to which it has seen; after a restart whoever feeds it begins again at the earliest of these
times, and a bank passes over what it has seen.

The functions below are called by name in a process that computes, which keeps what it opened.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from controller.observe.anomalies.bank import Bank, Finding, Rule

log = logging.getLogger(__name__)

Array = NDArray[np.float64]
#: A VM and a metric of it.
Name = tuple[str, str]

#: Series of one bank, and so of one file.
SIZE = 1_024
#: Banks that are written at once: others wait for the process meanwhile.
WRITTEN = 2
_FILE = "bank-{:04}.npz"


@dataclass(frozen=True, slots=True)
class Config:
    """Where it is kept, and how it judges: `least` is the smallest difference that can matter, by
    metric; so many reports a week may be nothing, over all series."""

    directory: Path
    least: Mapping[str, float]
    false_per_week: float
    rule: Rule = field(default_factory=Rule)


@dataclass(frozen=True, slots=True)
class Standing:
    """Up to when all series have been seen (Unix seconds), None where there is none yet; `token`
    is that of what was opened."""

    upto: float | None
    token: int


@dataclass(frozen=True, slots=True)
class Span:
    """Samples of `names` at `times` (Unix seconds, ascending): `values` is (names, times), NaN
    for a gap. It goes on from what was seen since the `Standing` with this token."""

    token: int
    names: tuple[Name, ...]
    times: Array
    values: Array


class StaleError(Exception):
    """What was opened is there no more, or opened anew: ask `standing` and go on from there."""


def standing(config: Config) -> Standing:
    """Where it stands."""
    detector = _OPENED.get(config.directory)
    if detector is None or detector.config != config:
        detector = _OPENED[config.directory] = Detector(config)
    return Standing(detector.upto, detector.token)


def advance(config: Config, span: Span) -> list[tuple[Name, Finding]]:
    """See one more span; what left its pattern. Raises StaleError."""
    return _opened(config, span.token).advance(span)


def save(config: Config, token: int, older_than: float) -> int:
    """Write banks of which what was written was seen before `older_than`; how many still are
    to be written. Raises StaleError and OSError."""
    return _opened(config, token).save(older_than)


def keep(config: Config, token: int, vms: Sequence[str]) -> None:
    """Forget the series of all VMs but these. Raises StaleError."""
    _opened(config, token).keep(frozenset(vms))


class Detector:
    """All series of `config`, as its directory holds them."""

    def __init__(self, config: Config) -> None:
        self.config = config
        #: Tells this from another that the same files were read into.
        self.token = time.monotonic_ns()
        self._banks: list[_Shelf] = []
        self._places: dict[Name, tuple[int, int]] = {}
        self._free: list[tuple[int, int]] = []
        config.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        while (file := config.directory / _FILE.format(len(self._banks))).exists():
            self._banks.append(_loaded(file, config))
        for number, shelf in enumerate(self._banks):
            for row, name in enumerate(shelf.names):
                if name is not None and name[1] in config.least:
                    self._places[name] = number, row
                else:
                    self._free.append((number, row))
        self._free.reverse()

    @property
    def upto(self) -> float | None:
        """Up to when all series have been seen; None where one has yet to be from the start."""
        upto = min((shelf.upto for shelf in self._banks), default=-np.inf)
        return upto if np.isfinite(upto) else None

    def advance(self, span: Span) -> list[tuple[Name, Finding]]:
        """See one more span; what left its pattern."""
        if not len(span.times):
            return []
        for name in span.names:
            if name not in self._places:
                self._place(name)
        week = min(
            self.config.rule.per_week, self.config.false_per_week / max(1, len(self._places))
        )
        places = np.array([self._places[name] for name in span.names], np.intp).reshape(-1, 2)
        found: list[tuple[Name, Finding]] = []
        for number, shelf in enumerate(self._banks):
            shelf.bank.rule = replace(shelf.bank.rule, per_week=week)
            mine = np.flatnonzero(places[:, 0] == number)
            values = np.full((len(span.times), SIZE), np.nan)
            values[:, places[mine, 1]] = span.values[mine].T
            for at, row in zip(span.times, values, strict=True):
                for finding in shelf.bank.step(at, row):
                    left = shelf.names[finding.series]
                    assert left is not None
                    found.append((left, finding))
            shelf.upto = max(shelf.upto, float(span.times[-1]))
        return sorted(found, key=lambda one: one[1].at)

    def save(self, older_than: float) -> int:
        """Write banks; see the function of that name."""
        due = [
            (shelf.saved, number)
            for number, shelf in enumerate(self._banks)
            if shelf.saved < older_than and shelf.upto > shelf.saved
        ]
        for _, number in sorted(due)[:WRITTEN]:
            _write(self.config.directory / _FILE.format(number), self._banks[number])
        return max(0, len(due) - WRITTEN)

    def keep(self, vms: frozenset[str]) -> None:
        """Forget the series of all VMs but these."""
        for name in [name for name in self._places if name[0] not in vms]:
            number, row = self._places.pop(name)
            self._banks[number].names[row] = None
            self._free.append((number, row))

    def _place(self, name: Name) -> None:
        if not self._free:
            # What comes with the first span has seen nothing before it.
            self._banks.append(_Shelf(Bank(SIZE, self.config.rule), [None] * SIZE, -np.inf))
            self._free = [(len(self._banks) - 1, row) for row in reversed(range(SIZE))]
        number, row = self._places[name] = self._free.pop()
        shelf = self._banks[number]
        shelf.names[row] = name
        shelf.bank.clear(np.array([row]), self.config.least.get(name[1], 0.0))


@dataclass(slots=True)
class _Shelf:
    """A bank, whose series are in its rows, up to when they were seen, and up to when they had
    been when that was last written."""

    bank: Bank
    names: list[Name | None]
    upto: float
    saved: float = -np.inf


#: What this process has opened, by directory.
_OPENED: dict[Path, Detector] = {}


def _opened(config: Config, token: int) -> Detector:
    held = _OPENED.get(config.directory)
    if held is None or held.token != token:
        raise StaleError(f"{config.directory} was opened anew")
    return held


def _write(file: Path, shelf: _Shelf) -> None:
    used = max((row + 1 for row, name in enumerate(shelf.names) if name is not None), default=0)
    about = json.dumps({"upto": shelf.upto, "names": shelf.names[:used]})
    beside = file.with_suffix(".new")
    arrays: dict[str, Any] = {"about": np.array(about), **shelf.bank.state(used)}
    with beside.open("wb") as out:
        np.savez(out, **arrays)
        out.flush()
        os.fsync(out.fileno())
    beside.replace(file)
    shelf.saved = shelf.upto


def _loaded(file: Path, config: Config) -> _Shelf:
    """The bank in `file`; a new one where that cannot be used, which then learns again."""
    bank = Bank(SIZE, config.rule)
    try:
        with np.load(file, allow_pickle=False) as state:
            about = json.loads(str(state["about"]))
            names = [(one[0], one[1]) if one else None for one in about["names"]][:SIZE]
            bank.restore(state)
            upto = float(about["upto"])
    except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError, BadZipFile) as error:
        log.error("a checkpoint cannot be used", extra={"file": str(file), "cause": str(error)})
        return _Shelf(Bank(SIZE, config.rule), [None] * SIZE, -np.inf)
    least = [config.least.get(name[1], 0.0) if name else 0.0 for name in names]
    bank.set_least(np.arange(len(names)), least)
    return _Shelf(bank, [*names, *[None] * (SIZE - len(names))], upto, upto)
