"""The one seam to the OpenFlow framework; no other module of ours imports it.

The hub is eventlet's: under os-ken's own threads an exception in a handler ends its app, and
a lost connection is never noticed. The replies that carry whole tables, and packet-ins, are
kept from the framework's generic parser, which takes some 200 µs an entry and would hold up
every other switch meanwhile; they arrive here as `Reply` and `PacketIn` with our own decoding.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import ssl
from collections.abc import Callable
from typing import Any, TypeVar

os.environ.setdefault("OSKEN_HUB_TYPE", "eventlet")

# `app_manager` must come before `controller`, which looks for it half-way through its import.
from os_ken import cfg
from os_ken.base import app_manager
from os_ken.controller import controller as _controller
from os_ken.controller import handler, ofp_event, ofp_handler
from os_ken.lib import hub
from os_ken.ofproto import ofproto_parser, ofproto_v1_5

from apps import door
from controller.act.dataplane.openflow import decode, wire

__all__ = ["App", "Connection", "PacketIn", "Reply", "hub", "on", "run"]

log = logging.getLogger(__name__)

VERSION = ofproto_v1_5.OFP_VERSION
HANDSHAKE = handler.HANDSHAKE_DISPATCHER
MAIN = handler.MAIN_DISPATCHER
DEAD = handler.DEAD_DISPATCHER

#: A connection as the framework has it: `id`, `address`, `ports`, `state`, `send`, `close`.
Connection = Any
F = TypeVar("F", bound=Callable[..., None])


class App(app_manager.OSKenApp):  # type: ignore[misc]
    """An app that speaks OpenFlow 1.5 and nothing else."""

    OFP_VERSIONS = [VERSION]  # noqa: RUF012 - the framework's own name and form


class Reply:
    """An error, a barrier reply, or a part of a description: `kind`, and its bytes."""

    def __init__(self, connection: Connection, kind: int, data: bytes) -> None:
        self.datapath = connection
        self.kind = kind
        self.data = data


class PacketIn:
    """A packet that a switch sent up, decoded."""

    def __init__(self, connection: Connection, packet: decode.PacketIn) -> None:
        self.datapath = connection
        self.packet = packet


for _message in (Reply, PacketIn):
    ofp_event._create_ofp_msg_ev_class(_message)

ReplyEvent = ofp_event.EventReply
PacketInEvent = ofp_event.EventPacketIn
StateEvent = ofp_event.EventOFPStateChange
PortEvent = ofp_event.EventOFPPortStateChange
HelloEvent = ofp_event.EventOFPHello


def on(event: Any, *states: Any) -> Callable[[F], F]:
    """Make a method of an app the handler of an event, in the given states."""
    decorate: Callable[[F], F] = handler.set_ev_cls(event, list(states) or None)
    return decorate


_DESCRIPTIONS = {
    ofproto_v1_5.OFPMP_FLOW_DESC,
    ofproto_v1_5.OFPMP_GROUP_DESC,
    ofproto_v1_5.OFPMP_METER_DESC,
}


def _is_ours(kind: int, data: bytes) -> bool:
    if kind == wire.MULTIPART_REPLY:
        return len(data) >= 10 and int.from_bytes(data[8:10], "big") in _DESCRIPTIONS
    return kind in (wire.ERROR, wire.BARRIER_REPLY, wire.BUNDLE_CONTROL)


def _install_parser() -> None:
    generic = ofproto_parser._MSG_PARSERS[VERSION]

    def parse(
        connection: Connection, version: int, kind: int, length: int, xid: int, data: bytes
    ) -> Any:
        data = bytes(data)
        try:
            if kind == wire.PACKET_IN:
                return PacketIn(connection, decode.packet_in(data))
        except wire.Malformed as cause:
            log.error(
                "a switch sent a malformed packet-in: %s; it is dropped",
                cause,
                extra={"address": connection.address},
            )
            return None
        if _is_ours(kind, data):
            return Reply(connection, kind, data)
        return generic(connection, version, kind, length, xid, data)

    ofproto_parser._MSG_PARSERS[VERSION] = parse


def _install_reader() -> None:
    connect = _controller.Datapath.__init__

    def connected(self: Connection, socket: Any, address: object) -> None:
        connect(self, door.BufferedSocket(socket, address), address)

    _controller.Datapath.__init__ = connected


def spawn(function: Callable[..., None], *args: object) -> None:
    """Run a function on a greenthread of its own."""
    hub.spawn(function, *args)


def _install_door(listening: socket.socket, tls: ssl.SSLContext | None) -> None:
    """Let the framework serve whom we let in: its own server shares the port with whoever else
    listens there, and a handshake that fails is told by a traceback alone."""

    def admit(accepted: socket.socket, address: object) -> None:
        connection: socket.socket | None = accepted
        if tls is not None:
            connection = door.secured(accepted, address, tls, hub.Timeout)
        if connection is not None:
            _controller.datapath_connection_factory(connection, address)

    def serve() -> None:
        while True:
            try:
                accepted, address = listening.accept()
            except OSError as error:
                log.error("a switch could not be let in: %s", error.strerror or error)
                hub.sleep(1.0)
                continue
            hub.spawn(admit, accepted, address)

    ofp_handler.OpenFlowController = lambda: serve


def run(apps: list[str], bound: socket.socket, tls: ssl.SSLContext | None) -> None:
    """Load the apps, listen at the socket `bound` and serve the switches that connect until the
    process is told to stop; what the apps share is then closed. Raises SettingsError where
    somebody else has begun to listen there."""
    _install_parser()
    _install_reader()
    _install_door(bound, tls)
    cfg.CONF(args=[], project="os_ken", default_config_files=[])
    stop = hub.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Raising in a handler would end whichever greenthread happens to run.
        signal.signal(number, lambda *_: stop.set())
    manager = app_manager.AppManager.get_instance()
    manager.load_apps(apps)
    contexts = manager.create_contexts()
    try:
        door.listen(bound)
        manager.instantiate_apps(**contexts)
        stop.wait()
    finally:
        for context in contexts.values():
            context.close()
