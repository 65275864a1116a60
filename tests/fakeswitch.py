"""A fake: a switch that has no ports and no packets, and speaks OpenFlow 1.5 over TCP.

It keeps what it is told and reports it, so that a controller cannot tell it from a real one;
many of them cost little, and one that overrides a method misbehaves as a test wants it to.

    with Fakes(("127.0.0.1", 6653)) as fakes:
        fake = fakes.connect(FakeSwitch(0x99, {1: "eth1"}))
        fake.wait(lambda: fake.barriers, "the first barrier")
"""

from __future__ import annotations

import asyncio
import struct
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self, TypeVar

from controller.act.dataplane.openflow import wire
from controller.act.dataplane.openflow.encode import Bundle, Command

_HELLO = struct.pack(">HHI", 1, 8, 1 << wire.VERSION)
_FEATURES = struct.Struct(">QIBBxxII")
_PORT = struct.Struct(">IHxx6sxx16sII")
_ETHERNET = struct.Struct(">HHxxxxIIIIII")
_GIGABIT = 1_000_000
_ERROR = struct.Struct(">HH")
_FLOW_MOD = struct.Struct(">QQBBHHHIIIHH")
_GROUP_MOD = struct.Struct(">HBxIHxxI")
_METER_MOD = struct.Struct(">HHI")
#: Counters of a flow entry: none.
_NO_STATISTICS = struct.pack(">HHxxxx", 0, 4)
#: Bytes of one multipart reply, well below what its length field holds.
_ROOM = 60_000
_GROUP_DELETE = _METER_DELETE = 2

F = TypeVar("F", bound="FakeSwitch")


