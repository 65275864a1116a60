"""Databases for the tests of the store: each such test is run on every engine."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controller.store import Store, schema
from tests.postgres import PostgresServer

#: Gives the URL of a database that nobody has used yet, each call another.
NewUrl = Callable[[], str]
ENGINES = ["sqlite", "postgresql"]


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


class Databases:
    """Databases on PostgreSQL that are used again: to make and drop one takes much longer."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._free: list[str] = []
        self._empty: str | None = None

    def take(self) -> str:
        """The name of one that holds a store in which nothing is yet."""
        if self._free:
            return self._free.pop()
        if self._empty is None:
            # Made for a language that has an order of its own.
            self._empty = self._server.create(more="LOCALE_PROVIDER icu ICU_LOCALE 'en-US'")
            Store.open(self._server.url(self._empty)).close()
        return self._server.create(self._empty)

    def give_back(self, name: str) -> None:
        """Empty it for the next, whoever is connected still."""
        names = ", ".join(table.name for table in schema.metadata.sorted_tables)
        self._server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid(); "
            "CREATE TEMPORARY TABLE started AS SELECT name FROM counter "
            "WHERE name NOT LIKE 'writer.%'; "
            f"TRUNCATE {names} RESTART IDENTITY; "
            "INSERT INTO counter SELECT name, 0 FROM started; DELETE FROM alembic_version; "
            f"INSERT INTO alembic_version VALUES ('{schema.HEAD}')",
            name,
        )
        self._free.append(name)


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
