"""One connected switch: its channel, and the greenthread that sends to it.

Every switch has a sender of its own, so one that reads slowly holds up nobody else.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable

from apps.framework import DEAD, Connection, close, hub, spawn
from controller.act.dataplane.channel import Channel, Drift, Refusal, Stage
from controller.act.dataplane.compiler import Key
from controller.act.dataplane.explain import text
from controller.act.dataplane.openflow import encode
from controller.act.dataplane.openflow.records import CONTROLLER, Act, Output
from controller.act.dataplane.openflow.wire import Malformed
from controller.act.dataplane.rollout import Step

log = logging.getLogger(__name__)

#: Packets waiting to be sent out by one switch; what comes on top of them is dropped, as a
#: full queue of a router would.
OUTBOX = 500
#: Differences, refusals or kinds of errors that are logged one by one.
TOLD = 20


class Session:
    """From a switch's connection to the end of it."""

    def __init__(
        self,
        datapath: str,
        connection: Connection,
        channel: Channel,
        report: Callable[[], None],
    ) -> None:
        self.datapath = datapath
        self.connection = connection
        self.channel = channel
        self.closed = False
        self.confirmed_at = 0.0
        #: When the next audit is due, by the monotonic clock.
        self.audit_at = 0.0
        self._report = report
        self._wake = hub.Event()
        self._outbox: deque[bytes] = deque()
        self._audit_due = False
        self._confirmed = -1
        self._told_refusals: set[tuple[Key, str]] = set()
        self._told_errors: set[str] = set()

    def start(self) -> None:
        """Read what the switch has, and from then on keep it as it is to be."""
        spawn(self._work)

    def close(self, why: str) -> None:
        """Give the connection up; the switch keeps its rules and will connect again."""
        if not self.closed:
            log.warning("closing a switch's connection: %s", why, extra={"datapath": self.datapath})
            close(self.connection)
        self.end()

    def end(self) -> None:
        """The connection is gone."""
        self.closed = True
        self._wake.set()

    def audit(self) -> None:
        """Compare a part of what the switch has with what it is to have."""
        self._audit_due = True
        self._wake.set()

    def changed(self, keys: set[Key], revision: int, zones: set[int]) -> None:
        """What the switch is to have differs at `keys`, as of `revision`; what conntrack knows
        of `zones` is out of date."""
        self.channel.changed(keys, revision, zones)
        self._after()

    def allow(self, limit: Step) -> None:
        """A change of paths may go as far as `limit`."""
        self.channel.allow(limit)
        if self.channel.wants_to_send:
            self._wake.set()

    def received(self, kind: int, data: bytes) -> None:
        """A message about entries came in."""
        drifts, first = self.channel.drifts, self.channel.stage is Stage.READING
        try:
            self.channel.received(kind, data, time.monotonic())
        except Malformed as cause:
            self.close(f"it sent a malformed message: {cause}")
            return
        if self.channel.drifts is not drifts:
            self._tell_drifts(self.channel.drifts, first=first)
        self._tell_errors()
        self._tell_refusals()
        self._after()

    def packet_out(self, port: int, data: bytes) -> None:
        """Send a packet out of a port."""
        self.inject(CONTROLLER, (Output(port),), data)

    def ask(self, request: bytes) -> None:
        """Send a question whose answer somebody else than the channel waits for."""
        if len(self._outbox) < OUTBOX:
            self._outbox.append(request)
            self._wake.set()

    def inject(self, in_port: int, actions: tuple[Act, ...], data: bytes) -> None:
        """Do `actions` to a packet at the switch."""
        if len(self._outbox) < OUTBOX:
            self._outbox.append(encode.packet_out(0, in_port, actions, data))
            self._wake.set()

    @property
    def error(self) -> str | None:
        """What the switch refuses to take, in words; None where it takes everything."""
        refused = list(self.channel.refused.values())
        if not refused:
            return None
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        first = refused[0]
        owner = self.channel.desired.owner(first.key)
        return f"{first.error}: {text(first.key, first.entry)}, which serves {owner}{more}"

    def _after(self) -> None:
        if self.channel.confirmed != self._confirmed:
            self._confirmed = self.channel.confirmed
            self.confirmed_at = time.time()
        self._report()
        if self.channel.wants_to_send:
            self._wake.set()

    def _work(self) -> None:
        self._send(self.channel.read(time.monotonic()))
        while not self.closed:
            self._wake.wait()
            self._wake.clear()
            # Not until the outbox is empty: a flood of packets must not hold up the rules.
            for _ in range(len(self._outbox)):
                self._send(self._outbox.popleft())
            if self.closed:
                return
            if self._audit_due:
                self._audit_due = False
                self._send(self.channel.audit(time.monotonic()))
            for number, piece in enumerate(self.channel.batch(time.monotonic())):
                if number:
                    hub.sleep(0)  # others have their turn between the pieces of a large batch
                self._send(piece)

    def _send(self, data: bytes) -> None:
        """Hand bytes to the framework, which keeps a dozen pieces at most and waits for the
        switch otherwise: only this switch's own greenthread may come here."""
        if data and not self.closed and not self.connection.send(data):
            if self.connection.state == DEAD:
                self.end()
            else:
                self.close("it does not take what it is sent")

    def _tell_drifts(self, drifts: list[Drift], *, first: bool) -> None:
        """Log what differs; what is merely missing from a switch that has just connected is
        counted only, for it may be all."""
        telling = [d for d in drifts if d.found is not None or not first]
        for drift in telling[:TOLD]:
            log.warning(
                "a switch differs from what it is to have; repairing it",
                extra={
                    "datapath": self.datapath,
                    "found": text(drift.key, drift.found) if drift.found else "nothing",
                    "wanted": text(drift.key, drift.wanted) if drift.wanted else "nothing",
                },
            )
        if first or len(telling) > TOLD:
            log.info(
                "a switch was compared with what it is to have",
                extra={"datapath": self.datapath, "differences": len(drifts)},
            )

    def _tell_errors(self) -> None:
        """Log errors about nothing that was sent, each kind once."""
        for error in self.channel.complaints:
            if error.name in self._told_errors or len(self._told_errors) == TOLD:
                continue
            self._told_errors.add(error.name)
            log.error(
                "a switch reports an error that no change explains; more of its kind will not "
                "be told: %s",
                error.name,
                extra={"datapath": self.datapath, "xid": error.xid},
            )
        self.channel.complaints.clear()

    def _tell_refusals(self) -> None:
        """Log what the switch has just refused and has not refused before."""
        refusals, self.channel.refusals = self.channel.refusals, []
        if not refusals:
            return
        new = [r for r in refusals if (r.key, r.error) not in self._told_refusals]
        self._told_refusals = {(r.key, r.error) for r in self.channel.refused.values()}
        for refusal in new[:TOLD]:
            self._tell_refusal(refusal)
        if len(new) > TOLD:
            log.error(
                "a switch refuses more entries",
                extra={"datapath": self.datapath, "entries": len(new) - TOLD},
            )

    def _tell_refusal(self, refusal: Refusal) -> None:
        log.error(
            "a switch refuses an entry: %s",
            refusal.error,
            extra={
                "datapath": self.datapath,
                "entry": text(refusal.key, refusal.entry),
                "owner": self.channel.desired.owner(refusal.key),
            },
        )
