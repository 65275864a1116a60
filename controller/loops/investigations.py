"""What was going on around an alert? Evidence is gathered when it opens, and once more later.

What cannot be gathered (the history does not answer, say) is told as missing, and the rest is
kept all the same.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import asdict, replace

from pydantic_core import from_json, to_json
from sqlalchemy import Connection

from controller.history.errors import HistoryError
from controller.history.series import Series
from controller.loops.base import Ground
from controller.model.metrics import Scope, metrics_of
from controller.model.nouns import Capture, Vm
from controller.model.signatures import Refused, Talked
from controller.model.state import State
from controller.observe.anomalies import book, evidence
from controller.observe.anomalies.alerts import Alert
from controller.observe.anomalies.evidence import AFTER_S, BEFORE_S, NEAR_S, USUAL_S, Bundle, Json
from controller.observe.behaviour import album
from controller.settings import AlertSettings
from controller.store import Transaction, samples, signatures

log = logging.getLogger(__name__)

#: Alerts that are looked at in one turn: to read their metrics takes a tenth of a second each.
BATCH = 4
#: Packets of a VM that are copied for an alert, for how many seconds at most, and so many later
#: they are looked for.
PACKETS = 64
COPYING_S, LATER_S = 30.0, 15.0
#: Seconds for which it is asked again where no switch copied anything.
ASKING_S = 120.0
#: Seconds after which it is tried again to gather what could not be gathered at all.
AGAIN_S = 60.0
_STEP_S = 300.0
#: VMs of a role or host whose alerts are looked for.
_VMS = 500
#: Entries of the audit log that are looked at.
_AUDIT = 500
#: Signatures of a VM that are looked at.
_ROWS = 5_000


class Investigations:
    """The loop that gathers evidence."""

    name = "investigations"

    def __init__(self, settings: AlertSettings) -> None:
        self.every_s = min(settings.every_s, 5.0)

    async def turn(self, ground: Ground) -> None:
        """Gather for those alerts that are due."""
        now = time.time()

        def due() -> list[int]:
            with ground.store.reading() as connection:
                return book.due_investigations(connection, now, BATCH)

        for number in await asyncio.to_thread(due):
            try:
                await _investigate(ground, number, now)
            except Exception:  # whatever it is: the others are looked into all the same
                log.exception("an investigation failed", extra={"alert": number})
                await ground.write(_Keep(number, None, now + AGAIN_S))


async def _investigate(ground: Ground, number: int, now: float) -> None:
    known = await asyncio.to_thread(_alert, ground, number, now)
    if known is None:
        return  # it was forgotten meanwhile
    alert, began = known
    bundle = _stated(ground.state(), alert)
    beside = _beside(ground.state(), alert.vm)
    bundle = await asyncio.to_thread(_recorded, ground, alert, bundle, beside)
    try:
        bundle = await _measured(ground, alert, bundle, now)
    except HistoryError as error:
        missing = f"metrics are missing: {error.place}: {error.cause}"
        bundle = replace(bundle, missing=(*bundle.missing, missing))
    again = began + AFTER_S
    complete = now >= again
    held = {**evidence.as_json(alert, bundle, now, complete), "began_at": began}
    capture = None
    if now < began + ASKING_S and not bundle.packets and alert.vm in ground.state().placements:
        # Now, for what was sent when the signal came is gone.
        capture = Capture(vm=alert.vm, alert=number, packets=PACKETS, until=now + COPYING_S)
        again = min(again, now + COPYING_S + LATER_S)
    due = None if complete else again
    await ground.write(_Keep(number, to_json(held).decode(), due, capture, now))


class _Keep:
    def __init__(
        self,
        number: int,
        body: str | None,
        due_at: float | None,
        capture: Capture | None = None,
        now: float = 0.0,
    ) -> None:
        self._number, self._body, self._due_at = number, body, due_at
        self._capture, self._now = capture, now

    def __call__(self, transaction: Transaction) -> None:
        book.put_evidence(transaction, self._number, self._body, self._due_at)
        wanted = self._capture
        if wanted is None or transaction.get(Vm, wanted.vm) is None:
            return
        held = transaction.get(Capture, wanted.vm)
        # One at a time; one that no southbound process ended is nobody's any more.
        if held is None or held.until + LATER_S < self._now:
            transaction.put(wanted)


async def _measured(ground: Ground, alert: Alert, bundle: Bundle, now: float) -> Bundle:
    history = await ground.history()
    first, last = alert.first_at - BEFORE_S, min(now, alert.last_at + AFTER_S)
    last = min(last, first + BEFORE_S + USUAL_S)

    def read(subject: str, scope: Scope) -> Json:
        names = [metric.name for metric in metrics_of(scope)]
        before: dict[str, Series] = history.read_metrics(
            subject, names, alert.first_at - USUAL_S, alert.first_at - 900.0, _STEP_S
        )
        around = history.read_metrics(subject, names, first, last, _STEP_S)
        return evidence.series_of(around, before)

    metrics = await asyncio.to_thread(read, alert.vm, Scope.VM)
    host: Json = {}
    if bundle.placement:
        name = bundle.placement["host"]
        host = {"id": name, **await asyncio.to_thread(read, name, Scope.HOST)}
    return replace(bundle, metrics=metrics, host=host)


def _alert(ground: Ground, number: int, now: float) -> tuple[Alert, float] | None:
    """An alert, and when its investigation began."""
    with ground.store.reading() as connection:
        kept = book.get(connection, number)
        held = book.evidence(connection, number)
    if kept is None:
        return None
    return kept.alert, float(from_json(held)["began_at"]) if held else now


def _stated(state: State, alert: Alert) -> Bundle:
    """What the state of record says of it."""
    placement = state.placements.get(alert.vm)
    first, last = alert.first_at - NEAR_S, alert.last_at + NEAR_S
    moves = [
        move
        for move in state.migrations.values()
        if move.vm == alert.vm
        and move.started_at <= last
        and (move.ended_at is None or move.ended_at >= first)
    ]
    moves.sort(key=lambda move: -move.started_at)
    services = [service for service in state.services.values() if service.vm == alert.vm]
    return Bundle(
        placement=placement.model_dump(mode="json") if placement is not None else {},
        migrations=[move.model_dump(mode="json") for move in moves],
        services=[service.model_dump(mode="json") for service in services],
    )


def _beside(state: State, vm: str) -> tuple[str, ...]:
    """The VMs on the same host."""
    placement = state.placements.get(vm)
    if placement is None:
        return ()
    found = (other.vm for other in state.placements.values() if other.host == placement.host)
    return tuple(found)[:_VMS]


def _recorded(ground: Ground, alert: Alert, bundle: Bundle, beside: tuple[str, ...]) -> Bundle:
    """With what else the store holds about it."""
    first, last = alert.first_at - NEAR_S, alert.last_at + NEAR_S
    with ground.store.reading() as connection:
        role = next((one for one in album.roles(connection) if alert.vm in one.members), None)
        near = dict.fromkeys(role.members[:_VMS] if role is not None else (), "of its role")
        near |= {**dict.fromkeys(beside, "on its host"), alert.vm: "itself"}
        others = book.around(connection, list(near), first, last, evidence.MOST)
        talks, denials = _talks(connection, alert.vm, first, last)
        sample = samples.get(connection, int(alert.id))
    told: Json = {}
    if role is not None:
        told = {**asdict(role), "members": role.members[: evidence.MOST]}
        told["count"] = len(role.members)
    return replace(
        bundle,
        role=told,
        alerts=[
            {**_told(other), "near": near[other.vm]} for other in others if other.id != alert.id
        ],
        changes=_changes(ground, alert),
        talks=talks,
        denials=denials,
        packets={} if sample is None else {"count": sample.count, "at": sample.at},
    )


def _talks(
    connection: Connection, vm: str, first: float, last: float
) -> tuple[list[Json], list[Json]]:
    """With whom a VM talked in these hours, new ones and those with most bytes first, and what
    it was denied, or others were of it."""
    since, until = int(first // 3_600), int(last // 3_600) + 1
    mine = signatures.Asked(vm=vm, since=since, until=until)
    of_it = signatures.Asked(peer=vm, since=since, until=until)
    talked = signatures.find(connection, Talked, mine, _ROWS)
    before = signatures.Asked(vm=vm, until=since)
    known = {_key(one) for one in signatures.find(connection, Talked, before, _ROWS)}
    talks = [{**asdict(one), "new": _key(one) not in known} for one in talked]
    talks.sort(key=lambda one: (not one["new"], -one["bytes_out"] - one["bytes_in"], one["peer"]))
    refused = [
        one for asked in (mine, of_it) for one in signatures.find(connection, Refused, asked, _ROWS)
    ]
    refused.sort(key=lambda one: (-one.packets, one.vm, one.peer))
    return talks, [asdict(one) for one in refused]


def _key(one: Talked) -> tuple[str, str, str, int]:
    return one.vm, one.peer, one.protocol, one.port


def _changes(ground: Ground, alert: Alert) -> list[Json]:
    """What operators and agents changed shortly before."""
    entries = ground.store.audit_log(_AUDIT)
    return [
        asdict(entry)
        for entry in entries
        if alert.first_at - NEAR_S <= entry.at <= alert.last_at
        and not entry.action.startswith(("alert.", "token."))
    ]


def _told(alert: Alert) -> Json:
    return {
        "id": int(alert.id),
        "vm": alert.vm,
        "kind": str(alert.kind),
        "metric": alert.metric,
        "state": str(alert.state),
        "first_at": alert.first_at,
        "why": alert.why,
    }
