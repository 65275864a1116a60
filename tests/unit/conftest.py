"""Databases for the tests of the store: each such test is run on every engine. Logs as they were
after each test."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from databases import Databases

from controller import cli
from controller.store import Store
from tests.postgres import PostgresServer

#: Gives the URL of a store in which nothing is yet, each call another.
NewUrl = Callable[[], str]
#: Takes a command's words and gives its exit code, stdout and stderr.
Command = Callable[..., tuple[int, str, str]]
ENGINES = ["sqlite", "postgresql"]


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """What runs a command here sets up logging for its process, which is that of all tests."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `pleach WORDS` in this process: exit code, stdout, stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pleach", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server that need not survive a crash."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def empty_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite store in which nothing is yet: copying it is quicker than making it."""
    file = tmp_path_factory.mktemp("empty") / "pleach.db"
    Store.open(f"sqlite:///{file}").close()
    return file


@pytest.fixture(scope="session")
def databases(postgres: PostgresServer) -> Databases:
    """Databases with an empty store."""
    return Databases(postgres)


@pytest.fixture(params=ENGINES)
def bare_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without tables (PostgreSQL) or a file (SQLite)."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/pleach.db"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.url(server.create())


@pytest.fixture(params=ENGINES)
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NewUrl]:
    """Gives the URL of a store in which nothing is yet, each call another."""
    made: list[str] = []
    if request.param == "sqlite":
        empty: Path = request.getfixturevalue("empty_file")

        def copied() -> str:
            made.append(f"pleach{len(made) or ''}.db")
            shutil.copy(empty, tmp_path / made[-1])
            return f"sqlite:///{tmp_path}/{made[-1]}"

        yield copied
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    databases: Databases = request.getfixturevalue("databases")

    def taken() -> str:
        made.append(databases.take())
        return server.url(made[-1])

    yield taken
    for name in made:
        databases.give_back(name)


@pytest.fixture
def url(new_url: NewUrl) -> str:
    """One such URL."""
    return new_url()
