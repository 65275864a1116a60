"""Who looks into packets without taking us down?

nDPI is native code that reads what strangers send. It runs in a process of its own; frames go
there through a bounded queue, and verdicts come back. Should it crash or hang, it is started
again, the flow that it was looking at is shown to it no more, and what it had not answered is
given to it once again. Nothing here blocks but `identify`; there are no threads, so it works
under asyncio and eventlet alike: call `feed` for each frame, and `poll` now and then.
"""

from __future__ import annotations

import logging
import socket
import sys
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from controller.waiting import readable

from . import wire
from .captures import Capture, CaptureError, Frame
from .child import Child
from .flows import Counters, Key, Limits
from .frames import ETHERNET
from .naming import Naming
from .records import Verdict

log = logging.getLogger(__name__)

#: Messages that may be unanswered before frames are dropped: 16 times 64 KiB.
_WINDOW = 16
#: A worker that has not answered for so long (s) hangs.
HANG_S = 20.0
#: Frames at which so many workers ended, without a flow to blame, are dropped.
_TRIES = 2
#: Flows that are remembered to have crashed nDPI.
_POISONED = 256
#: After n crashes within so many seconds, the next start waits for 2^(n-3) s, a minute at most.
_CALM_S = 60.0
#: A capture that crashes nDPI more often is given up.
_MAX_CRASHES = 64


class WorkerError(Exception):
    """The worker cannot be started, or a capture cannot be looked at."""


@dataclass(slots=True)
class WorkerCounters:
    """What became of the frames that were fed."""

    fed: int = 0
    #: Frames that were dropped because the worker did not keep up, or was not running.
    dropped: int = 0
    #: Times that native code ended the worker, and times that it had to be ended.
    crashes: int = 0
    hangs: int = 0
    verdicts: int = 0


@dataclass(frozen=True, slots=True)
class Identified:
    """What a capture holds."""

    verdicts: tuple[Verdict, ...]
    counters: Counters
    #: What is wrong with the file; empty where nothing is.
    trouble: str
    #: Flows at which nDPI crashed or hung.
    crashed: tuple[Key, ...]
    #: What the worker needed, in seconds of one CPU.
    cpu_s: float


