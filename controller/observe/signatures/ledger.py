"""What is to be written? Counts added up by hour and by who they are about, until they are kept."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TypeVar

from controller.model.signatures import Counts, Refused, Talked

T = TypeVar("T", Talked, Refused)
_Key = tuple[str, str, str, int, int]


@dataclass(slots=True)
class Ledger:
    """Counts that no store has yet."""

    talks: dict[_Key, Talked] = field(default_factory=dict)
    denials: dict[_Key, Refused] = field(default_factory=dict)

    def talked(self, talk: Talked) -> None:
        """Add what was counted."""
        _add(self.talks, talk)

    def refused(self, denial: Refused) -> None:
        """Add what was denied."""
        _add(self.denials, denial)

    def take(self) -> list[Talked | Refused]:
        """All of it, which is then no longer here."""
        found: list[Talked | Refused] = [*self.talks.values(), *self.denials.values()]
        self.talks.clear()
        self.denials.clear()
        return found

    def put_back(self, rows: list[Talked | Refused]) -> None:
        """What was taken could not be kept."""
        for row in rows:
            if isinstance(row, Talked):
                self.talked(row)
            else:
                self.refused(row)


def counted(counts: Counts) -> dict[str, int]:
    """Counts in the terms of `Talked`."""
    return {
        "connections": counts.begun,
        "packets_out": counts.begun + counts.rest,
        "bytes_out": counts.begun_bytes + counts.rest_bytes,
        "packets_in": counts.back,
        "bytes_in": counts.back_bytes,
    }


_SUMS = {
    Talked: ("connections", "packets_out", "bytes_out", "packets_in", "bytes_in"),
    Refused: ("packets", "bytes"),
}


def _add(rows: dict[_Key, T], new: T) -> None:
    key = (new.vm, new.peer, new.protocol, new.port, new.hour)
    known = rows.get(key)
    if known is not None:
        sums = {name: getattr(known, name) + getattr(new, name) for name in _SUMS[type(new)]}
        new = replace(
            new,
            **sums,
            first_at=min(known.first_at, new.first_at),
            last_at=max(known.last_at, new.last_at),
        )
    rows[key] = new
