"""A real Open vSwitch and a connection of the codec's own to it, without any controller.

Runs inside the sandbox: OVS_RUNDIR names the run directory of a private Open vSwitch.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from controller.act.dataplane.openflow import decode, encode, wire
from controller.act.dataplane.openflow.aliens import AlienFlow, AlienGroup, AlienMeter
from controller.act.dataplane.openflow.encode import Command
from controller.act.dataplane.openflow.flow_replies import Installed, Layouts, flow_descs
from controller.act.dataplane.openflow.records import Flow, Group, Meter

BRIDGE = "codec0"
WAIT_S = 20


class Session:
    """An OpenFlow 1.5 connection of the codec's own to one bridge: at a port of the loopback, or
    at a Unix socket."""

    def __init__(self, where: int | Path) -> None:
        if isinstance(where, Path):
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(WAIT_S)
            self._socket.connect(str(where))
        else:
            self._socket = socket.create_connection(("127.0.0.1", where), WAIT_S)
        self._rest = b""
        self._xid = 0
        self.send(wire.message(wire.HELLO, self.xid(), b""))
        assert decode.header(self.receive()).type == wire.HELLO

    def xid(self) -> int:
        self._xid += 1
        return self._xid

    def send(self, *messages: bytes) -> None:
        self._socket.sendall(b"".join(messages))

    def receive(self) -> bytes:
        """The next message that is no keep-alive; TimeoutError where none comes."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            while len(self._rest) < wire.HEADER_SIZE or (
                len(self._rest) < decode.header(self._rest).length
            ):
                more = self._socket.recv(1 << 16)
                assert more, "the switch closed the connection"
                self._rest += more
            length = decode.header(self._rest).length
            found, self._rest = self._rest[:length], self._rest[length:]
            head = decode.header(found)
            if head.type != wire.ECHO_REQUEST:
                return found
            self.send(wire.message(wire.ECHO_REPLY, head.xid, found[wire.HEADER_SIZE :]))
        raise TimeoutError(f"the switch said nothing in {WAIT_S} s")

    def until(self, kind: int, xid: int) -> tuple[list[bytes], bytes]:
        """Everything before the message of `kind` with `xid`, and that message."""
        before: list[bytes] = []
        while True:
            found = self.receive()
            head = decode.header(found)
            if (head.type, head.xid) == (kind, xid):
                return before, found
            before.append(found)

    def do(self, *messages: bytes) -> list[decode.SwitchError]:
        """Send all and a barrier; what was refused."""
        xid = self.xid()
        self.send(*messages, encode.barrier_request(xid))
        before, _ = self.until(wire.BARRIER_REPLY, xid)
        return [decode.error(found) for found in before if found[1] == wire.ERROR]

    def replies(self, request: bytes) -> list[bytes]:
        self.send(request)
        xid = decode.header(request).xid
        found = [self.receive()]
        while True:
            head = decode.header(found[-1])
            assert (head.type, head.xid) == (wire.MULTIPART_REPLY, xid), found[-1].hex()
            if not int.from_bytes(found[-1][10:12], "big") & wire.MP_MORE:
                return found
            found.append(self.receive())

    def installed(self) -> list[Installed]:
        parts = self.replies(encode.flow_desc_request(self.xid()))
        layouts = Layouts()
        return [item for part in parts for item in flow_descs(part, layouts).items]

    def flows(self) -> list[Flow | AlienFlow]:
        return [item.flow for item in self.installed()]

    def groups(self) -> list[Group | AlienGroup]:
        request = encode.group_desc_request(self.xid())
        return [item for part in self.replies(request) for item in decode.group_descs(part).items]

    def meters(self) -> list[Meter | AlienMeter]:
        request = encode.meter_desc_request(self.xid())
        return [item for part in self.replies(request) for item in decode.meter_descs(part).items]

    def clear(self) -> None:
        gone = [encode.group_delete(self.xid()), encode.meter_delete(self.xid())]
        for flow in self.flows():
            if isinstance(flow, Flow):
                gone.append(encode.flow_mod(self.xid(), Command.DELETE_STRICT, flow))
            else:
                gone.append(encode.delete_alien(self.xid(), flow))
        assert self.do(*gone) == []

    def close(self) -> None:
        self._socket.close()


def vsctl(*arguments: str) -> None:
    database = f"unix:{os.environ['OVS_RUNDIR']}/db.sock"
    subprocess.run(["ovs-vsctl", f"--db={database}", *arguments], check=True, timeout=WAIT_S)


def ofctl(*arguments: str) -> str:
    """Another controller's doing, by Open vSwitch's own tool."""
    target = f"{os.environ['OVS_RUNDIR']}/{BRIDGE}.mgmt"
    command = ["ovs-ofctl", "-OOpenFlow15", arguments[0], target, *arguments[1:]]
    return subprocess.run(
        command, check=True, timeout=WAIT_S, capture_output=True, text=True
    ).stdout


@contextmanager
def bridge() -> Iterator[int]:
    """A userspace bridge that listens on a free port of the loopback; the port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    vsctl(
        "add-br", BRIDGE,
        "--", "set", "bridge", BRIDGE, "datapath_type=netdev", "protocols=OpenFlow15",
        "fail_mode=secure", "other_config:disable-in-band=true",
        "--", "set-controller", BRIDGE, f"ptcp:{port}:127.0.0.1",
    )  # fmt: skip
    try:
        yield port
    finally:
        vsctl("del-br", BRIDGE)


@contextmanager
def session(port: int) -> Iterator[Session]:
    """A connection to the switch, which is empty."""
    made = Session(port)
    try:
        made.clear()
        yield made
    finally:
        made.close()
