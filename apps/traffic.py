"""The app that measures traffic between edges: what the groups of paths have counted, written
to the store for whoever chooses paths.

All edges are asked together, at multiples of the interval, so that their rows make one matrix.
"""

from __future__ import annotations

import time
from typing import Any

from apps.context import Southbound
from apps.framework import App, hub, spawn
from apps.survey import Survey
from controller.act.dataplane.openflow import counters, encode
from controller.act.dataplane.traffic import Meterage
from controller.store.traffic import Row, write_rows

#: Transaction id of the questions: none that a channel comes to in the life of a connection.
XID = 0xFFFF_0001
#: Longest that answers are waited for, in seconds; what comes later counts for the next row.
PATIENCE_S = 2.0


class Traffic(App):
    """Rows of the traffic matrix, as edges count them."""

    _CONTEXTS = {"southbound": Southbound}  # noqa: RUF012 - the framework's own name and form

    def __init__(self, *args: Any, southbound: Southbound, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.southbound = southbound
        self._survey = Survey(
            southbound, XID, encode.group_stats_request, counters.group_stats, Meterage
        )
        spawn(southbound.forever, self._measure)

    def _measure(self) -> None:
        every_s = self.southbound.settings.paths.measure_s
        hub.sleep(every_s - time.time() % every_s)
        at = round(time.time() / every_s) * every_s
        view = self.southbound.view
        edges = [d for d in self.southbound.sessions if view.is_edge(d)]
        answered = self._survey.ask(edges, min(PATIENCE_S, every_s / 2))
        named = {view.number(edge): edge for edge in view.edges}
        now = time.monotonic()
        rows = []
        for datapath, meterage in answered.items():
            rates = meterage.row(named, now)
            if rates is not None:
                rows.append(Row(datapath, at, rates))
        if rows:
            with self.southbound.store.transaction(durable=False) as tx:
                write_rows(tx, rows, self.southbound.settings.paths.keep * every_s)
