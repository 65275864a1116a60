"""A full disk, a damaged file, a file that cannot be written: a clear error, the last good
state kept, and work goes on once the cause is gone."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from controller.model.nouns import Nic, Subnet, Tenant, Vm
from controller.model.state import State
from controller.store import (
    Store,
    StoreBusy,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreReadOnly,
    backup,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "pleach.db"


@pytest.fixture
def store(file: Path) -> Iterator[Store]:
    store = open_store(file)
    yield store
    store.close()


def open_store(file: Path) -> Store:
    return Store.open(f"sqlite:///{file}")


def put(store: Store, key: str, name: str = "") -> None:
    with store.transaction() as tx:
        tx.put(Tenant(id=key, name=name))


def fill(store: Store, vms: int = 400) -> None:
    """Enough for many pages in every table that matters."""
    with store.transaction() as tx:
        tx.put(Tenant(id="t"))
        tx.put(Subnet.model_validate({"id": "s", "tenant": "t", "cidr": "10.0.0.0/16"}))
        for n in range(vms):
            nic = Nic(mac=f"02:00:00:00:{n >> 8:02x}:{n & 255:02x}", subnet="s")
            tx.put(Vm(id=f"v{n}", tenant="t", nics=(nic,), name="x" * 100))


def followed(store: Store) -> State:
    state = State()
    while changes := store.changes(state.revision):
        for change in changes:
            state.apply(change)
    return state


def limit_pages(store: Store, pages: int) -> None:
    """As a disk with room for so many pages: for each connection, when it is next used."""

    def limit(raw: sqlite3.Connection, *_: Any) -> None:
        raw.execute(f"PRAGMA max_page_count={pages}")

    event.listen(store._engine, "checkout", limit)


def pages_of(file: Path) -> int:
    connection = sqlite3.connect(file)
    count = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.close()
    return int(count)


# Full.


def test_a_full_database_keeps_the_last_good_state(store: Store, file: Path) -> None:
    put(store, "first")
    limit_pages(store, pages_of(file) + 10)
    written = 0

    def write() -> None:
        nonlocal written
        while written < 1_000:
            with store.transaction() as tx:
                for n in range(20):
                    tx.put(Tenant(id=f"t{written}-{n}", name="x" * 200))
            written += 1

    with pytest.raises(StoreFull, match="full") as caught:
        write()
    assert written > 0
    assert "make room" in caught.value.mend
    assert caught.value.place == str(file)
    assert len(store.snapshot().tenants) == 1 + written * 20
    assert followed(store) == store.snapshot()
    limit_pages(store, 1_000_000)
    put(store, "after")
    assert followed(store) == store.snapshot()
    assert "after" in store.snapshot().tenants
    store.check()


FULL_DISK = """
import os, pathlib, sys
from controller.model.nouns import Tenant
from controller.model.state import State
from controller.store import Store, StoreFull

disk = pathlib.Path(sys.argv[1])
url = f"sqlite:///{disk}/pleach.db"
ballast = disk / "ballast"

def fill_up():
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass

def followed(store):
    state = State()
    while changes := store.changes(state.revision):
        for change in changes:
            state.apply(change)
    return state

# No room for a new store: an error, and nothing half-made.
fill_up()
try:
    Store.open(url).close()
except StoreFull as error:
    print("refused:", error.mend)
assert {p.name for p in disk.iterdir()} <= {"ballast", "pleach.db.bells"}
ballast.unlink()

store = Store.open(url)
with store.transaction() as tx:
    tx.put(Tenant(id="first"))
fill_up()
n = acknowledged = 0
try:
    while n < 10_000:
        with store.transaction() as tx:
            tx.put(Tenant(id=f"t{n}", name="x" * 200))
        acknowledged = tx.revision
        n += 1
except StoreFull as error:
    print("full:", error.mend)
for _ in range(3):
    try:
        with store.transaction() as tx:
            tx.put(Tenant(id="again", name="x" * 200))
            for k in range(500):
                tx.put(Tenant(id=f"again{k}", name="x" * 200))
    except StoreFull:
        continue
    raise AssertionError("there was room")
assert store.revision == max(acknowledged, 1), (store.revision, acknowledged)
assert len(store.snapshot().tenants) == 1 + n
assert followed(store) == store.snapshot()
ballast.unlink()
with store.transaction() as tx:
    tx.put(Tenant(id="after"))
store.check()
before = store.snapshot()
store.close()
store = Store.open(url)
assert store.snapshot() == before == followed(store)
store.close()
print("recovered")
"""

READ_ONLY = """
import os, pathlib, subprocess, sys
from controller.model.nouns import Tenant
from controller.store import Store, StoreReadOnly

disk = pathlib.Path(sys.argv[1])
url = f"sqlite:///{disk}/pleach.db"
Store.open(url).close()
subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
try:
    Store.open(url)
except StoreReadOnly as error:
    print("refused:", error.mend)
