"""The app that reads what the meters of VMs passed, and writes it to the store for whoever shares
out bandwidth.

All edges are asked together, twice in a control interval, so that what nobody foresaw is seen
early enough to be answered within one.
"""

from __future__ import annotations

import time
from typing import Any

from apps.context import Southbound
from apps.framework import App, Connection, hub, replies_to, spawn
from controller.act.dataplane.openflow import counters, decode, encode, wire
from controller.act.dataplane.usage import Counts
from controller.model.addresses import format_dpid
from controller.store.usage import Metered, Usage, write_usage

#: Transaction id of the questions: none that a channel comes to in the life of a connection.
XID = 0xFFFF_0002


class UsageApp(App):
    """Readings of the meters of VMs."""

    _CONTEXTS = {"southbound": Southbound}  # noqa: RUF012 - the framework's own name and form

    def __init__(self, *args: Any, southbound: Southbound, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.southbound = southbound
        self._counts: dict[str, Counts] = {}
        self._waiting: set[str] = set()
        self._answered = hub.Event()
        replies_to(self.replied)
        spawn(southbound.forever, self._measure)

    def _measure(self) -> None:
        every_s = self.southbound.settings.bandwidth.interval_s / 2
        hub.sleep(every_s - time.time() % every_s)
        at = time.time()
        sessions = self.southbound.sessions
        asked = [datapath for datapath in sessions if self._metered(datapath)]
        self._counts = {datapath: self._counts.get(datapath) or Counts() for datapath in asked}
        self._waiting = set(asked)
        self._answered.clear()
        for datapath in asked:
            sessions[datapath].ask(encode.meter_stats_request(XID))
        if asked:
            self._answered.wait(every_s / 2)
        now = time.monotonic()
        rows = []
        for datapath in asked:
            if datapath in self._waiting:
                continue  # it did not answer: its next row is of a longer time
            found = self._counts[datapath].flowed(self.southbound.view, datapath, now)
            if found is not None:
                rows.append(Usage(datapath, at, tuple(Metered(*flowed) for flowed in found)))
        write_usage(self.southbound.store, rows)

    def _metered(self, datapath: str) -> bool:
        """Whether a switch may have a meter of a VM."""
        view = self.southbound.view
        limits, decided = view.state.rate_limits, view.state.bandwidths
        return any(vm in decided or vm in limits for vm in view.vms_at.get(datapath, ()))

    def replied(self, connection: Connection, kind: int, data: bytes) -> None:
        """A part of what a switch has counted."""
        if kind != wire.MULTIPART_REPLY or decode.header(data).xid != XID:
            return
        datapath = format_dpid(connection.id)
        session = self.southbound.sessions.get(datapath)
        counts = self._counts.get(datapath)
        if session is None or session.connection is not connection or counts is None:
            return
        try:
            reply = counters.meter_stats(data)
        except wire.Malformed as cause:
            session.close(f"it sent a malformed message: {cause}")
            return
        counts.take(reply.items)
        if not reply.more:
            self._waiting.discard(datapath)
            if not self._waiting:
                self._answered.set()
