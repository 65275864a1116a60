"""Measured traffic between edges, as the store keeps it for those who choose paths. Derived and
recent: what is older than what decisions look back on is removed as new rows come."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import delete, insert, select

from controller.model.nouns import RouteClass
from controller.store import schema
from controller.store.store import Store
from controller.store.transaction import Transaction


@dataclass(frozen=True, slots=True)
class Row:
    """What one edge sent towards others in the interval that ended at `at` (Unix seconds): bit/s
    by the other's dpid and the class; others got nothing."""

    datapath: str
    at: float
    rates: Mapping[str, Mapping[RouteClass, float]]


def write_rows(tx: Transaction, rows: Iterable[Row], keep_s: float) -> None:
    """Add rows, in the place of any of the same time, and remove what is more than `keep_s`
    seconds older than the newest of them."""
    table = schema.traffic
    values = [{"datapath": r.datapath, "at": r.at, "body": json.dumps(r.rates)} for r in rows]
    if not values:
        return
    for value in values:
        same = (table.c.datapath == value["datapath"]) & (table.c.at == value["at"])
        tx.write(delete(table).where(same))
    tx.write(insert(table), values)
    newest = max(float(str(value["at"])) for value in values)
    tx.write(delete(table).where(table.c.at < newest - keep_s))


def read_rows(store: Store, after: float) -> list[Row]:
    """The rows of intervals that ended after `after`, oldest first."""
    table = schema.traffic
    query = select(table).where(table.c.at > after).order_by(table.c.at, table.c.datapath)
    with store.reading() as connection:
        found = connection.execute(query).all()
    return [Row(row.datapath, row.at, _rates(row.body)) for row in found]


def _rates(body: str) -> dict[str, dict[RouteClass, float]]:
    return {
        edge: {RouteClass(kind): float(rate) for kind, rate in kinds.items()}
        for edge, kinds in json.loads(body).items()
    }
