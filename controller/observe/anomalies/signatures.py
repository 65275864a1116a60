"""Who talks out of the ordinary? A new peer, a scan, a volume as in exfiltration.

Judged from plain records of conversations, hour by hour, by each source's own past: peers that
it had, how many endpoints it tried in an hour, how much it sent out of the fabric in an hour.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from controller.observe.anomalies.tail import TAIL_LEAST, tail

#: A past that is shorter than this says nothing of what is new.
LEARNING_S = 86_400.0
#: Of the rate and of the volume: one false report in so many hours of one source.
HOURS_A_REPORT = 24 * 28
#: Fewer endpoints that were never tried before, in an hour, are no scan whatever the past; fewer
#: bytes are no exfiltration.
SCAN_LEAST = 20
VOLUME_LEAST = 10_000_000.0


@dataclass(frozen=True, slots=True)
class Talk:
    """What `source` (a VM) sent to `destination` (a VM, or a prefix outside if `external`) by
    `protocol` to `port`: `bytes` of `source`, from `at` (Unix seconds) on."""

    source: str
    destination: str
    protocol: str
    port: int
    bytes: float
    at: float
    external: bool = False


class What(StrEnum):
    """What is out of the ordinary."""

    NEW_PEER = "new_peer"
    SCAN = "scan"
    VOLUME = "volume"


@dataclass(frozen=True, slots=True)
class Deviation:
    """A source that did what it never did. `value` counts peers, endpoints or bytes in an hour,
    `expected` what its past makes likely; `score` is at least 1. `about` names the new peers or
    the endpoints, the first few of them."""

    source: str
    what: What
    at: float
    value: float
    expected: float
    score: float
    about: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Habit:
    """The past of one source: since when it is known, its peers and endpoints, and for the last
    hours in which it talked, how many endpoints it tried anew and how much it sent outside."""

    since: float
    peers: frozenset[tuple[str, str, int]] = field(default_factory=frozenset)
    tried: tuple[float, ...] = ()
    sent: tuple[float, ...] = ()


_HOURS_KEPT = 24 * 28
_NAMED = 5


def judge(
    habits: Mapping[str, Habit], hour: Iterable[Talk]
) -> tuple[dict[str, Habit], tuple[Deviation, ...]]:
    """The habits after one more hour, and what was out of the ordinary in it.

    Talks with a negative or not finite number of bytes count as none: a counter was reset. A
    source is judged once its past is LEARNING_S long; a scan is reported instead of its new peers.
    """
    after = dict(habits)
    found: list[Deviation] = []
    by_source: dict[str, list[Talk]] = defaultdict(list)
    for talk in hour:
        if np.isfinite(talk.at):
            by_source[talk.source].append(talk)
    for source, talks in sorted(by_source.items()):
        at = min(talk.at for talk in talks)
        habit = habits.get(source, Habit(at))
        peers = {(talk.destination, talk.protocol, talk.port) for talk in talks}
        fresh = tuple(sorted(peers - habit.peers))
        sent = sum(_believed(talk.bytes) for talk in talks if talk.external)
        if at - habit.since >= LEARNING_S:
            found.extend(_deviations(source, at, habit, fresh, sent))
        after[source] = Habit(
            min(habit.since, at),
            habit.peers | peers,
            (*habit.tried, float(len(fresh)))[-_HOURS_KEPT:],
            (*habit.sent, sent)[-_HOURS_KEPT:],
        )
    return after, tuple(found)


def _deviations(
    source: str, at: float, habit: Habit, fresh: tuple[tuple[str, str, int], ...], sent: float
) -> list[Deviation]:
    found = []
    names = tuple(f"{peer} {protocol}/{port}" for peer, protocol, port in fresh[:_NAMED])
    bound = max(float(SCAN_LEAST), _bound(habit.tried, 1.0))
    if len(fresh) > bound:
        score = len(fresh) / bound
        found.append(Deviation(source, What.SCAN, at, len(fresh), bound, score, names))
    elif fresh:
        # The fewer new peers a source has, the more each of them says.
        usual = (1.0 + sum(habit.tried[1:])) / (1.0 + len(habit.tried))
        score = max(1.0, len(fresh) / max(usual, 1e-3) ** 0.5)
        found.append(Deviation(source, What.NEW_PEER, at, len(fresh), usual, score, names))
    bound = max(VOLUME_LEAST, _bound(habit.sent, VOLUME_LEAST / 10))
    if sent > bound:
        found.append(Deviation(source, What.VOLUME, at, sent, bound, sent / bound, ()))
    return found


def _bound(past: tuple[float, ...], least: float) -> float:
    """What an hour exceeds once in HOURS_A_REPORT, by the tail of the past hours."""
    if len(past) <= TAIL_LEAST:
        return float("inf")
    known = tail(np.asarray(past)[:, None], np.array([least]))
    return float(known.bound(1.0 / HOURS_A_REPORT)[0])


def _believed(size: float) -> float:
    return size if np.isfinite(size) and size > 0 else 0.0
