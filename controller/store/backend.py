"""What the store asks of the engine that keeps it: the seam between SQLite and PostgreSQL."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection, Engine

from controller.store.bells import Bell


class Bells(Protocol):
    """How the commits of one store wake the consumers of others, and theirs its own."""

    def bell(self, name: str) -> Bell:
        """A new bell, which other stores ring. ValueError where `name` has other than letters,
        digits, _ and -; StoreUnavailable where it cannot be made."""
        ...

    def ring(self) -> None:
        """To be called after each commit that was announced. Never fails."""
        ...

    def close(self) -> None:
        """Close the bells of this store. May be called twice."""
        ...


class Backend(Protocol):
    """One database of one engine.

    Connections know the execution options `write` (this transaction changes something: it is
    the only one that does until it ends) and `durable`; others see one revision throughout.
    """

    busy_timeout_s: float

    @property
    def place(self) -> str:
        """Which database this is, for messages; never with a password."""
        ...

    def open(self, *, make: bool = True) -> Engine:
        """An engine on the database, which is made where there is none and upgraded where it
        is older; without `make`, these are refused. Raises what `Store.open` tells."""
        ...

    def bells(self) -> Bells:
        """The bells of a store that has just been opened."""
        ...

    def errors(self) -> AbstractContextManager[None]:
        """Turns what the engine raises into StoreError."""
        ...

    def writing(self, engine: Engine) -> AbstractContextManager[Connection]:
        """A transaction with `write`, committed when the block ends without exception."""
        ...

    def announce(self, connection: Connection) -> None:
        """Last thing in a transaction that changed something: others are to hear of it."""
        ...

    def checkpoint(self) -> None:
        """Do beside the commits what some commit would else have to do."""
        ...

    def check(self) -> None:
        """Read all of it; raise StoreCorrupt where it is damaged."""
        ...

    def backup(self, path: Path) -> None:
        """Write a consistent copy, an SQLite database, to `path`. StoreError where there is
        such a file already, or it cannot be written."""
        ...
