"""How did each VM behave, this week and before, and which roles are there? Kept in the store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json, to_json
from sqlalchemy import Connection, delete, insert, select, update

from controller.observe.behaviour.portrait import Metric, of_json
from controller.observe.behaviour.portrait import to_json as plain
from controller.store import Transaction, schema

_TABLE = schema.behaviour
_ROLE = schema.role
_WEEK_S = 604_800.0


@dataclass(frozen=True, slots=True)
class Near:
    """A VM that behaves alike, in some week; the distance is in scaled units."""

    vm: str
    week: int
    distance: float


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How a VM behaved as of `at` (Unix seconds), in the week of that number."""

    vm: str
    week: int
    at: float
    metrics: dict[str, Metric]
    near: tuple[Near, ...] = ()


@dataclass(frozen=True, slots=True)
class Role:
    """VMs that behave and communicate alike; `since` and `at` (Unix seconds) tell when it was
    first and last found, `stayed` which share of its members of before it kept, `groups` which
    groups its members belong to, most common first."""

    id: str
    members: tuple[str, ...]
    since: float
    at: float
    stayed: float
    groups: tuple[str, ...] = ()


def week_of(at: float) -> int:
    """The number of the week (of those since 1970-01-01) in which `at` lies."""
    return int(at // _WEEK_S)


def begins(week: int) -> float:
    """When a week begins, in Unix seconds."""
    return week * _WEEK_S


def put(transaction: Transaction, found: Iterable[Behaviour]) -> None:
    """Keep behaviours, each in the place of what was kept of its VM and week."""
    for one in found:
        near = [[other.vm, other.week, round(other.distance, 4)] for other in one.near]
        body = to_json({"metrics": plain(one.metrics), "near": near}).decode()
        mine = (_TABLE.c.vm == one.vm, _TABLE.c.week == one.week)
        done = transaction.write(update(_TABLE).where(*mine).values(at=one.at, body=body))
        if not done.rowcount:
            row = {"vm": one.vm, "week": one.week, "at": one.at, "body": body}
            transaction.write(insert(_TABLE).values(**row))


def forget(transaction: Transaction, before_week: int) -> int:
    """Forget what is of earlier weeks; how many rows."""
    return transaction.write(delete(_TABLE).where(_TABLE.c.week < before_week)).rowcount


def every(connection: Connection) -> list[Behaviour]:
    """All that is kept."""
    return [_behaviour(row) for row in connection.execute(select(_TABLE))]


def latest(connection: Connection, vm: str) -> Behaviour | None:
    """How a VM behaves."""
    query = select(_TABLE).where(_TABLE.c.vm == vm).order_by(_TABLE.c.week.desc()).limit(1)
    row = connection.execute(query).first()
    return None if row is None else _behaviour(row)


def put_roles(transaction: Transaction, roles: Iterable[Role]) -> None:
    """Keep these roles, and no others."""
    transaction.write(delete(_ROLE))
    for role in roles:
        transaction.write(insert(_ROLE).values(key=role.id, body=to_json(role).decode()))


def roles(connection: Connection) -> list[Role]:
    """All roles, the largest first."""
    found = []
    for body in connection.scalars(select(_ROLE.c.body)):
        data: Mapping[str, Any] = from_json(body)
        listed = {name: tuple(data[name]) for name in ("members", "groups")}
        found.append(Role(**{**data, **listed}))
    return sorted(found, key=lambda role: (-len(role.members), role.id))


def _behaviour(row: Any) -> Behaviour:
    data = from_json(row.body)
    near = tuple(Near(*one) for one in data["near"])
    return Behaviour(row.vm, row.week, row.at, of_json(data["metrics"]), near)
