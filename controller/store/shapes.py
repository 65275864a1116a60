"""How each kind of record lies in its table: columns, references, and what must be unique."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from sqlalchemy import ColumnElement, Connection, Select, Table, or_, select

from controller.model.nouns import (
    MAX_DATAPATH_NUMBER,
    MAX_SUBNET_NUMBER,
    MAX_TENANT_NUMBER,
    RECORDS,
    AccessRule,
    Bandwidth,
    CalendarEvent,
    Capture,
    Datapath,
    Host,
    Link,
    LinkSpeed,
    Marking,
    Migration,
    Phase,
    Placement,
    Port,
    RateLimit,
    Record,
    Reservation,
    Route,
    Service,
    Subnet,
    Tenant,
    Tunnel,
    Vm,
)
from controller.store import schema
from controller.store.errors import Duplicate, InUse, Missing, StoreCorrupt, StoreError

MAX_ACCESS_RULE_NUMBER = (1 << 28) - 1

Row = dict[str, object]
#: Makes the condition that a column equals a value.
Filter = Callable[[str], ColumnElement[bool]]


@dataclass(frozen=True, slots=True)
class Shape:
    """One kind of record and its table."""

    record: type[Record]
    table: Table
    #: The columns beside `key`, `number` and `body`.
    columns: Callable[[Any], Row]
    #: The (kind, key) that a record refers to.
    parents: Callable[[Any], tuple[tuple[str, str], ...]] = lambda _: ()
    #: The highest number that the store hands out; 0 where the records have none.
    max_number: int = 0
    #: Conditions beside "column equals" that `where` knows.
    filters: Mapping[str, Filter] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The kind of record."""
        return self.record.kind

    def row(self, record: Record, body: str) -> Row:
        """All columns of `record`."""
        row: Row = {"key": record.key, "body": body, **self.columns(record)}
        if self.max_number:
            row["number"] = number_of(record)
        return row

    def load(self, body: str) -> Record:
        """The record that `body` holds. StoreCorrupt where it holds none."""
        try:
            return self.record.model_validate_json(body)
        except ValidationError as error:
            raise StoreCorrupt(
                f"table {self.table.name}",
                f"{body[:120]!r} is no {self.kind} ({error.errors()[0]['msg']})",
                "restore the database from a backup",
            ) from error

    def condition(self, columns: Mapping[str, str]) -> list[ColumnElement[bool]]:
        """One condition for each of `columns`. ValueError where a column is not known."""
        conditions = []
        for name, value in columns.items():
            if name in self.filters:
                conditions.append(self.filters[name](value))
            elif name in self.table.c and name not in ("body", "number"):
                conditions.append(self.table.c[name] == value)
            else:
                known = {c.name for c in self.table.c} - {"body", "number"} | set(self.filters)
                raise ValueError(
                    f"a {self.kind} cannot be looked up by {name!r}, only by {sorted(known)}"
                )
        return conditions


def number_of(record: Record) -> int:
    """The number of a record of a kind that has one."""
    assert isinstance(record, Tenant | Subnet | Datapath | AccessRule)
    return record.number


def nic_rows(vm: Vm) -> list[Row]:
    """The rows of `vm` in the table of NICs."""
    return [
        {
            "mac": nic.mac,
            "vm": vm.id,
            "subnet": nic.subnet,
            "ipv4": None if nic.ipv4 is None else str(nic.ipv4),
            "ipv6": None if nic.ipv6 is None else str(nic.ipv6),
            "link_local": str(nic.ipv6_link_local),
        }
        for nic in vm.nics
    ]


def plugs(record: Placement | Migration) -> dict[tuple[str, str], int]:
    """The NIC (its index) at each (host, port) that `record` holds. Duplicate where two NICs
    are at one port."""
    host = record.host if isinstance(record, Placement) else record.target
    held: dict[tuple[str, str], int] = {}
    for nic, port in enumerate(record.ports):
        if (host, port) in held:
            raise Duplicate(record.kind, "port", f"{host}/{port}", f"another NIC of {record.vm}")
        held[host, port] = nic
    return held


