"""The app that measures traffic between edges: what the groups of paths have counted, written
to the store for whoever chooses paths.

All edges are asked together, at multiples of the interval, so that their rows make one matrix.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from apps.context import Southbound
from apps.framework import App, Connection, hub, replies_to, spawn
from controller.act.dataplane.openflow import counters, decode, encode, wire
from controller.act.dataplane.traffic import Meterage
from controller.model.addresses import format_dpid
from controller.store.traffic import Row, write_rows

log = logging.getLogger(__name__)

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
        self._edges: dict[str, Meterage] = {}
        self._waiting: set[str] = set()
        self._answered = hub.Event()
        replies_to(self.replied)
        spawn(southbound.forever, self._measure)

    def _measure(self) -> None:
        every_s = self.southbound.settings.paths.measure_s
        hub.sleep(every_s - time.time() % every_s)
        at = round(time.time() / every_s) * every_s
        sessions = self.southbound.sessions
        view = self.southbound.view
        asked = [d for d in sessions if view.is_edge(d)]
        self._edges = {d: self._edges.get(d) or Meterage() for d in asked}
        self._waiting = set(asked)
        self._answered.clear()
        for datapath in asked:
            sessions[datapath].ask(encode.group_stats_request(XID))
        if asked:
            self._answered.wait(min(PATIENCE_S, every_s / 2))
        named = {view.number(edge): edge for edge in view.edges}
        now = time.monotonic()
        rows = []
        for datapath, meterage in self._edges.items():
            if datapath in self._waiting:
                continue  # it did not answer: its next row is of a longer time
            rates = meterage.row(named, now)
            if rates is not None:
                rows.append(Row(datapath, at, rates))
        if rows:
            with self.southbound.store.transaction(durable=False) as tx:
                write_rows(tx, rows, self.southbound.settings.paths.keep * every_s)

    def replied(self, connection: Connection, kind: int, data: bytes) -> None:
        """A part of what a switch has counted."""
        if kind != wire.MULTIPART_REPLY or decode.header(data).xid != XID:
            return
        datapath = format_dpid(connection.id)
        session = self.southbound.sessions.get(datapath)
        meterage = self._edges.get(datapath)
        if session is None or session.connection is not connection or meterage is None:
            return
        try:
            reply = counters.group_stats(data)
        except wire.Malformed as cause:
            session.close(f"it sent a malformed message: {cause}")
            return
        meterage.take(reply.items)
        if not reply.more:
            self._waiting.discard(datapath)
            if not self._waiting:
                self._answered.set()
