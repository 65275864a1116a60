"""How do samples of a Prometheus get here? By its HTTP API (prometheus.io, "HTTP API"), as they
were scraped, with their own times: a selector over a range gives these, where an instant one
would give the last value again and again.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping

import httpx

from controller.agent.mapping import PrometheusNames, Sample, readings
from controller.agent.meter import Meter
from controller.agent.outbox import Outbox
from controller.agent.records import Row, SourceAway, batch_of
from controller.settings import masked

log = logging.getLogger(__name__)

#: Seconds that Prometheus has to answer a question.
TIMEOUT_S = 30.0
#: Seconds that are read again after a start, for what was scraped late.
_AGAIN_S = 120.0
_KEPT = "prometheus"
#: Rows of one batch.
_ROWS = 2_000


class Prometheus:
    """The task that passes on what a Prometheus at `url` has."""

    name = "prometheus"

    def __init__(self, url: str, names: PrometheusNames, outbox: Outbox, interval_s: float) -> None:
        self._url = url
        self._names = names
        self._outbox = outbox
        self._interval_s = interval_s
        self._meter = Meter()
        kept = outbox.recall(_KEPT)
        #: Until when all was read, Unix seconds; and the newest of each series.
        self._until = float(kept) if kept else None
        self._newest: dict[str, float] = {}
        #: Why it cannot be read, and what to do.
        self.trouble: tuple[str, str] | None = None
        self.values = 0

    def run(self, stopping: threading.Event) -> None:
        """Read at every interval."""
        while not stopping.is_set():
            self.once(time.time())
            stopping.wait(self._interval_s)

    def once(self, now: float) -> None:
        """Read what is new, at `now` (Unix seconds)."""
        try:
            rows, until, newest = self._rows(now)
        except SourceAway as away:
            if self.trouble is None or self.trouble[0] != str(away):
                log.warning("Prometheus cannot be read", extra={"cause": str(away)})
            self.trouble = (str(away), away.mend)
            return
        self.trouble = None
        self.values = sum(len(row.values) for row in rows)
        for first in range(0, len(rows), _ROWS):
            self._outbox.add(batch_of(rows[first : first + _ROWS]))
        self._outbox.keep(_KEPT, repr(until))
        self._until, self._newest = until, newest

    def _rows(self, now: float) -> tuple[list[Row], float, dict[str, float]]:
        """What is new, by time; until when that is; and how far each series is. Raises
        SourceAway."""
        end = now - self._names.delay_s
        begin = end - self._names.most_s
        if self._until is not None:
            begin = max(begin, self._until - _AGAIN_S)
        newest = dict(self._newest)
        known = self._until if not newest and self._until is not None else begin
        told = {}
        with httpx.Client(base_url=self._url, timeout=TIMEOUT_S, trust_env=False) as client:
            for selector in self._names.selectors:
                query = f"{selector}[{max(1, round((end - begin) * 1000))}ms]"
                found = _series(self._ask(client, query, end))
                told[selector] = list(_new(found, known, self._newest, newest))
        rows = []
        for subject, at, raw in readings(self._names, told):
            values = self._meter.take(subject, raw, at)
            if values:
                rows.append(Row(subject, at, values))
        newest = {series: at for series, at in newest.items() if at > end - 2 * _AGAIN_S}
        return sorted(rows, key=lambda row: row.at), end, newest

    def _ask(self, client: httpx.Client, query: str, at: float) -> object:
        try:
            answer = client.get("api/v1/query", params={"query": query, "time": f"{at:.3f}"})
            data = answer.json()
        except (httpx.HTTPError, json.JSONDecodeError) as error:
            raise self._away(str(error) or type(error).__name__) from error
        if not isinstance(data, dict) or data.get("status") != "success":
            cause = data.get("error") if isinstance(data, dict) else None
            raise self._away(f"{query}: {cause or answer.status_code}")
        return data.get("data")

    def _away(self, cause: str) -> SourceAway:
        return SourceAway(
            f"Prometheus at {masked(self._url)}",
            cause,
            "See that it runs, that agent.prometheus is its address, and that the selectors of "
            "agent.prometheus_names are PromQL.",
        )


def _series(data: object) -> Iterator[Sample]:
    """The samples of an answer (result type "matrix")."""
    result = data.get("result", []) if isinstance(data, dict) else []
    for series in result:
        labels: Mapping[str, str] = series["metric"]
        for at, value in series.get("values", ()):
            yield Sample(labels, float(at), float(value))


def _new(
    samples: Iterator[Sample], since: float, before: Mapping[str, float], newest: dict[str, float]
) -> Iterator[Sample]:
    """Those that were not read before; `newest` learns how far each series is."""
    for sample in samples:
        key = repr(sorted(sample.labels.items()))
        if sample.at > before.get(key, since):
            newest[key] = max(sample.at, newest.get(key, sample.at))
            yield sample
