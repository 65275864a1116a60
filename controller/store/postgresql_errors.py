"""What PostgreSQL refused, as an error with place, cause and mend.

A failed connection has no SQLSTATE (libpq keeps it for itself), so those are told apart by
libpq's and the server's English words; in another language the cause is told as it came.
Codes: PostgreSQL's manual, appendix A.
"""

from __future__ import annotations

import re

import psycopg

from controller.store.errors import (
    StoreBusy,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreReadOnly,
    StoreUnavailable,
)
from controller.store.sqlite import UNFORESEEN

RESTORE = "restore a backup, or repair the database with the means of PostgreSQL"
START = "see that the server runs and can be reached; Pleach then goes on by itself"

_AUTHENTICATION = (
    "correct user and password (PGPASSWORD, a password file of mode 0600 by PGPASSFILE or "
    "?passfile=, or in the URL), and see pg_hba.conf of the server"
)
_CONNECTING: tuple[tuple[str, str], ...] = (
    (r"authentication failed|no password supplied|pg_hba\.conf|role .* (does not|is not)",
     _AUTHENTICATION),
    (r"database .* does not exist", "make it (createdb -O USER NAME), or correct store.url"),
    (r"too many (clients|connections)|connection slots",
     "raise max_connections of the server, or end what else is connected; Pleach then goes on "
     "by itself"),
    (r"resolve host|translate host", "correct the host in store.url, or see to the name service"),
    (r"SSL|certificate", "make sslmode and sslrootcert in store.url fit the server's certificate"),
    (r"starting up|shutting down|recovery", "wait: Pleach goes on by itself once the server does"),
    (r"read-write|session is read-only|hot standby",
     "let store.url name the primary, or wait until there is one"),
)  # fmt: skip

_TRY_AGAIN = "try again"
_STATES: dict[str, tuple[type[StoreError], str]] = {
    "25006": (StoreReadOnly, "let it be written to (default_transaction_read_only)"),
    "42501": (
        StoreReadOnly,
        "let Pleach's user own the database, or GRANT it all on the schema and its tables",
    ),
    "53100": (StoreFull, "make room on the server's disk; the store then works again by itself"),
    "55P03": (StoreBusy, "try again; pg_stat_activity of the server tells who holds it"),
    "57014": (StoreBusy, "try again; see the server's statement_timeout"),
    "40P01": (StoreBusy, _TRY_AGAIN),
    "40001": (StoreBusy, _TRY_AGAIN),
    "25P03": (StoreUnavailable, _TRY_AGAIN),
    "42P01": (StoreCorrupt, "correct store.url, or restore a backup"),
}
_CLASSES: dict[str, tuple[type[StoreError], str]] = {
    "22": (StoreError, UNFORESEEN),
    "23": (StoreError, UNFORESEEN),
    "42": (StoreError, UNFORESEEN),
    "XX": (StoreCorrupt, RESTORE),
    "53": (StoreUnavailable, "see to the server's memory and connections"),
    "57": (StoreUnavailable, START),
    "08": (StoreUnavailable, START),
}


def translated(place: str, error: BaseException, waited_s: float) -> StoreError:
    """`error`, which psycopg raised about the database `place`, as StoreError; who waited for a
    lock did so for `waited_s` seconds."""
    assert isinstance(error, psycopg.Error)
    cause, state = said(error), error.sqlstate
    if state == "55P03":
        cause = f"another writer kept it locked for more than {waited_s:g} s"
    if state is None:
        return StoreUnavailable(place, cause, _mend_of(cause))
    kind, mend = _STATES.get(state) or _CLASSES.get(
        state[:2], (StoreUnavailable, "see the server's log")
    )
    return kind(place, f"{cause} (SQLSTATE {state})", mend)


def said(error: BaseException) -> str:
    """The words of an error, in one line."""
    primary = getattr(getattr(error, "diag", None), "message_primary", None)
    lines = [line.strip() for line in str(primary or error).splitlines()]
    return " ".join(line for line in lines if line and not line.endswith("?")) or "it is lost"


def _mend_of(cause: str) -> str:
    for words, mend in _CONNECTING:
        if re.search(words, cause):
            return mend
    return START
