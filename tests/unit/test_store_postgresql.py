"""PostgreSQL that refuses, restarts, is killed, is read-only, or breaks the connection in the
middle of a commit: a clear error, never half a transaction, and work goes on by itself."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from databases import Databases

from controller.model.nouns import Tenant
from controller.store import (
    OutcomeUnknown,
    Store,
    StoreBusy,
    StoreCorrupt,
    StoreFull,
    StoreReadOnly,
    StoreUnavailable,
    postgresql,
    postgresql_connection,
    postgresql_errors,
)
from mininet_labs.deployment import wait_until
from tests.postgres import PostgresServer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def url(postgres: PostgresServer, databases: Databases) -> Iterator[str]:
    name = databases.take()
    yield postgres.url(name)
    databases.give_back(name)


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with closing(Store.open(url, busy_timeout_s=2)) as store:
        yield store


def put(store: Store, name: str = "", key: str = "t") -> int:
    with store.transaction() as tx:
        tx.put(Tenant(id=key, name=name))
    return tx.revision


def names(store: Store) -> dict[str, str]:
    return {key: tenant.name for key, tenant in store.snapshot().tenants.items()}


def until_written(store: Store, name: str) -> None:
    """Write as soon as the server lets one."""
    until_done(lambda: put(store, name))


def until_done(work: Callable[[], object]) -> None:
    """Do what the server refuses for a while."""

    def done() -> bool:
        try:
            work()
        except (StoreUnavailable, StoreReadOnly):
            return False
        return True

    wait_until(done, "the server lets it be done")


# A server that is away.


def test_a_server_that_restarts_is_ridden_out(
    store: Store, url: str, postgres: PostgresServer
) -> None:
    with closing(Store.open(url)) as other:
        bell = other.bell("consumer")
        put(store, "before")
        assert bell.wait(30)
        postgres.stop()
        with pytest.raises(StoreUnavailable) as refused:
            put(store, "lost")
        assert refused.value.place == url
        assert "refused" in refused.value.cause
        assert "goes on by itself" in refused.value.mend
        with pytest.raises(StoreUnavailable):
            other.changes(0)
        with pytest.raises(StoreUnavailable, match="refused"):
            Store.open(url)
        postgres.start()
        until_written(store, "after")
        until_done(lambda: names(other))
        assert names(other) == {"t": "after"}
        # Whoever listens does so again, and is told of what it cannot have heard.
        assert bell.wait(30)
        wait_until(lambda: not bell.wait(0.2), "it is quiet")
        put(store, "later")
        assert bell.wait(30)
        assert [change.revision for change in other.changes(1)] == [2, 3]


def test_a_server_that_is_killed_loses_nothing(store: Store, postgres: PostgresServer) -> None:
    put(store, "kept")

    def torn() -> None:
        with store.transaction() as tx:
            tx.put(Tenant(id="half"))
            postgres.kill()
            tx.put(Tenant(id="other half"))

    with pytest.raises(StoreUnavailable):
        torn()
    postgres.start()
    until_written(store, "on")
    assert names(store) == {"t": "on"}
    assert store.revision == 2
    store.check()


def test_connections_that_were_cut_while_idle_are_not_met(
    store: Store, url: str, postgres: PostgresServer
) -> None:
    for n in range(3):
        put(store, str(n))
        store.snapshot()
        postgres.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            f"WHERE datname = '{url.rpartition('/')[2]}'"
        )
    assert put(store, "x") == 4


def test_a_server_that_is_away_is_not_asked_by_everybody(
    url: str, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def refuse(*_: object) -> None:
        tried.append(1)
        raise psycopg.OperationalError("Connection refused")

    with closing(Store.open(url)) as store:
        store._engine.dispose()
        monkeypatch.setattr(postgresql, "connect", refuse)
        monkeypatch.setattr(postgresql, "_FIRST_PAUSE_S", 60.0)
        monkeypatch.setattr(postgresql, "_LONGEST_PAUSE_S", 60.0)
        for _ in range(5):
            with pytest.raises(StoreUnavailable, match="Connection refused"):
                store.snapshot()
        assert len(tried) == 1


def test_a_server_that_does_not_answer_is_given_up(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql_connection, "ANSWER_S", -1.8)
    store._engine.dispose()
    put(store, "x")
    with store._engine.connect() as connection:
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(StoreUnavailable, match=r"did not answer for 0\.2 s"):
            put(store, "y")
    finally:
        os.kill(pid, signal.SIGCONT)
    put(store, "z")
    assert names(store) == {"t": "z"}


# Commits whose connection breaks.


class Cutter:
    """A proxy that cuts the connection when a COMMIT passes: before it, or before its answer."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        #: What happens at the next COMMIT.
        self.cut: str | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self._to))
        with client, server:
            while True:
                ready, _, _ = select.select([client, server], [], [])
                if server in ready:
                    data = server.recv(65_536)
                    if not data:
                        return
                    client.sendall(data)
                if client in ready:
                    data = client.recv(65_536)
                    if not data:
                        return
                    if data.endswith(b"COMMIT\0") and self.cut is not None:
                        if self.cut.startswith("after"):
                            server.sendall(data)
                            server.recv(1)  # it is done
                        if self.cut.endswith("for good"):
                            self.close()
                        self.cut = None
                        return
                    server.sendall(data)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # it was closed before
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


