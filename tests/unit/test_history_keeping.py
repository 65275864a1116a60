"""Crashes, full disks, an engine that is away, damaged files; hours that become files, and days
that become means. Nothing that was acknowledged is lost or told twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pytest
from history_world import (
    DAY,
    HOUR,
    batch,
    handed_on,
    history_in,
    settings_of,
    take,
    victoria,
    wait_until,
)

from controller.history import wal
from controller.history.duck import DuckEngine
from controller.history.errors import (
    HistoryBusy,
    HistoryCorrupt,
    HistoryError,
    HistoryFull,
    HistoryUnavailable,
    StaleSequence,
)
from controller.history.opening import check, opened
from controller.history.packing import Packing
from controller.history.plan import DAY_MS, HOUR_MS, Keep, Kind
from controller.history.samples import Rows
from controller.history.series import Reader
from controller.history.wal import Wal
from controller.model.metrics import Scope

ROOT = Path(__file__).parents[2]

# The log


def test_the_log_tells_what_was_written(tmp_path: Path) -> None:
    log = Wal(tmp_path, segment_bytes=64)
    assert list(log.replay(0)) == []
    assert [log.append([b"a", b"b" * 40]), log.append([b"c" * 40]), log.append([b"d"])] == [2, 3, 4]
    log.close()
    assert len(wal.segments(tmp_path)) == 2
    again = Wal(tmp_path)
    assert list(again.replay(1)) == [(2, b"b" * 40), (3, b"c" * 40), (4, b"d")]
    assert again.append([b"e"]) == 5
    again.forget(3)
    assert [first for first, _ in wal.segments(tmp_path)] == [3, 5]
    again.close()
    assert wal.check(tmp_path) == 3


@pytest.mark.parametrize("cut", range(1, 18))
def test_a_record_that_was_not_finished_is_cut_off(tmp_path: Path, cut: int) -> None:
    log = Wal(tmp_path)
    list(log.replay(0))
    log.append([b"kept"])
    log.append([b"not kept!"])
    log.close()
    ((_, file),) = wal.segments(tmp_path)
    os.truncate(file, file.stat().st_size - cut)
    again = Wal(tmp_path)
    assert [payload for _, payload in again.replay(0)] == [b"kept"]
    assert again.append([b"next"]) == 2
    again.close()
    assert [payload for _, payload in Wal(tmp_path).replay(0)] == [b"kept", b"next"]


def test_damage_that_others_follow_is_told_with_its_place(tmp_path: Path) -> None:
    log = Wal(tmp_path, segment_bytes=1)
    list(log.replay(0))
    for payload in (b"first", b"second", b"third"):
        log.append([payload])
    log.close()
    files = [file for _, file in wal.segments(tmp_path)]
    raw = bytearray(files[1].read_bytes())
    raw[-1] ^= 1
    files[1].write_bytes(raw)
    for read in (lambda: list(Wal(tmp_path).replay(0)), lambda: wal.check(tmp_path)):
        with pytest.raises(HistoryCorrupt) as caught:
            read()
        assert caught.value.place == str(files[1])
    files[1].unlink()
    with pytest.raises(HistoryCorrupt, match="records 2 to 2 are missing"):
        list(Wal(tmp_path).replay(0))


# Crashes

KILLED = """
import sys
sys.path.insert(0, "tests/unit")
from pathlib import Path
from history_world import DAY, HOUR, batch, history_in, take
first = int(sys.argv[2])
with history_in(Path(sys.argv[1]), url=sys.argv[3], flush_s=float(sys.argv[4])) as history:
    for number in range(first, first + 10_000):
        at = DAY + number
        columns = {"cpu": [number % 100 / 100], "net_rx_total": [number * 50.0]}
        take(history, batch(number, [at], columns), DAY + HOUR)
        print(number, flush=True)
