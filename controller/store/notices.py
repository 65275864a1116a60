"""Bells on PostgreSQL: a commit notifies all who LISTEN, in other processes and on other machines.

One connection of a store listens, in a thread (under eventlet a greenthread). When it is lost,
it is made anew, and then every bell rings: nobody knows what was missed.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

import psycopg

from controller.store.bells import Bell, check_name
from controller.store.errors import StoreError
from controller.store.postgresql_connection import PostgresqlConnection, receive
from controller.store.postgresql_errors import said
from controller.waiting import readable

log = logging.getLogger(__name__)

CHANNEL = "pleach"
#: Seconds before a lost connection is tried again: at first, and at most.
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0


class NoticeBell(Bell):
    """A counter of the kernel that the listening thread raises."""

    def __init__(self, closed: Callable[[NoticeBell], None]) -> None:
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closed = closed

    def fileno(self) -> int:
        return self._descriptor

    def ring(self) -> None:
        """Make it readable."""
        os.eventfd_write(self._descriptor, 1)

    def drain(self) -> None:
        try:
            os.eventfd_read(self._descriptor)
        except BlockingIOError:
            return  # it did not ring

    def close(self) -> None:
        if self._descriptor >= 0:
            self._closed(self)
            os.close(self._descriptor)
            self._descriptor = -1


class Notices:
    """The bells of one store, which is named `writer` in its own notifications."""

    def __init__(self, connect: Callable[[], PostgresqlConnection], writer: str) -> None:
        self._connect = connect
        self._writer = writer
        self._own: set[NoticeBell] = set()
        self._lock = threading.Lock()
        self._stop = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread: threading.Thread | None = None

    def bell(self, name: str) -> NoticeBell:
        """A new bell. ValueError where `name` is none; StoreError where nothing can be heard."""
        check_name(name)
        with self._lock:
            if self._thread is None:
                connection = self._listening()
                self._thread = threading.Thread(
                    target=self._run, args=(connection,), name="notices", daemon=True
                )
                self._thread.start()
            bell = NoticeBell(self._forget)
            self._own.add(bell)
        return bell

    def ring(self) -> None:
        """The commit itself has rung the bells of others, by the notification in it."""

    def close(self) -> None:
        """Close the bells, and listen no more. May be called twice."""
        for bell in list(self._own):
            bell.close()
        if self._thread is not None:
            os.eventfd_write(self._stop, 1)
            self._thread.join()
            self._thread = None
        if self._stop >= 0:
            os.close(self._stop)
            self._stop = -1

    def _forget(self, bell: NoticeBell) -> None:
        with self._lock:
            self._own.discard(bell)

    def _listening(self) -> PostgresqlConnection:
        connection = self._connect()
        connection.execute(f"LISTEN {CHANNEL}", prepare=False)
        return connection

    def _run(self, connection: PostgresqlConnection) -> None:
        while True:
            try:
                self._listen(connection)
                return
            except psycopg.Error as error:
                log.warning("the connection that hears of commits is lost: %s", said(error))
            finally:
                connection.close()
            again = self._again()
            if again is None:
                return
            connection = again
            log.info("commits are heard of again")
            self._ring()

    def _listen(self, connection: PostgresqlConnection) -> None:
        """Ring for what is heard, until `close`. psycopg.Error where the connection is lost."""
        while self._stop not in readable([connection.fileno(), self._stop], None):
            if any(writer != self._writer for writer in receive(connection)):
                self._ring()

    def _again(self) -> PostgresqlConnection | None:
        """A new connection, however long that takes; None where `close` comes first."""
        pause_s = _FIRST_PAUSE_S
        while not readable([self._stop], pause_s):
            try:
                return self._listening()
            except (StoreError, psycopg.Error) as error:
                log.debug("commits cannot be heard of yet: %s", said(error))
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
        return None

    def _ring(self) -> None:
        with self._lock:
            for bell in self._own:
                bell.ring()
