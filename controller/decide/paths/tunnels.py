"""May so much of a tunnel be reserved? Each direction has its capacity, of which a share may be
reserved; a reservation holds until it is released or its time is over."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from controller.model.nouns import Reservation, Tunnel


@dataclass(frozen=True, slots=True)
class Refused:
    """A reservation that does not fit: `free` bit/s are left in that direction now, and so much
    as was asked for from `free_at` (Unix seconds) on if nobody else comes; None for never."""

    free: int
    free_at: float | None


def reserved(tunnel: Tunnel, reservations: Iterable[Reservation], forward: bool, now: float) -> int:
    """bit/s of one direction that are reserved at `now`, Unix seconds."""
    return sum(r.rate for r in _standing(tunnel, reservations, forward, now))


def free(tunnel: Tunnel, reservations: Iterable[Reservation], forward: bool, now: float) -> int:
    """bit/s of one direction that can be reserved at `now`; never below 0."""
    most = int(tunnel.capacity * tunnel.reservable)
    return max(0, most - reserved(tunnel, reservations, forward, now))


def grant(
    tunnel: Tunnel, reservations: Iterable[Reservation], asked: Reservation, now: float
) -> Refused | None:
    """None where `asked` fits beside the other `reservations` (one of the same id is replaced),
    else what is free instead."""
    others = [r for r in reservations if r.id != asked.id]
    left = free(tunnel, others, asked.forward, now)
    if asked.rate <= left:
        return None
    standing = _standing(tunnel, others, asked.forward, now)
    for ends in sorted({r.expires_at for r in standing}):
        if asked.rate <= free(tunnel, others, asked.forward, ends):
            return Refused(left, ends)
    return Refused(left, None)


def _standing(
    tunnel: Tunnel, reservations: Iterable[Reservation], forward: bool, now: float
) -> list[Reservation]:
    return [
        r
        for r in reservations
        if r.tunnel == tunnel.id and r.forward is forward and r.expires_at > now
    ]
