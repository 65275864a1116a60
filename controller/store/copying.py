"""All that a store holds, copied into another database, of whichever engine, and compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from sqlalchemy import Connection, Select, Table, delete, func, insert, select, text

from controller.store import schema
from controller.store.errors import StoreCorrupt, StoreError

#: Rows that are read and written at a time.
_ROWS = 1_000


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied: up to which revision of the store, and how many rows of each table."""

    revision: int
    rows: dict[str, int]


def copy(source: Connection, target: Connection, place: str, *, replace: bool = False) -> Copied:
    """Copy every table of the transaction at `source` into that at `target`, both of the newest
    schema, and compare the two. `place` is which database the target is, for messages.

    StoreError where the target holds something and `replace` is not given, StoreCorrupt where
    the two differ afterwards; then the target's transaction is not to be committed."""
    _clear(target, place, replace)
    rows = {}
    for table in schema.metadata.sorted_tables:
        count = 0
        for batch in _batches(source, table):
            target.execute(insert(table), batch)
            count += len(batch)
        rows[table.name] = count
    if target.dialect.name == "postgresql":
        # What counts up by itself goes on after what was copied.
        target.execute(
            text(
                "SELECT setval(pg_get_serial_sequence('audit', 'id'), "
                "coalesce(max(id), 1), max(id) IS NOT NULL) FROM audit"
            )
        )
    for table in schema.metadata.sorted_tables:
        _compare(source, target, table)
    revision = select(schema.counter.c.value).where(schema.counter.c.name == "revision")
    return Copied(target.execute(revision).scalar_one(), rows)


def _clear(target: Connection, place: str, replace: bool) -> None:
    """Remove what the target holds: the counters of a new store, or with `replace` all."""
    tables = list(reversed(schema.metadata.sorted_tables))
    if not replace:
        for table in tables:
            used = select(func.count()).select_from(table)
            if table is schema.counter:
                used = used.where(table.c.value > 0).where(_copied(table))
            if target.scalar(used):
                raise StoreError(
                    place,
                    f"it is not empty (table {table.name})",
                    "name a new one, or add --replace to lose what it holds",
                )
    for table in tables:
        target.execute(delete(table))


def _copied(table: Table) -> Any:
    # The marks of PostgreSQL's writers are about its own connections.
    return ~schema.counter.c.name.like("writer.%") if table is schema.counter else text("1 = 1")


def _query(table: Table) -> Select[Any]:
    return select(table).where(_copied(table)).order_by(*table.primary_key)


def _batches(connection: Connection, table: Table) -> Iterator[Sequence[dict[str, Any]]]:
    result = connection.execute(_query(table), execution_options={"yield_per": _ROWS})
    for rows in result.mappings().partitions():
        yield [dict(row) for row in rows]


def _compare(source: Connection, target: Connection, table: Table) -> None:
    for ours, theirs in zip_longest(_batches(source, table), _batches(target, table), fillvalue=()):
        for one, other in zip_longest(ours, theirs):
            if one != other:
                key = {c.name: (one or other or {}).get(c.name) for c in table.primary_key}
                raise StoreCorrupt(
                    "the copy",
                    f"table {table.name} differs at {key}",
                    "see that both databases are sound (pleach store check), and copy again",
                )
