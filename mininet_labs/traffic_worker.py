"""Measured traffic from inside a guest; started by `mininet_labs.traffic`, and by hand as

    python -m mininet_labs.traffic udp|tcp-server|tcp-client ADDRESS PEER PORT RATE

Talks to whoever started it by lines: `ready` once the peer was heard; `go`; `stop` is answered
with how much was sent; `drain N` (N: what the peer has sent) with the result as JSON. It ends
by itself when its standard input does.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

_HELLO, _WELCOME, _DATA = 0, 1, 2
_PACKET = struct.Struct("!BQ")  # kind, sequence number
_PAYLOAD_BYTES = 64
_RECORD = struct.Struct("!Q")
RECORD_BYTES = 1_024
_SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 33, 35  # <asm-generic/socket.h>
_BUFFER_BYTES = 8 << 20
#: At most so many packets at once: after a stall of the CPU a burst must not overrun queues.
_BURST = 20
_HELLO_S = 0.05
#: A receiver waits so long for what is still on its way, measured from the last arrival.
_DRAIN_S = 2.0
_TCP_DRAIN_S = 20.0


class Commands:
    """Lines from standard input, without ever blocking for longer than asked."""

    def __init__(self) -> None:
        os.set_blocking(0, False)
        self._buffer = b""

    def wait(self, seconds: float, *others: socket.socket) -> list[str] | None:
        """The next line as words, or None after `seconds` or once one of `others` can be read."""
        if b"\n" not in self._buffer:
            sources: list[int | socket.socket] = [0, *others]
            ready, _, _ = select.select(sources, [], [], max(seconds, 0))
            if 0 in ready:
                data = os.read(0, 4_096)
                if not data:
                    raise SystemExit(0)
                self._buffer += data
        line, newline, rest = self._buffer.partition(b"\n")
        if not newline:
            return None
        self._buffer = rest
        return line.decode().split()


def _say(value: object) -> None:
    print(value if isinstance(value, str) else json.dumps(value), flush=True)


class _Pace:
    """How many are due now at `rate` a second; what a stall has missed is given up."""

    def __init__(self, rate: float) -> None:
        self.rate, self.begun, self.done = rate, time.monotonic(), 0

    def due(self) -> int:
        late = int((time.monotonic() - self.begun) * self.rate) - self.done
        number = min(late, _BURST)
        self.done += late
        return number

    def pause(self) -> float:
        """Seconds until the next is due."""
        return self.begun + (self.done + 1) / self.rate - time.monotonic()


class _Udp:
    def __init__(self, address: str, peer: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        self.socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self.socket.bind((address, port))
        self.socket.setblocking(False)
        self.peer = (peer, port)
        self.sent = self.received = self.reordered = self.errors = 0
        self.highest = -1
        self.seen: set[int] = set()
        self.longest_gap = 0.0
        self.last_at = 0.0
        self.welcomed = False

    def say(self, kind: int, number: int) -> bool:
        """Send one packet; False, and an error counted, where this host itself refuses."""
        try:
            self.socket.sendto(_PACKET.pack(kind, number).ljust(_PAYLOAD_BYTES, b"\0"), self.peer)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ENOBUFS, errno.ENETUNREACH):
                raise
            self.errors += 1
            return False
        return True

    def hear(self) -> None:
        """Take in all that has arrived, at the times that the kernel noted."""
        while True:
            try:
                data, extra, _, _ = self.socket.recvmsg(_PAYLOAD_BYTES, 64)
            except BlockingIOError:
                return
            kind, number = _PACKET.unpack_from(data)
            if kind == _HELLO:
                self.say(_WELCOME, 0)
            elif kind == _WELCOME:
                self.welcomed = True
            else:
                seconds, nanoseconds = struct.unpack("qq", extra[0][2][:16])
                self._data(number, seconds + nanoseconds / 1e9)

    def _data(self, number: int, at: float) -> None:
        self.received += 1
        if number in self.seen:
            return
        self.seen.add(number)
        self.reordered += number < self.highest
        self.highest = max(self.highest, number)
        if self.last_at:
            self.longest_gap = max(self.longest_gap, at - self.last_at)
        self.last_at = at

    def result(self, peer_sent: int) -> dict[str, object]:
        lost = peer_sent - len(self.seen)
        missing = (n for n in range(peer_sent) if n not in self.seen)
        return {
            "sent": peer_sent,
            "received": len(self.seen),
            "lost": lost,
            "duplicates": self.received - len(self.seen),
            "reordered": self.reordered,
            "longest_gap_ms": round(self.longest_gap * 1e3, 3),
            "first_lost": [n for n, _ in zip(missing, range(10), strict=False)],
            "errors": self.errors,
        }


def udp(address: str, peer: str, port: int, rate: float) -> None:
    """Send numbered packets to the peer, and judge those that it sends."""
    commands, end = Commands(), _Udp(address, peer, port)
    while not end.welcomed:
        end.say(_HELLO, 0)
        if commands.wait(_HELLO_S, end.socket) is None:
            end.hear()
    _say("ready")
    while commands.wait(0.01) != ["go"]:
        end.hear()
    pace = _Pace(rate)
    while commands.wait(pace.pause()) != ["stop"]:
        for _ in range(pace.due()):
            end.sent += end.say(_DATA, end.sent)
        end.hear()
    _say(str(end.sent))
    peer_sent, patience = None, 0.0
    while peer_sent is None or (len(end.seen) < peer_sent and time.monotonic() < patience):
        words, before = commands.wait(0.01), len(end.seen)
        end.hear()
        if words is not None or len(end.seen) > before:
            patience = time.monotonic() + _DRAIN_S
        if words is not None:
            peer_sent = int(words[1])
    _say(end.result(peer_sent))


def tcp_server(address: str, _peer: str, port: int, _rate: float) -> None:
    """Take one connection; answer every record with its number; check that none is missing."""
    listener = socket.create_server(
        (address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET
    )
    _say("ready")
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer, number = bytearray(), 0
    while data := connection.recv(65_536):
        buffer += data
        answer = bytearray()
        while len(buffer) >= RECORD_BYTES:
            (got,) = _RECORD.unpack_from(buffer)
            if got != number:
                sys.exit(f"record {got} came where {number} was due")
            answer += _RECORD.pack(number)
            del buffer[:RECORD_BYTES]
            number += 1
        connection.sendall(answer)


class _Stream:
    """The sending end of one long connection."""

    def __init__(self, address: str, peer: str, port: int) -> None:
        self.socket = socket.create_connection((peer, port), 10, (address, 0))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.out = bytearray()
        self.records = self.answered = 0
        self.partial = b""
        self.last_at = time.monotonic()
        self.longest_stall = 0.0
        self.closed = False

    def push(self, number: int) -> None:
        for _ in range(number):
            self.out += _RECORD.pack(self.records).ljust(RECORD_BYTES, b"\0")
            self.records += 1
        with contextlib.suppress(BlockingIOError):
            while self.out:
                del self.out[: self.socket.send(self.out)]

    def pull(self) -> None:
        try:
            data = self.socket.recv(65_536)
        except BlockingIOError:
            return
        self.closed = not data
        self.partial += data
        while len(self.partial) >= _RECORD.size:
            (number,) = _RECORD.unpack_from(self.partial)
            if number != self.answered:
                raise ConnectionError(f"answer {number} came where {self.answered} was due")
            self.answered += 1
            self.partial = self.partial[_RECORD.size :]
            now = time.monotonic()
            self.longest_stall = max(self.longest_stall, now - self.last_at)
            self.last_at = now


def tcp_client(address: str, peer: str, port: int, rate: float) -> None:
    """Send `rate` records of 1 KiB a second over one connection until told to stop."""
    commands, stream = Commands(), _Stream(address, peer, port)
    _say("ready")
    while commands.wait(1.0) != ["go"]:
        pass
    stream.last_at = time.monotonic()
    pace, failure, stopping = _Pace(rate), "", False
    try:
        while not stopping and not stream.closed:
            stopping = commands.wait(max(pace.pause(), 0.005)) == ["stop"]
            stream.push(pace.due())
            stream.pull()
        patience = time.monotonic() + _TCP_DRAIN_S
        while stream.answered < stream.records and time.monotonic() < patience:
            select.select([stream.socket], [], [], 0.01)
            stream.push(0)
            stream.pull()
        if stream.answered < stream.records:
            failure = f"{stream.records - stream.answered} records were never answered"
    except OSError as error:
        failure = str(error)
    while not stopping:
        stopping = commands.wait(1.0) == ["stop"]
    # What is not yet answered stalls, too.
    if stream.answered < stream.records:
        stream.longest_stall = max(stream.longest_stall, time.monotonic() - stream.last_at)
    _say(
        {
            "bytes": stream.answered * RECORD_BYTES,
            "longest_stall_ms": round(stream.longest_stall * 1e3, 3),
            "survived": not failure and stream.records > 0,
            "failure": failure,
        }
    )


_ROLES = {"udp": udp, "tcp-server": tcp_server, "tcp-client": tcp_client}


def main(words: Sequence[str]) -> NoReturn:
    """Run one role; exit status 2 where the words name none."""
    try:
        role, address, peer, port, rate = words
        run, number, pace = _ROLES[role], int(port), float(rate)
    except (ValueError, KeyError):
        sys.exit(f"usage: traffic {'|'.join(_ROLES)} ADDRESS PEER PORT RATE")
    run(address, peer, number, pace)
    sys.exit(0)
