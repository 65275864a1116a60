"""How long does a frame take over a link? Frames sent through the controller tell.

A frame that goes controller, switch A, link, switch B, controller takes half of A's round trip
to the controller, the link, and half of B's. The round trips are measured by frames that a
switch hands straight back. Whatever else delays a frame (queues, the processor) only ever adds,
so the least of several says most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field

#: Frames that are remembered of a link or a round trip; an estimate needs some of each.
WINDOW, ENOUGH = 12, 4
#: An estimate is news where it differs by so many seconds, and by so much of what was told.
LEAST_S, LEAST_SHARE = 0.0005, 0.25


@dataclass(slots=True)
class Latencies:
    """What was measured of late, in seconds. Links and switches are named by any key."""

    _crossings: dict[Hashable, deque[float]] = field(default_factory=dict)
    _rounds: dict[Hashable, deque[float]] = field(default_factory=dict)

    def crossed(self, link: Hashable, took_s: float) -> None:
        """A frame came from the controller over `link` to the controller again."""
        self._crossings.setdefault(link, deque(maxlen=WINDOW)).append(took_s)

    def returned(self, switch: Hashable, took_s: float) -> None:
        """A frame came from the controller to `switch` and back."""
        self._rounds.setdefault(switch, deque(maxlen=WINDOW)).append(took_s)

    def forget(self, link: Hashable) -> None:
        """Nothing is known of `link` any more."""
        self._crossings.pop(link, None)

    def estimate(self, link: Hashable, a: Hashable, b: Hashable) -> float | None:
        """Seconds from switch `a` over `link` to switch `b`, to the microsecond; None while too
        little was measured."""
        known = self._crossings.get(link, ()), self._rounds.get(a, ()), self._rounds.get(b, ())
        if min(map(len, known)) < ENOUGH:
            return None
        crossing, there, back = map(min, known)
        return round(max(0.0, crossing - (there + back) / 2), 6)


def is_news(told: float | None, estimate: float | None) -> bool:
    """Whether an estimate differs noticeably from what was told before."""
    if estimate is None or told is None:
        return estimate is not told
    return abs(estimate - told) > max(LEAST_S, LEAST_SHARE * told)
