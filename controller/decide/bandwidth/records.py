"""What wants bandwidth, and of what? Rates are in bit/s."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum


class BandwidthError(ValueError):
    """Input that nothing can be allocated on; each of `problems` names one thing and its mend."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Direction(StrEnum):
    """As the VM sees it."""

    OUT = "out"
    IN = "in"


#: Resources by name, each once, with a share.
Uses = tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Resource:
    """What is shared: a host's uplink in one direction, a link of the fabric, a tunnel."""

    name: str
    capacity_bps: float


@dataclass(frozen=True, slots=True)
class Claim:
    """What one VM wants in one direction. It gets at least the guarantee as far as it has the
    demand, never more than the ceiling, and beyond the guarantee by weight.

    `uses` names the resources with the share of the VM's traffic on each: 1 for its host's
    uplink, less for links where its traffic goes several ways.
    """

    vm: str
    direction: Direction
    demand_bps: float
    weight: float = 1.0
    guarantee_bps: float = 0.0
    ceiling_bps: float = math.inf
    uses: Uses = ()

    @property
    def name(self) -> str:
        """The claim as operators read it."""
        return f"{self.vm} {self.direction}"


@dataclass(frozen=True, slots=True)
class Reservation:
    """Bandwidth of a tunnel set aside by whoever asked for it, such as a migration: from
    `starts_at` until before `ends_at`, Unix seconds."""

    id: str
    tunnel: str
    rate_bps: float
    starts_at: float
    ends_at: float

    def active(self, now: float) -> bool:
        """Whether it holds at `now`, Unix seconds."""
        return self.starts_at <= now < self.ends_at


@dataclass(frozen=True, slots=True)
class Meter:
    """The rate that a VM's meter is set to. `limited_by` is the resource that allows no more;
    None where the VM's own ceiling does."""

    vm: str
    direction: Direction
    rate_bps: float
    limited_by: str | None


@dataclass(frozen=True, slots=True)
class Conflict:
    """Guarantees and reservations that a resource cannot keep together; without any one of
    them it could."""

    resource: str
    capacity_bps: float
    needed_bps: float
    members: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.resource}: {', '.join(self.members)} are promised {self.needed_bps:.6g} bit/s "
            f"together, and it has {self.capacity_bps:.6g}: lower one of them, or move one away"
        )
