"""How does each VM behave, who behaves alike, and who plays which role?

VMs have their turns one after the other, so that all of them had one in a round and none is kept
waiting for it: a turn takes the few that are due, reads their last weeks, has their features
computed elsewhere, and keeps them. Once a day VMs are grouped into roles.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from sqlalchemy import func, select

from controller.loops.anomalies import Told
from controller.loops.base import Ground
from controller.model.state import State
from controller.observe.anomalies import book
from controller.observe.anomalies.regroup import NEW, Group, regroup
from controller.observe.anomalies.rules import Rules
from controller.observe.behaviour import album, portrait
from controller.observe.behaviour.album import Behaviour, Near, Role, week_of
from controller.settings import Settings
from controller.store import Transaction, schema

log = logging.getLogger(__name__)

#: Name of the mark up to which strays were told.
MARK = "roles"
#: VMs of one turn at most, while some never had one.
TURN_MOST = 32
#: Seconds after which a VM of which too little was known is looked at again.
AGAIN_S = 1_800.0
#: VMs that behave alike, of those that are told.
NEAR = 5
#: Seconds of the past in which VMs of a role communicate alike, and kinds of communication.
TALKS_S = 7 * 86_400.0
_KINDS = 100
#: Groups of VMs by which a role is described.
_GROUPS = 3


class Behaviours:
    """The loop that describes VMs."""

    name = "behaviour"

    def __init__(self, settings: Settings, rules: Rules) -> None:
        self._settings = settings.behaviour
        self._telling = book.telling(settings.alerts)
        self._rules = rules
        self.every_s = settings.behaviour.every_s
        #: From when on each VM is due.
        self._due: dict[str, float] = {}
        #: The vectors by VM and week.
        self._vectors: dict[tuple[str, int], portrait.Array] = {}
        self._loaded = False

    async def turn(self, ground: Ground) -> None:
        """Describe those whose turn it is; group all, where that is due."""
        now = time.time()
        if not self._loaded:
            await asyncio.to_thread(self._load, ground)
        vms = ground.state().vms
        chosen = self._chosen(list(vms), now)
        if chosen:
            await self._describe(ground, chosen, now)
        await self._group(ground, now)

    def _load(self, ground: Ground) -> None:
        with ground.store.reading() as connection:
            kept = album.every(connection)
        for one in kept:
            self._vectors[one.vm, one.week] = portrait.vector(one.metrics)
            due = one.at + self._settings.round_s
            self._due[one.vm] = max(due, self._due.get(one.vm, 0.0))
        self._loaded = True

    def _chosen(self, vms: list[str], now: float) -> list[str]:
        """Those whose turn it is, the longest due first."""
        self._due = {vm: self._due.get(vm, 0.0) for vm in vms}
        due = sorted((at, vm) for vm, at in self._due.items())
        due = [one for one in due if one[0] <= now]
        share = math.ceil(len(vms) * self.every_s / self._settings.round_s)
        new = sum(at == 0.0 for at, _ in due)
        return [vm for _, vm in due[: max(share, min(new, TURN_MOST))]]

    async def _describe(self, ground: Ground, vms: list[str], now: float) -> None:
        step = portrait.STEP_S
        end = now // step * step
        history = await ground.history()
        found = await asyncio.to_thread(
            history.read_all,
            portrait.METRICS,
            end - self._settings.window_s,
            end,
            step,
            "mean",
            vms,
        )
        values = {name: matrix.values for name, matrix in found.items()}
        portraits: list[dict[str, portrait.Metric]] = [{} for _ in vms]
        if any(bool(np.isfinite(rows).any()) for rows in values.values()):
            portraits = await ground.pool.run(portrait.portraits, values)
        known = {vm: metrics for vm, metrics in zip(vms, portraits, strict=True) if metrics}
        for vm in vms:
            wait = self._settings.round_s
            self._due[vm] = now + (wait if vm in known else min(wait, AGAIN_S))
        if not known:
            return
        week = week_of(now)
        for vm, metrics in known.items():
            self._vectors[vm, week] = portrait.vector(metrics)
        near = await self._near(ground, list(known), week)
        behaviours = [Behaviour(vm, week, now, metrics, near[vm]) for vm, metrics in known.items()]
        oldest = week - self._settings.weeks
        for key in [key for key in self._vectors if key[1] < oldest]:
            del self._vectors[key]
        await ground.write(_Keep(tuple(behaviours), oldest))

    async def _near(self, ground: Ground, vms: list[str], week: int) -> dict[str, tuple[Near, ...]]:
        """Who behaves or behaved like each of `vms` does now."""
        keys = list(self._vectors)
        vectors = np.array([self._vectors[key] for key in keys])
        asked = np.array([self._vectors[vm, week] for vm in vms])
        named: list[tuple[str, ...]] = [(vm, str(number)) for vm, number in keys]
        # The nearest is always the VM itself, this week.
        rows = await ground.pool.run(portrait.nearest, named, vectors, asked, NEAR + 1)
        found = {}
        for vm, row in zip(vms, rows, strict=True):
            others = [(key, far) for key, far in row if key != (vm, str(week))]
            found[vm] = tuple(Near(key[0], int(key[1]), far) for key, far in others[:NEAR])
        return found

    async def _group(self, ground: Ground, now: float) -> None:
        """Group VMs into roles, where that is due and there is somebody."""
        state = ground.state()
        newest: dict[str, int] = {}
        for vm, week in self._vectors:
            if vm in state.vms:
                newest[vm] = max(week, newest.get(vm, 0))
        vms = sorted(newest)
        if len(vms) < 2:
            return
        before = await asyncio.to_thread(_roles, ground)
        at = max((role.at for role in before.values()), default=0.0)
        # While roles are first found, they are found again as VMs come to be known.
        many = sum(len(role.members) for role in before.values())
        wait = self._settings.roles_s
        if now - at < (wait if 2 * many >= len(vms) else min(wait, AGAIN_S)):
            return
        vectors = np.array([self._vectors[vm, newest[vm]] for vm in vms])
        members = {role.id: role.members for role in before.values()}
        talks = await asyncio.to_thread(_kinds, ground, vms, now)
        groups, signals = await ground.pool.run(regroup, members, vms, vectors, talks, now)
        belongs = _groups_of(state)
        await ground.write(_KeepRoles(tuple(groups), before, now, belongs))
        if signals:
            mark = (MARK, now)
            await ground.write(Told(signals, self._rules, self._telling, mark, now))
        log.info("VMs are grouped", extra={"vms": len(vms), "roles": len(groups)})


@dataclass(frozen=True, slots=True)
class _Keep:
    behaviours: tuple[Behaviour, ...]
    oldest_week: int

    def __call__(self, transaction: Transaction) -> None:
        album.put(transaction, self.behaviours)
        album.forget(transaction, self.oldest_week)


@dataclass(frozen=True, slots=True)
class _KeepRoles:
    groups: tuple[Group, ...]
    before: Mapping[str, Role]
    now: float
    belongs: Callable[[str], tuple[str, ...]]

    def __call__(self, transaction: Transaction) -> None:
        found = []
        for group in self.groups:
            old = self.before.get(group.role)
            number = group.role
            if number.startswith(NEW):
                number = f"role-{transaction.next_number('role')}"
            count = Counter(name for vm in group.members for name in self.belongs(vm))
            common = tuple(
                name for name, many in count.most_common(_GROUPS) if 2 * many >= len(group.members)
            )
            since = self.now if old is None else old.since
            found.append(Role(number, group.members, since, self.now, group.stayed, common))
        album.put_roles(transaction, found)


def _groups_of(state: State) -> Callable[[str], tuple[str, ...]]:
    held = {vm.id: tuple(vm.groups) for vm in state.vms.values()}
    return lambda vm: held.get(vm, ())


def _kinds(ground: Ground, vms: list[str], now: float) -> portrait.Array:
    """How much each VM communicated lately, (VMs, kinds): a kind is who began, a protocol and a
    port; those of which there is most, in bytes."""
    c = schema.signature_hour.c
    size = func.sum(c.bytes_out + c.bytes_in)
    since = int((now - TALKS_S) // 3_600)
    places = {vm: place for place, vm in enumerate(vms)}
    sums: dict[tuple[bool, str, int], dict[int, float]] = defaultdict(dict)
    with ground.store.reading() as connection:
        for began, whose in ((True, c.vm), (False, c.peer)):
            query = (
                select(whose.label("whose"), c.protocol, c.port, size.label("size"))
                .where(c.hour >= since)
                .group_by(whose, c.protocol, c.port)
            )
            for row in connection.execute(query):
                if row.whose in places:
                    sums[began, row.protocol, row.port][places[row.whose]] = float(row.size)
    most = sorted(sums, key=lambda kind: (-sum(sums[kind].values()), kind))[:_KINDS]
    found = np.zeros((len(vms), len(most)))
    for column, kind in enumerate(most):
        for place, value in sums[kind].items():
            found[place, column] = value
    return found


def _roles(ground: Ground) -> dict[str, Role]:
    with ground.store.reading() as connection:
        return {role.id: role for role in album.roles(connection)}
