"""Is a link that comes back to be trusted? Each failure adds to its penalty, which fades with
time; above one bound the link is damped, and below another it may be used again (the scheme of
RFC 2439, 4.2, with failures counted as 1 each).
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Damping:
    """When links are damped: penalties in failures, times in seconds. RFC 2439, 4.2: cutoff
    threshold, reuse threshold, half-life, and the maximum hold-down time."""

    cutoff: float
    reuse: float
    half_life_s: float
    max_s: float

    @property
    def ceiling(self) -> float:
        """The penalty that fades to `reuse` in `max_s`; more is never counted."""
        exponent = min(self.max_s / self.half_life_s, 1_000.0)
        return float(self.reuse * 2.0**exponent)


@dataclass(frozen=True, slots=True)
class Flapping:
    """How often a link failed of late: `penalty` as of `at` (seconds of some clock)."""

    penalty: float = 0.0
    at: float = 0.0
    damped: bool = False

    def now(self, at: float, rule: Damping) -> Flapping:
        """The same, as of `at`."""
        faded = self.penalty * 2.0 ** (-max(0.0, at - self.at) / rule.half_life_s)
        return Flapping(faded, at, self.damped and faded >= rule.reuse)

    def failed(self, at: float, rule: Damping) -> Flapping:
        """After one more failure at `at`."""
        before = self.now(at, rule)
        penalty = min(before.penalty + 1.0, max(rule.ceiling, rule.cutoff))
        return replace(before, penalty=penalty, damped=before.damped or penalty >= rule.cutoff)
