"""A fake switch for the channel: keeps flow entries and groups, takes bundles, and answers in
the bytes of OpenFlow 1.5. For faults and orders that a real switch does not show on demand.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

from controller.act.dataplane.compiler import FlowKey, GroupKey, Key
from controller.act.dataplane.openflow import decode, encode, wire
from controller.act.dataplane.openflow.actions import get_instructions
from controller.act.dataplane.openflow.oxm import get_tests
from controller.act.dataplane.openflow.records import Flow

_FLOW_MOD = struct.Struct(">QQBBHHHIIIHH")
_GROUP_MOD = struct.Struct(">HBxI")
_ADD, _MODIFY_STRICT, _DELETE_STRICT = 0, 2, 4
_BAD_ACTION = 2


class Refused(Exception):  # noqa: N818 - what became of the message
    """The switch will not do it."""


class FakeSwitch:
    """What a switch has, and how it answers. `refuses` says which flow entries it rejects."""

    def __init__(
        self, flows: Iterable[Flow] = (), refuses: Callable[[Flow], bool] = lambda _: False
    ) -> None:
        self.table: dict[FlowKey, Flow] = {FlowKey(*f.place): f for f in flows}
        self.groups: dict[int, bytes] = {}
        self.refuses = refuses
        self.bundle: list[bytes] = []
        #: Places that messages were about, and all keys in the order of their messages.
        self.touched: set[tuple[int, int, object]] = set()
        self.order: list[Key] = []

    def flows(self) -> set[Flow]:
        """Everything in the flow tables."""
        return set(self.table.values())

    def put(self, flow: Flow) -> None:
        """Change an entry behind the controller's back."""
        self.table[FlowKey(*flow.place)] = flow

    def drop(self, flow: Flow) -> None:
        """Remove an entry behind the controller's back."""
        self.table.pop(FlowKey(*flow.place), None)

    def receive(self, data: bytes) -> list[tuple[int, bytes]]:
        """Take messages; the answers, each with its type."""
        out: list[bytes] = []
        while data:
            head = decode.header(data)
            message, data = data[: head.length], data[head.length :]
            out += self._one(head.type, head.xid, message)
        return [(decode.header(answer).type, answer) for answer in out]

    def _one(self, kind: int, xid: int, message: bytes) -> list[bytes]:
        if kind == wire.BARRIER_REQUEST:
            return [wire.message(wire.BARRIER_REPLY, xid, b"")]
        if kind == wire.BUNDLE_CONTROL:
            return self._bundle(xid, message)
        if kind == wire.BUNDLE_ADD:
            self.bundle.append(message[16:])
            return []
        if kind == wire.MULTIPART_REQUEST:
            return [self._describe(xid, message)]
        if kind in (wire.FLOW_MOD, wire.GROUP_MOD):
            return self._all_or_nothing([message])
        return []

    def _bundle(self, xid: int, message: bytes) -> list[bytes]:
        number, step, flags = wire.BUNDLE.unpack_from(message, 8)
        if step == encode.Bundle.OPEN:
            self.bundle = []
        elif step == encode.Bundle.COMMIT:
            errors = self._all_or_nothing(self.bundle)
            if errors:
                return [*errors, _error(xid, 17, 15, message)]
        body = wire.BUNDLE.pack(number, step + 1, flags)
        return [wire.message(wire.BUNDLE_CONTROL, xid, body)]

    def _all_or_nothing(self, messages: list[bytes]) -> list[bytes]:
        before = dict(self.table), dict(self.groups)
        for message in messages:
            head = decode.header(message)
            try:
                self._apply(head.type, message)
            except Refused:
                self.table, self.groups = before
                return [_error(head.xid, _BAD_ACTION, 4, message)]
        return []

    def _apply(self, kind: int, message: bytes) -> None:
        if kind == wire.GROUP_MOD:
            command, _, number = _GROUP_MOD.unpack_from(message, 8)
            self.order.append(GroupKey(number))
            if command == 2:
                self.groups.pop(number, None)
            elif (command == 0) == (number in self.groups):
                raise Refused
            else:
                self.groups[number] = message
            return
        cookie, _, table, command, _, _, priority, *_ = _FLOW_MOD.unpack_from(message, 8)
        start = 8 + _FLOW_MOD.size
        length = int.from_bytes(message[start + 2 : start + 4], "big")
        tests = get_tests(message, start + 4, start + length, "flow mod")
        instructions = start + (length + 7) // 8 * 8
        actions, goto = get_instructions(message, instructions, len(message), "flow mod")
        flow = Flow(table, priority, tests, actions, goto, cookie)
        key = FlowKey(*flow.place)
        self.touched.add(flow.place)
        self.order.append(key)
        if command == _DELETE_STRICT:
            self.table.pop(key, None)
        elif self.refuses(flow):
            raise Refused
        else:
            self.table[key] = flow

    def _describe(self, xid: int, message: bytes) -> bytes:
        (kind,) = struct.unpack_from(">H", message, 8)
        body = b""
        if kind == wire.MP_FLOW_DESC:
            cookie, mask = struct.unpack_from(">QQ", message, 32)
            body = b"".join(
                _description(flow)
                for flow in self.table.values()
                if (flow.cookie ^ cookie) & mask == 0
            )
        return wire.message(wire.MULTIPART_REPLY, xid, wire.MULTIPART.pack(kind, 0) + body)


def _description(flow: Flow) -> bytes:
    """An `ofp_flow_desc` made of the parts of the flow mod that would add the entry."""
    message = encode.flow_mod(0, encode.Command.ADD, flow)
    start = 8 + _FLOW_MOD.size
    length = int.from_bytes(message[start + 2 : start + 4], "big")
    instructions = start + (length + 7) // 8 * 8
    tail = message[start:instructions] + struct.pack(">HHxxxx", 0, 4) + message[instructions:]
    head = wire.FLOW_DESC.pack(
        wire.FLOW_DESC.size + len(tail), flow.table, flow.priority, 0, 0, 0, 0, flow.cookie
    )
    return head + tail


def _error(xid: int, kind: int, code: int, message: bytes) -> bytes:
    return wire.message(wire.ERROR, xid, struct.pack(">HH", kind, code) + message[:64])
