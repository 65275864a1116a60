"""Which demand does a file tell? Samples of many VMs as CSV or Parquet, put on the grid.

Columns: `vm`, `ts` (Unix seconds), and one named as the metric is, in the metric's unit.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow
from pyarrow import csv, parquet

from controller.predict.demand.series import DAY_BINS, STEP, Metric, Panel, panel


class FileError(Exception):
    """A file that cannot be used: its path and the cause, and the mend."""

    def __init__(self, detail: str, mend: str) -> None:
        super().__init__(detail)
        self.mend = mend


def load(path: Path, metric: Metric, days: int) -> Panel:
    """The last `days` that `path` has of all its VMs. Raises FileError."""
    columns = ["vm", "ts", metric.value]
    mend = f"Give it the columns vm, ts (Unix seconds) and {metric}, and a sample in each row."
    if not path.exists():
        raise FileError(f"{path}: there is no such file", "Name a .csv or .parquet file.")
    try:
        if path.suffix == ".parquet":
            table = parquet.read_table(path, columns=columns)
        else:
            options = csv.ConvertOptions(include_columns=columns)
            table = csv.read_csv(path, convert_options=options)
    except OSError as error:
        raise FileError(
            f"{path}: cannot be read: {error}", "Name a .csv or .parquet file that may be read."
        ) from error
    except (pyarrow.ArrowException, KeyError) as error:
        raise FileError(f"{path}: cannot be read: {error}", mend) from error
    if not len(table):
        raise FileError(f"{path}: there is no sample in it", mend)
    names = np.array([str(name) for name in table["vm"].to_pylist()])
    try:
        times = table["ts"].to_numpy().astype(np.float64)
        values = table[metric.value].to_numpy().astype(np.float64)
    except (ValueError, TypeError) as error:
        raise FileError(f"{path}: ts and {metric} have to be numbers: {error}", mend) from error
    known = times[np.isfinite(times)]
    if not len(known):
        raise FileError(f"{path}: no ts of it is a number", mend)
    end = (int(known.max()) // STEP + 1) * STEP
    order = np.argsort(names, kind="stable")
    vms, starts = np.unique(names[order], return_index=True)
    samples = [
        (str(vm), times[rows], values[rows])
        for vm, rows in zip(vms, np.split(order, starts[1:]), strict=True)
    ]
    limit = 1.0 if metric is Metric.CPU else float("nan")
    return panel(metric, samples, end, days * DAY_BINS, [limit] * len(samples))
