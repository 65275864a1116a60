"""What has each of some switches counted by now? All are asked at the same moment.

Answers come in parts, as the framework reads them; who asks waits for all, or for so long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

from apps.context import Southbound
from apps.framework import Connection, hub, replies_to
from controller.act.dataplane.openflow import decode, wire
from controller.act.dataplane.openflow.counters import Counted
from controller.act.dataplane.openflow.frame import Reply
from controller.model.addresses import format_dpid


class Standing(Protocol):
    """How far the counters of one switch have counted."""

    def take(self, found: Iterable[Counted], /) -> None:
        """Take in a part of an answer."""


S = TypeVar("S", bound=Standing)


class Survey(Generic[S]):
    """One question, put to switches again and again. `xid` is its transaction id, none that a
    channel or another survey comes to; `request` makes the question and `parse` reads a part of
    an answer; `fresh` is what stands for a switch that was not asked the time before."""

    def __init__(
        self,
        southbound: Southbound,
        xid: int,
        request: Callable[[int], bytes],
        parse: Callable[[bytes], Reply[Counted]],
        fresh: Callable[[], S],
    ) -> None:
        self._southbound = southbound
        self._xid, self._request, self._parse, self._fresh = xid, request, parse, fresh
        self._standing: dict[str, S] = {}
        self._waiting: set[str] = set()
        self._answered = hub.Event()
        replies_to(self._replied)

    def ask(self, datapaths: Iterable[str], patience_s: float) -> dict[str, S]:
        """How far those of `datapaths` have counted that answered wholly within `patience_s`
        seconds. What another has counted is part of its next answer."""
        sessions = self._southbound.sessions
        asked = list(datapaths)
        self._standing = {d: self._standing.get(d) or self._fresh() for d in asked}
        self._waiting = set(asked)
        self._answered.clear()
        for datapath in asked:
            sessions[datapath].ask(self._request(self._xid))
        if asked:
            self._answered.wait(patience_s)
        return {d: self._standing[d] for d in asked if d not in self._waiting}

    def _replied(self, connection: Connection, kind: int, data: bytes) -> None:
        if kind != wire.MULTIPART_REPLY or decode.header(data).xid != self._xid:
            return
        datapath = format_dpid(connection.id)
        session = self._southbound.sessions.get(datapath)
        standing = self._standing.get(datapath)
        if session is None or session.connection is not connection or standing is None:
            return
        try:
            reply = self._parse(data)
        except wire.Malformed as cause:
            session.close(f"it sent a malformed message: {cause}")
            return
        standing.take(reply.items)
        if not reply.more:
            self._waiting.discard(datapath)
            if not self._waiting:
                self._answered.set()