class Worker:
    """A process that looks into packets, seen from outside.

    `clock` gives seconds that never go back. `model` is a file that `pleach dpi train` wrote.
    A process that has not answered for `hang_s` is ended. `module` is what it runs, and
    `python` what runs it, which must have nfstream. A model that is not `vet` here first ends
    the process where it cannot be used.
    """

    def __init__(
        self,
        naming: Naming,
        limits: Limits,
        clock: Callable[[], float],
        model: Path | None = None,
        hang_s: float = HANG_S,
        module: str = "controller.observe.applications.process",
        python: str = sys.executable,
        vet: bool = True,
    ) -> None:
        self.counters = WorkerCounters()
        #: What the process says of itself, since it was last started.
        self.told = Counters()
        self._naming = naming
        self._limits = limits
        self._clock = clock
        self._model = _checked(model) if vet and model is not None else model
        self._hang_s = hang_s
        self._command = (python, "-m", module)
        self._poisoned: OrderedDict[Key, None] = OrderedDict()
        self._crashes: deque[float] = deque(maxlen=16)
        self._batch = wire.Batch()
        self._number = 0
        self._again: deque[tuple[bytes, int]] = deque()
        self._verdicts: list[Verdict] = []
        self._answers: dict[int, wire.Done] = {}
        self._child: Child | None = None
        try:
            self._child = self._start()
        except OSError as error:
            raise WorkerError(f"the worker cannot be started: {error.strerror}") from error

    def feed(self, scope: int, time: float, frame: bytes, link: int = ETHERNET) -> bool:
        """Give a frame to the worker; False where it had to be dropped.

        `scope` (32 bits) keeps apart flows of the same addresses, such as those of two tenants.
        """
        if not self._batch.holds(len(frame)) and not self._send_batch():
            self.counters.dropped += 1
            return False
        self._batch.add(scope, Frame(time, link, frame, len(frame)))
        self.counters.fed += 1
        return True

    def expire(self, now: float) -> None:
        """End the flows that have been idle for long at `now` (seconds since 1970), which frames
        that come later would do too."""
        self._number += 1
        self._send(self._number, wire.order(wire.EXPIRE, self._number, now))

    def poll(self) -> list[Verdict]:
        """The verdicts since the last call. Call this at least some times a second: it also
        sends what waits, and starts the worker again where it ended."""
        self._hear()
        self._mend()
        self._send_again()
        if self._batch.frames:
            self._send_batch()
        verdicts, self._verdicts = self._verdicts, []
        self.counters.verdicts += len(verdicts)
        return verdicts

    def finish(self, timeout_s: float) -> list[Verdict]:
        """Wait until all that was fed has been looked at, and end all flows; their verdicts.

        Raises WorkerError where that takes longer than `timeout_s`.
        """
        self._settle(timeout_s)
        self._wait(self._order(wire.FINISH), timeout_s)
        return self.poll()

    def identify(self, path: Path, timeout_s: float = 600.0, forget: bool = True) -> Identified:
        """Look at a whole capture, with no memory of earlier ones if all is to be forgotten
        first. Raises WorkerError where it cannot be read, or has not been looked at within
        `timeout_s`."""
        try:
            Capture.open(path)  # tells a file that is none by name
        except CaptureError as error:
            raise WorkerError(str(error)) from error
        crashed: list[Key] = []
        for _ in range(_MAX_CRASHES):
            before = self._poisoned.copy()
            self._settle(timeout_s)
            started = self._wait(self._order(wire.FORGET if forget else wire.FINISH), timeout_s)
            self._verdicts = []
            with path.open("rb") as file:
                ended = self._wait(self._order(wire.CAPTURE, file.fileno()), timeout_s)
            if started is not None and ended is not None:
                verdicts, self._verdicts = tuple(self._verdicts), []
                return Identified(
                    verdicts,
                    ended.counters.since(started.counters),
                    ended.trouble,
                    tuple(crashed),
                    ended.cpu_s - started.cpu_s,
                )
            crashed += [key for key in self._poisoned if key not in before]
        raise WorkerError(f"{path}: nDPI crashed {_MAX_CRASHES} times; report it to ntop")

    @property
    def pid(self) -> int | None:
        """The process, while it runs."""
        return self._child.process.pid if self._child else None

    def close(self) -> None:
        """End the worker. Frames that it has not looked at are lost."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The process.

    def _start(self) -> Child:
        self._number += 1
        body = wire.configuration(self._limits, self._naming, self._poisoned)
        message = wire.order(wire.CONFIGURE, self._number, body)
        child = Child.start(self._command, message, self._model, self._clock())
        child.open[self._number] = (message, 1)
        return child

    def _running(self) -> Child:
        if self._child is None:
            raise WorkerError("the worker is not running; it will be started again by poll()")
        return self._child

    def _mend(self) -> None:
        """Start the worker again where it ended or hangs."""
        now = self._clock()
        child = self._child
        if child is not None:
            if child.process.poll() is None and not self._hangs(child, now):
                return
            self._bury(child, now)
        if self._crashes and now < self._crashes[-1] + _pause(self._crashes, now):
            return
        try:
            self._child = self._start()
        except OSError as error:
            self._crashes.append(now)
            log.warning("the DPI worker cannot be started", extra={"error": str(error)})

    def _hangs(self, child: Child, now: float) -> bool:
        if not child.open or now - child.heard < self._hang_s:
            return False
        self.counters.hangs += 1
        return True

    def _bury(self, child: Child, now: float) -> None:
        """Take over what an ended worker leaves: whom it was looking at, and what it owed."""
        self._child = None
        status = child.process.poll()
        if status is not None:
            self.counters.crashes += 1
        self._crashes.append(now)
        blamed = child.blamed()
        if blamed is not None:
            self._poisoned[blamed] = None
            if len(self._poisoned) > _POISONED:
                self._poisoned.popitem(last=False)
        owed = [order for order in child.open.values() if order[0][:1] == wire.FRAMES]
        if blamed is None and owed and owed[0][1] >= _TRIES:
            self.counters.dropped += sum(1 for _ in wire.frames_of(owed[0][0]))
            del owed[0]
        self._again.extendleft(reversed(owed))
        child.end()
        log.warning(
            "the DPI worker ended" if status is not None else "the DPI worker hung",
            extra={"status": status, "flow": str(blamed) if blamed else None},
        )

    # Messages.

    def _order(self, kind: bytes, descriptor: int | None = None) -> int:
        child = self._running()
        self._number += 1
        message = wire.order(kind, self._number)
        child.heard = self._clock()
        child.open[self._number] = (message, 1)
        try:
            if descriptor is None:
                child.channel.send(message)
            else:
                socket.send_fds(child.channel, [message], [descriptor])
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            pass  # it ended: that is seen to where its answer is waited for
        return self._number

    def _send_batch(self) -> bool:
        """Send the frames that wait; whether they no longer wait."""
        self._number += 1
        if not self._send(self._number, self._batch.message(self._number)):
            return False
        self._batch = wire.Batch()
        return True

    def _send_again(self) -> None:
        while self._again:
            self._number += 1
            message, tries = self._again[0]
            again = wire.renumbered(message, self._number)
            if not self._send(self._number, again, tries + 1):
                return
            self._again.popleft()

    def _send(self, number: int, message: bytes, tries: int = 1) -> bool:
        child = self._child
        if child is None or len(child.open) >= _WINDOW:
            return False
        try:
            child.channel.send(message)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return False
        if not child.open:
            child.heard = self._clock()
        child.open[number] = (message, tries)
        return True

    def _hear(self) -> None:
        """Read all that the worker has said."""
        child = self._child
        while child is not None:
            try:
                message = child.channel.recv(wire.MAX_MESSAGE * 4)
            except BlockingIOError:
                return
            except ConnectionResetError:
                return  # `_mend` sees that it ended
            if not message:
                child.kill()  # it has said its last
                return
            child.heard = self._clock()
            try:
                self._take(child, message)
            except (ValueError, TypeError, KeyError, RecursionError):
                # Not what it is made to say: it is no longer what it was.
                log.warning("the DPI worker talks nonsense", extra={"said": repr(message[:100])})
                child.kill()
                return

    def _take(self, child: Child, message: bytes) -> None:
        kind = message[:1]
        if kind == wire.VERDICTS:
            self._verdicts += wire.verdicts_of(message)
        elif kind == wire.DONE:
            done = wire.done_of(message)
            self.told = done.counters
            order, _ = child.open.pop(done.number, (b"", 0))
            if order[:1] not in (wire.FRAMES, wire.CONFIGURE, wire.EXPIRE):
                self._answers[done.number] = done

    def _wait(self, number: int, timeout_s: float) -> wire.Done | None:
        """The answer to an order; None where the worker ended over it."""
        until = self._clock() + timeout_s
        while number not in self._answers:
            child = self._child
            if child is None or self._clock() >= until:
                raise WorkerError(f"the worker has not answered within {timeout_s:g} s")
            readable([child.channel.fileno()], 0.5)
            self._hear()
            self._mend()
            if self._child is not child:
                self._settle(timeout_s)
                return None
        return self._answers.pop(number)

    def _settle(self, timeout_s: float) -> None:
        """Wait until the worker runs and owes nothing."""
        until = self._clock() + timeout_s
        while True:
            self._hear()
            self._mend()
            self._send_again()
            if self._batch.frames:
                self._send_batch()
            child = self._child
            if child and not child.open and not self._again and not self._batch.frames:
                return
            if self._clock() >= until:
                raise WorkerError(f"the worker has not answered within {timeout_s:g} s")
            readable([child.channel.fileno()] if child else [], 0.1)


def _checked(model: Path) -> Path:
    """The path of a model that can be used. Raises WorkerError."""
    from .model import Model, ModelError  # numpy, which without a model is not needed

    try:
        Model.from_bytes(model.read_bytes())
    except OSError as error:
        raise WorkerError(f"{model}: cannot be read: {error.strerror}") from error
    except ModelError as error:
        raise WorkerError(f"{model}: {error}") from error
    return model


def _pause(crashes: deque[float], now: float) -> float:
    """Seconds to wait after the last of several crashes."""
    recent = sum(1 for at in crashes if at > now - _CALM_S)
    return 0.0 if recent <= 3 else min(_CALM_S, 2.0 ** (recent - 3))
