"""Who talked to whom, and what was denied: hours that are added to, and asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from ipaddress import ip_network
from typing import Any, TypeVar

from sqlalchemy import (
    BigInteger,
    Connection,
    Integer,
    Select,
    Table,
    bindparam,
    cast,
    delete,
    func,
    literal,
    select,
    text,
    tuple_,
)

from controller.model.signatures import Counter, Counts, Reading, Refused, Talked
from controller.store import schema
from controller.store.transaction import Transaction

T = TypeVar("T", Talked, Refused)

_KEY = ("vm", "peer", "protocol", "port")
_COUNTS = {
    Talked: ("connections", "packets_out", "bytes_out", "packets_in", "bytes_in"),
    Refused: ("packets", "bytes"),
}
_TABLES: dict[type, Table] = {Talked: schema.signature_hour, Refused: schema.denial_hour}
#: Without a peer: all else of a VM.
_ALL = ""
_COUNTER_KEY = ("datapath", "mac", "peer", "protocol", "port")


def _adding(kind: type) -> Any:
    """As text, because each engine has a construct of its own for what both write alike."""
    table, counts = _TABLES[kind].name, _COUNTS[kind]
    columns = (*_KEY, "hour", "tenant", "external", *counts, "first_at", "last_at")
    sums = ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in counts)
    return text(
        f"INSERT INTO {table} ({', '.join(columns)}) "  # noqa: S608 - all names are ours
        f"VALUES ({', '.join(':' + name for name in columns)}) "
        f"ON CONFLICT (vm, peer, protocol, port, hour) DO UPDATE SET {sums}, "
        f"last_at = excluded.last_at"
    )


_ADD = {kind: _adding(kind) for kind in _TABLES}
_READ = [*_COUNTER_KEY, "vm", "kept", *Counts._fields, "used_at"]
_REMEMBER = text(
    f"INSERT INTO signature_counter ({', '.join(_READ)}) "  # noqa: S608 - all names are ours
    f"VALUES ({', '.join(':' + name for name in _READ)}) "
    f"ON CONFLICT ({', '.join(_COUNTER_KEY)}) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in _READ[len(_COUNTER_KEY) :])
)
_FORGET = delete(schema.signature_counter).where(
    *(schema.signature_counter.c[name] == bindparam(f"of_{name}") for name in _COUNTER_KEY)
)


# --- Written by who reads the switches ---------------------------------------------------------


def add(tx: Transaction, hours: Iterable[Talked | Refused]) -> None:
    """Add counts to their hours."""
    rows: dict[type, list[dict[str, object]]] = {}
    for hour in hours:
        rows.setdefault(type(hour), []).append(asdict(hour))
    for kind, values in rows.items():
        tx.write(_ADD[kind], values)


def remember(
    tx: Transaction, readings: Iterable[Reading], gone: Iterable[tuple[str, Counter]]
) -> None:
    """Keep how far counters have counted; those that are `gone` from a datapath, no longer."""
    rows = [
        {
            **_place(reading.datapath, reading.counter),
            **reading.counts._asdict(),
            "vm": reading.vm,
            "kept": reading.kept,
            "used_at": reading.used_at,
        }
        for reading in readings
    ]
    if rows:
        tx.write(_REMEMBER, rows)
    left = [
        {f"of_{name}": value for name, value in _place(datapath, counter).items()}
        for datapath, counter in gone
    ]
    if left:
        tx.write(_FORGET, left)


def _place(datapath: str, counter: Counter) -> dict[str, object]:
    peer = _ALL if counter.peer is None else str(counter.peer)
    return {"datapath": datapath, **counter._asdict(), "peer": peer}


def readings(connection: Connection) -> list[Reading]:
    """All counters, as far as they had counted."""
    return [
        Reading(
            row.datapath,
            Counter(
                row.mac,
                None if row.peer == _ALL else ip_network(row.peer),
                row.protocol,
                row.port,
            ),
            row.vm,
            row.kept,
            Counts(*(getattr(row, name) for name in Counts._fields)),
            row.used_at,
        )
        for row in connection.execute(select(schema.signature_counter))
    ]


def forget(tx: Transaction, before_hour: int) -> int:
    """Remove the hours before one; how many rows that were."""
    tables = _TABLES.values()
    return sum(tx.write(delete(t).where(t.c.hour < before_hour)).rowcount for t in tables)


# --- Asked for -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """Which signatures, or denials: all that is given must hold. `since` and `until` are hours,
    the latter not included. `hourly` asks for one row an hour, else hours are added up. `after` is
    the key (vm, peer, protocol, port, and hour if `hourly`) of the last row of the page before."""

    vm: str | None = None
    peer: str | None = None
    protocol: str | None = None
    port: int | None = None
    tenant: str | None = None
    since: int | None = None
    until: int | None = None
    hourly: bool = False
    after: tuple[str | int, ...] | None = None


def find(connection: Connection, kind: type[T], asked: Asked, limit: int) -> list[T]:
    """At most `limit` of what is asked for, in the order of their keys. `hour` is the first one
    where hours are added up."""
    table = _TABLES[kind]
    query = _summed(kind, table, asked.hourly).order_by(*_keys(table, asked)).limit(limit)
    query = query.where(*_wanted(table, asked))
    if asked.after is not None:
        values = [literal(value) for value in asked.after]
        query = query.where(tuple_(*_keys(table, asked)) > tuple_(*values))
    return [kind(**row._mapping) for row in connection.execute(query)]


def _keys(table: Table, asked: Asked) -> list[Any]:
    return [table.c[name] for name in (*_KEY, *(["hour"] if asked.hourly else []))]


def _summed(kind: type, table: Table, hourly: bool) -> Select[Any]:
    if hourly:
        return select(table)
    c = table.c
    # Sums of BIGINT are NUMERIC in PostgreSQL, where numbers are no truth values either.
    return select(
        *(c[name] for name in _KEY),
        func.min(c.hour).label("hour"),
        func.max(c.tenant).label("tenant"),
        (func.max(cast(c.external, Integer)) > 0).label("external"),
        *(cast(func.sum(c[name]), BigInteger).label(name) for name in _COUNTS[kind]),
        func.min(c.first_at).label("first_at"),
        func.max(c.last_at).label("last_at"),
    ).group_by(*(c[name] for name in _KEY))


def _wanted(table: Table, asked: Asked) -> Sequence[Any]:
    c = table.c
    equal = {name: getattr(asked, name) for name in (*_KEY, "tenant")}
    tests = [c[name] == value for name, value in equal.items() if value is not None]
    if asked.since is not None:
        tests.append(c.hour >= asked.since)
    if asked.until is not None:
        tests.append(c.hour < asked.until)
    return tests
