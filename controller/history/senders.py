"""Was this batch taken already? What is remembered of each sender.

A window over sequence numbers, as in IPsec's protection against replays (RFC 4303, 3.4.3): the
newest number, and which of those shortly before it were taken, so that batches may overtake
each other. Also how far a sender's clock is off.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Sequence numbers remembered behind the newest.
WINDOW = 1_024
#: Offsets of which the least counts: what delayed the others is not the clock.
OFFSETS = 16


@dataclass(frozen=True, slots=True)
class Seen:
    """Batches taken of one sender: bit i of `mask` is for number `last` - i; `at` is when the
    newest was taken, in Unix milliseconds."""

    last: int
    mask: int
    at: int

    def has(self, sequence: int) -> bool | None:
        """Whether that batch was taken; None where it lies too far back to tell."""
        behind = self.last - sequence
        if behind < 0:
            return False
        if behind >= WINDOW:
            return None
        return bool(self.mask >> behind & 1)

    def with_(self, sequence: int, at: int) -> Seen:
        """That batch was taken too."""
        ahead = sequence - self.last
        if ahead > WINDOW:
            return Seen(sequence, 1, at)
        if ahead > 0:
            return Seen(sequence, (self.mask << ahead | 1) & (1 << WINDOW) - 1, at)
        return Seen(self.last, self.mask | 1 << -ahead, at)


def seen(before: Seen | None, sequence: int, at: int) -> Seen:
    """What is remembered once batch `sequence` was taken at `at`, Unix milliseconds."""
    return Seen(sequence, 1, at) if before is None else before.with_(sequence, at)


class Offsets:
    """How far ahead of ours is each sender's clock?

    What a batch shows is the offset less the time that it was under way, which is never
    negative: so the largest of the last few comes closest (the filter of NTP, RFC 5905, takes
    the sample of least delay for the same reason)."""

    def __init__(self) -> None:
        self._shown: dict[str, list[float]] = {}

    def note(self, sender: str, sent_at: float, received_at: float) -> float:
        """The estimate in seconds (positive: the sender's clock is ahead) after one more."""
        shown: list[float] = [*self._shown.get(sender, []), sent_at - received_at][-OFFSETS:]
        self._shown[sender] = shown
        return max(shown)

    def forget(self, senders: set[str]) -> None:
        """Forget all but `senders`."""
        self._shown = {name: shown for name, shown in self._shown.items() if name in senders}
