"""The loop: when it decides, from what, and what routes it asks for."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.act.dataplane.openflow.counters import Counted
from controller.act.dataplane.pipeline import WEIGHTED, Class, Payload, path_group
from controller.act.dataplane.traffic import Meterage
from controller.act.dataplane.view import FabricView
from controller.decide.paths.fabric import fabric_of
from controller.history.errors import HistoryUnavailable
from controller.history.history import History
from controller.loops import Ground, Pool
from controller.loops.paths.asked import Question
from controller.loops.paths.loop import Paths, Seen, cut, parts_of, reason, unchosen
from controller.loops.paths.matrices import as_if_moved, matrices
from controller.loops.paths.moves import Move, moves_of
from controller.loops.paths.routes import settled
from controller.loops.paths.work import answer
from controller.model.addresses import format_dpid
from controller.model.nouns import (
    Host,
    Link,
    LinkSpeed,
    Migration,
    Phase,
    Placement,
    Port,
    Reservation,
    Route,
    RouteClass,
    Tunnel,
    Way,
)
from controller.model.state import State
from controller.settings import PathSettings, Settings
from controller.store import Store, Transaction
from controller.store.decisions import decisions
from controller.store.traffic import Row, read_rows, write_rows
from tests.unit.label_machine import Cable, Machine, fabric
from tests.unit.test_paths import check, graph

ONE, TWO, THREE, FOUR = map(format_dpid, (1, 2, 3, 4))
#: Two ways of the same length from 1 to 4.
SQUARE: list[Cable] = [(1, 2), (2, 4), (1, 3), (3, 4)]
GBIT = 10**9
BULK, URGENT = RouteClass.BULK, RouteClass.INTERACTIVE


def rows(rate: float, count: int = 12, every_s: float = 60.0) -> list[Row]:
    """1 sends to 4 and 4 half as much to 1, in so many intervals."""
    return [
        row
        for n in range(1, count + 1)
        for row in (
            Row(ONE, n * every_s, {FOUR: {BULK: rate}}),
            Row(FOUR, n * every_s, {ONE: {BULK: rate / 2}}),
        )
    ]


def question(state: State, told: list[Row], last: bytes | None = None) -> Question:
    return Question(
        fabric=fabric_of(state, GBIT, 0.0),
        rows=told,
        every_s=60.0,
        keep=300,
        moves=(),
        rates={},
        hedge=4.0,
        ceiling=0.5,
        trigger="test",
        at=0.0,
        standing=dict(state.routes),
        last=last,
    )


def speeds(**of: int) -> list[LinkSpeed]:
    return [LinkSpeed(id=f"{format_dpid(int(k[1]))}:{k[3:]}", speed=v) for k, v in of.items()]


# --- The fabric


def test_a_link_carries_what_an_operator_a_tunnel_or_its_ports_say() -> None:
    state = fabric(SQUARE, [1, 4])
    for record in (
        *(Port(datapath=d, number=10, name="p", speed=5 * GBIT) for d in (ONE, TWO)),
        LinkSpeed(id=f"{TWO}:11", speed=3 * GBIT),
        Tunnel(id="t", link=f"{ONE}:12", capacity=10 * GBIT),
        Reservation(id="r", tunnel="t", rate=4 * GBIT, expires_at=100.0),
        Reservation(id="over", tunnel="t", rate=GBIT, expires_at=50.0),
    ):
        state.table(record.kind)[record.key] = record
    found = fabric_of(state, GBIT, 60.0)
    capacity = {(k.source, k.target): k.capacity_bps for k in found.links}
    assert capacity[ONE, TWO] == capacity[TWO, ONE] == 5 * GBIT
    assert (capacity[TWO, FOUR], capacity[FOUR, TWO]) == (3 * GBIT, GBIT)
    assert (capacity[ONE, THREE], capacity[THREE, ONE]) == (6 * GBIT, 10 * GBIT)
    assert found.edges == (ONE, FOUR)


def test_a_tunnel_of_which_all_is_reserved_still_is_a_link() -> None:
    state = fabric(SQUARE, [1, 4])
    state.tunnels["t"] = Tunnel(id="t", link=f"{ONE}:10", capacity=GBIT, reservable=1)
    state.reservations["r"] = Reservation(id="r", tunnel="t", rate=GBIT, expires_at=1.0)
    assert all(link.capacity_bps > 0 for link in fabric_of(state, GBIT, 0.0).links)


def test_latencies_that_nobody_measured_are_as_the_others() -> None:
    state = fabric([(1, 2), (1, 2), (2, 3)], [1, 3])
    link = state.links[f"{ONE}:10"]
    state.links[link.key] = link.model_copy(update={"latency_s": 0.002})
    found = fabric_of(state, GBIT, 0.0)
    assert {k.latency_s for k in found.links} == {0.002}
    # Two parallel cables carry twice as much.
    assert {k.capacity_bps for k in found.links} == {2 * GBIT, GBIT}


@pytest.mark.parametrize("broken", ["down", "one way", "into a VM"])
def test_a_link_that_does_not_work_is_none(broken: str) -> None:
    state = fabric([(1, 2)], [1, 2])
    key = f"{ONE}:10"
    if broken == "down":
        state.links[key] = state.links[key].model_copy(update={"up": False})
    elif broken == "one way":
        del state.links[key]
    else:
        state.ports[key] = Port(datapath=ONE, number=10, name="tap")
        state.placements["vm"] = Placement(vm="vm", host="h1", ports=("tap",))
    assert not fabric_of(state, GBIT, 0.0).links


# --- What was measured


def counted(kind: Class, octets: int, payload: Payload = Payload.IPV4) -> Counted:
    return Counted(path_group(4, payload, kind), 1, 1, octets, 1.0, ())


def test_bytes_of_groups_become_rates_by_class() -> None:
    meterage = Meterage()
    meterage.take([counted(Class.DEFAULT, 10_000)])
    assert meterage.row({4: FOUR}, 10.0) is None  # since when, nobody knows
    meterage.take([counted(Class.DEFAULT, 11_000), counted(Class.INTERACTIVE, 500)])
    meterage.take([counted(Class.DEFAULT, 250, Payload.IPV6)])
    assert meterage.row({4: FOUR}, 20.0) == {FOUR: {BULK: 1_000.0, URGENT: 400.0}}
    # A group that was changed begins anew; an edge that is gone is left out.
    meterage.take([counted(Class.DEFAULT, 100)])
    assert meterage.row({4: FOUR}, 30.0) == {FOUR: {BULK: 80.0}}
    meterage.take([counted(Class.DEFAULT, 200)])
    assert meterage.row({}, 40.0) == {}


def test_rows_are_kept_for_as_long_as_asked(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/pleach.db")
    for row in rows(1e6, 4):
        with store.transaction() as tx:
            write_rows(tx, [row, row][:1], 120.0)
    with store.transaction() as tx:
        write_rows(tx, rows(2e6, 4)[-2:], 120.0)  # the same time again
    found = read_rows(store, 0.0)
    assert [row.at for row in found] == [120.0, 120.0, 180.0, 180.0, 240.0, 240.0]
    assert found[-2].rates == {FOUR: {BULK: 2e6}}
    store.close()


def test_an_interval_of_which_nothing_is_known_is_not_taken_for_silence() -> None:
    told = [Row(ONE, 60.0, {FOUR: {BULK: 5.0}}), Row(FOUR, 180.0, {"gone": {BULK: 1.0}})]
    past, ends = matrices(told, (ONE, FOUR), 60.0, 10)
    assert ends.tolist() == [60.0, 120.0, 180.0]
    assert past[BULK][0, 0].tolist() == [0.0, 5.0]
    assert np.isnan(past[BULK][1]).all()
    assert past[BULK][2, 1].tolist() == [0.0, 0.0]
    assert len(matrices(told, (ONE, FOUR), 60.0, 1)[1]) == 1
    assert matrices([], (ONE, FOUR), 60.0, 10)[0] == {}


# --- VMs that moved


def test_what_was_measured_before_a_move_is_taken_to_the_new_edge() -> None:
    past = {BULK: np.zeros((2, 3, 3))}
    past[BULK][:, 0, 1] = 8.0
    move = Move("vm", "a", "c", 60.0, 0.5)
    told = as_if_moved(past, np.array([60.0, 120.0]), ("a", "b", "c"), [move], {})
    assert told[BULK][0].tolist() == [[0, 4, 0], [0, 0, 0], [0, 4, 0]]
    assert told[BULK][1].tolist() == past[BULK][1].tolist()
    known = as_if_moved(past, np.array([60.0, 120.0]), ("a", "b", "c"), [move], {"vm": (2.0, 9.0)})
    assert known[BULK][0, :, 1].tolist() == [6, 0, 2]


def test_moves_are_migrations_between_edges_that_were_activated() -> None:
    state = State.of(
        [Host(id="a", datapath=ONE), Host(id="b", datapath=TWO), Host(id="c", datapath=ONE)]
    )
    state.placements["other"] = Placement(vm="other", host="a", ports=("x",))
    for key, target, at in (
        ("m1", "b", 50.0),
        ("m2", "c", 50.0),
        ("m3", "b", None),
        ("m4", "b", 5.0),
    ):
        state.migrations[key] = Migration(
            id=key, vm=f"vm-{key}", source="a", source_ports=("p",), target=target, ports=("q",),
            phase=Phase.ACTIVATED, started_at=1.0, activated_at=at,
        )  # fmt: skip
    assert moves_of(state, 10.0) == (Move("vm-m1", ONE, TWO, 50.0, 0.5),)


# --- Routes


def test_more_traffic_goes_where_there_is_more_room() -> None:
    state = fabric(SQUARE, [1, 4])
    for told in speeds(s1_10=3 * GBIT, s2_11=3 * GBIT, s1_12=GBIT, s3_13=GBIT):
        state.link_speeds[told.id] = told
    found = answer(question(state, rows(2e9)))
    route = found.routes[f"{ONE}:{FOUR}:bulk"]
    share = {way.nodes: len(way.buckets) for way in route.ways}
    assert share == {(ONE, TWO, FOUR): 24, (ONE, THREE, FOUR): 8}
    assert found.decision.worst == pytest.approx(0.5, rel=0.02)
    assert found.decision.changed == len(found.routes)
    assert any("foreseen" in text for text in found.decided[route.key].reasons)


@settings(max_examples=100)
@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers(1, 8), min_size=1),
    st.dictionaries(st.sampled_from("abcd"), st.integers(1, 8), min_size=1),
)
def test_no_more_buckets_move_than_must(before: dict[str, int], after: dict[str, int]) -> None:
    first = settled({}, {(k,): n for k, n in before.items()})
    second = settled(first, {(k,): n for k, n in after.items()})
    assert {k: len(b) for (k,), b in second.items()} == after
    total = sum(after.values())
    assert sorted(b for buckets in second.values() for b in buckets) == list(range(total))
    owner = {b: way for way, buckets in first.items() for b in buckets}
    stay = sum(owner.get(b) == way for way, buckets in second.items() for b in buckets)
    if sum(before.values()) == total:
        assert stay == sum(min(before.get(k, 0), n) for k, n in after.items())


def test_trees_keep_their_numbers_and_new_ones_do_not_contradict_old_packets() -> None:
    state = fabric([*SQUARE, (1, 4)], [1, 2, 3, 4])
    names = (ONE, TWO, THREE, FOUR)
    told = [
        Row(a, n * 60.0, {b: {BULK: 1e9 + 1e8 * n * len({a, b, ONE})} for b in names})
        for n in range(1, 13)
        for a in names
    ]
    first = answer(question(state, told))
    state.routes.update(first.routes)
    again = answer(question(state, told, first.plan))
    assert again.routes == first.routes
    assert again.decision.changed == 0
    state.links[f"{ONE}:14"] = state.links[f"{ONE}:14"].model_copy(update={"up": False})
    after = answer(question(state, told, first.plan))
    for egress in (ONE, TWO, THREE, FOUR):
        hops: dict[tuple[int, str], set[str]] = {}
        for route in (*first.routes.values(), *after.routes.values()):
            for way in route.ways if route.egress == egress else ():
                for node, to in zip(way.nodes, way.nodes[1:], strict=False):
                    hops.setdefault((way.tree, node), set()).add(to)
        assert all(len(found) == 1 for found in hops.values())
        assert {tree for tree, _ in hops} <= set(WEIGHTED)


def test_urgent_traffic_has_the_quickest_way_before_there_is_any() -> None:
    state = fabric(SQUARE, [1, 4])
    for key, link in list(state.links.items()):
        slow = "2" in (link.datapath[-1], link.to_datapath[-1])
        state.links[key] = link.model_copy(update={"latency_s": 0.01 if slow else 0.001})
    routes = answer(question(state, rows(1e8))).routes
    ways = routes[f"{ONE}:{FOUR}:interactive"].ways
    assert [way.nodes for way in ways] == [(ONE, THREE, FOUR)]


@pytest.mark.parametrize("rate", [0.0, 1e-6, math.nan, -5.0, math.inf])
def test_absurd_rates_leave_all_on_the_planned_trees(rate: float) -> None:
    state = fabric(SQUARE, [1, 4])
    told = [Row(ONE, 60.0, {FOUR: {BULK: rate}}), Row(FOUR, 60.0, {})]
    found = answer(question(state, told))
    assert found.routes == {}
    assert math.isfinite(found.decision.worst)


def test_a_fabric_in_two_parts_is_decided_in_each_and_said_to_be_cut() -> None:
    cables: list[Cable] = [(1, 2), (2, 4), (1, 3), (3, 4), (5, 6)]
    state = fabric(cables, [1, 4, 5, 6])
    told = [*rows(1e9), Row(format_dpid(5), 720.0, {ONE: {BULK: 1e9}, format_dpid(6): {BULK: 1e6}})]
    found = answer(question(state, told))
    assert f"{ONE}:{FOUR}:bulk" in found.routes
    assert not any(r.ingress == format_dpid(5) and r.egress == ONE for r in found.routes.values())
    assert any("cut" in note for note in found.decision.notes)


@settings(max_examples=10)
@given(st.integers(0, 10**6))
def test_what_is_asked_for_is_laid_and_reaches(seed: int) -> None:
    cables: list[Cable] = [(1, 2), (2, 3), (3, 4), (4, 1), (1, 3), (2, 5), (5, 4)]
    state = fabric(cables, [1, 2, 3, 4, 5])
    random = np.random.default_rng(seed)
    names = [format_dpid(n) for n in range(1, 6)]
    told = [
        Row(a, 60.0 * n, {b: {BULK: float(random.exponential(1e9))} for b in names if b != a})
        for n in range(1, 5)
        for a in names
    ]
    found = answer(question(state, told))
    state.routes.update(found.routes)
    view = FabricView.of(state)
    machine = Machine(view)
    check(machine, cables, graph(cables))
    for route in found.routes.values():
        used = Counter(tuple(way[:-1]) for way in machine.ways(route.ingress, route.egress))
        assert used == {way.nodes: len(way.buckets) for way in route.ways}


# --- When


def seen(
    joints: frozenset[tuple[str, str]] = frozenset({("a", "b")}),
    capacities: tuple[float, ...] = (1.0,),
    edges: tuple[str, ...] = ("a", "b"),
    moves: tuple[Move, ...] = (),
) -> Seen:
    return Seen(joints, capacities, edges, moves)


@pytest.mark.parametrize(
    ("now", "due", "words"),
    [
        (seen(), False, None),
        (seen(), True, "schedule"),
        (seen(joints=frozenset()), False, "links down: a->b"),
        (seen(joints=frozenset({("a", "b"), ("b", "a")})), False, "links up: b->a"),
        (seen(capacities=(2.0,)), False, "what links can carry differs"),
        (seen(edges=("a", "b", "c")), False, "3 edges, 2 before"),
        (seen(moves=(Move("vm", "a", "b", 1.0, 0.1),)), False, "migration: vm from a to b"),
    ],
)
def test_there_is_a_reason_for_each_decision(now: Seen, due: bool, words: str | None) -> None:
    assert reason(seen(), now, due) == words


def test_the_first_decision_needs_no_other_reason() -> None:
    assert reason(None, seen(), False) == "first decision since the start"


class Here:
    """A pool that computes here, and a history that is away."""

    async def run(self, function: Callable[[Question], object], asked: Question) -> object:
        return function(asked)


async def _no_history() -> History:
    raise HistoryUnavailable("away", "wait", "history")


def standing_on(store: Store) -> Ground:
    async def write(work: Callable[[Transaction], object]) -> object:
        with store.transaction() as tx:
            return work(tx)

    return Ground(
        settings=cast("Settings", None),
        store=store,
        state=store.snapshot,
        write=write,
        history=_no_history,
        pool=cast("Pool", Here()),
    )


def test_the_loop_writes_routes_and_decisions_and_forgets_what_is_over(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/pleach.db")
    state = fabric(SQUARE, [1, 4])
    now = time.time()
    with store.transaction() as tx:
        for record in state.records():
            tx.put(record)
        tx.put(Tunnel(id="t", link=f"{ONE}:10", capacity=GBIT))
        tx.put(Reservation(id="over", tunnel="t", rate=1, expires_at=now - 1))
        tx.put(Reservation(id="lasts", tunnel="t", rate=1, expires_at=now + 900))

    ground = standing_on(store)
    loop = Paths(PathSettings(measure_s=60.0))

    def turn() -> list[str]:
        asyncio.run(loop.turn(ground))
        return [d.trigger for d in decisions(store)]

    assert turn() == []  # nothing was measured
    assert set(store.snapshot().reservations) == {"lasts"}
    slot = round(now / 60) * 60.0
    with store.transaction() as tx:
        write_rows(tx, [Row(ONE, slot, {FOUR: {BULK: 1e9}})], 3_600)
        tx.put(LinkSpeed(id=f"{TWO}:11", speed=GBIT))
    loop._due = 0.0
    assert turn() == ["first decision since the start"]
    assert store.snapshot().routes
    assert turn() == ["first decision since the start"]
    with store.transaction() as tx:
        broken = store.snapshot().links[f"{ONE}:10"]
        tx.put(broken.model_copy(update={"up": False}))
    assert turn()[0].startswith("links down: ")
    assert all(TWO not in w.nodes for r in store.snapshot().routes.values() for w in r.ways)
    with store.transaction() as tx:
        tx.put(Migration(
            id="m", vm="v", source="h1", source_ports=("a",), target="h4", ports=("b",),
            phase=Phase.FINISHED, started_at=now, activated_at=now, ended_at=now,
        ))  # fmt: skip
    assert turn()[0] == f"migration: v from {ONE} to {FOUR}"
    with store.transaction() as tx:
        tx.delete(Host, "h4")
    turn()
    assert not store.snapshot().routes  # one edge has nobody to send to
    assert not any(isinstance(record, Route) for record in store.snapshot().records())
    store.close()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"enabled": False}, "since paths.enabled is false: connections are hashed"),
        ({"max_edges": 2}, "since 3 edges are more than paths.max_edges, 2: connections are"),
    ],
)
def test_what_was_chosen_is_taken_away_where_nothing_is_to_be_chosen(
    tmp_path: Path, settings: dict[str, int], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/pleach.db")
    way = Way(nodes=(ONE, TWO, FOUR), tree=48, buckets=(0,))
    with store.transaction() as tx:
        for record in fabric(SQUARE, [1, 3, 4]).records():
            tx.put(record)
        tx.put(Route(ingress=ONE, egress=FOUR, ways=(way,)))
        write_rows(tx, [Row(ONE, time.time(), {FOUR: {BULK: 1e9}})], 3_600)
    loop = Paths(PathSettings.model_validate(settings))
    for _ in range(2):
        asyncio.run(loop.turn(standing_on(store)))
        loop._due = 0.0
    # It is told once, and not at every look.
    assert [r.getMessage() for r in caplog.records if why in r.getMessage()] == [
        unchosen(PathSettings.model_validate(settings), 3)
    ]
    assert unchosen(PathSettings(), 3) == ""
    assert not store.snapshot().routes
    assert not decisions(store)
    store.close()


def test_what_was_chosen_stays_while_all_links_are_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is an ordinary state, told once, and once more when it has ended."""
    store = Store.open(f"sqlite:///{tmp_path}/pleach.db")
    whole = fabric(SQUARE, [1, 4])
    with store.transaction() as tx:
        for record in whole.records():
            tx.put(record)
        write_rows(tx, [Row(ONE, time.time(), {FOUR: {BULK: 1e9}})], 3_600)
    ground = standing_on(store)
    loop = Paths(PathSettings())

    def turn(up: Callable[[Link], bool]) -> int:
        """After a turn with the links that are to be up: how many decisions there are."""
        with store.transaction() as tx:
            for link in whole.links.values():
                tx.put(link.model_copy(update={"up": up(link)}))
        loop._due = 0.0
        asyncio.run(loop.turn(ground))
        return len(decisions(store))

    def alone(link: Link) -> bool:
        """Links between other switches than edges are of no use."""
        return ONE not in {link.datapath, link.to_datapath}

    assert turn(lambda _: True) == 1
    chosen = store.snapshot().routes
    assert chosen
    assert [turn(up) for up in (lambda _: False, lambda _: False, alone)] == [1, 1, 1]
    assert store.snapshot().routes == chosen
    assert turn(lambda _: True) == 2
    told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert told == [cut([[ONE], [FOUR]]), "all edges have a way to each other again"]
    assert "no two of 2 edges" in told[0]
    store.close()


def test_how_a_fabric_is_cut_is_told() -> None:
    state = fabric([(1, 2), (3, 4)], [1, 2, 4])
    parts = parts_of(fabric_of(state, GBIT, 0.0))
    assert parts == [[ONE, TWO], [FOUR]]
    assert f"{{{ONE}, {TWO}}} | {{{FOUR}}}" in cut(parts)
    assert cut([[ONE, TWO]]) == ""


def test_a_fabric_without_links_is_told_as_such() -> None:
    state = fabric([], [1, 4])
    assert not [r for r in state.records() if isinstance(r, Link)]
    with pytest.raises(ValueError, match="no link that is up"):
        answer(question(state, rows(1e9)))
