"""The other engine: VictoriaMetrics, written by remote-write and read by its HTTP API.

It keeps time series by its own settings: `-retentionPeriod` says for how long, and there is
no down-sampling in its free edition. What it has taken it shows about a second later, or at
once where it is asked to. Samples that are told twice, after a crash, it tells once with
`-dedup.minScrapeInterval=1ms`; without, a mean over a step may weigh them double.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import httpx
import numpy as np
from pydantic_core import from_json, to_json

from controller.history.engine import EngineStatus
from controller.history.errors import HistoryUnavailable
from controller.history.remote_write import SAMPLE_BYTES, body, labels, samples
from controller.history.samples import Rows
from controller.history.series import Points, Query
from controller.history.wal import of_os, write_file

log = logging.getLogger(__name__)

#: Before the name of each metric.
PREFIX = "pleach_"
#: Values of one request.
_REQUEST_VALUES = 100_000
#: The least step, in milliseconds, for which it computes the means itself.
_ITS_STEP_MS = 300_000
#: Age in milliseconds beyond which that is asked of it: it leaves out what is newer than
#: `-search.latencyOffset` (30 s).
_SETTLED_MS = 120_000
#: Steps of one series in one answer; its limit is 30,000.
_STEPS = 10_000
#: Names in one selector, beyond which all are asked for.
_NAMES = 200
_TIMEOUT_S = 30.0
_POSITION = "victoriametrics.position"


class VictoriaEngine:
    """Time series at `url`; `directory` remembers how far they were told."""

    def __init__(self, url: str, directory: Path) -> None:
        parts = urlsplit(url)
        scheme = "http" if parts.scheme == "victoriametrics" else parts.scheme
        self._http = httpx.Client(
            base_url=urlunsplit((scheme, parts.netloc, parts.path, "", "")),
            timeout=_TIMEOUT_S,
            trust_env=False,
        )
        self._place = f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        self._file = directory / _POSITION
        #: How often something was told, and how much of that it is known to show; what a
        #: process before told of late is not.
        self._writes, self._shown = 1, 0
        self._labels: dict[tuple[str, str], bytes] = {}
        try:
            self._position = int(self._file.read_text())
        except FileNotFoundError:
            self._position = 0
        except OSError as error:
            raise of_os(error, str(self._file)) from error

    @property
    def position(self) -> int:
        """Position in the log up to which everything was told."""
        return self._position

    def write(self, rows: Sequence[Rows], position: int) -> None:
        """Tell `rows`."""
        series: list[tuple[bytes, bytes]] = []
        waiting = 0
        for names, told in _series(rows, self._labels):
            series.append((names, told))
            waiting += len(told) // SAMPLE_BYTES
            if waiting >= _REQUEST_VALUES:
                self._send(body(series))
                series, waiting = [], 0
        if series:
            self._send(body(series))
        self._writes += 1
        write_file(self._file, str(position).encode())
        self._position = position

    def scan(self, query: Query) -> tuple[int, Iterator[Points]]:
        """The samples of `query`, or means of whole steps."""
        position = self._position
        writes = self._writes
        if self._shown < writes:
            self._show()
            self._shown = writes
        return position, self._scan(query, round(time.time() * 1000))

    def keep_house(self, now: float) -> bool:
        """Nothing: it keeps house itself."""
        return False

    def check(self) -> list[str]:
        """Whether it answers."""
        with self._asking():
            answer = self._http.get("/health")
            answer.raise_for_status()
        return []

    def status(self) -> EngineStatus:
        """Where it is: it does not tell cheaply what it holds."""
        return EngineStatus("victoriametrics", self._place, None, None, None, None)

    def close(self) -> None:
        """End the connections."""
        self._http.close()

    def _send(self, content: bytes) -> None:
        headers = {
            "content-type": "application/x-protobuf",
            "content-encoding": "snappy",
            "x-prometheus-remote-write-version": "0.1.0",
        }
        with self._asking():
            self._http.post("/api/v1/write", content=content, headers=headers).raise_for_status()

    def _show(self) -> None:
        """Have it show what it has taken. What stands before it may not let that through: then
        it shows it by itself, about a second later."""
        with self._asking():
            answer = self._http.get("/internal/force_flush")
        if answer.is_error:
            log.debug("not shown at once", extra={"status": answer.status_code})

    def _scan(self, query: Query, now_ms: int) -> Iterator[Points]:
        begin = query.start
        step = query.step
        if step is not None and step >= _ITS_STEP_MS:
            begin = max(begin, min(query.end, (now_ms - _SETTLED_MS) // step * step))
            for column, metric in enumerate(query.metrics):
                for first in range(query.start, begin, step * _STEPS):
                    last = min(first + step * _STEPS, begin)
                    yield from self._means(query, column, metric, first, last, step)
        if begin < query.end:
            yield from self._export(query, begin)

    def _export(self, query: Query, begin: int) -> Iterator[Points]:
        """The samples from `begin` on, as they are."""
        names = "|".join(PREFIX + metric for metric in query.metrics)
        form = {
            "match[]": _selector(f'__name__=~"{names}"', query),
            "start": f"{begin / 1000:.3f}",
            "end": f"{(query.end - 1) / 1000:.3f}",
        }
        with (
            self._asking(),
            self._http.stream("POST", "/api/v1/export", data=form) as answer,
        ):
            if answer.is_error:
                answer.read()
            answer.raise_for_status()
            for line in answer.iter_lines():
                found = from_json(line)
                times = np.array(found["timestamps"], np.int64)
                name = found["metric"]["__name__"].removeprefix(PREFIX)
                points = _points(
                    query, query.metrics.index(name), found["metric"], times, found["values"]
                )
                if points is not None:
                    yield points

    def _means(
        self, query: Query, column: int, metric: str, first: int, last: int, step: int
    ) -> Iterator[Points]:
        """Means or maxima of the steps of [first, last)."""
        function = "max_over_time" if query.how == "max" else "avg_over_time"
        # A window is open at its beginning and closed at its end; a step is the other way
        # round. Samples have whole milliseconds.
        form = {
            "query": f"{function}({_selector('', query, PREFIX + metric)}[{step}ms])",
            "start": f"{(first + step - 1) / 1000:.3f}",
            "end": f"{(last - 1) / 1000:.3f}",
            "step": f"{step}ms",
            "nocache": "1",
        }
        with self._asking():
            answer = self._http.post("/api/v1/query_range", data=form)
            answer.raise_for_status()
        for found in from_json(answer.content)["data"]["result"]:
            ends = np.array([at for at, _ in found["values"]])
            times = np.round(ends * 1000).astype(np.int64) - (step - 1)
            values = [float(value) for _, value in found["values"]]
            points = _points(query, column, found["metric"], times, values)
            if points is not None:
                yield points

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPStatusError as error:
            text = error.response.text.strip().partition("\n")[0][:200]
            raise HistoryUnavailable(
                f"it answered {error.response.status_code} {text}",
                "see its log, and whether history.url leads to VictoriaMetrics",
                self._place,
            ) from error
        except httpx.HTTPError as error:
            raise HistoryUnavailable(
                f"it cannot be reached ({error or type(error).__name__})",
                "start it, or correct history.url",
                self._place,
            ) from error


def _series(
    rows: Sequence[Rows], known: dict[tuple[str, str], bytes]
) -> Iterator[tuple[bytes, bytes]]:
    """Labels and samples of each series in `rows`; `known` remembers labels."""

    def key(piece: Rows) -> tuple[str, tuple[str, ...]]:
        return piece.scope.value, piece.metrics

    for (scope, metrics), group in groupby(sorted(rows, key=key), key):
        pieces = list(group)
        numbers: dict[str, int] = {}
        codes = np.concatenate(
            [
                np.array([numbers.setdefault(s, len(numbers)) for s in piece.subjects])[piece.codes]
                for piece in pieces
            ]
        )
        times = np.concatenate([piece.times for piece in pieces])
        values = np.concatenate([piece.values for piece in pieces])
        order = np.lexsort((times, codes))
        subjects = list(numbers)
        for column, metric in enumerate(metrics):
            at = order[~np.isnan(values[order, column])]
            told = samples(times[at], values[at, column])
            who, first = np.unique(codes[at], return_index=True)
            bounds = [*first.tolist(), len(at)]
            for index, code in enumerate(who.tolist()):
                part = told[bounds[index] * SAMPLE_BYTES : bounds[index + 1] * SAMPLE_BYTES]
                yield _labels(known, metric, scope, subjects[code]), part


def _labels(known: dict[tuple[str, str], bytes], metric: str, scope: str, subject: str) -> bytes:
    found = known.get((metric, subject))
    if found is None:
        found = known[metric, subject] = labels({"__name__": PREFIX + metric, scope: subject})
    return found


def _selector(matcher: str, query: Query, name: str = "") -> str:
    """A series selector for the metrics in `matcher` or `name` and the subjects of `query`."""
    label = query.scope.value
    match sorted(query.subjects or ()):
        case [only]:
            about = f"{label}={_quoted(only)}"
        case names if 0 < len(names) <= _NAMES:
            about = f"{label}=~{_quoted('|'.join(map(re.escape, names)))}"
        case _:
            about = f'{label}!=""'
    return f"{name}{{{', '.join(filter(None, (matcher, about)))}}}"


def _quoted(text: str) -> str:
    return to_json(text).decode()


def _points(
    query: Query,
    column: int,
    metric: Mapping[str, str],
    times: np.ndarray[tuple[int], np.dtype[np.int64]],
    numbers: Sequence[float],
) -> Points | None:
    subject = metric[query.scope.value]
    if query.subjects is not None and subject not in query.subjects:
        return None
    values = np.full((len(times), len(query.metrics)), np.nan)
    values[:, column] = numbers
    return Points((subject,), np.zeros(len(times), np.int32), times, values)
