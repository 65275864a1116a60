"""Who talked to whom in the hours from one to another? For those who judge it.

What was counted last is still on its way for some `signatures.poll_s`: an hour is complete when
twice that has passed after its end.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from controller.model.signatures import OTHERS, Refused, Talked
from controller.observe.anomalies.signatures import Talk
from controller.store import Store
from controller.store.signatures import Asked, find

T = TypeVar("T", Talked, Refused)

#: Rows that are read at a time.
_ROWS = 10_000


def talked(store: Store, since_hour: int, until_hour: int, vm: str | None = None) -> list[Talked]:
    """One record for each signature and hour (hours since 1970-01-01, UTC), the last hour not
    included, of all VMs or one. Raises StoreError."""
    return _all(store, Talked, Asked(vm=vm, since=since_hour, until=until_hour, hourly=True))


def refused(store: Store, since_hour: int, until_hour: int, vm: str | None = None) -> list[Refused]:
    """As `talked`, of what access denied."""
    return _all(store, Refused, Asked(vm=vm, since=since_hour, until=until_hour, hourly=True))


def talks(store: Store, hour: int) -> list[Talk]:
    """What each VM sent to whom in one hour, as the judge of signatures takes it. What a VM sent
    to all beyond those that are told apart is a peer of its own, "*"."""
    return [
        Talk(
            source=row.vm,
            destination=row.peer,
            protocol=row.protocol,
            port=row.port,
            bytes=float(row.bytes_out),
            at=float(hour * 3_600),
            external=row.external or row.peer == OTHERS,
        )
        for row in talked(store, hour, hour + 1)
    ]


def _all(store: Store, kind: type[T], asked: Asked) -> list[T]:
    found: list[T] = []
    while True:
        with store.reading() as connection:
            rows = find(connection, kind, asked, _ROWS)
        found += rows
        if len(rows) < _ROWS:
            return found
        last = rows[-1]
        place = (last.vm, last.peer, last.protocol, last.port, last.hour)
        asked = replace(asked, after=place)
