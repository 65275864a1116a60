"""When are paths decided anew, and from what? On schedule, when links or what they can carry
differ, and when a VM has moved."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from controller.decide.paths.fabric import Fabric, fabric_of
from controller.history.errors import HistoryError
from controller.loops.base import Ground
from controller.loops.paths.asked import Answer, Question
from controller.loops.paths.moves import Move, moves_of
from controller.model.nouns import Reservation, Route
from controller.settings import PathSettings
from controller.store import Transaction
from controller.store.decisions import keep
from controller.store.traffic import read_rows

log = logging.getLogger(__name__)

#: Links and VMs that one reason names.
_NAMED = 3
#: Seconds of its past that tell how much a VM sends.
_RECENT_S = 3_600.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What a decision was made for: whatever of it differs later calls for another."""

    joints: frozenset[tuple[str, str]]
    capacities: tuple[float, ...]
    edges: tuple[str, ...]
    moves: tuple[Move, ...]


def reason(before: Seen | None, now: Seen, due: bool) -> str | None:
    """Why to decide again, in words; None where there is no reason."""
    if before is None:
        return "first decision since the start"
    if before.joints != now.joints:
        gone, come = before.joints - now.joints, now.joints - before.joints
        told = [
            f"links {word}: {_listed(sorted(f'{a}->{b}' for a, b in links))}"
            for word, links in (("down", gone), ("up", come))
            if links
        ]
        return "; ".join(told)
    if before.edges != now.edges:
        return f"{len(now.edges)} edges, {len(before.edges)} before"
    if set(now.moves) - set(before.moves):
        fresh = [move for move in now.moves if move not in before.moves]
        vms = _listed([f"{m.vm} from {m.source} to {m.target}" for m in fresh])
        return f"migration: {vms}"
    if before.capacities != now.capacities:
        return "what links can carry differs"
    return "schedule" if due else None


def unchosen(settings: PathSettings, edges: int) -> str:
    """Why no paths are chosen for the traffic on a fabric of so many edges, and what is used
    instead; "" where they are."""
    instead = "connections are hashed over the shortest paths, evenly"
    if not settings.enabled:
        return f"paths are not chosen for the traffic, since paths.enabled is false: {instead}"
    if edges > settings.max_edges:
        return (
            f"paths are not chosen for the traffic, since {edges} edges are more than "
            f"paths.max_edges, {settings.max_edges}: {instead}; each ingress would have a route "
            "to every other edge, so raise it only where brain and store have the time for that"
        )
    return ""


def parts_of(fabric: Fabric) -> list[list[str]]:
    """The edges in groups, of which each has a way to all others of its group."""
    near: dict[str, set[str]] = {}
    for source, target in fabric.joints:
        near.setdefault(source, set()).add(target)
    parts: list[list[str]] = []
    seen: set[str] = set()
    for edge in fabric.edges:
        if edge in seen:
            continue
        reached, todo = {edge}, [edge]
        while todo:
            fresh = near.get(todo.pop(), set()) - reached
            reached |= fresh
            todo += fresh
        seen |= reached
        parts.append([name for name in fabric.edges if name in reached])
    return parts


def cut(parts: list[list[str]]) -> str:
    """What to say where edges have no way to each other, "" where all have one."""
    if len(parts) < 2:
        return ""
    if all(len(part) == 1 for part in parts):
        return (
            f"no two of {len(parts)} edges have a way to each other: paths stay as they were "
            "chosen until a link is up; mend one"
        )
    told = " | ".join(f"{{{_listed(part)}}}" for part in parts[: _NAMED + 1])
    more = f" and {len(parts) - _NAMED - 1} parts more" if len(parts) > _NAMED + 1 else ""
    return f"some edges have no way to each other: {told}{more}: mend a link"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