def _migration_columns(migration: Migration) -> Row:
    moving = migration.phase in (Phase.STARTED, Phase.ACTIVATED)
    return {
        "vm": migration.vm,
        "source": migration.source,
        "target": migration.target,
        "open_vm": migration.vm if migration.open else None,
        "open_source": migration.source if migration.open else None,
        "open_target": migration.target if migration.open else None,
        "moving": migration.vm if moving else None,
    }


def _migration_parents(migration: Migration) -> tuple[tuple[str, str], ...]:
    if not migration.open:
        return ()
    return (("vm", migration.vm), ("host", migration.source), ("host", migration.target))


def _in_nic(column: str) -> Filter:
    def condition(value: str) -> ColumnElement[bool]:
        nics = select(schema.nic.c.vm).where(schema.nic.c[column] == value)
        return schema.vm.c.key.in_(nics)

    return condition


def _placed_on(host: str) -> ColumnElement[bool]:
    placed = select(schema.placement.c.key).where(schema.placement.c.host == host)
    return schema.vm.c.key.in_(placed)


def _of_vm(record: type[Record], table: Table) -> Shape:
    """What is told of a VM."""
    return Shape(
        record,
        table,
        lambda r: {},
        lambda r: (("vm", r.vm),),
        filters={"vm": lambda value: table.c.key == value},
    )


SHAPES: dict[str, Shape] = {
    shape.kind: shape
    for shape in (
        Shape(Datapath, schema.datapath, lambda r: {}, max_number=MAX_DATAPATH_NUMBER),
        Shape(
            Port,
            schema.port,
            lambda r: {"datapath": r.datapath, "number": r.number, "name": r.name},
            lambda r: (("datapath", r.datapath),),
        ),
        Shape(
            Link,
            schema.link,
            lambda r: {
                "datapath": r.datapath,
                "port": r.port,
                "to_datapath": r.to_datapath,
                "to_port": r.to_port,
            },
            lambda r: (("datapath", r.datapath), ("datapath", r.to_datapath)),
        ),
        Shape(Tenant, schema.tenant, lambda r: {}, max_number=MAX_TENANT_NUMBER),
        Shape(
            Subnet,
            schema.subnet,
            lambda r: {"tenant": r.tenant},
            lambda r: (("tenant", r.tenant),),
            MAX_SUBNET_NUMBER,
        ),
        Shape(Host, schema.host, lambda r: {"datapath": r.datapath}),
        Shape(
            Vm,
            schema.vm,
            lambda r: {"tenant": r.tenant},
            lambda r: (("tenant", r.tenant), *(("subnet", nic.subnet) for nic in r.nics)),
            filters={
                "subnet": _in_nic("subnet"),
                "mac": _in_nic("mac"),
                "host": _placed_on,
            },
        ),
        Shape(
            Placement,
            schema.placement,
            lambda r: {"host": r.host},
            lambda r: (("vm", r.vm), ("host", r.host)),
            filters={"vm": lambda value: schema.placement.c.key == value},
        ),
        Shape(
            Migration,
            schema.migration,
            _migration_columns,
            _migration_parents,
            filters={
                "host": lambda value: or_(
                    schema.migration.c.source == value, schema.migration.c.target == value
                )
            },
        ),
        Shape(
            AccessRule,
            schema.access_rule,
            lambda r: {"tenant": r.tenant},
            lambda r: (("tenant", r.tenant),),
            MAX_ACCESS_RULE_NUMBER,
        ),
        Shape(Service, schema.service, lambda r: {"vm": r.vm}, lambda r: (("vm", r.vm),)),
        _of_vm(RateLimit, schema.rate_limit),
        _of_vm(Bandwidth, schema.bandwidth),
        _of_vm(Marking, schema.marking),
        _of_vm(Capture, schema.capture),
        Shape(LinkSpeed, schema.link_speed, lambda r: {}),
        Shape(Tunnel, schema.tunnel, lambda r: {}),
        Shape(
            Reservation,
            schema.reservation,
            lambda r: {"tunnel": r.tunnel},
            lambda r: (("tunnel", r.tunnel),),
        ),
        Shape(Route, schema.route, lambda r: {"egress": r.egress}),
        Shape(CalendarEvent, schema.calendar_event, lambda r: {}),
    )
}
assert tuple(shape.record for shape in SHAPES.values()) == RECORDS