"""


@pytest.mark.parametrize("flush_s", [0.01, 60.0])
def test_killed_at_any_moment_nothing_acknowledged_is_lost_or_told_twice(
    tmp_path: Path, flush_s: float
) -> None:
    url = f"duckdb://{tmp_path}/series"
    first = 0
    for count in (3, 60):
        words = [sys.executable, "-c", KILLED, str(tmp_path), str(first), url, str(flush_s)]
        with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if int(line) >= first + count:
                    break
            process.send_signal(signal.SIGKILL)
            told = [int(line) for line in process.stdout if line.endswith("\n")]
        # Sent again from before the end, as by a sender whose reply was lost.
        first = (told[-1] if told else first + count) - 1
    with history_in(tmp_path, url=url) as history:
        found = history.read_metrics("web", ("cpu", "net_rx"), DAY, DAY + HOUR)
        assert len(found["cpu"].times) >= first + 2
        np.testing.assert_array_equal(found["cpu"].times, DAY + np.arange(len(found["cpu"].times)))
        assert found["cpu"].values.tolist() == [
            n % 100 / 100 for n in range(len(found["cpu"].times))
        ]
        assert set(found["net_rx"].values.tolist()) == {50.0}
        assert len(found["net_rx"].times) == len(found["cpu"].times) - 1
        handed_on(history)
    with duckdb.connect(str(tmp_path / "series" / "history.duckdb")) as database:
        rows = sum(
            database.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0]
            for (table,) in database.execute(
                "SELECT table_name FROM duckdb_tables() WHERE table_name LIKE 'hot_vm%'"
            ).fetchall()
        )
        parts = database.execute("SELECT coalesce(sum(rows), 0) FROM part").fetchall()[0][0]
    assert rows + parts == len(found["cpu"].times)


def test_another_process_is_kept_out(tmp_path: Path) -> None:
    with (
        history_in(tmp_path),
        pytest.raises(HistoryUnavailable, match="another process"),
        history_in(tmp_path),
    ):
        pass
    with history_in(tmp_path):
        pass


def test_a_sequence_that_starts_anew_under_the_old_name_is_told(tmp_path: Path) -> None:
    with history_in(tmp_path) as history:
        take(history, batch(5_000, [DAY], {"cpu": [0.1]}))
        with pytest.raises(StaleSequence, match="another name"):
            take(history, batch(1, [DAY + 1], {"cpu": [0.1]}))


# Full disks

FULL = """
import sys
sys.path.insert(0, "tests/unit")
from pathlib import Path
from history_world import DAY, HOUR, batch, handed_on, history_in, take
from controller.history.errors import HistoryFull
place = Path(sys.argv[1])
with history_in(place / "state") as history:
    take(history, batch(0, [DAY], {"cpu": [0.5]}))
    ballast = place / "ballast"
    try:
        ballast.write_bytes(bytes(1 << 30))
    except OSError as error:
        print("full:", error.strerror)
    taken = 1
    try:
        while True:
            columns = {"cpu": [0.5] * 200}
            take(history, batch(taken, [DAY + 200 * taken + n for n in range(200)], columns))
            taken += 1
    except HistoryFull as error:
        print("refused:", error.mend)
    print("told:", len(history.read("web", "cpu", DAY, DAY + 1e6).times) == 1 + 200 * (taken - 1))
    ballast.unlink()
    columns = {"cpu": [0.5] * 200}
    take(history, batch(taken, [DAY + 200 * taken + n for n in range(200)], columns))
    handed_on(history)
with history_in(place / "state") as history:
    print("kept:", len(history.read("web", "cpu", DAY, DAY + 1e6).times) == 1 + 200 * taken)
