"""What was decided on paths, when and why: kept for who asks later."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from sqlalchemy import delete, func, insert, select, update

from controller.store import schema
from controller.store.store import Store
from controller.store.transaction import Transaction

#: Decisions that are kept, and those of them of which every pair's reasons are.
KEPT, KEPT_WHOLE = 1_000, 20


@dataclass(frozen=True, slots=True)
class DecidedLink:
    """What was foreseen on a link, in bit/s: on average, and exceeded in one case of twenty."""

    source: str
    target: str
    capacity: float
    expected: float
    high: float


@dataclass(frozen=True, slots=True)
class Decided:
    """What was foreseen for a pair and class (bit/s), and why its ways are what they are."""

    expected: float
    high: float
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision. The worst link's mean utilisation over what was foreseen: as decided, split
    evenly over shortest paths, and at the best possible where that is known. `changed` routes
    were put or removed because of it; it took `took_s` seconds."""

    at: float
    trigger: str
    worst: float
    even_worst: float
    optimum: float | None
    edges: int
    scenarios: int
    changed: int
    took_s: float
    notes: tuple[str, ...]
    links: tuple[DecidedLink, ...]
    #: Ascends; 0 where it is not stored yet.
    id: int = 0


def keep(tx: Transaction, decision: Decision, routes: Mapping[str, Decided]) -> int:
    """Store a decision with what it says of each route, by its key; returns its id. The oldest
    beyond those that are kept go."""
    table = schema.path_decision
    newest = tx.read(select(func.max(table.c.id))).scalar()
    number = int(newest or 0) + 1
    fields = asdict(decision)
    del fields["id"]
    body = {key: asdict(decided) for key, decided in routes.items()}
    packed = zlib.compress(json.dumps(body).encode())
    row = {"id": number, "at": decision.at, "body": json.dumps(fields), "routes": packed}
    tx.write(insert(table), row)
    tx.write(delete(table).where(table.c.id <= number - KEPT))
    old = (table.c.id <= number - KEPT_WHOLE) & table.c.routes.is_not(None)
    tx.write(update(table).where(old).values(routes=None))
    return number


def decisions(store: Store, limit: int = 100, before: int | None = None) -> list[Decision]:
    """At most `limit` decisions, newest first, of those with an id below `before`."""
    table = schema.path_decision
    query = select(table.c.id, table.c.body).order_by(table.c.id.desc()).limit(limit)
    if before is not None:
        query = query.where(table.c.id < before)
    with store.reading() as connection:
        rows = connection.execute(query).all()
    return [_decision(row.id, row.body) for row in rows]


def decided(store: Store, key: str, limit: int = KEPT_WHOLE) -> list[tuple[Decision, Decided]]:
    """What the last `limit` decisions that are kept whole said of the route `key`, newest
    first; those that said nothing of it are left out."""
    table = schema.path_decision
    query = (
        select(table.c.id, table.c.body, table.c.routes)
        .where(table.c.routes.is_not(None))
        .order_by(table.c.id.desc())
        .limit(limit)
    )
    with store.reading() as connection:
        rows = connection.execute(query).all()
    found = []
    for row in rows:
        told = json.loads(zlib.decompress(row.routes)).get(key)
        if told is not None:
            reasons = tuple(told["reasons"])
            said = Decided(told["expected"], told["high"], reasons)
            found.append((_decision(row.id, row.body), said))
    return found


def _decision(number: int, body: str) -> Decision:
    fields = json.loads(body)
    fields["notes"] = tuple(fields["notes"])
    fields["links"] = tuple(DecidedLink(**link) for link in fields["links"])
    return Decision(**fields, id=number)
