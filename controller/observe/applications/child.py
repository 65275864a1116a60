"""A running process of `process.py`: its start, its end, and whom it was looking at."""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from . import wire
from .flows import Key


@dataclass(slots=True)
class Child:
    """A process, our end of the socket to it, and the page that it shares with us."""

    process: subprocess.Popen[bytes]
    channel: socket.socket
    page: mmap.mmap
    #: When it was last known to be alive and working, by the clock of who started it.
    heard: float
    #: Orders without an answer: number to message, and how many processes it was given to.
    open: OrderedDict[int, tuple[bytes, int]] = field(default_factory=OrderedDict)

    @classmethod
    def start(cls, command: tuple[str, ...], first: bytes, model: Path | None, now: float) -> Child:
        """Start `command` and give it its first order, how to work. Raises OSError."""
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        descriptor = os.memfd_create("pleach-dpi")
        try:
            os.ftruncate(descriptor, mmap.PAGESIZE)
            page = mmap.mmap(descriptor, mmap.PAGESIZE)
            process = subprocess.Popen(
                [*command, str(its.fileno()), str(descriptor)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(its.fileno(), descriptor),
            )
        except OSError:
            ours.close()
            raise
        finally:
            its.close()
            os.close(descriptor)
        ours.setblocking(False)
        child = cls(process, ours, page, now)
        try:
            child._configure(first, model)
        except OSError:
            child.end()
            raise
        return child

    def _configure(self, first: bytes, model: Path | None) -> None:
        if model is None:
            self.channel.send(first)
            return
        with model.open("rb") as file:
            socket.send_fds(self.channel, [first], [file.fileno()])

    def blamed(self) -> Key | None:
        """The flow whose packets native code is, or was, looking at."""
        return wire.unpack_key(self.page[: wire.KEY_SIZE])

    def kill(self) -> None:
        """End the process."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """End the process, and let go of what it shared with us."""
        self.channel.close()
        self.kill()
        self.page.close()
