"""Traffic between guests that tells what the fabric did to it: losses, gaps, survivors.

`Flow` sends numbered UDP both ways, `Stream` keeps one TCP connection busy, and `probe` asks
of many pairs at once who reaches whom. The ends run in the guests' namespaces, see
`mininet_labs.traffic_worker`.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Self

from controller.waiting import readable
from mininet_labs import netns
from mininet_labs.traffic_worker import main

if TYPE_CHECKING:
    from mininet_labs.vm import LabVm

__all__ = ["Flow", "FlowResult", "Reach", "Stream", "StreamResult", "TrafficError", "probe"]

_ROOT = Path(__file__).resolve().parents[1]
_UDP_PORT, _TCP_PORT, _PROBE_PORT = 7_701, 7_702, 7_703
_READY_S = 15.0
_RESULT_S = 40.0

_PROBE = struct.Struct("!BI")  # 0 asks, 1 answers; number of the pair
#: Probes a second: each may cost the fabric a first-packet decision.
_PROBES_A_SECOND = 400


class TrafficError(RuntimeError):
    """Traffic that never began, or an end that died; the message says which."""


@dataclass(frozen=True, slots=True)
class FlowResult:
    """One direction of a flow. Gaps are between arrivals of new packets, in milliseconds, by
    the kernel's clock; `first_lost` are the numbers of the first ten lost packets."""

    sent: int
    received: int
    lost: int
    duplicates: int
    reordered: int
    longest_gap_ms: float
    first_lost: tuple[int, ...]
    errors: int


@dataclass(frozen=True, slots=True)
class StreamResult:
    """One TCP connection. `bytes` are those answered by the far end; a stall is the time
    between two answers, in milliseconds; `failure` says why it has not survived."""

    bytes: int
    longest_stall_ms: float
    survived: bool
    failure: str


class _End:
    """One worker in one guest."""

    def __init__(
        self, role: str, vm: LabVm, peer: LabVm, port: int, rate: float, version: int
    ) -> None:
        self.name = f"{role} in {vm.name}"
        self._process = vm.popen(
            *(sys.executable, "-m", "mininet_labs.traffic", role),
            *(str(address_of(vm, version)), str(address_of(peer, version))),
            *(str(port), str(rate)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(_ROOT)},
        )

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise TrafficError(f"{self.name} has died: {self._epitaph()}") from error

    def hear(self, seconds: float) -> str:
        """The next line; TrafficError where none comes in time."""
        assert self._process.stdout is not None
        if not readable([self._process.stdout.fileno()], seconds):
            raise TrafficError(f"{self.name} said nothing for {seconds:g} s: is there a path?")
        line = self._process.stdout.readline().strip()
        if not line:
            raise TrafficError(f"{self.name} has died: {self._epitaph()}")
        return line

    def _epitaph(self) -> str:
        _, said = self._process.communicate(timeout=5)
        return said.strip()[-500:] or f"status {self._process.returncode}"

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


class Flow:
    """Numbered UDP packets of 64 bytes, `rate` a second, both ways between two guests.

    `with Flow(a, b) as flow: ...` starts it; `stop` returns what happened. TrafficError where
    the guests do not hear each other at all.
    """

    def __init__(
        self,
        a: LabVm,
        b: LabVm,
        rate: float = 1_000,
        *,
        port: int = _UDP_PORT,
        version: int = 4,
    ) -> None:
        self._pair, self._how = (a, b), (port, rate, version)
        self._ends: list[_End] = []

    def start(self) -> Self:
        """Return once both ends hear each other and send."""
        a, b = self._pair
        try:
            for vm, peer in ((a, b), (b, a)):
                self._ends.append(_End("udp", vm, peer, *self._how))
            for end in self._ends:
                if end.hear(_READY_S) != "ready":
                    raise TrafficError(f"{end.name} is not ready")
        except BaseException:
            self.close()
            raise
        for end in self._ends:
            end.tell("go")
        return self

    def stop(self) -> tuple[FlowResult, FlowResult]:
        """Stop, wait for what is on its way, and return a to b, b to a."""
        try:
            a, b = self._ends
            for end in (a, b):
                end.tell("stop")
            sent_a, sent_b = (int(end.hear(_READY_S)) for end in (a, b))
            b.tell(f"drain {sent_a}")
            a.tell(f"drain {sent_b}")
            forth, back = (json.loads(end.hear(_RESULT_S)) for end in (b, a))
        finally:
            self.close()
        return _flow_result(forth), _flow_result(back)

    def close(self) -> None:
        """End both ends, with or without a result."""
        for end in self._ends:
            end.end()
        self._ends.clear()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()


def _flow_result(said: dict[str, object]) -> FlowResult:
    lost = said.pop("first_lost")
    assert isinstance(lost, list)
    return FlowResult(**said, first_lost=tuple(lost))  # type: ignore[arg-type]


