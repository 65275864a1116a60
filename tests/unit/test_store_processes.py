"""Several processes on one store: wake-ups, concurrent opens, and a writer that is killed."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from controller.model.nouns import Tenant
from controller.model.state import State
from controller.store import Store, StoreError, StoreUnavailable
from controller.store.bells import SocketBell

ROOT = Path(__file__).parents[2]
#: Not forked: the child must open the store by itself.
processes = multiprocessing.get_context("spawn")


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    store = Store.open(url)
    yield store
    store.close()


def name(store: Store, value: str) -> int:
    with store.transaction() as tx:
        tx.put(Tenant(id="t", name=value))
    return tx.revision


def write_when_told(url: str, pipe: Connection) -> None:
    store = Store.open(url)
    while (value := pipe.recv()) is not None:
        pipe.send(name(store, value))
    store.close()


def write_for_ever(url: str, pipe: Connection) -> None:
    store = Store.open(url)
    n = 0
    while True:
        with store.transaction() as tx:
            for k in range(3):
                tx.put(Tenant(id=f"t{k}", name=str(n)))
            n += 1
        pipe.send(tx.revision)


def open_and_write(url: str, key: str) -> None:
    store = Store.open(url)
    with store.transaction() as tx:
        tx.put(Tenant(id=key))
    store.close()


def test_a_commit_of_another_process_rings(store: Store, url: str) -> None:
    bell = store.bell("brain")
    ours, theirs = processes.Pipe()
    writer = processes.Process(target=write_when_told, args=(url, theirs))
    writer.start()
    try:
        for n in range(5):
            ours.send(str(n))
            assert bell.wait(30)
            # The bell rings after the commit: what it tells of is there.
            (change,) = store.changes(n)
            assert change.record == Tenant(id="t", name=str(n), number=1)
            assert ours.recv() == change.revision
    finally:
        ours.send(None)
        writer.join()
    assert writer.exitcode == 0
    bell.close()


def test_a_consumer_is_not_woken_by_itself(store: Store, url: str) -> None:
    other = Store.open(url)
    mine, theirs = store.bell("one"), other.bell("two")
    name(store, "x")
    assert theirs.wait(30)
    assert not mine.wait(0)
    assert not theirs.wait(0)  # drained
    other.close()
    mine.close()


def test_what_changes_nothing_does_not_ring(store: Store, url: str) -> None:
    other = Store.open(url)
    name(store, "x")
    bell = other.bell("b")
    name(store, "x")
    assert not bell.wait(0)
    other.close()


def test_rings_that_nobody_hears_do_not_hold_up_a_writer(store: Store, url: str) -> None:
    other = Store.open(url)
    bell = other.bell("sleeper")
    for _ in range(600):  # more than a socket's queue holds (net.unix.max_dgram_qlen)
        store._bells.ring()
    assert name(store, "x") == 1
    assert bell.wait(30)
    assert not bell.wait(0)
    other.close()


@pytest.fixture
def file_store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(f"sqlite:///{tmp_path}/pleach.db")
    yield store
    store.close()


def test_a_dead_consumers_bell_is_removed(file_store: Store, tmp_path: Path) -> None:
    bells = tmp_path / "pleach.db.bells"
    script = (
        "import os, signal, sys; from controller.store import Store\n"
        "Store.open(sys.argv[1]).bell('dead'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", script, f"sqlite:///{tmp_path}/pleach.db"]
    died = subprocess.run(command, cwd=ROOT, check=False)
    assert died.returncode == -signal.SIGKILL
    assert [p.name.split(".")[0] for p in bells.iterdir()] == ["dead"]
    name(file_store, "x")
    assert list(bells.iterdir()) == []


def test_closing_a_bell_removes_it(file_store: Store) -> None:
    bell = file_store.bell("b")
    assert isinstance(bell, SocketBell)
    assert bell.path.exists()
    assert f".{os.getpid()}." in bell.path.name
    bell.close()
    bell.close()
    assert not bell.path.exists()
    left = file_store.bell("c")
    file_store.close()
    file_store.close()
    assert isinstance(left, SocketBell)
    assert not left.path.exists()


def test_a_store_can_be_closed_twice(store: Store, url: str) -> None:
    other = Store.open(url)
    bell = other.bell("b")
    bell.close()
    bell.close()
    other.bell("c")
    other.close()
    other.close()
    assert name(store, "x") == 1


def test_a_long_path_is_no_hindrance(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    one, two = (Store.open(f"sqlite:///{deep}/pleach.db") for _ in range(2))
    bell = one.bell("b" * 40)
    name(two, "x")
    assert bell.wait(30)
    one.close()
    two.close()


def test_what_cannot_be_a_bell_is_refused(store: Store) -> None:
    for wrong in ("", "../x", "a b", "x" * 41):
        with pytest.raises(ValueError, match="no name of a bell"):
            store.bell(wrong)


def test_a_commit_needs_no_bells(file_store: Store, tmp_path: Path) -> None:
    (tmp_path / "pleach.db.bells").rmdir()
    with pytest.raises(StoreUnavailable, match="no socket could be made"):
        file_store.bell("b")
    assert name(file_store, "x") == 1


def test_bells_where_others_can_write_are_refused(file_store: Store, tmp_path: Path) -> None:
    (tmp_path / "pleach.db.bells").chmod(0o777)
    with pytest.raises(StoreUnavailable, match="others may write into it"):
        Store.open(f"sqlite:///{tmp_path}/pleach.db")


def test_a_bell_wakes_asyncio(store: Store, url: str) -> None:
    other = Store.open(url)

    async def consume() -> int:
        loop = asyncio.get_running_loop()
        bell = store.bell("loop")
        rung = asyncio.Event()

        def heard() -> None:
            bell.drain()
            rung.set()

        loop.add_reader(bell.fileno(), heard)
        writing = loop.run_in_executor(None, name, other, "x")
        await asyncio.wait_for(rung.wait(), 30)
        loop.remove_reader(bell.fileno())
        bell.close()
        return await writing

    assert asyncio.run(consume()) == 1
    other.close()


GREEN = """
import eventlet
eventlet.monkey_patch()
import sys
from controller.model.nouns import Tenant
from controller.store import Store