# Which constraint stopped a write: the database says so in words of its own, or not at all,
# so the cause is looked up afterwards, in the same transaction.


def why_not_put(connection: Connection, shape: Shape, record: Record) -> StoreError | None:
    """The error that tells why `record` could not be written."""
    for kind, key in shape.parents(record):
        table = SHAPES[kind].table
        if connection.scalar(select(table.c.key).where(table.c.key == key)) is None:
            return Missing(kind, key, f"{shape.kind} {record.key}")
    return next(_clashes(connection, shape, record), None)


def why_not_deleted(connection: Connection, kind: str, key: str) -> StoreError | None:
    """The error that tells what still refers to a record."""
    target = SHAPES[kind].table.c.key
    for table in (schema.nic, *(shape.table for shape in SHAPES.values())):
        user, holder = ("vm", "vm") if table is schema.nic else (table.name, "key")
        for foreign in table.foreign_keys:
            if foreign.column is not target or foreign.ondelete:
                continue
            query = select(table.c[holder]).where(foreign.parent == key).limit(1)
            found = connection.scalar(query)
            if found is not None:
                return InUse(kind, key, f"{user} {found}")
    return None


def _clashes(connection: Connection, shape: Shape, record: Record) -> Iterator[Duplicate]:
    if shape.max_number:
        number = number_of(record)
        query = select(shape.table.c.key).where(
            shape.table.c.number == number, shape.table.c.key != record.key
        )
        if (holder := connection.scalar(query)) is not None:
            yield Duplicate(shape.kind, "number", str(number), f"{shape.kind} {holder}")
    if isinstance(record, Vm):
        yield from _nic_clashes(connection, record)
    if isinstance(record, Placement | Migration):
        for host, port in plugs(record):
            plug = schema.plug.c
            query = select(plug.vm).where(
                plug.host == host, plug.port == port, plug.vm != record.vm
            )
            if (holder := connection.scalar(query)) is not None:
                yield Duplicate(record.kind, "port", f"{host}/{port}", f"vm {holder}")
    if isinstance(record, Migration):
        query = select(schema.migration.c.key).where(
            schema.migration.c.moving == record.vm, schema.migration.c.key != record.id
        )
        if (holder := connection.scalar(query)) is not None:
            yield Duplicate("migration", "vm", record.vm, f"migration {holder}")


def _nic_clashes(connection: Connection, vm: Vm) -> Iterator[Duplicate]:
    seen: set[tuple[object, ...]] = set()
    for row in nic_rows(vm):
        for name in ("mac", "ipv4", "ipv6", "link_local"):
            if row[name] is None:
                continue
            where: Row = {name: row[name]}
            if name != "mac":
                where["subnet"] = row["subnet"]
            identity = (name, *where.values())
            if identity in seen:
                yield Duplicate("nic", name, str(row[name]), f"another NIC of vm {vm.id}")
            seen.add(identity)
            holder = connection.scalar(_nic_holder(where, vm.id))
            if holder is not None:
                yield Duplicate("nic", name, str(row[name]), f"vm {holder}")


def _nic_holder(where: Mapping[str, object], but: str) -> Select[Any]:
    query = select(schema.nic.c.vm).where(schema.nic.c.vm != but)
    for name, value in where.items():
        query = query.where(schema.nic.c[name] == value)
    return query
