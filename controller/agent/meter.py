"""How do counts of devices become samples of a VM, without a jump where a device comes, goes,
or begins anew?

Each VM has one total for each counter: what was counted since it was first seen here, or since
its devices last changed. It then begins at zero, so that the controller sees a count that fell,
and leaves a gap (`controller.history.counters`): the sum of other devices would be no rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from controller.agent.records import Raw

#: Shares are measured over at least so many seconds; two readings that are closer tell nothing.
_LEAST_S = 0.5


@dataclass(frozen=True, slots=True)
class _Total:
    devices: Mapping[str, float]
    total: float


@dataclass(frozen=True, slots=True)
class _Used:
    devices: Mapping[str, float]
    at: float


class Meter:
    """Remembers where the counts stood."""

    def __init__(self) -> None:
        self._totals: dict[tuple[str, str], _Total] = {}
        self._used: dict[tuple[str, str], _Used] = {}

    def take(self, subject: str, raw: Raw, at: float) -> dict[str, float]:
        """The values of `subject` by metric or counter; `at` is in seconds of any clock that
        does not jump. What is no number, or negative, is left out."""
        values = {name: value for name, value in raw.gauges.items() if _sound(value)}
        for name, devices in raw.counts.items():
            if devices and all(map(_sound, devices.values())):
                values[name] = self._total((subject, name), devices)
        for name, (devices, each_s) in raw.shares.items():
            if devices and all(map(_sound, devices.values())):
                share = self._share((subject, name), devices, each_s, at)
                if share is not None:
                    values[name] = share
        return values

    def keep(self, subjects: Iterable[str]) -> None:
        """Forget all but `subjects`."""
        kept = set(subjects)
        self._totals = {key: total for key, total in self._totals.items() if key[0] in kept}
        self._used = {key: used for key, used in self._used.items() if key[0] in kept}

    def _total(self, key: tuple[str, str], devices: Mapping[str, float]) -> float:
        before = self._totals.get(key)
        grown = None if before is None else _growth(before.devices, devices)
        total = 0.0 if before is None or grown is None else before.total + grown
        self._totals[key] = _Total(dict(devices), total)
        return total

    def _share(
        self, key: tuple[str, str], devices: Mapping[str, float], each_s: float, at: float
    ) -> float | None:
        before = self._used.get(key)
        if before is not None and at - before.at < _LEAST_S:
            return None
        self._used[key] = _Used(dict(devices), at)
        grown = None if before is None else _growth(before.devices, devices)
        if before is None or grown is None or each_s <= 0:
            return None
        return grown / (at - before.at) / each_s


def _growth(before: Mapping[str, float], now: Mapping[str, float]) -> float | None:
    """By how much all devices together have grown; None where they are not the same, or one
    has fewer than before."""
    if before.keys() != now.keys() or any(now[name] < before[name] for name in now):
        return None
    return math.fsum(now[name] - before[name] for name in now)


def _sound(value: float) -> bool:
    return math.isfinite(value) and value >= 0
