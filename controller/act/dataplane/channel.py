"""One switch, from what it is to have to what it has confirmed: without sockets and clocks.

A channel is told what arrived and what changed, and says what to send. It believes that the
switch has what it was seen to report and what it has since confirmed, keeps a set of keys
where that differs from what is wanted, and has at most one batch of changes unanswered. So
however slow a switch is, what waits for it is bounded by the number of its entries, and a
change that is overtaken by another is never sent.

    start ─▶ READING ── all descriptions read ──▶ READY ─▶ batch ─▶ barrier ─▶ batch …
                                                    └── audit, every so often ──┘

A batch is one atomic bundle closed by a barrier. An entry that the switch refuses is set aside
with its error until something else is wanted there; if the bundle was rolled back because of
it, the rest is sent again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from itertools import count

from controller.act.dataplane.compiler import (
    Desired,
    Entry,
    FlowKey,
    GroupKey,
    Key,
    MeterKey,
)
from controller.act.dataplane.openflow import decode, encode
from controller.act.dataplane.openflow.aliens import AlienFlow
from controller.act.dataplane.openflow.decode import SwitchError
from controller.act.dataplane.openflow.flow_replies import Layouts
from controller.act.dataplane.openflow.records import Flow, Group, Meter, ToGroup
from controller.act.dataplane.openflow.wire import (
    BARRIER_REPLY,
    BUNDLE_CONTROL,
    ERROR,
    MULTIPART_REPLY,
)
from controller.act.dataplane.reading import Found, Known, Reading
from controller.act.dataplane.rollout import Step, step_of

#: Messages in one bundle, where nobody says otherwise. Open vSwitch commits some 60,000
#: entries a second, and serves no other bridge meanwhile.
BATCH = 2_000
#: Entries that one part of an audit reads, about.
PART = 500
#: Messages between two breaths of the sender.
CHUNK = 200
#: Messages of the first batch. Who answers soon gets more at a time, up to the window, and who
#: takes long gets less: so a switch that does fifty a second is not given up on.
FIRST = 500


class Stage(Enum):
    """How far a channel has come."""

    READING = "reading"
    READY = "ready"


@dataclass(frozen=True, slots=True)
class Refusal:
    """An entry that the switch would not take."""

    key: Key
    entry: Entry | None
    error: str


@dataclass(frozen=True, slots=True)
class Drift:
    """What an audit found at one key: `found` on the switch where `wanted` was to be."""

    key: object
    found: Found | None
    wanted: Entry | None


@dataclass(slots=True)
class _Batch:
    barrier: int
    commit: int
    revision: int | None
    sent: float
    deadline: float
    #: What each key becomes if the batch succeeds.
    outcome: dict[Key, Entry | None] = field(default_factory=dict)
    #: The key that each message is about.
    keys: dict[int, Key] = field(default_factory=dict)
    failed: dict[Key, SwitchError] = field(default_factory=dict)
    #: Whether the bundle was committed. An entry that is refused when it is put into the
    #: bundle does not keep Open vSwitch from committing the rest.
    committed: bool = False


class Channel:
    """The conversation with one switch, about its entries."""

    def __init__(
        self, desired: Desired, revision: int, *, timeout_s: float = 15.0, window: int = BATCH
    ) -> None:
        self.desired = desired
        #: Most messages of one batch, and so the most that are ever unanswered.
        self.window = window
        #: Messages of the next batch.
        self.pace = min(window, FIRST)
        self.revision = revision
        self.timeout_s = timeout_s
        self.stage = Stage.READING
        #: What the switch is believed to have.
        self.installed: dict[Key, Found] = {}
        self.dirty: set[Key] = set()
        #: What differs too, but belongs to a step of a change of paths that is yet to come, and
        #: how far it may go.
        self.held: set[Key] = set()
        self.limit = Step.CLEAR
        self.refused: dict[Key, Refusal] = {}
        #: Newest revision that the switch has confirmed all of.
        self.confirmed = 0
        #: What the newest reading found to differ.
        self.drifts: list[Drift] = []
        #: Errors that no change of ours explains; whoever reports them empties this.
        self.complaints: list[SwitchError] = []
        #: What was refused since this was emptied by whoever reports it.
        self.refusals: list[Refusal] = []
        # What is dirty in the order of sending, last first, unless more has become so.
        self._queue: list[Key] = []
        self._queued = False
        self._strange: list[AlienFlow] = []
        self._zones: set[int] = set()
        #: What the newest reading of each part decoded, so that the next need not.
        self._signatures: dict[tuple[int, int], dict[bytes, Known]] = {}
        self._layouts = Layouts()
        self._part = 0
        self._parted: list[set[Key]] = []
        self._batch: _Batch | None = None
        self._reading: Reading | None = None
        self._xids = count(1)
        self._bundles = count(1)
        self._singly = False

    # --- What is going on ------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Entries that differ from what is wanted, or whose change is not yet confirmed."""
        waiting = len(self.dirty) + len(self.held) + len(self._strange) + len(self._zones)
        return waiting + (len(self._batch.outcome) if self._batch else 0)

    @property
    def wants_to_send(self) -> bool:
        """Whether `batch` would send something now."""
        ready = self.stage is Stage.READY and self._batch is None
        return ready and bool(self.dirty or self._strange or self._zones)

    def deadline(self) -> float | None:
        """When the switch is given up on, unless it answers what was asked."""
        deadlines = [x.deadline for x in (self._batch, self._reading) if x is not None]
        return min(deadlines, default=None)

    # --- What to send ------------------------------------------------------------------

    def read(self, now: float) -> bytes:
        """Ask the switch for all that it has. Nothing to send while a question is open."""
        return self._ask(now, 0, 1)

    @property
    def parts(self) -> int:
        """Into how many parts an audit is divided: a power of two."""
        return 1 << (max(0, len(self.installed) - 1) // PART).bit_length()

    def audit(self, now: float) -> bytes:
        """Ask the switch for the next part of what it has: entries by the last bits of their
        cookies, which are those of a hash of their owner. A switch that tells of thousands of
        entries at once serves nobody meanwhile."""
        self._part += 1
        return self._ask(now, self._part % self.parts, self.parts)

    def _ask(self, now: float, part: int, parts: int) -> bytes:
        if self._reading is not None:
            return b""
        kinds = (0, 1, 2) if part == 0 else (0,)
        requests = {next(self._xids): kind for kind in kinds}
        known = self._signatures.get((part, parts), {})
        deadline = now + self.timeout_s
        reading = Reading(requests, deadline, part, parts, known, self.dirty | self.held)
        if self._batch is not None:
            reading.touched.update(self._batch.outcome)
        self._reading = reading
        ask = (
            lambda xid: encode.flow_desc_request(xid, cookie=part, cookie_mask=parts - 1),
            encode.group_desc_request,
            encode.meter_desc_request,
        )
        return b"".join(ask[kind](xid) for xid, kind in requests.items())

    def changed(self, keys: set[Key], revision: int, zones: Iterable[int] = ()) -> None:
        """`desired` differs at `keys` since `revision`; before that is put right, the
        connections in the conntrack `zones` are to be forgotten."""
        self.revision = revision
        self._zones.update(zones)
        if self.stage is Stage.READY:
            for key in keys:
                self.refused.pop(key, None)
                self._compare(key)
            self._settle()

    def _compare(self, key: Key) -> None:
        wanted = self.desired.entries.get(key)
        refusal = self.refused.get(key)
        if refusal is not None and refusal.entry != wanted:
            # What was refused is not wanted any more: it was overtaken while it was under way.
            del self.refused[key]
            refusal = None
        if wanted != self._believed(key):
            if refusal is None:
                self._soil(key)
                if self._reading is not None:
                    self._reading.touched.add(key)
        else:
            self.dirty.discard(key)
            self.held.discard(key)

    def _soil(self, key: Key) -> None:
        wait = self._step(key) > self.limit
        (self.held if wait else self.dirty).add(key)
        (self.dirty if wait else self.held).discard(key)
        self._queued = False

    def _step(self, key: Key) -> Step:
        return step_of(key, self.desired.entries.get(key), self.installed.get(key))

    def allow(self, limit: Step) -> None:
        """A change of paths may go as far as `limit`."""
        if limit is not self.limit:
            self.limit = limit
            for key in self.dirty | self.held:
                self._soil(key)

    @property
    def lowest(self) -> Step:
        """The first step of a change of paths that is not all confirmed; FREE if there is none."""
        under_way = self._batch.outcome if self._batch else {}
        steps = {self._step(key) for keys in (self.dirty, self.held, under_way) for key in keys}
        return min(steps - {Step.FREE}, default=Step.FREE)

    def _next(self) -> list[Key]:
        """The keys of the next batch, in order."""
        if not self._queued:
            self._queue = sorted(self.dirty, key=self._order, reverse=True)
            self._queued = True
        keys: list[Key] = []
        while self._queue and len(keys) < self.pace:
            key = self._queue.pop()
            if key in self.dirty:
                keys.append(key)
        self.dirty.difference_update(keys)
        return keys

    def _believed(self, key: Key) -> Found | None:
        """What the switch will have once it has answered what was sent."""
        if self._batch is not None and key in self._batch.outcome:
            return self._batch.outcome[key]
        return self.installed.get(key)

    def _settle(self) -> None:
        if self.stage is Stage.READY and not self.pending:
            self.confirmed = self.revision

    def batch(self, now: float) -> Iterator[bytes]:
        """The next batch of changes, in pieces; nothing where `wants_to_send` is False."""
        if not self.wants_to_send:
            return
        keys = self._next()
        strange, self._strange = self._strange[: self.pace], self._strange[self.pace :]
        complete = not self.dirty and not self.held and not self._strange
        bundle, opening = next(self._bundles), next(self._xids)
        batch = _Batch(0, 0, self.revision if complete else None, now, now + self.timeout_s)
        self._batch = batch
        before, wrapped, behind = self._messages(batch, keys)
        before[:0] = [encode.ct_flush_zone(next(self._xids), zone) for zone in self._zones]
        self._zones.clear()
        wrapped[:0] = [encode.delete_alien(next(self._xids), alien) for alien in strange]
        if wrapped and not self._singly:
            before.append(encode.bundle_control(opening, bundle, encode.Bundle.OPEN))
            wrapped = [encode.bundle_add(bundle, message) for message in wrapped]
            batch.commit = next(self._xids)
            behind.insert(0, encode.bundle_control(batch.commit, bundle, encode.Bundle.COMMIT))
        batch.barrier = next(self._xids)
        behind.append(encode.barrier_request(batch.barrier))
        messages = before + wrapped + behind
        for start in range(0, len(messages), CHUNK):
            yield b"".join(messages[start : start + CHUNK])

    def _order(self, key: Key) -> tuple[int, int]:
        """What is referred to comes before what refers to it, and goes after it."""
        wanted = self.desired.entries.get(key)
        if isinstance(key, FlowKey):
            return (4 if wanted else 3, key.table)
        if isinstance(key, MeterKey):
            return (0 if wanted else 7, 0)
        if not isinstance(wanted, Group):
            return (6, 0)
        chained = any(isinstance(a, ToGroup) for b in wanted.buckets for a in b.actions)
        return (2 if chained else 1, 0)

    def _messages(
        self, batch: _Batch, keys: list[Key]
    ) -> tuple[list[bytes], list[bytes], list[bytes]]:
        """Messages before the bundle, in it, and after it: Open vSwitch takes no meters in
        bundles (ofproto.c, do_bundle_commit)."""
        before: list[bytes] = []
        wrapped: list[bytes] = []
        behind: list[bytes] = []
        for key in keys:
            wanted = self.desired.entries.get(key)
            xid = next(self._xids)
            message = self._message(xid, key, wanted)
            batch.outcome[key] = wanted
            batch.keys[xid] = key
            if isinstance(key, MeterKey):
                (before if wanted else behind).append(message)
            else:
                wrapped.append(message)
        return before, wrapped, behind

    def _message(self, xid: int, key: Key, wanted: Entry | None) -> bytes:
        found = self.installed.get(key)
        if isinstance(key, GroupKey):
            if not isinstance(wanted, Group):
                return encode.group_delete(xid, key.group)
            change = encode.Change.ADD if found is None else encode.Change.MODIFY
            return encode.group_mod(xid, change, wanted)
        if isinstance(key, MeterKey):
            if not isinstance(wanted, Meter):
                return encode.meter_delete(xid, key.meter)
            change = encode.Change.ADD if found is None else encode.Change.MODIFY
            return encode.meter_mod(xid, change, wanted)
        if not isinstance(wanted, Flow):
            return encode.flow_mod(xid, encode.Command.DELETE_STRICT, Flow(*key))
        # Adding takes the place of an entry at once and keeps its counters; modifying would
        # do nothing at all where somebody else has removed it.
        return encode.flow_mod(xid, encode.Command.ADD, wanted)

    # --- What arrived --------------------------------------------------------------------

    def received(self, kind: int, data: bytes, now: float) -> None:
        """One whole message of the switch: an error, a barrier reply, or a part of what was
        asked for. Raises Malformed where it is none of what it says, or tells too much."""
        if kind == ERROR:
            self._error(decode.error(data))
        elif kind == BARRIER_REPLY:
            self._barrier(decode.header(data).xid, now)
        elif kind == BUNDLE_CONTROL:
            if self._batch is not None and decode.header(data).xid == self._batch.commit:
                self._batch.committed = True
        elif kind == MULTIPART_REPLY:
            self._description(data)

    def _error(self, error: SwitchError) -> None:
        batch = self._batch
        key = batch.keys.get(error.xid) if batch else None
        if batch is None or (key is None and error.xid != batch.commit):
            self.complaints.append(error)
            return
        if key is not None:
            batch.failed.setdefault(key, error)

    def _barrier(self, xid: int, now: float) -> None:
        batch = self._batch
        if batch is None or xid != batch.barrier:
            return  # of an earlier life of this connection, or not ours
        self._batch = None
        if now - batch.sent <= self.timeout_s / 8:
            self.pace = min(2 * self.pace, self.window)
        elif now - batch.sent > self.timeout_s / 2:
            self.pace = max(self.pace // 2, 1)
        rolled_back = bool(batch.commit) and not batch.committed
        for key, entry in batch.outcome.items():
            error = batch.failed.get(key)
            if error is not None:
                self.refused[key] = Refusal(key, entry, error.name)
                self.refusals.append(self.refused[key])
            elif rolled_back and not isinstance(key, MeterKey):
                pass
            elif entry is None:
                self.installed.pop(key, None)
            else:
                self.installed[key] = entry
        for key in batch.outcome:
            self._compare(key)
        # A bundle that was refused without a word about which entry is sent one by one.
        self._singly = rolled_back and not batch.failed
        if not rolled_back and batch.revision is not None:
            self.confirmed = max(self.confirmed, batch.revision)
        self._settle()

    def _description(self, data: bytes) -> None:
        reading = self._reading
        if reading is not None:
            reading.take(data, self.desired.entries, self._layouts)
            if not reading.requests:
                self._reading = None
                self._read(reading)

    def _expected(self, reading: Reading) -> set[Key]:
        """Keys of what is wanted, or believed to be there, in the part that was read. They are
        sorted into parts once a round: what has changed since is compared by its own change,
        and in the next round."""
        if reading.part == 0 or len(self._parted) != reading.parts:
            self._parted = [set() for _ in range(reading.parts)]
            for entries in (self.desired.entries, self.installed):
                for key, entry in entries.items():
                    cookie = entry.cookie if isinstance(entry, Flow | AlienFlow) else 0
                    self._parted[cookie & (reading.parts - 1)].add(key)
        return self._parted[reading.part]

    def _read(self, reading: Reading) -> None:
        """All that was asked for is here: compare it with what is wanted."""
        first = self.stage is Stage.READING
        self.stage = Stage.READY
        self.drifts = []
        wanted = self.desired.entries
        self._strange = list(reading.strange)
        if all(parts == reading.parts for _, parts in self._signatures):
            self._signatures[reading.part, reading.parts] = reading.signatures
        else:
            self._signatures = {(reading.part, reading.parts): reading.signatures}
        self.drifts += [Drift(alien.place, alien, None) for alien in reading.strange]
        for key in {*reading.found, *self._expected(reading)}:
            if not first and key in reading.touched:
                continue
            found, want = reading.found.get(key), wanted.get(key)
            if found is None:
                self.installed.pop(key, None)
            else:
                self.installed[key] = found
            if found is not want and found != want:
                self.drifts.append(Drift(key, found, want))
                self.refused.pop(key, None)
                self._soil(key)
        self._settle()
