"""The worker's process with an nDPI that crashes, hangs or lies at certain packets."""

from __future__ import annotations

import os
import signal
import sys

from controller.observe.applications import process
from controller.observe.applications.engine import Engine

CRASH, HANG, CRASH_AT_END = b"make it crash", b"make it hang", b"crash at the end"
#: Ends without a flow to blame; says what no worker says.
EXIT, LIE = b"make it exit", b"make it lie"


class Fragile(Engine):
    """Crashes as native code does, without a word."""

    def __init__(self) -> None:
        super().__init__()
        self._later: set[int] = set()
        self._exiting: set[int] = set()

    def begin(self, at, packet, frame):  # type: ignore[no-untyped-def]
        flow = super().begin(at, packet, frame)
        self._look(flow, frame)
        return flow

    def more(self, flow, at, packet, frame):  # type: ignore[no-untyped-def]
        self._look(flow, frame)
        super().more(flow, at, packet, frame)

    def decided(self, flow):  # type: ignore[no-untyped-def]
        if id(flow) in self._exiting:
            os._exit(3)
        return super().decided(flow)

    def end(self, flow):  # type: ignore[no-untyped-def]
        if id(flow) in self._later:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().end(flow)

    def _look(self, flow, frame):  # type: ignore[no-untyped-def]
        if CRASH in frame:
            os.kill(os.getpid(), signal.SIGSEGV)
        if HANG in frame:
            signal.pause()
        if CRASH_AT_END in frame:
            self._later.add(id(flow))
        if EXIT in frame:
            self._exiting.add(id(flow))


class Liar(process.Process):
    """Says nonsense."""

    def _carry_out(self, kind, message, descriptors):  # type: ignore[no-untyped-def]
        if LIE in message:
            self._channel.send(b'V[["what?"]]')
        return super()._carry_out(kind, message, descriptors)


if __name__ == "__main__":
    process.Engine = Fragile  # type: ignore[misc]
    process.Process = Liar  # type: ignore[misc]
    process.main(sys.argv[1:])
