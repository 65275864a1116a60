"""A PostgreSQL server of Debian's package for tests and benchmarks: in a temporary directory, as
an unprivileged user, on a port of the loopback and a Unix socket of its own.

It ends with whoever started it, also where that is killed: a keeper, which is a shell, stops
the server and removes its files once the pipe to it is closed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg

_KEEPER = """
trap '' INT TERM HUP
cat >/dev/null
[ ! -e "$1/data/postmaster.pid" ] || "$2/pg_ctl" -D "$1/data" -m immediate -s stop
rm -rf "$1"
"""
_TIMEOUT_S = 60.0


class PostgresServer:
    """A server whose superuser is `pleach`; by default every local connection is trusted."""

    def __init__(self, *, durable: bool = False) -> None:
        """Make and start it. Only where it is `durable` does it wait for the disk."""
        self.programs = _programs()
        self.directory = Path(tempfile.mkdtemp(prefix="pleach-postgresql-"))
        self.data = self.directory / "data"
        self.port = _free_port()
        self._names = itertools.count(1)
        # The server refuses to be root; Debian's package has made a user for it.
        self._as: dict[str, Any] = {"cwd": "/"}
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            self._as |= {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
            os.chown(self.directory, owner.pw_uid, owner.pw_gid)
        self._keeper = subprocess.Popen(
            ["sh", "-c", _KEEPER, "keeper", str(self.directory), str(self.programs)],
            stdin=subprocess.PIPE,
            start_new_session=True,
            **self._as,
        )
        try:
            self._make(durable)
            self.start()
        except BaseException:
            self.close()
            raise

    def _make(self, durable: bool) -> None:
        options = ["--username=pleach", "--auth=trust", "--no-sync", "--encoding=UTF8"]
        self._run("initdb", "--pgdata", str(self.data), "--locale=C.UTF-8", *options)
        self.configure(
            listen_addresses="127.0.0.1",
            port=self.port,
            unix_socket_directories=self.directory,
            max_connections=60,
            shared_buffers="32MB",
            fsync="on" if durable else "off",
        )

    def configure(self, **settings: object) -> None:
        """Write settings; `start` or `reload` makes them count."""
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    def start(self) -> None:
        """Start it; return once it takes connections."""
        deadline = time.monotonic() + _TIMEOUT_S
        log = self.directory / "log"
        while True:
            try:
                self._run(
                    "pg_ctl", "start", "-s", "-w", "-t", "180", "-D", str(self.data), "-l", str(log)
                )
                return
            except RuntimeError:
                # Children of one that was killed may still have its memory.
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop it, ending connections."""
        self._run("pg_ctl", "stop", "-s", "-w", "-t", "180", "-D", str(self.data), "-m", "fast")

    def kill(self) -> None:
        """End it as a crash would (SIGKILL); `start` recovers."""
        os.kill(self.pid, signal.SIGKILL)
        while self._listens():
            time.sleep(0.005)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Meanwhile it is there, and says nothing to anybody."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        processes = [self.pid, *map(int, children)]
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        try:
            yield
        finally:
            for process in processes:
                os.kill(process, signal.SIGCONT)

    def reload(self) -> None:
        """Read the settings again."""
        self._run("pg_ctl", "reload", "-s", "-D", str(self.data))

    @property
    def pid(self) -> int:
        """The server's process, parent of all the others."""
        return int((self.data / "postmaster.pid").read_text().split()[0])

    def url(self, database: str, *, user: str = "pleach") -> str:
        """The URL of a database, on the loopback."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def create(self, template: str = "template0", more: str = "") -> str:
        """Make a database as a copy of `template`; returns its name."""
        name = f"pleach{next(self._names)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} {more}")
        return name

    def drop(self, name: str) -> None:
        """Remove a database, whoever is connected to it."""
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """The rows that a statement gives, as superuser."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        """End it and remove its files. May be called twice."""
        if self._keeper.stdin is not None:
            self._keeper.stdin.close()
        self._keeper.wait(_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _run(self, program: str, *words: str) -> None:
        output = self.directory / f"{program}.out"
        with output.open("wb") as out:  # a pipe would be held open by the server itself
            done = subprocess.run(
                [str(self.programs / program), *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                check=False,
                timeout=_TIMEOUT_S,
                start_new_session=True,
                **self._as,
            )
        if done.returncode != 0:
            log = self.directory / "log"
            told = output.read_text() + (log.read_text()[-2_000:] if log.exists() else "")
            raise RuntimeError(f"{program} ended with {done.returncode}: {told}")


def _programs() -> Path:
    """Where the newest version's programs are; FileNotFoundError where there is none."""
    known = {
        int(found.group(1)): path
        for path in Path("/usr/lib/postgresql").glob("*/bin")
        if (found := re.fullmatch(r"(\d+)", path.parent.name)) and (path / "initdb").exists()
    }
    if known:
        return known[max(known)]
    initdb = shutil.which("initdb")
    if initdb is None:
        raise FileNotFoundError("PostgreSQL is missing: apt-get install postgresql")
    return Path(initdb).resolve().parent


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
