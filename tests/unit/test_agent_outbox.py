"""What waits to be told: on the disk, in its order, within its bound."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.agent.outbox import FILE, REFUSALS, Lost, Outbox, OutboxBusy
from controller.agent.records import Fact, Row, Told, batch_of
from controller.history.samples import Batch
from controller.observe.cloudevents import EventType

NOW = 1_893_456_000.0
ROOM = 1 << 20


@contextmanager
def opened(directory: Path, limit: int = ROOM) -> Iterator[Outbox]:
    with closing(Outbox(directory / "box", limit)) as outbox:
        yield outbox


def ticks(first: int, count: int, vms: int = 1) -> list[Batch]:
    """Batches with a row a VM each, at `first`, `first` + 1, ... seconds."""
    return [
        batch_of([Row(f"vm{vm}", NOW + at, {"memory": float(at)}) for vm in range(vms)])
        for at in range(first, first + count)
    ]


def times(batches: tuple[Batch, ...]) -> list[float]:
    return [at / 1000 - NOW for batch in batches for at in batch.times.tolist()]


def fact(vm: str, kind: EventType = EventType.VM_PLACED, number: int = 0) -> Fact:
    return Fact(f"{vm}-{number}", kind, NOW + number, vm, "hv1", ("p1",), ("m1",))


def test_events_and_what_was_told_outlive_the_process(tmp_path: Path) -> None:
    with opened(tmp_path) as outbox:
        outbox.tell([fact("a"), fact("b")], {"a": Told(("p1",)), "b": Told(("p1",), "m")})
        outbox.settle({1: {"id": "a-0"}})
    with opened(tmp_path) as outbox:
        assert [(w.fact, w.body) for w in outbox.events(9)] == [
            (fact("a"), {"id": "a-0"}),
            (fact("b"), None),
        ]
        assert outbox.told() == {"a": Told(("p1",)), "b": Told(("p1",), "m")}
        outbox.took([1])
        outbox.settle({2: None})
        assert outbox.events(9) == []
        outbox.tell([], {"a": None})
        assert outbox.told() == {"b": Told(("p1",), "m")}


def test_what_cannot_be_written_is_not_told_either(tmp_path: Path) -> None:
    with opened(tmp_path) as outbox:
        outbox.tell([fact("a")], {"a": Told(("p1",))})
        with closing(sqlite3.connect(tmp_path / "box" / FILE)) as other:
            other.execute(
                "CREATE TRIGGER full BEFORE INSERT ON told BEGIN SELECT RAISE(ABORT, 'full'); END"
            )
            other.commit()
        with pytest.raises(sqlite3.Error, match="full"):
            outbox.tell([fact("b")], {"b": Told(("p1",))})
        assert [w.fact.vm for w in outbox.events(9)] == ["a"]
        assert outbox.told().keys() == {"a"}


def test_refused_events_are_kept_to_be_shown(tmp_path: Path) -> None:
    with opened(tmp_path) as outbox:
        facts = [fact("a", number=n) for n in range(REFUSALS + 5)]
        outbox.tell(facts, {"a": Told(("p1",))})
        for waiting in outbox.events(1_000):
            outbox.refused(waiting, NOW, "no such VM")
        shown = outbox.refusals()
        assert len(shown) == REFUSALS
        assert shown[-1] == (NOW, facts[-1], "no such VM")
        assert outbox.told() == {}  # so that it is told again
        assert outbox.depth().events == 0


def test_samples_go_out_in_order_and_once(tmp_path: Path) -> None:
    with opened(tmp_path) as outbox:
        for batch in ticks(0, 10):
            assert outbox.add(batch) is None
        package = outbox.package(4)
        assert package is not None
        assert times(package.batches) == [0, 1, 2, 3]
        outbox.add(ticks(10, 1)[0])
    with opened(tmp_path) as outbox:  # the same again, until it is delivered
        again = outbox.package(1_000)
        assert again is not None
        assert (again.sender, again.sequence) == (package.sender, package.sequence)
        assert times(again.batches) == [0, 1, 2, 3]
        outbox.delivered(again)
        rest = outbox.package(1_000)
        assert rest is not None
        assert (rest.sender, rest.sequence) == (package.sender, package.sequence + 1)
        assert times(rest.batches) == [4, 5, 6, 7, 8, 9, 10]
        outbox.delivered(rest)
        assert outbox.package(1_000) is None
        depth = outbox.depth()
        assert (depth.ticks, depth.values, depth.bytes, depth.oldest) == (0, 0, 0, None)


def test_the_oldest_samples_go_first_and_that_is_told(tmp_path: Path) -> None:
    with opened(tmp_path) as probe:
        for batch in ticks(0, 10, vms=20):
            probe.add(batch)
        size = probe.depth().bytes
        package = probe.package(40)
        assert package is not None
    with opened(tmp_path, limit=size) as outbox:  # as much as there is
        lost = [outbox.add(batch) for batch in ticks(10, 5, vms=20)]
        dropped = [loss for loss in lost if loss is not None]
        assert dropped[0].first == NOW
        values = sum(loss.values for loss in dropped)
        depth = outbox.depth()
        assert depth.bytes <= size
        assert depth.values == 15 * 20 - values
        assert depth.oldest == NOW + values / 20
        assert outbox.lost() == Lost(values, NOW, NOW + values / 20 - 1)
        # Of what was under way, what is left goes out under the same number.
        again = outbox.package(40)
        assert again is not None
        assert again.sequence >= package.sequence
        assert times(again.batches)[0] == values / 20


def test_one_that_is_larger_than_the_bound_is_kept_until_the_next(tmp_path: Path) -> None:
    with opened(tmp_path, limit=10) as outbox:
        outbox.add(ticks(0, 1)[0])
        assert outbox.depth().ticks == 1
        assert outbox.add(ticks(1, 1)[0]) == Lost(1, NOW, NOW)
        assert outbox.depth().ticks == 1


def test_less_is_sent_at_once_where_that_was_too_much(tmp_path: Path) -> None:
    with opened(tmp_path) as outbox:
        for batch in ticks(0, 8):
            outbox.add(batch)
        sizes = []
        while True:
            package = outbox.package(100)
            assert package is not None
            sizes.append(len(package.batches))
            if not outbox.split(package):
                break
        assert sizes == [8, 4, 2, 1]
        left = outbox.package(100)
        assert left is not None
        assert times(left.batches) == [0]


def test_numbering_anew_needs_another_name(tmp_path: Path) -> None:
    with opened(tmp_path) as outbox:
        outbox.add(ticks(0, 1)[0])
        before = outbox.package(9)
        outbox.renumber()
        after = outbox.package(9)
        assert before is not None
        assert after is not None
        assert before.sender != after.sender
        assert times(after.batches) == [0]


def test_one_agent_has_the_outbox(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(OutboxBusy, match=r"another agent works in .*box"):
        Outbox(tmp_path / "box", ROOM)
    with opened(tmp_path):
        pass


def test_a_damaged_file_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(tmp_path) as outbox:
        outbox.tell([fact("a")], {"a": Told(("p1",))})
    file = tmp_path / "box" / FILE
    file.write_bytes(b"\x00" * 4_096)
    with opened(tmp_path) as outbox:
        assert outbox.told() == {}
        outbox.add(ticks(0, 1)[0])
    assert (tmp_path / "box" / f"{FILE}.damaged").exists()
    assert "set aside" in caplog.text


actions = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 3)),
        st.tuples(st.just("send"), st.integers(1, 6)),
        st.tuples(st.just("lose reply"), st.integers(1, 6)),
        st.tuples(st.just("restart"), st.just(0)),
    ),
    max_size=20,
)


@settings(max_examples=12)
@given(script=actions)
def test_whatever_happens_each_sample_is_taken_once(
    tmp_path_factory: pytest.TempPathFactory, script: list[tuple[str, int]]
) -> None:
    """With a controller that takes each number once, as the real one does."""
    directory = tmp_path_factory.mktemp("outbox")
    taken: list[float] = []
    seen: set[tuple[str, int]] = set()
    clock = itertools.count()
    added = 0
    outbox = Outbox(directory / "box", ROOM)
    try:
        for what, much in [*script, ("send", 1_000)]:
            if what == "restart":
                outbox.close()
                outbox = Outbox(directory / "box", ROOM)
            elif what == "add":
                for batch in ticks(next(clock) * 10, much):
                    outbox.add(batch)
                    added += 1
            else:
                while (package := outbox.package(much)) is not None:
                    if (package.sender, package.sequence) not in seen:
                        seen.add((package.sender, package.sequence))
                        taken += times(package.batches)
                    if what == "lose reply":
                        break
                    outbox.delivered(package)
    finally:
        outbox.close()
    assert len(taken) == added
    assert taken == sorted(set(taken))
