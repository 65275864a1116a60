"""How is one VM found in a Parquet file without reading the rest?

Files are sorted by subject and time, in many small row groups; the statistics in a file's
footer tell which of them can hold a subject. Footers are read once and remembered.
"""

from __future__ import annotations

import errno
import os
import threading
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from controller.history.errors import HistoryCorrupt
from controller.history.series import Floats, Points, Query

#: Footers remembered, each some MB at most: those of some days.
REMEMBERED = 32
#: Rows that are decoded at once.
_LUMP = 500_000
#: Columns beside that of the metric in down-sampled files: the largest sample and how many.
MOST, COUNT = ".max", ".n"


@dataclass(frozen=True, slots=True)
class _Footer:
    metadata: Any
    columns: frozenset[str]
    first: tuple[str, ...]
    last: tuple[str, ...]
    rows: tuple[int, ...]


class Footers:
    """The footers read last. From any thread."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, _Footer] = OrderedDict()
        self._lock = threading.Lock()

    def scan(self, file: str, query: Query, *, sampled: bool) -> Iterator[Points]:
        """What `query` asks for of `file`; `sampled` is whether it holds samples and not
        means. Raises HistoryCorrupt, and FileNotFoundError where it is gone."""
        footer = self.footer(file)
        there = [name for name in query.metrics if name in footer.columns]
        if not there:
            return
        columns = ["subject", "time", *_columns(there, query, sampled)]
        try:
            reader = pq.ParquetFile(
                file, metadata=footer.metadata, read_dictionary=["subject"], pre_buffer=False
            )
            with reader:
                for groups in _lumps(footer, query):
                    table = reader.read_row_groups(groups, columns=columns, use_threads=False)
                    yield from _points(table, there, query, sampled)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(file, error) from error

    def footer(self, file: str) -> _Footer:
        """The footer of `file`."""
        with self._lock:
            known = self._known.get(file)
            if known is not None:
                self._known.move_to_end(file)
                return known
        read = _read(file)
        with self._lock:
            self._known[file] = read
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return read

    def forget(self, file: str) -> None:
        """The file is replaced or removed."""
        with self._lock:
            self._known.pop(file, None)


def check(file: str) -> int:
    """Read all of `file`; how many rows it has. Raises HistoryCorrupt."""
    try:
        with pq.ParquetFile(file) as reader:
            rows = 0
            before = ("", -1)
            for batch in reader.iter_batches():
                rows += batch.num_rows
                if batch.num_rows:
                    ends = [(str(batch["subject"][i]), batch["time"][i].as_py()) for i in (0, -1)]
                    if not before <= ends[0] <= ends[1]:
                        raise HistoryCorrupt("it is not sorted", "restore it", file)
                    before = ends[1]
            return rows
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, error) from error


def _damaged(file: str, error: Exception) -> HistoryCorrupt | FileNotFoundError:
    if isinstance(error, FileNotFoundError):  # Arrow's does not name it
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), file)
    cause = str(error).partition("\n")[0]
    return HistoryCorrupt(
        f"it cannot be read: {cause}",
        "restore it from a copy, or move it away: what it holds is missing then",
        file,
    )


def _read(file: str) -> _Footer:
    try:
        metadata = pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, error) from error
    columns = [metadata.schema.column(i).name for i in range(metadata.num_columns)]
    at = columns.index("subject")
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    limits = [group.column(at).statistics for group in groups]
    return _Footer(
        metadata,
        frozenset(columns),
        tuple(limit.min for limit in limits),
        tuple(limit.max for limit in limits),
        tuple(group.num_rows for group in groups),
    )


def _columns(metrics: Sequence[str], query: Query, sampled: bool) -> list[str]:
    if sampled:
        return [*metrics]
    if query.how == "max":
        return [name + MOST for name in metrics]
    return [*metrics, *(name + COUNT for name in metrics)]


def _lumps(footer: _Footer, query: Query) -> Iterator[list[int]]:
    """Row groups that may hold what is asked for, so many at once as may be decoded."""
    lump: list[int] = []
    size = 0
    asked = range(len(footer.rows))
    if query.subjects is not None and len(query.subjects) == 1:
        (only,) = query.subjects
        asked = range(bisect_left(footer.last, only), bisect_right(footer.first, only))
    for group in asked:
        first, last, rows = footer.first[group], footer.last[group], footer.rows[group]
        if query.subjects is not None and not any(first <= s <= last for s in query.subjects):
            continue
        lump.append(group)
        size += rows
        if size >= _LUMP:
            yield lump
            lump, size = [], 0
    if lump:
        yield lump


def _points(table: Any, metrics: Sequence[str], query: Query, sampled: bool) -> Iterator[Points]:
    if table.num_rows == 0:
        return
    subject = table["subject"]
    if subject.num_chunks > 1:  # row groups have each their own dictionary
        subject = subject.unify_dictionaries().combine_chunks()
    encoded = subject.chunk(0) if isinstance(subject, pa.ChunkedArray) else subject
    subjects = encoded.dictionary.to_pylist()
    codes = encoded.indices.to_numpy()
    times = table["time"].to_numpy()
    keep = (times >= query.start) & (times < query.end)
    if query.subjects is not None:
        asked = [code for code, name in enumerate(subjects) if name in query.subjects]
        keep &= codes == asked[0] if len(asked) == 1 else np.isin(codes, asked)
    at = np.flatnonzero(keep)
    if not len(at):
        return
    suffix = MOST if not sampled and query.how == "max" else ""
    values = _gather(table, metrics, query.metrics, suffix, at, np.nan)
    weights = None
    if not sampled and query.how == "mean":
        weights = _gather(table, metrics, query.metrics, COUNT, at, 0.0)
    yield Points(subjects, codes[at].astype(np.int32), times[at], values, weights)


def _gather(
    table: Any,
    there: Sequence[str],
    wanted: Sequence[str],
    suffix: str,
    at: Any,
    missing: float,
) -> Floats:
    out = np.full((len(at), len(wanted)), missing, order="F")
    for column, name in enumerate(wanted):
        if name in there:
            out[:, column] = table[name + suffix].to_numpy()[at]
    return out