"""


def test_a_full_disk(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root; the bound of free bytes is tested below")
    disk = tmp_path / "disk"
    disk.mkdir()
    inside = 'mount -t tmpfs -o size=24m none "$1" && exec "$2" -c "$3" "$1"'
    words = ["unshare", "--mount", "sh", "-c", inside, "sh", str(disk), sys.executable, FULL]
    done = subprocess.run(words, cwd=ROOT, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "full: No space left on device",
        "refused: make room on this disk, or lower history.max_bytes",
        "told: True",
        "kept: True",
    ]


def test_bytes_are_left_to_others(tmp_path: Path) -> None:
    with history_in(tmp_path, min_free_bytes=1 << 60) as history:
        with pytest.raises(HistoryFull, match="are left to others"):
            take(history, batch(1, [DAY], {"cpu": [0.1]}))
        assert len(history.read("web", "cpu", DAY, DAY + 1).times) == 0
    with history_in(tmp_path) as history:  # the number was not used up
        assert take(history, batch(1, [DAY], {"cpu": [0.1]})).outcome == "taken"


def test_a_batch_that_could_not_be_kept_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with history_in(tmp_path) as history:
        take(history, batch(1, [DAY], {"net_rx_total": [100.0]}))

        def fail(_: int) -> None:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as broken:
            broken.setattr(os, "fdatasync", fail)
            with pytest.raises(HistoryUnavailable, match="Input/output"):
                take(history, batch(2, [DAY + 10], {"net_rx_total": [500.0]}))
        take(history, batch(2, [DAY + 10], {"net_rx_total": [200.0]}))
        assert history.read("web", "net_rx", DAY, DAY + HOUR).values.tolist() == [10.0]
    with history_in(tmp_path) as history:
        assert history.read("web", "net_rx", DAY, DAY + HOUR).values.tolist() == [10.0]


# An engine that is away


def test_what_waits_for_victoriametrics_is_kept_and_bounded(tmp_path: Path, free_port: int) -> None:
    url = f"victoriametrics://127.0.0.1:{free_port}"
    now = 1_600_000_000.0

    def one(number: int) -> None:
        columns = {"cpu": [number / 10_000]}
        take(history, batch(number, [now + number], columns), now + number)

    def many() -> None:
        for number in range(2_000):
            one(number)

    with history_in(tmp_path / "state", url=url, queue_values=1_000) as history:
        with pytest.raises(HistoryBusy, match="values wait for the engine"):
            many()
        wait_until(lambda: history.status().trouble, "the keeper has noticed")
        assert "cannot be reached" in str(history.status().trouble)
        with pytest.raises(HistoryUnavailable, match="cannot be reached"):
            history.read("web", "cpu", now, now + 1)
    # Neither a restart loses it, nor does the bound hold back what was acknowledged.
    with (
        history_in(tmp_path / "state", url=url, queue_values=1_000) as history,
        victoria(tmp_path, free_port),
    ):
        handed_on(history)
        wait_until(lambda: history.status().trouble is None, "the keeper is glad")
        values = history.read("web", "cpu", now, now + HOUR).values
        np.testing.assert_allclose(values, np.arange(len(values)) / 10_000)
        assert len(values) >= 1_000
        one(len(values))


# Files

KEEP = Keep({Kind.RAW: 3 * DAY_MS, Kind.FIVE: 10 * DAY_MS, Kind.HOUR: 100 * DAY_MS}, 1 << 40)


class Packed:
    """An engine whose clock is set by hand."""

    def __init__(self, directory: Path, keep: Keep = KEEP) -> None:
        packing = Packing(600_000, DAY_MS, keep)
        self.directory = directory
        self.engine = DuckEngine(directory, packing, memory_bytes=64 << 20, threads=1)
        self.reader = Reader(lambda query: self.engine.scan(query)[1])
        self.position = self.engine.position

    def write(self, begin: float, count: int, *, step: float = 60, vms: int = 3) -> None:
        """Each VM's samples: VM n at minute m has n + m / 10,000 cores."""
        times = np.round((begin + step * np.arange(count)) * 1000).astype(np.int64)
        names = tuple(f"vm{n}" for n in range(vms))
        codes = np.repeat(np.arange(vms, dtype=np.int32), count)
        minutes = (np.tile(times, vms) - round(DAY * 1000)) / 60_000
        values = (codes + minutes / 10_000)[:, None]
        rows = Rows(Scope.VM, names, codes, np.tile(times, vms), ("cpu_cores",), values)
        self.position += 1
        self.engine.write([rows], self.position)

    def house(self, now: float) -> None:
        """Do all that is due, an hour after all came to rest."""
        self.engine.keep_house(now - HOUR)
        while self.engine.keep_house(now):
            pass

    def files(self, kind: Kind) -> list[str]:
        """What is there of a kind."""
        return sorted(file.name for file in (self.directory / kind.value).iterdir())

    def whole(self, begin: float, count: int, vm: int = 1) -> bool:
        """Whether every sample of a VM is told, once."""
        found = self.reader.read(f"vm{vm}", "cpu_cores", begin, begin + 60 * count)
        np.testing.assert_allclose(found.times, begin + 60 * np.arange(count))
        minutes = (found.times - DAY) / 60
        np.testing.assert_allclose(found.values, vm + minutes / 10_000)
        return True