@pytest.fixture
def cutter(postgres: PostgresServer) -> Iterator[Cutter]:
    made = Cutter(postgres.port)
    yield made
    made.close()


@pytest.fixture
def through(cutter: Cutter, url: str, postgres: PostgresServer) -> Iterator[Store]:
    """The store as seen through the proxy."""
    cut = url.replace(f":{postgres.port}/", f":{cutter.port}/")
    with closing(Store.open(f"{cut}?sslmode=disable", busy_timeout_s=2)) as store:
        put(store, "first")
        yield store


def test_a_commit_that_was_kept_counts_though_nobody_answered(
    through: Store, cutter: Cutter, store: Store
) -> None:
    cutter.cut = "after"
    assert put(through, "kept") == 2
    assert names(store) == {"t": "kept"}
    assert put(through, "next") == 3


def test_a_commit_that_did_not_arrive_is_told(through: Store, cutter: Cutter, store: Store) -> None:
    cutter.cut = "before"
    with pytest.raises(StoreUnavailable, match="nothing was kept") as refused:
        put(through, "lost")
    assert not isinstance(refused.value, OutcomeUnknown)
    assert names(store) == {"t": "first"}
    assert put(through, "next") == 2


@pytest.mark.parametrize("kept", [True, False])
def test_a_commit_of_which_nothing_can_be_learnt_is_told_so(
    through: Store, cutter: Cutter, store: Store, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    monkeypatch.setattr(postgresql, "SETTLE_S", 0.2)
    cutter.cut = "after, for good" if kept else "before, for good"
    with pytest.raises(OutcomeUnknown, match="whether it was kept cannot be seen") as refused:
        put(through, "perhaps")
    assert "receipt" in refused.value.mend
    assert names(store) == {"t": "perhaps" if kept else "first"}


def test_an_ended_transaction_is_never_taken_for_committed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swallowed() -> None:
        with store.transaction() as tx:
            tx.put(Tenant(id="lost"))
            with pytest.raises(Exception, match="does not exist"):
                tx._connection.exec_driver_sql("SELECT nothing FROM nowhere")
            # What finishes a transaction would notice; the commit must as well.
            monkeypatch.setattr(tx, "finish", lambda: setattr(tx, "dirty", False))

    with pytest.raises(StoreUnavailable, match="had ended before"):
        swallowed()
    assert names(store) == {}


def test_marks_of_writers_of_long_ago_go(store: Store, url: str, postgres: PostgresServer) -> None:
    database = url.rpartition("/")[2]
    postgres.execute("INSERT INTO counter VALUES ('writer.old', 5)", database)
    put(store)
    rows = postgres.execute("SELECT name FROM counter WHERE name LIKE 'writer.%'", database)
    assert len(rows) == 1
    assert rows != [("writer.old",)]


# Refusals.


def refused_open(url: str) -> StoreUnavailable:
    with pytest.raises(StoreUnavailable) as caught:
        Store.open(url)
    return caught.value


def test_wrong_password_user_and_database(url: str, postgres: PostgresServer) -> None:
    at = f"127.0.0.1:{postgres.port}"
    hba = postgres.data / "pg_hba.conf"
    trusting = hba.read_text()
    postgres.execute("CREATE ROLE guarded LOGIN PASSWORD 'right'")
    hba.write_text(f"host all guarded 127.0.0.1/32 scram-sha-256\n{trusting}")
    postgres.reload()
    database = url.rpartition("/")[2]

    def mind() -> bool:
        try:
            psycopg.connect(f"postgresql://guarded@{at}/{database}").close()
        except psycopg.OperationalError:
            return True
        return False

    wait_until(mind, "passwords are asked for")
    try:
        for wrong in ("guarded:s3cret@", "guarded@", "absent@"):
            error = refused_open(f"postgresql://{wrong}{at}/{database}")
            assert "correct user and password" in error.mend
            assert "s3cret" not in str(error)
        error = refused_open(f"postgresql://pleach@{at}/absent")
        assert "does not exist" in error.cause
        assert "createdb" in error.mend
    finally:
        hba.write_text(trusting)
        postgres.reload()
        postgres.execute("DROP ROLE guarded")


def test_passwords_come_from_files_and_the_environment(
    url: str, postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hba = postgres.data / "pg_hba.conf"
    trusting = hba.read_text()
    database = url.rpartition("/")[2]
    owner = f"ALTER DATABASE {database} OWNER TO filed"
    postgres.execute("CREATE ROLE filed LOGIN SUPERUSER PASSWORD 'of a file'")
    postgres.execute(owner)
    hba.write_text(f"host all filed 127.0.0.1/32 scram-sha-256\n{trusting}")
    postgres.reload()
    file = tmp_path / "pgpass"
    file.write_text("*:*:*:filed:of a file\n")
    file.chmod(0o600)
    plain = f"postgresql://filed@127.0.0.1:{postgres.port}/{database}"

    def mind() -> bool:
        try:
            psycopg.connect(plain).close()
        except psycopg.OperationalError:
            return True
        return False

    wait_until(mind, "passwords are asked for")
    try:
        Store.open(f"{plain}?passfile={file}").close()
        monkeypatch.setenv("PGPASSFILE", str(file))
        Store.open(plain).close()
        monkeypatch.delenv("PGPASSFILE")
        monkeypatch.setenv("PGPASSWORD", "of a file")
        Store.open(plain).close()
        monkeypatch.setenv("PGPASSWORD", "wrong")
        assert "password" in refused_open(plain).cause
    finally:
        hba.write_text(trusting)
        postgres.reload()
        postgres.execute(owner.replace("filed", "pleach"))
        postgres.execute("DROP ROLE filed")


def test_too_many_connections(url: str, postgres: PostgresServer) -> None:
    database = url.rpartition("/")[2]
    postgres.execute("CREATE ROLE crowded LOGIN CONNECTION LIMIT 1")
    try:
        at = f"postgresql://crowded@127.0.0.1:{postgres.port}/{database}"
        with psycopg.connect(at):
            error = refused_open(at)
        assert "too many connections" in error.cause
        assert "max_connections" in error.mend
    finally:
        postgres.execute("DROP ROLE crowded")


def test_a_user_without_rights(url: str, postgres: PostgresServer) -> None:
    postgres.execute("CREATE ROLE weak LOGIN")
    try:
        with pytest.raises(StoreReadOnly, match="GRANT"):
            Store.open(url.replace("pleach@", "weak@"))
        with pytest.raises(StoreReadOnly, match="GRANT"):
            Store.open(postgres.url("postgres", user="weak"))
    finally:
        postgres.execute("DROP ROLE weak")


@pytest.mark.parametrize(
    ("url", "cause", "mend"),
    [
        ("postgresql://u:s3cret@127.0.0.1:1/d", "refused", "server runs"),
        ("postgresql://u:s3cret@/d?host=/nowhere", "No such file", "server runs"),
        ("postgresql://u:s3cret@absent.invalid/d", "resolve host", "correct the host"),
        ("postgresql://u:s3%cret@h/d", "%XX", "postgresql://user@host"),
        ("postgresql://u:s3cret@h/d?nonsense=1", "nonsense", "postgresql://user@host"),
        ("postgresql+asyncpg://u:s3cret@h/d", "no such engine", "postgresql://user@host"),
    ],
)
def test_urls_that_lead_nowhere(url: str, cause: str, mend: str) -> None:
    error = refused_open(url)
    assert cause in error.cause
    assert mend in error.mend
    assert "s3" not in str(error)


def test_a_unix_socket_is_reached(postgres: PostgresServer, url: str) -> None:
    database = url.rpartition("/")[2]
    folder = str(postgres.directory)
    for at in (
        f"postgresql:///{database}?host={folder}&port={postgres.port}&user=pleach",
        f"postgresql+psycopg://pleach@{folder.replace('/', '%2F')}:{postgres.port}/{database}",
    ):
        with closing(Store.open(at)) as store:
            assert store.revision == 0


# Read-only.


def test_a_database_that_is_read_only_for_now(
    store: Store, url: str, postgres: PostgresServer
) -> None:
    put(store, "before")
    forbidden = f"ALTER DATABASE {url.rpartition('/')[2]} SET default_transaction_read_only = on"
    postgres.execute(forbidden)
    store._engine.dispose()
    for _ in range(2):
        with pytest.raises(StoreReadOnly, match="default_transaction_read_only") as refused:
            put(store, "refused")
    assert refused.value.place == url
    assert names(store) == {"t": "before"}
    with closing(Store.open(url)) as reader:
        assert reader.revision == 1
    # By who may: superusers write all the same where they say so.
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.execute(forbidden.replace("= on", "= off").encode())
    # Connections from before are still read-only; the first who tries replaces them.
    until_written(store, "after")
    assert names(store) == {"t": "after"}


def test_a_hot_standby_can_be_read(store: Store, url: str, postgres: PostgresServer) -> None:
    put(store, "before")
    postgres.stop()
    signal_file = postgres.data / "standby.signal"
    signal_file.touch()
    signal_file.chmod(0o644)
    postgres.start()
    try:
        with closing(Store.open(url)) as standby:
            assert names(standby) == {"t": "before"}
            with pytest.raises(StoreReadOnly, match="hot standby") as refused:
                put(standby, "refused")
            assert "target_session_attrs=read-write" in refused.value.mend
            standby.check()
        assert "primary" in refused_open(f"{url}?target_session_attrs=primary").mend
    finally:
        postgres.stop()
        signal_file.unlink()
        postgres.start()
    until_written(store, "after")


# What the server says, by SQLSTATE.


@pytest.mark.parametrize(
    ("error", "kind", "mend"),
    [
        (psycopg.errors.DiskFull("no space"), StoreFull, "make room"),
        (psycopg.errors.DataCorrupted("bad page"), StoreCorrupt, "backup"),
        (psycopg.errors.QueryCanceled("timeout"), StoreBusy, "statement_timeout"),
        (psycopg.errors.DeadlockDetected("deadlock"), StoreBusy, "try again"),
        (psycopg.errors.OutOfMemory("memory"), StoreUnavailable, "memory"),
        (psycopg.errors.CrashShutdown("crash"), StoreUnavailable, "by itself"),
        (psycopg.OperationalError("FATAL: the database system is starting up"),
         StoreUnavailable, "wait"),
        (psycopg.OperationalError("FATAL: sorry, too many clients already"),
         StoreUnavailable, "max_connections"),
        (psycopg.OperationalError("SSL error: certificate verify failed"),
         StoreUnavailable, "sslrootcert"),
        (psycopg.OperationalError(""), StoreUnavailable, "by itself"),
    ],
)  # fmt: skip
def test_each_refusal_has_its_mend(error: psycopg.Error, kind: type, mend: str) -> None:
    told = postgresql_errors.translated("place", error, 1.0)
    assert type(told) is kind
    assert told.place == "place"
    assert told.cause
    assert mend in told.mend


# Beside other things.


GREEN = """
import eventlet
eventlet.monkey_patch()
import socket, sys, time
from controller.model.nouns import Tenant
from controller.store import Store, StoreUnavailable

store = Store.open(sys.argv[1])
ticks = 0

def tick():
    global ticks
    while True:
        ticks += 1
        eventlet.sleep(0.002)

def going_on(slow):
    global ticks
    ticks = 0
    slow()
    assert ticks > 2, ticks

eventlet.spawn(tick)

def query():
    with store._engine.begin() as connection:
        connection.exec_driver_sql("SELECT pg_sleep(0.3)")

def rows():
    with store._engine.begin() as connection:
        found = connection.exec_driver_sql(
            "SELECT repeat('x', 9000), pg_sleep(0.001) FROM generate_series(1, 200)").all()
    assert len(found) == 200

def connecting():
    # A server that takes the connection, and says nothing.
    deaf = socket.create_server(("127.0.0.1", 0))
    try:
        Store.open(f"postgresql://u@127.0.0.1:{deaf.getsockname()[1]}/d?connect_timeout=2")
    except StoreUnavailable as error:
        assert "timeout" in str(error), error
    else:
        raise AssertionError

def waiting():
    assert not store.bell("b").wait(0.3)

for slow in (query, rows, connecting, waiting):
    going_on(slow)
store.close()
print("green")
"""


def test_a_slow_server_holds_up_no_greenthread(url: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", GREEN, url]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"green\n"), done.stderr.decode()


def test_revisions_are_seen_in_their_order_by_all(url: str) -> None:
    """While several write, whoever reads never sees a revision before all that precede it."""
    stores = [Store.open(url) for _ in range(4)]
    failed: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def write(store: Store, key: str) -> None:
        for n in range(25):
            with store.transaction() as tx:
                tx.put(Tenant(id=f"{key}{n}"))
                tx.put(Tenant(id=f"{key}{n}", name="again"))

    def read(store: Store) -> None:
        at = 0
        while at < 150:
            changes = store.changes(at, 7)
            assert [change.revision for change in changes] == list(
                range(at + 1, at + 1 + len(changes))
            )
            at += len(changes)
            snapshot = store.snapshot()
            assert sum(1 + bool(t.name) for t in snapshot.tenants.values()) == snapshot.revision

    threads = [guarded(lambda s=s, k=k: write(s, k)) for s, k in zip(stores, "abc", strict=False)]
    threads.append(guarded(lambda: read(stores[3])))
    for thread in threads:
        thread.join()
    for store in stores:
        store.close()
    assert failed == []


def test_a_server_ends_with_whoever_started_it() -> None:
    script = (
        "import os, signal\nfrom tests.postgres import PostgresServer\n"
        "server = PostgresServer()\nprint(server.directory, server.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, check=False, capture_output=True, text=True
    )
    directory, pid = done.stdout.split()
    wait_until(lambda: not Path(directory).exists(), "its files are gone", 60)
    assert not Path(f"/proc/{pid}/exe").exists()
