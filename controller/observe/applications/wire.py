"""What do the worker and who uses it say to each other?

Messages over a socket that keeps their bounds; the first byte is the kind. What the worker says
is JSON, because a worker that has been taken over by a packet must not gain more by it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from typing import Any, Final, NamedTuple

from .captures import Frame
from .flows import Counters, Key, Limits
from .naming import Naming
from .records import Direction, Endpoint, Kind, Verdict

#: To the worker: how to work (with the descriptor of a model, if there is one), frames to look
#: at, a capture to look at (its descriptor comes along), end all flows, forget everything.
CONFIGURE: Final = b"C"
FRAMES: Final = b"B"
CAPTURE: Final = b"F"
FINISH: Final = b"E"
FORGET: Final = b"R"
#: To the worker: end the flows that have been idle for long, at the time that the body says.
EXPIRE: Final = b"X"
#: From the worker: it is ready, verdicts, an order has been carried out.
READY: Final = b"S"
VERDICTS: Final = b"V"
DONE: Final = b"D"

#: No message is longer: the buffer of a Unix socket holds some 200 KiB by default.
MAX_MESSAGE = 65_536
#: What is fed of a frame. nDPI looks at the first kilobytes of a packet only.
MAX_FED = 16_384
#: So that the verdicts of a message stay below MAX_MESSAGE, with traces of 100 packets too.
VERDICTS_A_MESSAGE = 24

_frame = struct.Struct("<IdHI")
_NUMBER = struct.Struct("<I")
#: Length of the addresses (0: no key), scope, protocol, VLAN, ports, addresses.
_key = struct.Struct("<BIBHHH16s16s")
KEY_SIZE = _key.size


class Done(NamedTuple):
    """The answer to an order: what the table has counted since it was made, what the worker
    has needed since it was started, in seconds of one CPU, and what was wrong with a capture."""

    number: int
    counters: Counters
    cpu_s: float
    trouble: str


class Batch:
    """Frames that are sent together."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0
        self.frames = 0

    def add(self, scope: int, frame: Frame) -> None:
        """Append a frame, cut to MAX_FED."""
        data = frame.data[:MAX_FED]
        self.parts.append(_frame.pack(scope, frame.time, frame.link, len(data)))
        self.parts.append(data)
        self.size += _frame.size + len(data)
        self.frames += 1

    def holds(self, length: int) -> bool:
        """Whether a frame of `length` bytes still fits."""
        return self.size + _frame.size + min(length, MAX_FED) + 5 <= MAX_MESSAGE

    def message(self, number: int) -> bytes:
        """The message with all frames."""
        return b"".join([FRAMES, _NUMBER.pack(number), *self.parts])


def order(kind: bytes, number: int, body: object = None) -> bytes:
    """An order of `kind` to the worker."""
    return kind + _NUMBER.pack(number) + json.dumps(body).encode()


def order_of(message: bytes) -> tuple[bytes, int]:
    """Kind and number of an order."""
    return message[:1], _NUMBER.unpack_from(message, 1)[0]


def body_of(message: bytes) -> Any:
    """What an order says, unless it is frames."""
    return json.loads(message[5:])


def renumbered(message: bytes, number: int) -> bytes:
    """The same order with another number."""
    return message[:1] + _NUMBER.pack(number) + message[5:]


def frames_of(message: bytes) -> Iterator[tuple[int, float, int, bytes]]:
    """Scope, time, link type and bytes of the frames of a message."""
    at, end, header, unpack = 5, len(message), _frame.size, _frame.unpack_from
    while at < end:
        scope, time, link, length = unpack(message, at)
        at += header
        yield scope, time, link, message[at : at + length]
        at += length


def configuration(limits: Limits, naming: Naming, poisoned: Iterable[Key]) -> dict[str, Any]:
    """What the worker has to know, as JSON values."""
    return {
        "limits": asdict(limits),
        "naming": naming.to_json(),
        "poisoned": [pack_key(key).hex() for key in poisoned],
    }


def configured(value: dict[str, Any]) -> tuple[Limits, Naming, frozenset[Key]]:
    """What `configuration` was made of."""
    keys = (unpack_key(bytes.fromhex(text)) for text in value["poisoned"])
    return (
        Limits(**value["limits"]),
        Naming.from_json(value["naming"]),
        frozenset(key for key in keys if key is not None),
    )


def pack_key(key: Key) -> bytes:
    """A flow's key as KEY_SIZE bytes."""
    scope, (protocol, source, destination, sport, dport, vlan) = key
    return _key.pack(len(source), scope, protocol, vlan, sport, dport, source, destination)


def unpack_key(data: bytes) -> Key | None:
    """The key in KEY_SIZE bytes, if there is one."""
    length, scope, protocol, vlan, sport, dport, source, destination = _key.unpack(data)
    if length not in (4, 16):
        return None
    return scope, (protocol, source[:length], destination[:length], sport, dport, vlan)


def verdicts_message(verdicts: Iterable[Verdict]) -> bytes:
    """A message with verdicts."""
    return VERDICTS + json.dumps(list(verdicts), separators=(",", ":")).encode()


def verdicts_of(message: bytes) -> list[Verdict]:
    """The verdicts in a message. Raises ValueError, TypeError or KeyError where it has none."""
    return [_verdict(row) for row in json.loads(message[1:])]


def done_message(number: int, counters: Counters, cpu_s: float, trouble: str = "") -> bytes:
    """The message that order `number` was carried out."""
    body = [number, [getattr(counters, f.name) for f in fields(counters)], cpu_s, trouble]
    return DONE + json.dumps(body).encode()


def done_of(message: bytes) -> Done:
    """What `done_message` was made of."""
    number, counters, cpu_s, trouble = json.loads(message[1:])
    return Done(int(number), Counters(*map(int, counters)), float(cpu_s), str(trouble))


def _verdict(row: list[Any]) -> Verdict:
    values = dict(zip(Verdict._fields, row, strict=True))
    for name in ("scope", "vlan", "packets"):
        values[name] = int(values[name])
    for name in ("protocol", "application", "category", "method", "server_name"):
        values[name] = str(values[name])
    for name in ("confidence", "first_seen"):
        values[name] = float(values[name])
    for name in ("handshake_s", "response_s"):
        values[name] = None if values[name] is None else float(values[name])
    for name in ("initiator", "responder"):
        address, port, mac = values[name]
        values[name] = Endpoint(str(address), int(port), str(mac))
    values["direction"] = Direction(values["direction"])
    values["kind"] = Kind(values["kind"])
    values["category_kind"] = Kind(values["category_kind"])
    values["risks"] = tuple(map(str, values["risks"]))
    values["trace"] = tuple((float(at), int(size)) for at, size in values["trace"])
    return Verdict(**values)
