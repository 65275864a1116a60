"""One connection to PostgreSQL: how it waits, what it takes for a commit, how long it is borne.

Under eventlet, psycopg's own waiting (in C) would hold up every other greenthread; there it
waits in Python by eventlet's `select`.
"""

from __future__ import annotations

import select
from typing import Any, TypeVar

import psycopg
from psycopg import waiting
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus

from controller.settings import masked
from controller.store.errors import StoreUnavailable

T = TypeVar("T")

#: Seconds after which a server that is connected and does not answer counts as lost, beside
#: those for which it may keep somebody waiting for a lock.
ANSWER_S = 30.0
#: Seconds after which the server ends a transaction in which nothing comes from its writer any
#: more, so that a writer whose machine is gone does not keep others from writing.
IDLE_S = 60

#: What the URL does not say itself: a server that is gone is noticed within half a minute, and
#: no ticket of Kerberos is looked for, which can take seconds.
_DEFAULTS = {
    "fallback_application_name": "pleach",
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
    "gssencmode": "disable",
    "client_encoding": "utf8",
}


class PostgresqlConnection(psycopg.Connection[Any]):
    """A connection in autocommit mode: transactions are begun by a statement."""

    #: Seconds to wait for an answer.
    patience_s = ANSWER_S
    #: A statement that goes to the server with the next COMMIT, in one message.
    last_words = ""

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Wait for the server; others go on meanwhile. OperationalError, and the connection
        closed, where it does not answer for `patience_s`."""
        limit = self.patience_s if timeout is None else timeout
        try:
            if hasattr(select, "poll"):
                return super().wait(gen, interval, limit)
            return waiting.wait_select(gen, self.pgconn.socket, interval, limit)
        except psycopg.errors._WaitTimeout:
            if timeout is not None:
                raise
            self.close()
            cause = f"the server is connected and did not answer for {limit:g} s"
            raise psycopg.OperationalError(cause) from None

    def commit(self) -> None:
        """Commit. The server would answer COMMIT also where an error had ended the transaction,
        and then keep nothing: this raises OperationalError instead."""
        status = self.pgconn.transaction_status
        if status in (TransactionStatus.INERROR, TransactionStatus.IDLE):
            self.rollback()
            raise psycopg.OperationalError("the transaction had ended before it was committed")
        words, self.last_words = self.last_words, ""
        if words:
            self.execute(f"{words}; COMMIT".encode(), prepare=False)
        else:
            super().commit()

    def rollback(self) -> None:
        """Take all back."""
        self.last_words = ""
        super().rollback()


def parameters(url: str) -> dict[str, Any]:
    """What `url`, a connection URI of libpq, says, and what it leaves to us.

    Raises StoreUnavailable where it is none."""
    scheme, _, rest = url.partition("://")
    place, mend = f"store.url {masked(url)}", "write postgresql://user@host/database"
    if scheme not in ("postgresql", "postgresql+psycopg"):
        raise StoreUnavailable(place, f"there is no such engine as {scheme}", mend)
    try:
        said = conninfo_to_dict(f"postgresql://{rest}")
    except psycopg.ProgrammingError as error:
        cause = str(error).strip()
        if any(part and part in rest.rpartition("@")[0] for part in cause.split('"')[1::2]):
            cause = "user or password have characters that must be written as %XX"
        raise StoreUnavailable(place, cause, mend) from None
    return {**_DEFAULTS, **said}


def connect(said: dict[str, Any], lock_timeout_s: float) -> PostgresqlConnection:
    """A connection by what `parameters` gave. psycopg.Error where there is none."""
    connection = PostgresqlConnection.connect(**said, autocommit=True)
    connection.patience_s = ANSWER_S + lock_timeout_s
    try:
        connection.execute(
            f"SET lock_timeout = {max(1, int(lock_timeout_s * 1000))}; "
            f"SET idle_in_transaction_session_timeout = {IDLE_S * 1000}; "
            "SELECT set_config('synchronous_commit', 'on', false) "
            "WHERE current_setting('synchronous_commit') = 'off'",
            prepare=False,
        )
    except BaseException:
        connection.close()
        raise
    return connection


def alive(connection: PostgresqlConnection) -> bool:
    """Whether a connection that lay idle is still connected, without asking the server."""
    try:
        connection.pgconn.consume_input()
        connection.pgconn.consume_input()  # sees the end after what was said last
    except psycopg.Error:
        return False
    return not connection.broken


def receive(connection: PostgresqlConnection) -> list[str]:
    """What notifications said that have arrived. psycopg.Error where the connection is lost."""
    connection.pgconn.consume_input()
    told = []
    while (notice := connection.pgconn.notifies()) is not None:
        told.append(notice.extra.decode())
    return told
