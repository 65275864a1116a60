"""The state of record in memory, and how one change after another is applied to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from controller.model.nouns import (
    KINDS,
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


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of the change feed: `record` is what is true since `revision`, or None
    where the record with that key was removed."""

    revision: int
    kind: str
    key: str
    record: Record | None


@dataclass(slots=True)
class State:
    """All records by kind and key, as of `revision`."""

    revision: int = 0
    tenants: dict[str, Tenant] = field(default_factory=dict)
    subnets: dict[str, Subnet] = field(default_factory=dict)
    hosts: dict[str, Host] = field(default_factory=dict)
    vms: dict[str, Vm] = field(default_factory=dict)
    placements: dict[str, Placement] = field(default_factory=dict)
    migrations: dict[str, Migration] = field(default_factory=dict)
    access_rules: dict[str, AccessRule] = field(default_factory=dict)
    datapaths: dict[str, Datapath] = field(default_factory=dict)
    ports: dict[str, Port] = field(default_factory=dict)
    links: dict[str, Link] = field(default_factory=dict)
    services: dict[str, Service] = field(default_factory=dict)
    rate_limits: dict[str, RateLimit] = field(default_factory=dict)
    bandwidths: dict[str, Bandwidth] = field(default_factory=dict)
    markings: dict[str, Marking] = field(default_factory=dict)
    captures: dict[str, Capture] = field(default_factory=dict)
    link_speeds: dict[str, LinkSpeed] = field(default_factory=dict)
    tunnels: dict[str, Tunnel] = field(default_factory=dict)
    reservations: dict[str, Reservation] = field(default_factory=dict)
    routes: dict[str, Route] = field(default_factory=dict)
    calendar_events: dict[str, CalendarEvent] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Iterable[Record], revision: int = 0) -> State:
        """A state that holds `records`."""
        state = cls(revision)
        for record in records:
            state.table(record.kind)[record.key] = record
        return state

    def table(self, kind: str) -> dict[str, Record]:
        """The records of one kind, by key. KeyError where there is no such kind."""
        if kind not in KINDS:
            raise KeyError(kind)
        table: dict[str, Record] = getattr(self, f"{kind}s")
        return table

    def apply(self, change: Change) -> Record | None:
        """Make `change` true and return the record that it replaced."""
        table = self.table(change.kind)
        before = table.pop(change.key, None)
        if change.record is not None:
            table[change.key] = change.record
        self.revision = max(self.revision, change.revision)
        return before

    def records(self) -> Iterable[Record]:
        """Every record, those that others refer to first."""
        for kind in KINDS:
            yield from self.table(kind).values()
