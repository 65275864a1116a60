"""What has been counted since? Readings of counters, turned into what was new in each hour.

A counter that reads less than before was made anew, so that all of it is new; one that is gone
keeps what it was known to have counted. So nothing is counted twice, and no reset is a spike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from controller.model.signatures import Counter, Counts, Reading

_HOUR_S = 3_600


def hour_of(at: float) -> int:
    """Hours since 1970-01-01 (UTC) of Unix seconds."""
    return int(at // _HOUR_S)


def since(before: Counts, now: Counts) -> Counts:
    """What was counted in between. Packets and bytes of one entry are made anew together."""
    new: list[int] = []
    for at in range(0, len(Counts._fields), 2):
        packets, octets = now[at] - before[at], now[at + 1] - before[at + 1]
        reset = packets < 0 or octets < 0
        new += [now[at], now[at + 1]] if reset else [packets, octets]
    return Counts(*new)


class News(NamedTuple):
    """What was new in a reading of one datapath: by counter, since the reading before; the
    counters that are no longer there; and the first readings of counters."""

    counted: dict[Counter, Counts]
    gone: tuple[Counter, ...]
    found: tuple[Counter, ...]


class Tally:
    """How far each counter of each datapath had counted."""

    def __init__(self, readings: Iterable[Reading] = ()) -> None:
        self._counts: dict[str, dict[Counter, Counts]] = {}
        self._used: dict[Counter, float] = {}
        for reading in readings:
            self._counts.setdefault(reading.datapath, {})[reading.counter] = reading.counts
            self._use(reading.counter, reading.used_at)

    def take(self, datapath: str, read: Mapping[Counter, Counts], at: float) -> News:
        """Take in all counters of a datapath, as read `at` (Unix seconds)."""
        known = self._counts.get(datapath, {})
        counted: dict[Counter, Counts] = {}
        found = []
        for counter, counts in read.items():
            before = known.get(counter)
            if before is None:
                found.append(counter)
                self._use(counter, at)
            elif before == counts:
                continue
            new = since(before or Counts(), counts)
            if any(new):
                counted[counter] = new
                self._use(counter, at)
        gone = tuple(counter for counter in known if counter not in read)
        self._counts[datapath] = dict(read)
        for counter in gone:
            if not any(counter in counts for counts in self._counts.values()):
                self._used.pop(counter, None)
        return News(counted, gone, tuple(found))

    def _use(self, counter: Counter, at: float) -> None:
        self._used[counter] = max(at, self._used.get(counter, at))

    def counts(self, datapath: str, counter: Counter) -> Counts:
        """How far a counter has counted; nothing, where it was never read."""
        return self._counts.get(datapath, {}).get(counter, Counts())

    def used(self, counter: Counter) -> float | None:
        """When a counter counted last at whichever datapath, or was made (Unix seconds); None
        where it was never read."""
        return self._used.get(counter)
