"""Databases on PostgreSQL for the tests of the store."""

from __future__ import annotations

from controller.store import Store, schema
from tests.postgres import PostgresServer


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
