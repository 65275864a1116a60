"""How much may each VM send and receive now? Decided at every reading of the meters.

What a VM wants is what was foreseen, corrected by what its meter passed: at its limit it is taken
to want all that it may have, so that it has its fair share within one interval. With nothing
that is scarce and nothing in the policy, nobody gets a meter.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from controller.decide.bandwidth import claims as claiming
from controller.decide.bandwidth.allocate import Allocation, decide
from controller.decide.bandwidth.claims import Ask, Key
from controller.decide.bandwidth.control import CONTROL, demands
from controller.decide.bandwidth.crossing import NOWHERE, Crossing, crossing
from controller.decide.bandwidth.marks import markings
from controller.decide.bandwidth.qos import QosPolicy
from controller.decide.bandwidth.records import BandwidthError, Claim, Direction, Meter, Uses
from controller.loops.base import Ground
from controller.loops.foreseen import Foreseen
from controller.model.nouns import Bandwidth, Marking, Record, Vm
from controller.model.state import State
from controller.settings import BandwidthSettings
from controller.store import Store, Transaction
from controller.store.traffic import read_rows
from controller.store.usage import Usage, read_usage

log = logging.getLogger(__name__)

#: Who is at the limit of its meter is taken to want all that it may have. A meter that dropped
#: something is known for that, so that the limit can lie above what headroom leaves of a rate.
RULE = replace(CONTROL, growth=math.inf, limit=0.9)
#: Seconds of measured traffic between edges that tell where it goes, and after which they are
#: looked at again.
MEASURED_S, CROSSING_S = 900.0, 60.0
#: Records of one transaction: others write in between.
BATCH = 200
#: Looks at whether there is news, in an interval.
LOOKS = 10


class Infeasible(Exception):  # noqa: N818 - what it is, and no fault of a program
    """Promises that cannot be kept together; the last rates stand."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What one decision leaves to the next: the rates decided, those given, which no VM is kept
    below, and what each VM was seen to want, bit/s."""

    allocation: Allocation | None = None
    given: Allocation | None = None
    wanted: Mapping[Key, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decided:
    """The records that are to be, by VM, and what is remembered. `conflicts` says what cannot
    be kept together."""

    bandwidths: Mapping[str, Bandwidth]
    memory: Memory
    conflicts: tuple[str, ...] = ()


class Sharing:
    """The loop."""

    name = "bandwidth"

    def __init__(self, settings: BandwidthSettings, policy: QosPolicy, foreseen: Foreseen) -> None:
        self.every_s = settings.interval_s / LOOKS
        self._settings = settings
        self._policy = policy
        self._foreseen = foreseen
        self._memory: Memory | None = None
        self._seen_at = 0.0
        self._due_at = 0.0
        self._conflicts: tuple[str, ...] = ()
        self._watched = _Watched()

    async def turn(self, ground: Ground) -> None:
        """Decide where meters were read, or an interval is over. Raises Infeasible."""
        if not self._settings.enabled:
            await self._withdraw(ground)
            return
        now = time.time()
        if self._memory is None:  # what was measured while nobody decided is out of date
            self._seen_at = now - self._settings.interval_s
        usage = await asyncio.to_thread(read_usage, ground.store, self._seen_at)
        if usage or now >= self._due_at:
            self._due_at = now + self._settings.interval_s
            self._seen_at = max((row.at for row in usage), default=self._seen_at)
            state = _copy(ground.state())
            if self._memory is None:
                standing = _given(state.bandwidths)
                self._memory = Memory(standing, standing)
            decided, marked = await asyncio.to_thread(self._decide, ground.store, state, usage, now)
            self._memory = decided.memory
            self._conflicts = decided.conflicts
            await _write(ground, state.bandwidths, decided.bandwidths, state)
            await _write(ground, state.markings, marked, state)
        if self._conflicts:
            raise Infeasible("; ".join(self._conflicts))

    async def _withdraw(self, ground: Ground) -> None:
        """Take back, once, what was decided while it was still to be."""
        if not math.isinf(self._due_at):
            state = ground.state()
            await _write(ground, dict(state.bandwidths), {}, state)
            await _write(ground, dict(state.markings), {}, state)
            self._due_at = math.inf

    def _decide(
        self, store: Store, state: State, usage: Sequence[Usage], now: float
    ) -> tuple[Decided, dict[str, Marking]]:
        assert self._memory is not None
        decided = share(
            state,
            self._policy,
            usage,
            self._foreseen.demands(now),
            self._memory,
            now=now,
            hysteresis=self._settings.hysteresis,
            crossing=self._watched.at(store, state, now),
        )
        return decided, markings(state, self._policy)


def share(
    state: State,
    policy: QosPolicy,
    usage: Iterable[Usage],
    foreseen: Mapping[Key, float],
    memory: Memory,
    *,
    now: float,
    hysteresis: float,
    crossing: Crossing = NOWHERE,
) -> Decided:
    """What each VM may have at `now` (Unix seconds), from what was foreseen for it (bit/s), its
    meters passed, and which links it sends over."""
    asked = claiming.ask(state, policy, foreseen, now, crossing)
    passed = _passed(usage, memory.given)
    wanting = _wanting(asked, passed, memory)
    try:
        made = decide(wanting, asked.left(wanting), last=memory.allocation, hysteresis=hysteresis)
    except BandwidthError as error:
        return Decided(state.bandwidths, memory, error.problems)
    if made.conflicts:
        return Decided(state.bandwidths, memory, tuple(map(str, made.conflicts)))
    rates = made.rates()
    seen = {
        (claim.vm, claim.direction): min(claim.demand_bps, rates[claim.vm, claim.direction])
        for claim in wanting
    }
    found = claiming.records(state, asked, made, wanting)
    kept = {vm: _steady(state.bandwidths.get(vm), record) for vm, record in found.items()}
    return Decided(kept, Memory(made, _given(kept), seen))


def _steady(before: Bandwidth | None, after: Bandwidth) -> Bandwidth:
    """Reasons are those of the time when the rates became what they are."""
    same = before is not None and (before.out_kbit, before.in_kbit) == (
        after.out_kbit,
        after.in_kbit,
    )
    return before if before is not None and same else after


def _passed(usage: Iterable[Usage], allocation: Allocation | None) -> dict[Key, float]:
    """What each meter passed, bit/s: one that dropped something was at its limit, even where it
    passed little over the whole interval."""
    rates = allocation.rates() if allocation else {}
    found: dict[Key, float] = {}
    for row in usage:
        for meter in row.meters:
            key = meter.vm, Direction.OUT if meter.out else Direction.IN
            bps = (
                max(meter.passed_bps, rates.get(key, 0.0))
                if meter.dropped_bps
                else meter.passed_bps
            )
            found[key] = max(found.get(key, 0.0), bps)
    return found


def _wanting(asked: Ask, passed: dict[Key, float], memory: Memory) -> tuple[Claim, ...]:
    """The claims with what each is taken to want, and no more than could ever be. Who was not
    measured this time is taken to want what it did."""
    capacity = {resource.name: resource.capacity_bps for resource in asked.resources}
    wanted = demands(asked.claims, passed, memory.given, dict(memory.wanted), RULE)
    most: dict[Uses, float] = {}
    found = []
    for claim in wanted:
        key = claim.vm, claim.direction
        before = 0.0 if key in passed else memory.wanted.get(key, 0.0)
        if claim.uses not in most:
            most[claim.uses] = min(capacity[name] / share for name, share in claim.uses)
        demand = min(max(claim.demand_bps, before), most[claim.uses])
        found.append(replace(claim, demand_bps=demand))
    return tuple(found)


@dataclass(slots=True)
class _Watched:
    """What crosses which links, told anew where links or routes differ, or time has passed: of
    all that it is made from, only the measured traffic changes by itself."""

    crossing: Crossing = NOWHERE
    _of: tuple[Mapping[str, Record], ...] = ()
    _until: float = 0.0

    def at(self, store: Store, state: State, now: float) -> Crossing:
        """At `now`, Unix seconds."""
        of: tuple[Mapping[str, Record], ...] = (state.hosts, state.links, state.link_speeds)
        of += (state.routes, state.tunnels, state.reservations)
        if now >= self._until or of != self._of:
            rows = read_rows(store, now - MEASURED_S)
            self.crossing = crossing(state, rows, now)
            self._of, self._until = of, now + CROSSING_S
        return self.crossing


def _given(bandwidths: Mapping[str, Bandwidth]) -> Allocation:
    """What the records say was given: the brain may have been away since."""
    return Allocation(
        tuple(
            Meter(known.vm, way, kbit * 1_000.0, None)
            for known in bandwidths.values()
            for way, kbit in ((Direction.OUT, known.out_kbit), (Direction.IN, known.in_kbit))
            if kbit is not None
        )
    )


def _copy(state: State) -> State:
    """What is decided from, for another thread: records are frozen, the tables are not."""
    tables = {f.name: dict(getattr(state, f.name)) for f in fields(state) if f.name != "revision"}
    return State(revision=state.revision, **tables)


async def _write(
    ground: Ground, before: Mapping[str, Record], after: Mapping[str, Record], state: State
) -> None:
    """Make the records those of `after`."""
    changed = [after[vm] for vm in after if before.get(vm) != after[vm]]
    gone = [before[vm] for vm in before if vm not in after and vm in state.vms]
    for start in range(0, len(changed), BATCH):
        await ground.write(_Put(changed[start : start + BATCH]))
    for start in range(0, len(gone), BATCH):
        await ground.write(_Drop(gone[start : start + BATCH]))


class _Put:
    """Work for the writer."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records

    def __call__(self, transaction: Transaction) -> None:
        for record in self._records:
            if transaction.get(Vm, record.key) is not None:  # else it went meanwhile
                transaction.put(record)


class _Drop:
    """Work for the writer."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records

    def __call__(self, transaction: Transaction) -> None:
        for record in self._records:
            transaction.delete(type(record), record.key)
