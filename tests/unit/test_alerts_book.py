"""Alerts as both engines keep them: nothing twice, nothing lost, told in order or given up."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.observe.anomalies import book
from controller.observe.anomalies.alerts import Alert, Kind, Signal, State
from controller.observe.anomalies.book import Asked, Telling
from controller.observe.anomalies.rules import Rules
from controller.observe.behaviour import album
from controller.observe.behaviour.album import Behaviour, Role
from controller.store import Store

RULES = Rules()
TOLD = Telling(targets=("a", "b"))
NEVER = Telling()


@pytest.fixture
def store(new_url: Callable[[], str]) -> Iterator[Store]:
    opened = Store.open(new_url())
    yield opened
    opened.close()


def signal(at: float, vm: str = "vm0", score: float = 1.5, kind: Kind = Kind.SCAN) -> Signal:
    return Signal(kind, vm, "", at, score, f"{kind} at {at:g}")


def enter(store: Store, *signals: Signal, telling: Telling = NEVER, **more: object) -> list[Alert]:
    with store.transaction() as transaction:
        return book.enter(transaction, signals, RULES, telling, 1_000.0, **more)  # type: ignore[arg-type]


def found(store: Store, asked: Asked = Asked(), most: int = 100) -> list[book.Kept]:  # noqa: B008
    with store.reading() as connection:
        return book.find(connection, asked, most)


def test_what_is_not_newer_than_the_mark_was_told(store: Store) -> None:
    (first,) = enter(store, signal(10.0), mark=("x", 10.0))
    assert enter(store, signal(9.0), signal(10.0), mark=("x", 5.0)) == []
    (same,) = enter(store, signal(11.0), mark=("x", 11.0))
    assert (same.id, same.count, same.last_at) == (first.id, 2, 11.0)
    assert enter(store, signal(10.0), mark=("y", 10.0))[0].count == 3  # found by another
    with store.transaction() as transaction:
        assert book.mark_of(transaction, "x") == 11.0
        assert book.mark_of(transaction, "z") is None


def test_what_is_told_once_is_told_again_only_where_it_is_worse(store: Store) -> None:
    (first,) = enter(store, signal(10.0), once=True)
    assert enter(store, signal(10.0, score=2.9), once=True) == []
    (worse,) = enter(store, signal(10.0, score=3.0), once=True)
    assert (worse.id, worse.severity) == (first.id, "critical")
    assert enter(store, signal(10.0, score=9.0), once=True) == []
    with store.transaction() as transaction:
        book.move(transaction, int(first.id), State.CLOSED, 11.0, "ann", NEVER)
    assert enter(store, signal(10.0, score=9.0), once=True) == []
    assert enter(store, signal(12.0), once=True)[0].id != first.id


def test_alerts_are_found_by_what_is_asked(store: Store) -> None:
    enter(
        store, *(signal(n, f"vm{n % 3}", kind=k) for n in range(9) for k in (Kind.SCAN, Kind.ROLE))
    )
    assert len(found(store)) == 6
    assert {kept.alert.count for kept in found(store)} == {3}
    assert [int(kept.alert.id) for kept in found(store, most=2)] == [6, 5]
    assert [int(kept.alert.id) for kept in found(store, Asked(before=3))] == [2, 1]
    newest = found(store)[0].version
    with store.transaction() as transaction:
        book.move(transaction, 2, State.ACKNOWLEDGED, 99.0, "ann", NEVER)
        assert book.move(transaction, 99, State.CLOSED, 99.0, "ann", NEVER) is None
    (moved,) = found(store, Asked(since=newest))
    assert (moved.alert.id, moved.alert.by, moved.version) == ("2", "ann", newest + 1)
    assert [k.alert.id for k in found(store, Asked(state=State.ACKNOWLEDGED))] == ["2"]
    assert len(found(store, Asked(kind=Kind.SCAN, vm="vm1"))) == 1
    with store.reading() as connection:
        assert book.version(connection) == moved.version
        assert book.subjects(connection) == {"vm0", "vm1", "vm2"}
        assert len(book.around(connection, ["vm0", "vm1"], 0.0, 1.0, 99)) == 4
        assert len(book.lately(connection, 0.0)) == 6


def test_each_target_is_told_of_each_alert_in_order(store: Store) -> None:
    enter(store, signal(1.0), telling=TOLD)
    enter(store, signal(2.0, score=5.0), signal(2.0, "vm1"), telling=TOLD)
    with store.reading() as connection:
        assert book.targets(connection) == {"a", "b"}
        first, other = book.due(connection, "a", 1_000.0, 99)
        assert book.due(connection, "a", -1.0, 99) == []
    assert [one.alert for one in (first, other)] == [1, 2]
    with store.transaction() as transaction:
        book.put_off(transaction, first, "no answer", 5_000.0)
        book.delivered(transaction, other)
    with store.reading() as connection:
        assert book.due(connection, "a", 1_000.0, 99) == []  # what follows it waits for it
        (late,) = book.due(connection, "a", 5_000.0, 99)
        assert (late.attempts, late.error) == (1, "no answer")
        assert len(book.due(connection, "b", 1_000.0, 99)) == 2
    with store.transaction() as transaction:
        given_up = book.give_up(transaction, "a", 1_000.0, 9_000.0, "no answer")
        assert len(given_up) == 2
        assert book.give_up(transaction, "b", 999.0, 9_000.0, "") == []
    with store.reading() as connection:
        assert book.targets(connection) == {"b"}
        kept = book.deliveries(connection, 1)
    assert [(one.target, one.gave_up_at) for one in kept if one.target == "a"] == [
        ("a", 9_000.0)
    ] * 2


def test_what_is_quiet_or_gone_is_closed_and_old_ones_are_forgotten(store: Store) -> None:
    enter(store, signal(1.0), signal(1.0, "vm1"), signal(99_000.0, "vm2"), telling=TOLD)
    with store.transaction() as transaction:
        book.move(transaction, 2, State.ACKNOWLEDGED, 2.0, "ann", TOLD)
        closed = book.settle(transaction, 100_000.0, RULES, ["vm2"], TOLD)
        assert sorted(one.vm for one in closed) == ["vm0", "vm2"]
        assert book.forget(transaction, 100_000.0) == 0
        book.put_evidence(transaction, 1, "{}", None)
    with store.reading() as connection:
        assert not book.old(connection, 100_000.0)
        assert book.due_investigations(connection, 0.0, 9) == [2, 3]
        assert [book.evidence(connection, n) for n in (1, 2, 9)] == ["{}", "", None]
        assert book.old(connection, 100_001.0)
    with store.transaction() as transaction:
        assert book.forget(transaction, 100_001.0) == 2
    assert [kept.alert.id for kept in found(store)] == ["2"]
    with store.reading() as connection:
        assert book.deliveries(connection, 1) == []
        assert book.evidence(connection, 1) is None


def test_roles_and_pages_of_the_album(store: Store) -> None:
    roles = [
        Role("role-1", ("vm0", "vm1"), 1.0, 2.0, 1.0, ("web",)),
        Role("role-2", ("vm2",), 1.0, 2.0, 0.5),
    ]
    with store.transaction() as transaction:
        album.put_roles(transaction, roles[::-1])
        album.put(transaction, [Behaviour("vm0", week, week + 0.5, {}) for week in (1, 2)])
        album.put(transaction, [Behaviour("vm0", 2, 9.5, {})])
        assert album.forget(transaction, 2) == 1
    with store.reading() as connection:
        assert album.roles(connection) == roles
        assert [(one.week, one.at) for one in album.every(connection)] == [(2, 9.5)]


spans = st.lists(st.lists(st.sampled_from(["vm0", "vm1"]), max_size=2, unique=True), max_size=8)


@settings(max_examples=25)
@given(spans, st.lists(st.integers(0, 7), max_size=4))
def test_whoever_begins_again_earlier_changes_nothing(
    found_in: list[list[str]], falls: list[int]
) -> None:
    """A finder tells of span after span, and falls back to earlier ones now and then."""

    def told(order: list[int]) -> list[tuple[str, int, float]]:
        with tempfile.TemporaryDirectory() as directory:
            opened = Store.open(f"sqlite:///{Path(directory)}/store.db")
            for number in order:
                signals = [signal(number + 1.0, vm) for vm in found_in[number]]
                if signals:
                    enter(opened, *signals, mark=("x", number + 1.0))
            kept = [(k.alert.vm, k.alert.count, k.alert.last_at) for k in found(opened)]
            opened.close()
        return sorted(kept)

    steady = list(range(len(found_in)))
    falling = steady
    for at in falls:
        if at < len(found_in):  # all up to there, and again from some earlier one
            falling = falling[: falling.index(at) + 1] + list(range(max(0, at - 2), len(found_in)))
    assert told(falling) == told(steady)