class Stream:
    """One TCP connection from `a` to `b` that carries `rate` records of 1 KiB a second one way
    and an answer to each the other way."""

    def __init__(
        self,
        a: LabVm,
        b: LabVm,
        rate: float = 200,
        *,
        port: int = _TCP_PORT,
        version: int = 4,
    ) -> None:
        self._pair, self._how = (a, b), (port, rate, version)
        self._ends: list[_End] = []

    def start(self) -> Self:
        """Return once the connection stands and carries data; TrafficError where it does not."""
        a, b = self._pair
        try:
            for vm, peer, role in ((b, a, "tcp-server"), (a, b, "tcp-client")):
                end = _End(role, vm, peer, *self._how)
                self._ends.append(end)
                if end.hear(_READY_S) != "ready":
                    raise TrafficError(f"{end.name} is not ready")
        except BaseException:
            self.close()
            raise
        self._ends[1].tell("go")
        return self

    def stop(self) -> StreamResult:
        """Stop, wait until all is answered, and return what happened."""
        try:
            client = self._ends[1]
            client.tell("stop")
            return StreamResult(**json.loads(client.hear(_RESULT_S)))
        finally:
            self.close()

    def close(self) -> None:
        """End both ends, with or without a result."""
        for end in reversed(self._ends):
            end.end()
        self._ends.clear()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()


def address_of(vm: LabVm, version: int = 4) -> IPv4Address | IPv6Address:
    """The guest's address of an IP version, 4 or 6; ValueError where there is none."""
    address = vm.ipv4 if version == 4 else vm.ipv6
    if address is None:
        raise ValueError(f"{vm.name} has no address of IPv{version}")
    return address


@dataclass(frozen=True, slots=True)
class Reach:
    """Pairs by name. `reachable`: the probe came and its answer came back. `heard`: the probe
    came at least one way, which for a forbidden pair is a leak already."""

    reachable: frozenset[tuple[str, str]]
    heard: frozenset[tuple[str, str]]


def probe(
    pairs: Iterable[tuple[LabVm, LabVm]],
    *,
    tries: int = 4,
    interval_s: float = 0.5,
    version: int = 4,
) -> Reach:
    """Send UDP from the first to the second guest of every pair, which answers.

    Whoever stays silent is asked `tries` times, `interval_s` apart; so forbidden pairs cost
    tries x interval in all, not each. An answer counts only if the right guest gave it, since
    tenants may use the same addresses.
    """
    wanted = list(pairs)
    asked = list(dict.fromkeys((a.name, b.name) for a, b in wanted))
    guests = {vm.name: vm for pair in wanted for vm in pair}
    with ExitStack() as stack:
        prober = _Prober(stack, guests, asked, version)
        for _ in range(tries):
            prober.ask()
            prober.listen(interval_s)
            if len(prober.reachable) == len(asked):
                break
    return Reach(frozenset(prober.reachable), frozenset(prober.heard))


class _Prober:
    """One socket in each guest's namespace, all in one process: each asks and answers."""

    def __init__(
        self,
        stack: ExitStack,
        guests: dict[str, LabVm],
        pairs: Sequence[tuple[str, str]],
        version: int,
    ) -> None:
        self.pairs = pairs
        self.reachable: set[tuple[str, str]] = set()
        self.heard: set[tuple[str, str]] = set()
        self._selector = stack.enter_context(selectors.DefaultSelector())
        self._sockets: dict[str, socket.socket] = {}
        self._addresses = {name: str(address_of(vm, version)) for name, vm in guests.items()}
        for name, address in self._addresses.items():
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            with netns.entered(name):
                end = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            end.bind((address, _PROBE_PORT))
            end.setblocking(False)
            self._sockets[name] = end
            self._selector.register(end, selectors.EVENT_READ, name)

    def ask(self) -> None:
        for number, (source, target) in enumerate(self.pairs):
            if (source, target) not in self.reachable:
                self._send(source, _PROBE.pack(0, number), self._addresses[target])
                self.listen(1 / _PROBES_A_SECOND)

    def _send(self, name: str, data: bytes, address: str) -> None:
        try:
            self._sockets[name].sendto(data, (address, _PROBE_PORT))
        except BlockingIOError:
            return  # its queue waits for a neighbour that does not answer; a later try asks again
        except OSError as error:
            raise TrafficError(f"{name} cannot send to {address}: {error.strerror}") from error

    def listen(self, seconds: float) -> None:
        """Take in questions and answers for so long, or until every pair is reachable."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and len(self.reachable) < len(self.pairs):
            for key, _ in self._selector.select(left):
                self._take(key.data, self._sockets[key.data])

    def _take(self, name: str, end: socket.socket) -> None:
        data, sender = end.recvfrom(64)
        kind, number = _PROBE.unpack(data)
        pair = self.pairs[number]
        if kind == 0 and pair[1] == name:
            self.heard.add(pair)
            self._send(name, _PROBE.pack(1, number), sender[0])
        elif kind == 1 and pair[0] == name and pair in self.heard:
            self.reachable.add(pair)


if __name__ == "__main__":
    main(sys.argv[1:])
