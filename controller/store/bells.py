"""Bells: how a commit wakes the consumers of the feed in other processes within a millisecond.

Beside an SQLite database, a bell is a Unix datagram socket in a directory; whoever commits
sends one byte to each. (For PostgreSQL see `controller.store.notices`.) A lost ring loses
nothing, because consumers poll as well.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import threading
from abc import ABC, abstractmethod
from pathlib import Path

from controller.settings import safe_directory
from controller.store.errors import StoreUnavailable
from controller.waiting import readable

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")


class Bell(ABC):
    """One consumer's bell. To be waited for by one thread, greenthread or loop at a time."""

    @abstractmethod
    def fileno(self) -> int:
        """Readable when the bell rang: for selectors and asyncio's `add_reader`, whose
        callback then calls `drain`."""

    @abstractmethod
    def drain(self) -> None:
        """Take all rings, without waiting."""

    @abstractmethod
    def close(self) -> None:
        """Be no consumer any more. May be called twice."""

    def wait(self, timeout: float | None) -> bool:
        """Wait at most `timeout` seconds (None: for ever); whether it rang. Rings are drained."""
        rang = bool(readable([self.fileno()], timeout))
        if rang:
            self.drain()
        return rang


def check_name(name: str) -> None:
    """ValueError where `name` cannot be that of a bell."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a bell: use 1 to 40 of A-Z a-z 0-9 _ -")


class SocketBell(Bell):
    """A datagram socket at `path`."""

    def __init__(self, path: Path, address: str) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self._socket.bind(address)

    def fileno(self) -> int:
        return self._socket.fileno()

    def drain(self) -> None:
        while True:
            try:
                self._socket.recv(16)
            except BlockingIOError:
                return

    def close(self) -> None:
        self.path.unlink(missing_ok=True)
        self._socket.close()


class Ringer:
    """The bells of one directory as one store sees them: its own, and those it rings."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        # Root looks after a service user's store too: who has the database has the bells.
        safe_directory(directory, owner=directory.parent.stat().st_uid)
        # Sockets are named through this descriptor, since their full path may be longer than
        # the 107 bytes that a Unix address holds.
        self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self._own: dict[str, SocketBell] = {}
        self._lock = threading.Lock()
        self._complained: set[str] = set()

    def bell(self, name: str) -> SocketBell:
        """A new bell. ValueError where `name` has other than letters, digits, _ and -."""
        check_name(name)
        # The random part tells apart processes of containers that have the same number.
        file = f"{name}.{os.getpid()}.{secrets.token_hex(4)}"
        try:
            bell = SocketBell(self._directory / file, self._address(file))
        except OSError as error:
            raise StoreUnavailable(
                str(self._directory / file),
                f"no socket could be made there ({error.strerror})",
                "see that the directory can be written to and that /proc is mounted",
            ) from error
        with self._lock:
            self._own[file] = bell
        return bell

    def ring(self) -> None:
        """Wake every consumer but those of this store. Never fails: the commit is done."""
        try:
            files = [path.name for path in self._directory.iterdir()]
        except OSError as error:
            self._complain(f"bells {self._directory} cannot be listed: {error}")
            return
        for file in files:
            if file not in self._own:
                self._ring(file)

    def _ring(self, file: str) -> None:
        try:
            self._socket.sendto(b"!", self._address(file))
        except BlockingIOError:
            return  # its queue is full of rings already
        except ConnectionRefusedError:
            self._remove(file)  # its process ended without closing it
        except FileNotFoundError:
            return  # closed since the directory was read
        except OSError as error:
            self._complain(f"bell {self._directory / file} cannot be rung: {error}")

    def _remove(self, file: str) -> None:
        try:
            os.unlink(file, dir_fd=self._descriptor)
        except FileNotFoundError:
            return  # another ringer was first
        except OSError as error:
            self._complain(f"dead bell {self._directory / file} stays: {error}")

    def _complain(self, message: str) -> None:
        # Once: the next commit would find the same.
        if message not in self._complained:
            self._complained.add(message)
            log.warning(message)

    def _address(self, file: str) -> str:
        return f"/proc/self/fd/{self._descriptor}/{file}"

    def close(self) -> None:
        """Close the bells of this store, and ring no more. May be called twice."""
        with self._lock:
            for bell in self._own.values():
                bell.close()
            self._own.clear()
            if self._descriptor >= 0:
                self._socket.close()
                os.close(self._descriptor)
                self._descriptor = -1
