"""What is there, and what does it use? Looked at when something changed and now and then, and
measured once every interval; what follows from it goes into the outbox.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from controller.agent import proc
from controller.agent.changes import changes
from controller.agent.meter import Meter
from controller.agent.outbox import Outbox
from controller.agent.records import Fact, Machine, Raw, Row, SourceAway, batch_of
from controller.observe.cloudevents import EventType

log = logging.getLogger(__name__)

#: Seconds for which a VM whose events were refused is let be: once, and at most.
REFUSED_S = 30.0
MOST_REFUSED_S = 120.0
#: Seconds of a pause in which looks that are asked for are taken together.
_TOGETHER_S = 0.05
_BOOT = "boot"


class Gauge(Protocol):
    """Something that tells what VMs use."""

    name: str

    def measure(self) -> Mapping[str, Raw]:
        """What each VM here uses. Raises SourceAway."""


class Source(Gauge, Protocol):
    """Something that also tells which VMs there are."""

    def machines(self) -> tuple[Machine, ...]:
        """The VMs that are here. Raises SourceAway."""


@dataclass(slots=True)
class Sight:
    """What was seen last. Times are Unix seconds."""

    machines: tuple[Machine, ...] = ()
    looked_at: float | None = None
    measured_at: float | None = None
    values: int = 0
    #: What cannot be read now, by source: why, and what to do.
    troubles: dict[str, tuple[str, str]] = field(default_factory=dict)


class Watcher:
    """The task that looks and measures: at the VMs of `source`, and what `gauges` say of them."""

    name = "watching"

    def __init__(
        self,
        host: str,
        outbox: Outbox,
        interval_s: float,
        look_s: float,
    ) -> None:
        self._host = host
        self._outbox = outbox
        #: To be set before the task begins.
        self.source: Source | None = None
        self.gauges: Sequence[Gauge] = ()
        self._interval_s = interval_s
        self._look_s = look_s
        self._meter = Meter()
        self._wake = threading.Event()
        self._logged: dict[str, str] = {}
        self.sight = Sight()

    def wake(self) -> None:
        """Look soon: something changed."""
        self._wake.set()

    def run(self, stopping: threading.Event) -> None:
        """Look and measure until told to stop."""
        self._tell_boot()
        next_look = next_measure = 0.0
        while not stopping.is_set():
            now = time.monotonic()
            if self._wake.is_set() or now >= next_look:
                self._wake.clear()
                self.look()
                next_look = now + self._look_s
            if now >= next_measure:
                self.measure()
                next_measure += self._interval_s
                if next_measure <= now:  # the first, or some could not be made in time
                    next_measure = now + self._interval_s
            due = min(next_look, next_measure) - time.monotonic()
            if self._wake.wait(max(0.0, min(due, 1.0))):
                stopping.wait(_TOGETHER_S)

    def look(self) -> None:
        """See which VMs are here, and have told what follows from that."""
        source = self.source
        if source is None:
            return
        try:
            machines = source.machines()
        except SourceAway as away:
            self._trouble(source.name, away)
            return
        self._well(source.name)
        now = time.time()
        told = self._outbox.told()
        let_be = held_back(self._outbox.refusals(), now) - told.keys()
        seen = [machine for machine in machines if machine.vm not in let_be]
        found = changes(self._host, told, seen, now, lambda: uuid.uuid4().hex)
        if found.facts:
            self._outbox.tell(found.facts, found.told)
        self.sight.machines, self.sight.looked_at = machines, now

    def measure(self) -> None:
        """Read what everything uses, and have it sent."""
        if not self.gauges:
            return
        rows: list[Row] = []
        told: dict[str, set[str]] = defaultdict(set)
        for source in self.gauges:
            before = time.monotonic()
            try:
                found = source.measure()
            except SourceAway as away:
                self._trouble(source.name, away)
                continue
            self._well(source.name)
            # What is asked for at once may take a while: it is of its middle, more or less.
            clock = (before + time.monotonic()) / 2
            for vm, raw in found.items():
                values = self._meter.take(vm, raw, clock)
                # What one before this one said of it counts.
                new = {name: value for name, value in values.items() if name not in told[vm]}
                told[vm] |= new.keys()
                rows.append(Row(vm, _wall(clock), new))
        clock = time.monotonic()
        values = self._meter.take(self._host, proc.host(), clock)
        rows.append(Row(self._host, _wall(clock), values))
        self._meter.keep([*told, self._host])
        rows = [row for row in rows if row.values]
        lost = self._outbox.add(batch_of(rows))
        if lost is not None:
            log.warning(
                "samples dropped: the controller was away for too long",
                extra={"count": lost.values, "first": lost.first, "last": lost.last},
            )
        self.sight.measured_at = time.time()
        self.sight.values = sum(len(row.values) for row in rows)

    def _tell_boot(self) -> None:
        """Say that the host is up, where it was started anew since this agent ran here."""
        before, now = self._outbox.recall(_BOOT), proc.boot_id()
        if before == now:
            return
        if before is not None:
            fact = Fact(uuid.uuid4().hex, EventType.HOST_UP, time.time(), "", self._host)
            self._outbox.tell([fact])
        self._outbox.keep(_BOOT, now)

    def _trouble(self, name: str, away: SourceAway) -> None:
        self.sight.troubles[name] = (str(away), away.mend)
        if self._logged.get(name) != str(away):
            self._logged[name] = str(away)
            log.warning("a source cannot be read", extra={"cause": str(away), "mend": away.mend})

    def _well(self, name: str) -> None:
        if self.sight.troubles.pop(name, None) is not None:
            self._logged.pop(name, None)
            log.info("a source can be read again", extra={"source": name})


def _wall(clock: float) -> float:
    """Unix seconds at a time of the clock that does not jump."""
    return time.time() - (time.monotonic() - clock)


def held_back(refusals: Collection[tuple[float, Fact, str]], now: float) -> set[str]:
    """VMs of which nothing is told as yet, because the controller refused it a moment ago: each
    time for twice as long."""
    last: dict[str, float] = {}
    times: dict[str, int] = {}
    for at, fact, _ in refusals:
        last[fact.vm] = max(at, last.get(fact.vm, at))
        times[fact.vm] = times.get(fact.vm, -1) + 1
    return {
        vm
        for vm, at in last.items()
        if 0 <= now - at < min(REFUSED_S * 2 ** min(times[vm], 10), MOST_REFUSED_S)
    }