store, other = Store.open(sys.argv[1]), Store.open(sys.argv[1])
bell = store.bell("southbound")
heard = []

def consume():
    at = 0
    while at < 20:
        if bell.wait(30):
            for change in store.changes(at):
                at = change.revision
                heard.append(at)

consumer = eventlet.spawn(consume)
def write(n):
    with other.transaction() as tx:
        tx.put(Tenant(id=f"t{n}"))
writers = [eventlet.spawn(write, n) for n in range(20)]
for writer in writers:
    writer.wait()
consumer.wait()
assert heard == list(range(1, 21)), heard
assert not bell.wait(0.01)

# A writer that waits for another's lock lets the other greenthreads go on.
holding = eventlet.Event()
def hold():
    with other.transaction() as tx:
        tx.put(Tenant(id="held"))
        holding.send()
        eventlet.sleep(0.05)
holder = eventlet.spawn(hold)
holding.wait()
with store.transaction() as tx:
    assert tx.get(Tenant, "held") is not None
holder.wait()
store.close()
other.close()
print("green")
"""


def test_the_store_under_eventlet(url: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", GREEN, url]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"green\n"), done.stderr.decode()


def test_many_processes_open_a_new_store_at_once(bare_url: str, tmp_path: Path) -> None:
    keys = [f"t{n}" for n in range(3)]
    writers = [processes.Process(target=open_and_write, args=(bare_url, key)) for key in keys]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 3
    store = Store.open(bare_url)
    assert sorted(store.snapshot().tenants) == keys
    assert [c.revision for c in store.changes(0)] == [1, 2, 3]
    store.close()
    left = {p.name for p in tmp_path.iterdir()}
    assert left in ({"pleach.db", "pleach.db.bells"}, set())  # nothing half-made


def test_a_killed_writer_loses_nothing_that_was_acknowledged(store: Store, url: str) -> None:
    acknowledged = 0
    for _ in range(3):
        ours, theirs = processes.Pipe(duplex=False)
        writer = processes.Process(target=write_for_ever, args=(url, theirs))
        writer.start()
        theirs.close()
        for _ in range(10):
            acknowledged = ours.recv()
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        while True:  # what it still said before it died
            try:
                acknowledged = ours.recv()
            except EOFError:
                break
        assert store.revision >= acknowledged > 0
        # A transaction is there wholly or not at all, in the state as in the feed.
        state = State()
        for change in store.changes(0):
            state.apply(change)
        assert state == store.snapshot()
        assert len({tenant.name for tenant in state.tenants.values()}) == 1
        assert name(store, f"after {acknowledged}") > acknowledged
        with store.transaction() as tx:
            tx.delete(Tenant, "t")
    store.check()


def test_a_file_that_is_gone_is_an_error_and_not_an_empty_store(
    file_store: Store, tmp_path: Path
) -> None:
    name(file_store, "x")
    (tmp_path / "pleach.db").unlink()
    with pytest.raises(StoreError, match="its -wal is there"):
        Store.open(f"sqlite:///{tmp_path}/pleach.db")
