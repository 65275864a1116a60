"""How far have the counters of signatures and denials counted? One switch after another is asked,
in parts, so that each is read once in `signatures.poll_s`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from apps.context import Southbound
from apps.framework import Connection, hub, replies_to
from apps.session import Session
from controller.act.dataplane.channel import PART, Stage
from controller.act.dataplane.counting import COUNTING, DENYING, Counted
from controller.act.dataplane.openflow import decode, encode
from controller.act.dataplane.openflow.flow_replies import Layouts, flow_descs
from controller.act.dataplane.openflow.wire import ERROR, MULTIPART_REPLY, Malformed
from controller.act.dataplane.reading import MOST

log = logging.getLogger(__name__)

#: Transaction ids of these questions, apart from those of channels.
_FIRST_XID = 0x4000_0000
#: Seconds that a switch has to answer for one part.
_ANSWER_S = 10.0
#: Seconds between two looks at whether there is a switch to ask.
_LOOK_S = 0.2


@dataclass(slots=True)
class _Question:
    connection: Connection
    counted: Counted
    waiting: set[int] = field(default_factory=set)
    failed: bool = False
    answered: hub.Event = field(default_factory=hub.Event)


class Counters:
    """Reads the switches by turns, and hands what each has counted to `taken`."""

    def __init__(self, southbound: Southbound, taken: Callable[[str, Counted], None]) -> None:
        self.southbound = southbound
        self._taken = taken
        self._xids = count(_FIRST_XID)
        self._question: _Question | None = None
        self._layouts: dict[str, Layouts] = {}
        #: Entries that each switch told of when it was read last.
        self._told: dict[str, int] = {}
        replies_to(self._replied)

    def poll(self) -> None:
        """Read every switch once; to be repeated."""
        sessions = self.southbound.sessions
        names = sorted(sessions)
        if not names:
            hub.sleep(_LOOK_S)
        for name in names:
            hub.sleep(self.southbound.settings.signatures.poll_s / len(names))
            session = sessions.get(name)
            if session is not None and session.channel.stage is Stage.READY:
                self._read(session)

    def _read(self, session: Session) -> None:
        name = session.datapath
        counted = Counted()
        parts = 1 << (max(0, self._told.get(name, 0) - 1) // PART).bit_length()
        # What a switch has learned itself is in part 0. It is asked for first, because it may be
        # put into another part meanwhile.
        for part in range(parts):
            tables = COUNTING if part else (*COUNTING, *DENYING)
            if not self._ask(session, counted, part, parts, tables):
                log.warning("a switch did not tell its counters", extra={"datapath": name})
                return
        self._told[name] = counted.told
        self._taken(name, counted)

    def _ask(
        self, session: Session, counted: Counted, part: int, parts: int, tables: tuple[int, ...]
    ) -> bool:
        question = _Question(session.connection, counted)
        self._question = question
        try:
            for table in tables:
                xid = next(self._xids)
                question.waiting.add(xid)
                session.ask(encode.flow_desc_request(xid, table, part, parts - 1))
            return bool(question.answered.wait(_ANSWER_S)) and not question.failed
        finally:
            self._question = None

    def _replied(self, connection: Connection, kind: int, data: bytes) -> None:
        question = self._question
        if question is None or connection is not question.connection:
            return
        xid = int.from_bytes(data[4:8], "big")
        if xid not in question.waiting or kind not in (ERROR, MULTIPART_REPLY):
            return
        try:
            if kind == ERROR:
                raise Malformed("counters", f"refused: {decode.error(data).name}")
            layouts = self._layouts.setdefault(str(connection.id), Layouts())
            reply = flow_descs(data, layouts)
            question.counted.add(reply.items)
            if question.counted.told > MOST:
                raise Malformed("counters", f"more than {MOST} entries")
        except Malformed as cause:
            log.error(
                "a switch's counters cannot be read: %s",
                cause,
                extra={"address": connection.address},
            )
            question.failed = True
            question.answered.set()
            return
        if not reply.more:
            question.waiting.discard(xid)
            if not question.waiting:
                question.answered.set()