class Paths:
    """The loop that keeps routes to what traffic and links are; where paths are not to be
    chosen, it takes away what was chosen before."""

    name = "paths"

    def __init__(self, settings: PathSettings) -> None:
        self.every_s = settings.look_s
        self._settings = settings
        self._seen: Seen | None = None
        self._plan: bytes | None = None
        self._due = 0.0
        self._looked_at = -1
        #: Why paths are not chosen, as it was last told.
        self._told = ""
        #: How the fabric is cut, as it was last told.
        self._cut = ""

    async def turn(self, ground: Ground) -> None:
        """Decide, where there is a reason to."""
        now = time.time()
        state = ground.state()
        due = time.monotonic() >= self._due
        ends = [r.expires_at for r in state.reservations.values()]
        ended = any(end <= now for end in ends)
        if state.revision == self._looked_at and not due and not ended:
            return
        self._looked_at = state.revision
        fabric = fabric_of(state, self._settings.default_speed, now)
        moves = moves_of(state, now - self._settings.keep * self._settings.measure_s)
        standing = dict(state.routes)
        seen = Seen(fabric.joints, fabric.capacities, fabric.edges, moves)
        why = reason(self._seen, seen, due)
        if ended:
            await ground.write(_Forget(now))
        if why is None:
            return
        not_chosen = unchosen(self._settings, len(fabric.edges))
        if not_chosen != self._told:
            self._told = not_chosen
            log.warning("%s", not_chosen or "paths are chosen for the traffic again")
        if not_chosen or len(fabric.edges) < 2:
            self._rest(seen)
            if standing:
                await ground.write(_Drop(tuple(standing)))
            return
        await self._decide(ground, fabric, moves, standing, seen, why, now)

    def _rest(self, seen: Seen) -> None:
        """Whatever comes of it: nothing calls for this decision any more."""
        self._seen = seen
        self._due = time.monotonic() + self._settings.every_s

    async def _decide(
        self,
        ground: Ground,
        fabric: Fabric,
        moves: tuple[Move, ...],
        standing: Mapping[str, Route],
        seen: Seen,
        why: str,
        now: float,
    ) -> None:
        every_s = self._settings.measure_s
        span_s = self._settings.keep * every_s
        rows = await asyncio.to_thread(read_rows, ground.store, now - span_s)
        if not any(row.datapath in fabric.edges for row in rows):
            # Nothing was measured yet, which is looked for again soon.
            self._due = time.monotonic() + min(every_s, self._settings.every_s)
            return
        self._rest(seen)
        parts = parts_of(fabric)
        if (found_cut := cut(parts)) != self._cut:
            self._cut = found_cut
            log.warning("%s", found_cut or "all edges have a way to each other again")
        if all(len(part) == 1 for part in parts):
            return  # the routes that stand are good again once links are
        question = Question(
            fabric=fabric,
            rows=rows,
            every_s=every_s,
            keep=self._settings.keep,
            moves=moves,
            rates=await _rates(ground, {move.vm for move in moves}, now) if moves else {},
            hedge=self._settings.hedge,
            ceiling=self._settings.ceiling,
            trigger=why,
            at=now,
            standing=standing,
            last=self._plan,
        )
        found = await ground.pool.run(_answer, question)
        self._plan = found.plan
        number = await ground.write(_Write(found))
        log.info(
            "paths were decided",
            extra={
                "decision": number,
                "trigger": why,
                "worst": round(found.decision.worst, 4),
                "evenly": round(found.decision.even_worst, 4),
                "routes_changed": found.decision.changed,
                "took_s": found.decision.took_s,
            },
        )


@dataclass(frozen=True)
class _Write:
    found: Answer

    def __call__(self, transaction: Transaction) -> int:
        for route in transaction.all(Route):
            if route.key not in self.found.routes:
                transaction.delete(Route, route.key)
        for route in self.found.routes.values():
            transaction.put(route)
        return keep(transaction, self.found.decision, self.found.decided)


@dataclass(frozen=True)
class _Drop:
    keys: Collection[str]

    def __call__(self, transaction: Transaction) -> None:
        for key in self.keys:
            transaction.delete(Route, key)


@dataclass(frozen=True)
class _Forget:
    now: float

    def __call__(self, transaction: Transaction) -> None:
        for reservation in transaction.all(Reservation):
            if reservation.expires_at <= self.now:
                transaction.delete(Reservation, reservation.key)


def _answer(question: Question) -> Answer:
    """In the process that computes: what that takes is imported there alone."""
    from controller.loops.paths.work import answer

    return answer(question)


async def _rates(
    ground: Ground, vms: Collection[str], now: float
) -> dict[str, tuple[float, float]]:
    """bit/s that VMs sent and received of late, for those of which the history knows both."""
    try:
        history = await ground.history()
        told = [
            await asyncio.to_thread(
                history.read_many, metric, now - _RECENT_S, now, _RECENT_S, subjects=sorted(vms)
            )
            for metric in ("net_tx", "net_rx")
        ]
    except HistoryError as error:
        log.info("how much moved VMs send is not known: %s", error)
        return {}
    sent, received = (
        {
            vm: max(values)
            for vm, row in zip(found.subjects, found.values.tolist(), strict=True)
            if (values := [value for value in row if math.isfinite(value)])
        }
        for found in told
    )
    return {vm: (8 * sent[vm], 8 * received[vm]) for vm in sent.keys() & received.keys()}
