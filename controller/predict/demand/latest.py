"""Which forecasts hold now? A file a metric, replaced as a whole, that any process may read.

    DIRECTORY/METRIC.npz     quantiles of all VMs by target, and the reason of each

Whoever decides reads whole tables (`Sheet.tables`), who is asked about one VM its forecasts
(`Sheet.of`). What no forecast may be (not finite, negative, of crossing quantiles) is refused
here, whatever model it came from.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.predict.demand.forecast import Forecast, Reason
from controller.predict.demand.series import Array, Metric
from controller.predict.demand.targets import QUANTILES, Target


@dataclass(frozen=True, slots=True)
class Table:
    """Forecasts of one target: `quantiles` [series, steps, len(QUANTILES)] in the metric's
    unit, and the reason of each series as JSON."""

    quantiles: Array
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sheet:
    """The newest forecasts of one metric, made at `origin` (Unix s) for all `names`; `capacity`
    [series] is NaN where it is not known."""

    metric: Metric
    origin: int
    names: tuple[str, ...]
    capacity: Array
    tables: Mapping[Target, Table]

    def of(self, vm: str) -> tuple[Forecast, ...]:
        """The forecasts of one VM; none where it is not in the sheet."""
        if vm not in self.names:
            return ()
        row = self.names.index(vm)
        limit = float(self.capacity[row])
        return tuple(
            Forecast(
                vm,
                self.metric,
                target,
                self.origin,
                table.quantiles[row].astype(np.float64),
                limit if np.isfinite(limit) else None,
                _reason(table.reasons[row]),
            )
            for target, table in self.tables.items()
        )


def acceptable(quantiles: Array) -> bool:
    """Whether `quantiles` [steps, levels] are what a forecast may be."""
    return bool(
        quantiles.size
        and np.isfinite(quantiles).all()
        and (quantiles >= 0).all()
        and (np.diff(quantiles, axis=-1) >= 0).all()
    )


def sheet(forecasts: Sequence[Forecast]) -> tuple[Sheet | None, tuple[str, ...]]:
    """A sheet of one round's `forecasts` of one metric, and the VMs that were left out of it,
    because a forecast of theirs was not acceptable; None where nobody is left."""
    refused = {f.vm for f in forecasts if not acceptable(f.quantiles)}
    by_target: dict[Target, dict[str, Forecast]] = {}
    for forecast in forecasts:
        if forecast.vm not in refused:
            by_target.setdefault(forecast.target, {})[forecast.vm] = forecast
    if not by_target:
        return None, tuple(sorted(refused))
    first = next(iter(by_target.values()))
    capacity = [np.nan if f.capacity is None else f.capacity for f in first.values()]
    one = next(iter(first.values()))
    tables = {
        target: Table(
            np.stack([found[vm].quantiles for vm in first]).astype(np.float32),
            tuple(json.dumps(asdict(found[vm].reason)) for vm in first),
        )
        for target, found in by_target.items()
    }
    made = Sheet(one.metric, one.origin, tuple(first), np.array(capacity), tables)
    return made, tuple(sorted(refused))


class Latest:
    """The sheets in `directory`. Reading needs no lock: a file is there whole or not at all."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read: dict[Metric, tuple[tuple[int, int], Sheet]] = {}

    def put(self, made: Sheet) -> None:
        """Replace the sheet of its metric."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._path(made.metric)
        writing = path.with_suffix(".writing")
        content: dict[str, Any] = {
            "origin": np.array(made.origin),
            "names": _packed(made.names),
            "capacity": made.capacity,
        }
        for target, table in made.tables.items():
            content[f"quantiles.{target}"] = table.quantiles
            content[f"reasons.{target}"] = _packed(table.reasons)
        with writing.open("wb") as file:
            np.savez(file, **content)
            file.flush()
            os.fsync(file.fileno())
        writing.replace(path)

    def get(self, metric: Metric) -> Sheet | None:
        """The newest sheet of `metric`, None before there is one. Raises ValueError, with the
        file's path, where it is damaged."""
        path = self._path(metric)
        try:
            found = path.stat()
        except FileNotFoundError:
            return None
        mark = (found.st_mtime_ns, found.st_ino)
        kept = self._read.get(metric)
        if kept is None or kept[0] != mark:
            kept = self._read[metric] = (mark, _load(path, metric))
        return kept[1]

    def _path(self, metric: Metric) -> Path:
        return self._directory / f"{metric}.npz"


def _load(path: Path, metric: Metric) -> Sheet:
    try:
        with np.load(path, allow_pickle=False) as content:
            tables = {
                target: Table(
                    content[f"quantiles.{target}"], _unpacked(content[f"reasons.{target}"])
                )
                for target in Target
                if f"quantiles.{target}" in content
            }
            names = _unpacked(content["names"])
            made = Sheet(metric, int(content["origin"]), names, content["capacity"], tables)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}: is no sheet of forecasts ({error}): remove it; the next round writes it anew"
        ) from error
    for target, table in tables.items():
        rows = (len(names), len(QUANTILES))
        if table.quantiles.shape[::2] != rows or len(table.reasons) != len(names):
            raise ValueError(f"{path}: {target} is not of {len(names)} VMs: remove it")
    return made


def _packed(texts: Sequence[str]) -> NDArray[np.uint8]:
    """Texts in as many bytes as they have; numpy would give each the room of the longest."""
    return np.frombuffer(json.dumps(list(texts)).encode(), dtype=np.uint8)


def _unpacked(content: NDArray[np.uint8]) -> tuple[str, ...]:
    return tuple(json.loads(content.tobytes()))


def _reason(text: str) -> Reason:
    told = json.loads(text)
    return Reason(**{**told, "notes": tuple(told["notes"])})