class FakeSwitch(asyncio.Protocol):
    """One fake with a datapath id and ports by number. The methods run in the loop of `Fakes`;
    what they leave in the attributes may be looked at from elsewhere."""

    def __init__(self, dpid: int, ports: Mapping[int, str] | None = None) -> None:
        self.dpid = dpid
        self.ports = dict(ports or {})
        #: Bodies of flow mods by (table, priority, match), of group and meter mods by id.
        self.flows: dict[tuple[int, int, bytes], bytes] = {}
        self.groups: dict[int, bytes] = {}
        self.meters: dict[int, bytes] = {}
        self.barriers = 0
        self.connections = 0
        self.lost = 0
        #: Kinds of messages received, in order.
        self.heard: list[int] = []
        self._bundles: dict[int, list[bytes]] = {}
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._handlers: dict[int, Callable[[int, bytes], None]] = {
            wire.ECHO_REQUEST: lambda xid, body: self.reply(wire.ECHO_REPLY, xid, body),
            wire.FEATURES_REQUEST: self.features,
            wire.MULTIPART_REQUEST: self.multipart,
            wire.BARRIER_REQUEST: self.barrier,
            wire.FLOW_MOD: self.flow_mod,
            wire.GROUP_MOD: self.group_mod,
            wire.METER_MOD: self.meter_mod,
            wire.BUNDLE_CONTROL: self.bundle_control,
            wire.BUNDLE_ADD: self.bundle_add,
        }

    # --- The connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._buffer.clear()
        self._bundles.clear()
        self.connections += 1
        self.greet()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.lost += 1

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= wire.HEADER_SIZE:
            _, kind, length, xid = wire.HEADER.unpack_from(self._buffer)
            if len(self._buffer) < length:
                return
            body = bytes(self._buffer[wire.HEADER_SIZE : length])
            del self._buffer[:length]
            self.heard.append(kind)
            self.message(kind, xid, body)

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._transport is not None

    def send(self, data: bytes) -> None:
        """Send bytes as they are; nothing where the connection is gone."""
        if self._transport is not None:
            self._transport.write(data)

    def reply(self, kind: int, xid: int, body: bytes = b"") -> None:
        """Send one message."""
        self.send(wire.message(kind, xid, body))

    def close(self) -> None:
        """End the connection, with what is not yet sent."""
        if self._transport is not None:
            self._transport.abort()

    def wait(self, condition: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
        """Return once `condition` holds; TimeoutError that names `what` where it does not."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"fake {self.dpid:#x}: after {timeout_s:g} s still not: {what}")
            time.sleep(0.01)

    # --- What a switch does; a hostile one does otherwise

    def greet(self) -> None:
        """Say hello."""
        self.reply(wire.HELLO, 1, _HELLO)

    def message(self, kind: int, xid: int, body: bytes) -> None:
        """Deal with one message."""
        handler = self._handlers.get(kind)
        if handler is not None:
            handler(xid, body)

    def features(self, xid: int, _: bytes) -> None:
        """Say who this is."""
        self.reply(wire.FEATURES_REPLY, xid, _FEATURES.pack(self.dpid, 0, 254, 0, 0, 0))

    def barrier(self, xid: int, _: bytes) -> None:
        """All before it is done."""
        self.barriers += 1
        self.reply(wire.BARRIER_REPLY, xid)

    def refuse(self, xid: int, kind: int, code: int, message: bytes) -> None:
        """An error about a message, of which the beginning is sent back."""
        self.reply(wire.ERROR, xid, _ERROR.pack(kind, code) + message[:64])

    def flow_mod(self, _: int, body: bytes) -> None:
        """ADD, MODIFY_STRICT or DELETE_STRICT."""
        found = _FLOW_MOD.unpack_from(body)
        table, command, priority = found[2], found[3], found[6]
        match_length = int.from_bytes(body[42:44], "big")
        key = (table, priority, body[40 : 40 + (match_length + 7) // 8 * 8])
        if command == Command.DELETE_STRICT:
            self.flows.pop(key, None)
        elif command == Command.ADD or key in self.flows:
            self.flows[key] = body

    def group_mod(self, _: int, body: bytes) -> None:
        """ADD, MODIFY or DELETE of one group."""
        command, _, number, _, _ = _GROUP_MOD.unpack_from(body)
        if command == _GROUP_DELETE:
            self.groups.pop(number, None)
        else:
            self.groups[number] = body

    def meter_mod(self, _: int, body: bytes) -> None:
        """ADD, MODIFY or DELETE of one meter."""
        command, _, number = _METER_MOD.unpack_from(body)
        if command == _METER_DELETE:
            self.meters.pop(number, None)
        else:
            self.meters[number] = body

    def bundle_control(self, xid: int, body: bytes) -> None:
        """Open, commit or discard a bundle."""
        bundle, step, flags = wire.BUNDLE.unpack_from(body)
        if step == Bundle.OPEN:
            self._bundles[bundle] = []
        elif step in (Bundle.COMMIT, Bundle.DISCARD):
            held = self._bundles.pop(bundle, [])
            for inner in held if step == Bundle.COMMIT else []:
                _, kind, _, inner_xid = wire.HEADER.unpack_from(inner)
                self.message(kind, inner_xid, inner[wire.HEADER_SIZE :])
        self.reply(wire.BUNDLE_CONTROL, xid, wire.BUNDLE.pack(bundle, step + 1, flags))

    def bundle_add(self, _: int, body: bytes) -> None:
        """Keep a message until the bundle is committed."""
        bundle = int.from_bytes(body[:4], "big")
        self._bundles.setdefault(bundle, []).append(body[wire.BUNDLE.size :])

    def multipart(self, xid: int, body: bytes) -> None:
        """Describe ports, flows, groups or meters."""
        kind = int.from_bytes(body[:2], "big")
        entries: list[bytes] = {
            wire.MP_PORT_DESC: self.port_descs,
            wire.MP_FLOW_DESC: self.flow_descs,
            wire.MP_GROUP_DESC: self.group_descs,
            wire.MP_METER_DESC: self.meter_descs,
        }.get(kind, list)()
        piece = b""
        for entry in entries:
            if len(piece) + len(entry) > _ROOM:
                self.part(xid, kind, piece, more=True)
                piece = b""
            piece += entry
        self.part(xid, kind, piece)

    def part(self, xid: int, kind: int, body: bytes, *, more: bool = False) -> None:
        """Send one part of a description."""
        head = wire.MULTIPART.pack(kind, wire.MP_MORE if more else 0)
        self.reply(wire.MULTIPART_REPLY, xid, head + body)

    def port_descs(self) -> list[bytes]:
        """All ports, up, of 1 Gbit/s."""
        speed = _ETHERNET.pack(0, _ETHERNET.size, 0, 0, 0, 0, _GIGABIT, _GIGABIT)
        length = _PORT.size + len(speed)
        return [
            _PORT.pack(number, length, number.to_bytes(6, "big"), name.encode(), 0, 0) + speed
            for number, name in self.ports.items()
        ]

    def flow_descs(self) -> list[bytes]:
        """All flow entries."""
        found = []
        for (table, priority, match), body in self.flows.items():
            words = _FLOW_MOD.unpack_from(body)
            cookie, flags, importance = words[0], words[10], words[11]
            rest = match + _NO_STATISTICS + body[40 + len(match) :]
            length = wire.FLOW_DESC.size + len(rest)
            head = wire.FLOW_DESC.pack(length, table, priority, 0, 0, flags, importance, cookie)
            found.append(head + rest)
        return found

    def group_descs(self) -> list[bytes]:
        """All groups."""
        found = []
        for number, body in self.groups.items():
            _, kind, _, size, _ = _GROUP_MOD.unpack_from(body)
            rest = body[_GROUP_MOD.size :]
            length = wire.GROUP_DESC.size + len(rest)
            found.append(wire.GROUP_DESC.pack(length, kind, number, size) + rest)
        return found

    def meter_descs(self) -> list[bytes]:
        """All meters."""
        found = []
        for number, body in self.meters.items():
            _, flags, _ = _METER_MOD.unpack_from(body)
            rest = body[_METER_MOD.size :]
            found.append(
                wire.METER_DESC.pack(wire.METER_DESC.size + len(rest), flags, number) + rest
            )
        return found


class Fakes:
    """Fakes that connect to one controller, in one thread however many they are."""

    def __init__(self, controller: tuple[str, int]) -> None:
        self.controller = controller
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._fakes: list[FakeSwitch] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.disconnect()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def connect(self, fake: F) -> F:
        """Connect a fake, for the first time or again; OSError where nobody listens."""
        address, port = self.controller
        connecting = self._loop.create_connection(lambda: fake, address, port)
        asyncio.run_coroutine_threadsafe(connecting, self._loop).result(timeout=10)
        self._fakes.append(fake)
        return fake

    def disconnect(self) -> None:
        """End the connections of all fakes, and forget them."""
        for fake in self._fakes:
            self.call(fake.close)
        self._fakes.clear()

    def call(self, function: Callable[..., None], *arguments: object) -> None:
        """Run a method of a fake in the loop, and wait until it has run."""

        async def run() -> None:
            function(*arguments)

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(timeout=10)
