"""What a switch has that we cannot have put there, kept so that it can be named and removed."""

from __future__ import annotations

from dataclasses import dataclass

from controller.act.dataplane.openflow.records import Match


@dataclass(frozen=True, slots=True)
class AlienFlow:
    """A flow entry with fields, actions, instructions or timeouts that no `Flow` can have.

    `match_bytes` is its whole `ofp_match` with padding, `instruction_bytes` all after the
    counters; `match` is None where a field of it is unknown; `why` names the first strange
    thing found. Never equal to a `Flow`; `encode.delete_alien` removes it and nothing else.
    """

    table: int
    priority: int
    match: Match | None
    match_bytes: bytes
    instruction_bytes: bytes
    cookie: int
    why: str

    @property
    def place(self) -> tuple[int, int, Match | bytes]:
        """As of a `Flow`, so that an entry of ours in the same place is known to replace it;
        with the bytes where the match cannot be read."""
        return (self.table, self.priority, self.match_bytes if self.match is None else self.match)


@dataclass(frozen=True, slots=True)
class AlienGroup:
    """A group that no `Group` can be, removed by its id."""

    id: int
    why: str


@dataclass(frozen=True, slots=True)
class AlienMeter:
    """A meter that no `Meter` can be, removed by its id."""

    id: int
    why: str
