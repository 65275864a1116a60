"""Which alerts are there, and what became of them? Kept in the store, with what is to be told.

What changes an alert, and what has to be told of the change, is one transaction: nothing is told
that did not happen, and nothing happens untold. Signals come with a mark, the time up to which
their finder has seen; one that is not newer than the mark in the store was told before, so that
a finder that begins again a little earlier alerts nobody twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic_core import to_json
from sqlalchemy import Connection, Row, delete, func, insert, select, update

from controller.observe.anomalies import alerts
from controller.observe.anomalies.alerts import Alert, Kind, Severity, Signal, State
from controller.observe.anomalies.rendering import cloud_event
from controller.observe.anomalies.rules import Rules
from controller.settings import AlertSettings
from controller.store import Transaction, schema

_ALERT = schema.alert
_DELIVERY = schema.alert_delivery
_INVESTIGATION = schema.investigation
_MARK = schema.mark
_SAMPLE = schema.packet_sample

#: For so many times of sending again an Alertmanager is told that an alert is over.
OVER = 5
#: Alerts that an Alertmanager is told of at once.
_TOLD = 10_000


@dataclass(frozen=True, slots=True)
class Kept:
    """An alert as it is kept; `version` ascends over all changes of all alerts."""

    alert: Alert
    version: int


@dataclass(frozen=True, slots=True)
class Telling:
    """Who is told of alerts: `targets` are digests of addresses, `source` the URI of this
    controller."""

    source: str = "/pleach"
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Delivery:
    """What is to be told to `target`, and how that goes. Times are Unix seconds."""

    target: str
    version: int
    alert: int
    body: str
    made_at: float
    attempts: int
    due_at: float
    gave_up_at: float | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """Which alerts are asked for; None is all. `before` is an id, `since` a version."""

    state: State | None = None
    kind: Kind | None = None
    severity: Severity | None = None
    vm: str | None = None
    before: int | None = None
    since: int | None = None


def digest(address: str) -> str:
    """What stands in the store for an address that is told, which may hold a password."""
    return hashlib.sha256(address.encode()).hexdigest()[:32]


def telling(settings: AlertSettings) -> Telling:
    """Who is to be told by these settings."""
    return Telling(targets=tuple(dict.fromkeys(map(digest, settings.webhooks))))


def link(settings: AlertSettings) -> str:
    """The address of an alert, to which its id is added."""
    return f"{settings.link.rstrip('/')}/v1/alerts/"


# Changing. All return what was changed.


def enter(
    transaction: Transaction,
    signals: Sequence[Signal],
    rules: Rules,
    telling: Telling,
    now: float,
    mark: tuple[str, float] | None = None,
    *,
    once: bool = False,
) -> list[Alert]:
    """Make alerts of signals at `now`, and set the mark of their finder: its name and up to when
    it has seen. With `once`, of a thing nothing counts that is not newer than what is known of
    it, be that closed or not, unless it is worse than what stands."""
    known = -float("inf")
    if mark is not None:
        before = mark_of(transaction, mark[0])
        known = known if before is None else before
        if mark[1] > known:
            set_mark(transaction, *mark)
    fresh = sorted((s for s in rules.wanted(signals) if s.at > known), key=lambda s: s.at)
    standing = _standing(transaction, {signal.key for signal in fresh})
    if once and fresh:
        last = _last(transaction, fresh)
        fresh = [
            signal
            for signal in fresh
            if signal.at > last.get(signal.key, -float("inf"))
            or (signal.key in standing and _worse(rules, signal, standing[signal.key]))
        ]
    changed: dict[str, Alert] = {}
    loud: set[str] = set()
    for signal in fresh:
        before_it = standing.get(signal.key)
        new_id = "" if before_it is not None else str(transaction.next_number("alert"))
        alert = alerts.take(standing, signal, new_id, rules.severity(signal))
        if before_it is None or alert.severity.rank > before_it.severity.rank:
            loud.add(alert.id)
        standing[signal.key] = changed[alert.id] = alert
    for alert in changed.values():
        _put(transaction, alert, telling if alert.id in loud else None, now)
    return list(changed.values())


def move(
    transaction: Transaction, number: int, to: State, at: float, by: str, telling: Telling
) -> Kept | None:
    """Acknowledge or close an alert, by `by` at `at`; None where there is no such alert. What
    was done before is not done again. Raises WrongStateError."""
    row = transaction.read(select(_ALERT).where(_ALERT.c.id == number)).first()
    if row is None:
        return None
    kept = _kept(row)
    moved = alerts.moved(kept.alert, to, at, by)
    if moved == kept.alert:
        return kept
    return Kept(moved, _put(transaction, moved, telling, at))


def settle(
    transaction: Transaction, now: float, rules: Rules, gone: Iterable[str], telling: Telling
) -> list[Alert]:
    """Close what is quiet, and what is about VMs that are gone."""
    query = select(_ALERT).where(_ALERT.c.standing.is_not(None))
    missing = frozenset(gone)
    closed = []
    for row in transaction.read(query).all():
        alert = _kept(row).alert
        after = alerts.settled(alert, now, rules.of(alert.kind).quiet_s)
        if after is alert and alert.vm in missing:
            after = alerts.moved(alert, State.CLOSED, now, "")
        if after is not alert:
            _put(transaction, after, telling, now)
            closed.append(after)
    return closed


def forget(transaction: Transaction, before: float) -> int:
    """Forget what was closed before `before`, with all that belongs to it; how many alerts."""
    query = select(_ALERT.c.id).where(*_old(before)).limit(1_000)
    numbers = [row.id for row in transaction.read(query)]
    if not numbers:
        return 0
    for table in (_DELIVERY, _SAMPLE, _INVESTIGATION):
        transaction.write(delete(table).where(table.c.alert.in_(numbers)))
    transaction.write(delete(_ALERT).where(_ALERT.c.id.in_(numbers)))
    return len(numbers)


def mark_of(transaction: Transaction, name: str) -> float | None:
    """Up to when a finder has told of what it saw (Unix seconds)."""
    row = transaction.read(select(_MARK.c.at).where(_MARK.c.name == name)).first()
    return None if row is None else float(row.at)


def set_mark(transaction: Transaction, name: str, at: float) -> None:
    """Remember up to when a finder has told of what it saw."""
    done = transaction.write(update(_MARK).where(_MARK.c.name == name).values(at=at))
    if not done.rowcount:
        transaction.write(insert(_MARK).values(name=name, at=at))


# Deliveries.


def targets(connection: Connection) -> frozenset[str]:
    """To whom something is still to be told."""
    query = select(_DELIVERY.c.target).where(_DELIVERY.c.gave_up_at.is_(None)).distinct()
    return frozenset(connection.scalars(query))


def due(connection: Connection, target: str, now: float, most: int) -> list[Delivery]:
    """What is to be told to `target` now: of each alert the oldest, where it is due."""
    of_target = (_DELIVERY.c.target == target) & _DELIVERY.c.gave_up_at.is_(None)
    first = select(func.min(_DELIVERY.c.version)).where(of_target).group_by(_DELIVERY.c.alert)
    query = (
        select(_DELIVERY)
        .where(of_target, _DELIVERY.c.version.in_(first), _DELIVERY.c.due_at <= now)
        .order_by(_DELIVERY.c.due_at, _DELIVERY.c.version)
        .limit(most)
    )
    return [Delivery(**row._mapping) for row in connection.execute(query)]


def delivered(transaction: Transaction, one: Delivery) -> None:
    """It was told: nothing of it is left to do."""
    transaction.write(delete(_DELIVERY).where(*_is(one)))


def put_off(transaction: Transaction, one: Delivery, error: str, due_at: float) -> None:
    """It could not be told: again at `due_at`."""
    values = {"attempts": one.attempts + 1, "error": error[:500], "due_at": due_at}
    transaction.write(update(_DELIVERY).where(*_is(one)).values(**values))


def give_up(
    transaction: Transaction, target: str, made_before: float, now: float, error: str
) -> list[Delivery]:
    """Try no more to tell `target` what it was to be told since before `made_before`; that."""
    late = (
        _DELIVERY.c.target == target,
        _DELIVERY.c.gave_up_at.is_(None),
        _DELIVERY.c.made_at <= made_before,
    )
    rows = transaction.read(select(_DELIVERY).where(*late))
    given_up = [Delivery(**row._mapping) for row in rows]
    if given_up:
        values = {"gave_up_at": now, "error": error[:500]}
        transaction.write(update(_DELIVERY).where(*late).values(**values))
    return given_up


def deliveries(connection: Connection, number: int) -> list[Delivery]:
    """What of an alert is still to be told, or was given up."""
    query = select(_DELIVERY).where(_DELIVERY.c.alert == number).order_by(_DELIVERY.c.version)
    return [Delivery(**row._mapping) for row in connection.execute(query)]


# Reading.


def version(connection: Connection) -> int:
    """The newest version of any alert; 0 where there never was one."""
    name = "number.alert.version"
    query = select(schema.counter.c.value).where(schema.counter.c.name == name)
    return int(connection.scalar(query) or 0)


def get(connection: Connection, number: int) -> Kept | None:
    """One alert."""
    row = connection.execute(select(_ALERT).where(_ALERT.c.id == number)).first()
    return None if row is None else _kept(row)


def find(connection: Connection, asked: Asked, most: int) -> list[Kept]:
    """Alerts that are asked for, the newest first; with `since`, in the order of their
    versions."""
    query = select(_ALERT)
    for name in ("state", "kind", "severity", "vm"):
        value = getattr(asked, name)
        if value is not None:
            query = query.where(_ALERT.c[name] == str(value))
    if asked.before is not None:
        query = query.where(_ALERT.c.id < asked.before)
    if asked.since is not None:
        query = query.where(_ALERT.c.version > asked.since).order_by(_ALERT.c.version)
    else:
        query = query.order_by(_ALERT.c.id.desc())
    return [_kept(row) for row in connection.execute(query.limit(most))]


def lately(connection: Connection, closed_after: float) -> list[Alert]:
    """What stands, and what was closed after `closed_after`, the newest first, no more than an
    Alertmanager is told of at once."""
    query = (
        select(_ALERT)
        .where((_ALERT.c.standing.is_not(None)) | (_ALERT.c.changed_at > closed_after))
        .order_by(_ALERT.c.id.desc())
        .limit(_TOLD)
    )
    return [_kept(row).alert for row in connection.execute(query)]


def subjects(connection: Connection) -> frozenset[str]:
    """What alerts that stand are about."""
    query = select(_ALERT.c.vm).where(_ALERT.c.standing.is_not(None)).distinct()
    return frozenset(connection.scalars(query))


def old(connection: Connection, before: float) -> bool:
    """Whether there is anything that `forget` would forget."""
    query = select(_ALERT.c.id).where(*_old(before)).limit(1)
    return connection.scalar(query) is not None


def around(
    connection: Connection, vms: Sequence[str], first: float, last: float, most: int
) -> list[Alert]:
    """Alerts about some VMs with signals between two times, the newest first."""
    query = (
        select(_ALERT)
        .where(_ALERT.c.vm.in_(vms), _ALERT.c.last_at >= first, _ALERT.c.first_at <= last)
        .order_by(_ALERT.c.id.desc())
        .limit(most)
    )
    return [_kept(row).alert for row in connection.execute(query)]


# Investigations: the evidence, as JSON.


def due_investigations(connection: Connection, now: float, most: int) -> list[int]:
    """Alerts of which evidence is to be gathered."""
    table = _INVESTIGATION
    query = select(table.c.alert).where(table.c.due_at <= now).order_by(table.c.due_at)
    return list(connection.scalars(query.limit(most)))


def put_evidence(
    transaction: Transaction, number: int, body: str | None, due_at: float | None
) -> None:
    """Keep what was gathered (None: nothing was); more is gathered at `due_at`."""
    mine = update(_INVESTIGATION).where(_INVESTIGATION.c.alert == number).values(due_at=due_at)
    transaction.write(mine if body is None else mine.values(body=body))


def evidence(connection: Connection, number: int) -> str | None:
    """What was gathered about an alert; "" where that is still to be done, None where there is
    no such alert."""
    query = select(_INVESTIGATION.c.body).where(_INVESTIGATION.c.alert == number)
    row = connection.execute(query).first()
    return None if row is None else row.body or ""


def _standing(transaction: Transaction, keys: set[str]) -> dict[str, Alert]:
    query = select(_ALERT).where(_ALERT.c.standing.is_not(None))
    if len(keys) <= 500:  # else it is less to read all
        query = query.where(_ALERT.c.standing.in_(sorted(keys)))
    rows = transaction.read(query)
    return {row.standing: _kept(row).alert for row in rows}


def _worse(rules: Rules, signal: Signal, alert: Alert) -> bool:
    return rules.severity(signal).rank > alert.severity.rank


def _last(transaction: Transaction, signals: Sequence[Signal]) -> dict[str, float]:
    """When each of these things was last found, as far as that matters."""
    c = _ALERT.c
    oldest = min(signal.at for signal in signals)
    query = select(c.kind, c.vm, c.metric, func.max(c.last_at).label("at"))
    query = query.where(c.last_at >= oldest).group_by(c.kind, c.vm, c.metric)
    return {f"{row.kind}/{row.vm}/{row.metric}": row.at for row in transaction.read(query)}


def _put(transaction: Transaction, alert: Alert, telling: Telling | None, now: float) -> int:
    """Keep an alert as its next version, and have it told."""
    number, new = int(alert.id), transaction.next_number("alert.version")
    row = {
        **asdict(alert),
        "id": number,
        "version": new,
        "standing": None if alert.state is State.CLOSED else alert.key,
    }
    row |= {name: str(row[name]) for name in ("kind", "state", "severity")}
    changed = transaction.write(update(_ALERT).where(_ALERT.c.id == number).values(**row))
    if not changed.rowcount:
        transaction.write(insert(_ALERT).values(**row))
        transaction.write(insert(_INVESTIGATION).values(alert=number, due_at=0.0, body=None))
    if telling is not None:
        body = to_json(cloud_event(alert, telling.source)).decode()
        rows = [
            asdict(Delivery(target, new, number, body, now, 0, 0.0)) for target in telling.targets
        ]
        if rows:
            transaction.write(insert(_DELIVERY), rows)
    return new


def _old(before: float) -> tuple[Any, Any]:
    return _ALERT.c.state == State.CLOSED.value, _ALERT.c.changed_at < before


def _is(one: Delivery) -> tuple[Any, Any]:
    return _DELIVERY.c.target == one.target, _DELIVERY.c.version == one.version


def _kept(row: Row[*tuple[Any, ...]]) -> Kept:
    fields = row._mapping
    alert = Alert(
        id=str(fields["id"]),
        kind=Kind(fields["kind"]),
        state=State(fields["state"]),
        severity=Severity(fields["severity"]),
        **{name: fields[name] for name in _PLAIN},
    )
    return Kept(alert, fields["version"])


_PLAIN = ("vm", "metric", "first_at", "last_at", "count", "score", "why", "changed_at", "by")
