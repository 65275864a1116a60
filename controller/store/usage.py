"""What the meters of VMs passed of late, as the southbound process counts it and the brain reads
it. Derived: of each datapath the newest row only, and it may be lost with the power."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import bindparam, delete, insert, select

from controller.store import schema
from controller.store.store import Store

_DELETE = delete(schema.usage).where(schema.usage.c.datapath == bindparam("of"))


@dataclass(frozen=True, slots=True)
class Metered:
    """One meter of a VM in an interval: bit/s that it passed and that it dropped."""

    vm: str
    out: bool
    passed_bps: float
    dropped_bps: float


@dataclass(frozen=True, slots=True)
class Usage:
    """What the meters of a datapath did in the interval that ended at `at` (Unix seconds)."""

    datapath: str
    at: float
    meters: tuple[Metered, ...]


def write_usage(store: Store, rows: Iterable[Usage]) -> None:
    """Put rows in the place of those of the same datapaths. Raises StoreError."""
    values = [
        {
            "datapath": row.datapath,
            "at": row.at,
            "body": json.dumps([[m.vm, m.out, m.passed_bps, m.dropped_bps] for m in row.meters]),
        }
        for row in rows
    ]
    if values:
        with store.transaction(durable=False) as tx:
            tx.write(_DELETE, [{"of": value["datapath"]} for value in values])
            tx.write(insert(schema.usage), values)


def read_usage(store: Store, after: float) -> list[Usage]:
    """The rows of intervals that ended after `after` (Unix seconds). Raises StoreError."""
    query = select(schema.usage).where(schema.usage.c.at > after)
    with store.reading() as connection:
        found = connection.execute(query).all()
    return [
        Usage(row.datapath, row.at, tuple(Metered(*meter) for meter in json.loads(row.body)))
        for row in found
    ]