"""


def in_a_disk_of_its_own(script: str, disk: Path) -> list[str]:
    """Run `script` with a file system of 2 MiB at `disk` that nobody else sees."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root; the limit on pages is tested above")
    disk.mkdir()
    inside = 'mount -t tmpfs -o size=2m none "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "--mount", "sh", "-c", inside, "sh", str(disk), sys.executable, script]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_full_disk(tmp_path: Path) -> None:
    refused, full, recovered = in_a_disk_of_its_own(FULL_DISK, tmp_path / "disk")
    assert refused.startswith("refused: make room")
    assert full.startswith("full: make room")
    assert recovered == "recovered"


# Read-only.


def test_a_disk_that_cannot_be_written_to(tmp_path: Path) -> None:
    (refused,) = in_a_disk_of_its_own(READ_ONLY, tmp_path / "disk")
    assert "the right to write" in refused


def test_a_store_that_becomes_read_only_can_still_be_read(store: Store) -> None:
    put(store, "t")

    def forbid(raw: sqlite3.Connection, *_: Any) -> None:
        raw.execute("PRAGMA query_only=ON")

    event.listen(store._engine, "checkout", forbid)
    with pytest.raises(StoreReadOnly), store.transaction() as tx:
        tx.put(Tenant(id="u"))
    assert list(store.snapshot().tenants) == ["t"]
    event.remove(store._engine, "checkout", forbid)


# Damaged.


def refuses(file: Path) -> StoreCorrupt:
    """The store refuses to open `file`, and leaves it as it is."""
    before = file.read_bytes()
    with pytest.raises(StoreCorrupt) as caught:
        open_store(file)
    assert file.read_bytes() == before
    assert caught.value.place == str(file)
    assert "restore a backup" in caught.value.mend
    return caught.value


def test_a_damaged_header_is_found_at_open(store: Store, file: Path) -> None:
    fill(store)
    store.close()
    with file.open("r+b") as raw:
        raw.write(b"this is no database, is it? " * 4)
    assert "not a database" in refuses(file).cause


def test_damaged_pages_are_found_at_open(store: Store, file: Path) -> None:
    fill(store)
    store.close()
    size = file.stat().st_size
    with file.open("r+b") as raw:
        for page in range(3, size // 4096, 3):
            raw.seek(page * 4096)
            raw.write(b"\xa5" * 4096)
    refuses(file)


@pytest.mark.parametrize("keep", [0, 100, 4096, 40_000])
def test_a_file_cut_short_is_found_at_open(store: Store, file: Path, keep: int) -> None:
    fill(store)
    store.close()
    os.truncate(file, keep)
    refuses(file)


def test_damage_while_running_is_told(store: Store, file: Path) -> None:
    fill(store)
    store.close()
    store = open_store(file)
    size = file.stat().st_size
    with file.open("r+b") as raw:
        raw.seek(4096)
        raw.write(b"\xa5" * (size - 4096))
    store._engine.dispose()  # what was read before lies in caches
    before = file.read_bytes()
    with pytest.raises(StoreCorrupt, match="restore a backup"):
        store.snapshot()
    with pytest.raises(StoreCorrupt), store.transaction() as tx:
        tx.put(Tenant(id="u"))
    with pytest.raises(StoreCorrupt):
        store.check()
    store.close()
    assert file.read_bytes() == before


def test_a_record_that_is_none_is_told(store: Store, file: Path) -> None:
    put(store, "t")
    connection = sqlite3.connect(file)
    connection.execute("UPDATE tenant SET body = '{\"id\": 5}'")
    connection.execute("UPDATE feed SET kind = 'unicorn'")
    connection.commit()
    connection.close()
    with pytest.raises(StoreCorrupt, match="table tenant"):
        store.snapshot()
    with pytest.raises(StoreCorrupt, match="unicorn"):
        store.changes(0)


def test_a_backup_brings_the_state_back(store: Store, file: Path, tmp_path: Path) -> None:
    fill(store, 50)
    saved = store.snapshot()
    backup(f"sqlite:///{file}", tmp_path / "saved.db")
    store.close()
    file.write_bytes(b"x" * 5_000)
    refuses(file)
    for left in tmp_path.glob("pleach.db-*"):
        left.unlink()
    shutil.copy(tmp_path / "saved.db", file)
    restored = open_store(file)
    assert restored.snapshot() == saved == followed(restored)
    restored.close()


def test_a_backup_of_a_damaged_store_is_refused(store: Store, file: Path, tmp_path: Path) -> None:
    store.close()
    file.write_bytes(b"x" * 5_000)
    with pytest.raises(StoreError):
        backup(f"sqlite:///{file}", tmp_path / "saved.db")
    assert not (tmp_path / "saved.db").exists()


def test_a_damaged_copy_is_no_backup(store: Store, file: Path, tmp_path: Path) -> None:
    fill(store)
    store.close()
    with file.open("r+b") as raw:
        for page in range(3, file.stat().st_size // 4096, 3):
            raw.seek(page * 4096)
            raw.write(b"\xa5" * 4096)
    with pytest.raises(StoreCorrupt):
        backup(f"sqlite:///{file}", tmp_path / "saved.db")
    assert [p.name for p in tmp_path.glob("*saved*")] == []


def test_a_busy_store_is_no_damaged_one(store: Store, file: Path) -> None:
    with store.transaction() as tx:
        tx.put(Tenant(id="t"))
        with pytest.raises(StoreBusy):
            Store.open(f"sqlite:///{file}", busy_timeout_s=0.05)
