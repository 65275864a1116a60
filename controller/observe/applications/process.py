"""The worker's own process: nDPI, and the flows that it looks at.

Started by `worker.Worker` as `python -m controller.observe.applications.process SOCKET PAGE`,
with two descriptors: the socket of `wire`, and a page that it shares with who started it, in
which it notes the flow whose packets native code is looking at. When native code crashes, that
is who was to blame.
"""

from __future__ import annotations

import mmap
import os
import resource
import signal
import socket
import sys
import time
from itertools import islice
from typing import Any

from controller.process import seldom_collect

from . import wire
from .captures import Capture, CaptureError
from .engine import Engine, Finding
from .flows import Behaviour, FlowTable, Key
from .frames import Packet

#: "nobody" on Debian (Policy, section 9.2.2).
_NOBODY = 65_534
#: Frames of a capture after which it is said what they gave, so that one who waits knows that
#: it goes on.
_AT_ONCE = 4_096


class Noted:
    """nDPI, with a note of the flow that it is looking at."""

    def __init__(self, engine: Engine, page: mmap.mmap) -> None:
        self._engine = engine
        self._page = page
        self._key: Key | None = None
        self.decided = engine.decided

    def begin(self, key: Key, at: float, packet: Packet, frame: bytes) -> Any:
        """See `Engine.begin`."""
        self._note(key)
        native = self._engine.begin(at, packet, frame)
        self._page[0] = 0
        return native

    def more(self, key: Key, native: Any, at: float, packet: Packet, frame: bytes) -> None:
        """See `Engine.more`."""
        self._note(key)
        self._engine.more(native, at, packet, frame)
        self._page[0] = 0

    def end(self, key: Key, native: Any) -> Finding:
        """See `Engine.end`."""
        self._note(key)
        finding = self._engine.end(native)
        self._page[0] = 0
        return finding

    def _note(self, key: Key) -> None:
        if key is self._key:  # all but the mark that it is being looked at stands there
            self._page[0] = len(key[1][1])
        else:
            self._page[: wire.KEY_SIZE] = wire.pack_key(key)
            self._key = key


class Process:
    """The loop of the worker."""

    def __init__(self, channel: socket.socket, page: mmap.mmap) -> None:
        self._channel = channel
        self._page = page
        self._configuration: dict[str, Any] = {}
        self._behaviour: Behaviour | None = None
        self._engine: Engine | None = None
        self._table: FlowTable | None = None

    def run(self) -> None:
        """Carry out orders until who gives them is gone."""
        while True:
            message, descriptors, _, _ = socket.recv_fds(self._channel, wire.MAX_MESSAGE, 1)
            if not message:
                return
            kind, number = wire.order_of(message)
            trouble = self._carry_out(kind, message, descriptors)
            assert self._table is not None, "the first order is how to work"
            self._report()
            counters = self._table.counters
            self._channel.send(wire.done_message(number, counters, time.process_time(), trouble))

    def _carry_out(self, kind: bytes, message: bytes, descriptors: list[int]) -> str:
        if kind == wire.CONFIGURE:
            self._configuration = wire.body_of(message)
            self._behaviour = _behaviour(descriptors)
            self._renew()
            _drop_privileges()  # from here on there are frames
        elif kind == wire.FORGET:
            self._renew()
        table = self._table
        assert table is not None, "the first order is how to work"
        if kind == wire.FRAMES:
            for frame in wire.frames_of(message):
                table.feed(*frame)
        elif kind == wire.CAPTURE:
            return self._capture(table, descriptors[0])
        elif kind == wire.FINISH:
            table.finish()
        elif kind == wire.EXPIRE:
            table.expire(float(wire.body_of(message)))
        return ""

    def _capture(self, table: FlowTable, descriptor: int) -> str:
        """Look at all of a capture; what is wrong with it."""
        try:
            with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as data:
                capture = Capture(data, "the capture")
                frames = iter(capture)
                while several := tuple(islice(frames, _AT_ONCE)):
                    for at, link, frame, _ in several:
                        table.feed(0, at, link, frame)
                    self._report()
                table.finish()
                return capture.trouble
        except (CaptureError, ValueError) as error:
            return str(error)
        finally:
            os.close(descriptor)

    def _renew(self) -> None:
        if self._table is not None:
            self._table.finish()
            self._table.verdicts.clear()
        if self._engine is not None:
            self._engine.close()
        limits, naming, poisoned = wire.configured(self._configuration)
        self._engine = Engine()
        self._table = FlowTable(
            Noted(self._engine, self._page), naming, limits, self._behaviour, poisoned
        )

    def _report(self) -> None:
        assert self._table is not None
        verdicts, self._table.verdicts = self._table.verdicts, []
        for at in range(0, max(1, len(verdicts)), wire.VERDICTS_A_MESSAGE):
            several = verdicts[at : at + wire.VERDICTS_A_MESSAGE]
            self._channel.send(wire.verdicts_message(several))


def _behaviour(descriptors: list[int]) -> Behaviour | None:
    if not descriptors:
        return None
    from .model import Model  # numpy, which a worker without a model does not need

    with os.fdopen(descriptors[0], "rb") as file:
        return Model.from_bytes(file.read())


def _drop_privileges() -> None:
    """Keep nothing that a crash, or worse, could put to use."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)


def main(words: list[str]) -> None:
    """Work for who started this, until it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started this decides when it ends
    seldom_collect()
    channel = socket.socket(fileno=int(words[0]))
    channel.setblocking(True)  # eventlet makes sockets that do not
    page = mmap.mmap(int(words[1]), mmap.PAGESIZE)
    try:
        channel.send(wire.READY)
        Process(channel, page).run()
    except (BrokenPipeError, ConnectionResetError):
        return  # who gave the orders is gone


if __name__ == "__main__":
    main(sys.argv[1:])