@pytest.fixture
def packed(tmp_path: Path) -> Packed:
    return Packed(tmp_path / "series")


def test_hours_become_files_and_files_are_joined(packed: Packed) -> None:
    packed.write(DAY, 7 * 60 + 30)
    assert packed.whole(DAY, 7 * 60 + 30)
    packed.house(DAY + 7.5 * HOUR)
    assert [name.split("-")[2] for name in packed.files(Kind.RAW)] != []
    assert packed.engine.status().unpacked_hours == 1
    assert packed.whole(DAY, 7 * 60 + 30)
    packed.house(DAY + 7.6 * HOUR)
    kept = packed.engine.status()
    assert (kept.oldest, kept.newest) == (DAY, DAY + 8 * HOUR)
    assert packed.engine.check() == []


def test_an_hour_that_is_not_at_rest_is_left(packed: Packed) -> None:
    packed.write(DAY, 60)
    assert not packed.engine.keep_house(DAY + HOUR + 599)
    assert packed.files(Kind.RAW) == []
    packed.write(DAY + 30, 10)  # late ones: it has to come to rest again
    while packed.engine.keep_house(DAY + HOUR + 601):
        pass
    assert packed.files(Kind.RAW) == []
    packed.house(DAY + 3 * HOUR)
    assert len(packed.files(Kind.RAW)) == 1


def test_late_samples_of_a_packed_hour_are_told_with_the_others(packed: Packed) -> None:
    packed.write(DAY, 60, step=120)
    packed.house(DAY + 4 * HOUR)
    packed.write(DAY + 60, 60, step=120)
    assert packed.whole(DAY, 120)
    packed.house(DAY + 8 * HOUR)
    assert packed.engine.status().unpacked_hours == 0
    assert packed.whole(DAY, 120)
    packed.write(DAY + 120 * 60, 60)
    packed.house(DAY + 12 * HOUR)
    assert packed.whole(DAY, 180)
    assert packed.engine.check() == []


def test_a_day_that_is_over_has_means_and_its_samples_go(packed: Packed) -> None:
    packed.write(DAY, 24 * 60)
    packed.house(DAY + 2.1 * 86_400)
    assert len(packed.files(Kind.FIVE)) == len(packed.files(Kind.HOUR)) == 1
    span = (DAY, DAY + 86_400)
    before = {
        (step, how): packed.reader.read("vm2", "cpu_cores", *span, step, how).values
        for step in (60, 300, 900, 3_600, 7_200)
        for how in ("mean", "max")
    }
    samples = 2 + np.arange(1_440) / 10_000
    for (step, how), values in before.items():
        cells = samples.reshape(-1, step // 60)
        expected = cells.mean(axis=1) if how == "mean" else cells.max(axis=1)
        np.testing.assert_allclose(values, expected)
    packed.house(DAY + 5 * 86_400)
    packed.house(DAY + 5 * 86_400 + 100)  # replaced files stay for a while
    assert packed.files(Kind.RAW) == []
    for (step, how), values in before.items():
        if step >= 300:
            found = packed.reader.read("vm2", "cpu_cores", *span, step, how).values
            np.testing.assert_allclose(found, values)
    found = packed.reader.read("vm2", "cpu_cores", *span)
    np.testing.assert_allclose(found.times, DAY + 300 * np.arange(288))
    packed.house(DAY + 12 * 86_400)
    packed.house(DAY + 12 * 86_400 + 100)
    assert packed.files(Kind.FIVE) == []
    assert len(packed.reader.read("vm2", "cpu_cores", *span).times) == 24
    many = packed.reader.read_many("cpu_cores", *span, 3_600)
    assert many.subjects == ("vm0", "vm1", "vm2")
    np.testing.assert_allclose(many.values[2], before[3_600, "mean"])


def test_means_weigh_each_sample_the_same(packed: Packed) -> None:
    packed.write(DAY, 1, vms=1)
    packed.write(DAY + 600, 9, vms=1)
    packed.house(DAY + 3 * 86_400)
    assert len(packed.files(Kind.HOUR)) == 1
    values = np.array([0, *range(10, 19)]) / 10_000
    for step in (900, 3_600):
        found = packed.reader.read("vm0", "cpu_cores", DAY, DAY + HOUR, step)
        inside = values[:6] if step == 900 else values
        assert found.values[0] == pytest.approx(inside.mean())


def test_too_many_bytes_go_from_the_oldest_on(tmp_path: Path) -> None:
    packed = Packed(tmp_path / "series", Keep(KEEP.ages, 1))
    for day in range(2):
        packed.write(DAY + day * 86_400, 24 * 60)
    now = DAY + 3.5 * 86_400
    packed.house(now)
    packed.house(now + 100)
    assert [packed.files(kind) for kind in Kind] == [[], [], []]
    assert len(packed.reader.read("vm1", "cpu_cores", DAY, now).times) == 0


def test_a_lost_database_takes_the_files_over(packed: Packed) -> None:
    packed.write(DAY, 8 * 60)
    packed.house(DAY + 10 * HOUR)
    packed.engine.close()
    (packed.directory / "history.duckdb").unlink()
    again = Packed(packed.directory)
    assert again.whole(DAY, 8 * 60)
    assert again.engine.check() == []


def test_files_of_an_interrupted_packing_are_removed(packed: Packed) -> None:
    packed.write(DAY, 60)
    packed.house(DAY + 3 * HOUR)
    packed.engine.close()
    (name,) = packed.files(Kind.RAW)
    raw = packed.directory / "raw"
    stray = raw / (name[: -len("00.parquet")] + "99.parquet")
    stray.write_bytes((raw / name).read_bytes())
    (raw / "vm.tmp").write_bytes(b"half")
    again = Packed(packed.directory)
    assert again.files(Kind.RAW) == [name]
    assert again.whole(DAY, 60)


@pytest.mark.parametrize("damage", [lambda f: f.write_bytes(b"PAR1 no"), lambda f: f.unlink()])
def test_damaged_files_are_told(packed: Packed, damage: Callable[[Path], object]) -> None:
    packed.write(DAY, 60)
    packed.house(DAY + 3 * HOUR)
    packed.engine.close()
    (name,) = packed.files(Kind.RAW)
    damage(packed.directory / "raw" / name)
    again = Packed(packed.directory)
    (wrong,) = again.engine.check()
    assert name in wrong
    with pytest.raises(HistoryCorrupt, match=name):
        again.reader.read("vm1", "cpu_cores", DAY, DAY + HOUR)


def test_a_database_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "history.duckdb").write_bytes(b"no database" * 1_000)
    with pytest.raises(HistoryError) as caught:
        Packed(tmp_path)
    assert caught.value.place.endswith("history.duckdb")


def test_a_new_metric_gets_its_column(packed: Packed) -> None:
    packed.write(DAY, 10)
    packed.engine.close()
    with duckdb.connect(str(packed.directory / "history.duckdb")) as database:
        table = f"hot_vm_{round(DAY * 1000) // HOUR_MS}"
        database.execute(f"ALTER TABLE {table} DROP COLUMN memory")
    again = Packed(packed.directory)
    assert again.whole(DAY, 10)
    assert len(again.reader.read("vm1", "memory", DAY, DAY + HOUR).times) == 0


def test_reading_goes_on_while_hours_are_packed(packed: Packed) -> None:
    packed.write(DAY, 12 * 60)
    failures: list[BaseException] = []
    ended = threading.Event()

    def read() -> None:
        try:
            while not ended.is_set():
                packed.whole(DAY, 12 * 60)
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    packed.house(DAY + 20 * HOUR)
    ended.set()
    for reader in readers:
        reader.join()
    assert failures == []


# Checking


def test_a_history_is_checked_while_nobody_has_it(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    with pytest.raises(HistoryUnavailable, match="nothing was kept here"):
        check(settings)
    with opened(settings) as history:
        take(history, batch(1, [DAY], {"cpu": [0.1]}))
        with pytest.raises(HistoryUnavailable, match="another process"):
            check(settings)
    assert check(settings) == []
    for _, file in wal.segments(tmp_path / "history" / "log"):
        file.write_bytes(b"nothing of ours")
    (tmp_path / "history" / "log" / f"{9:020d}.wal").write_bytes(b"pleachw1")
    (wrong,) = check(settings)
    assert "is damaged" in wrong
