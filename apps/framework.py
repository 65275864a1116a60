"""What do our apps see of the framework? The class of apps, events, and how they are run.

The replies that carry whole tables, and packet-ins, are kept from the framework's generic
parser, which takes some 200 µs an entry and would hold up every other switch meanwhile. Packet-ins
are events like the framework's own, with our decoding; replies, of which every change makes some
two dozen, go straight to who asked by `replies_to`. What no app asks for is dropped.
"""

from __future__ import annotations

import logging
import signal
import socket
import ssl
from collections.abc import Callable
from typing import Any, TypeVar

from apps import door
from apps.framework_base import (
    NAME,
    PACKAGE,
    PARSERS,
    AppBase,
    app_manager,
    cfg,
    close,
    handler,
    hub,
    ofp_event,
    ofp_handler,
    ofproto_v1_5,
    serve,
    spawn,
)
from controller.act.dataplane.openflow import decode, wire

__all__ = [
    "NAME",
    "App",
    "Connection",
    "PacketIn",
    "close",
    "hub",
    "on",
    "replies_to",
    "run",
    "spawn",
]

log = logging.getLogger(__name__)

VERSION = ofproto_v1_5.OFP_VERSION
HANDSHAKE = handler.HANDSHAKE_DISPATCHER
MAIN = handler.MAIN_DISPATCHER
DEAD = handler.DEAD_DISPATCHER

#: A connection as the framework has it: `id`, `address`, `ports`, `state`, `send`, `close`.
Connection = Any
F = TypeVar("F", bound=Callable[..., None])


class App(AppBase):  # type: ignore[misc]
    """An app that speaks OpenFlow 1.5 and nothing else."""

    OFP_VERSIONS = [VERSION]  # noqa: RUF012 - the framework's own name and form

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for version in PARSERS:
            PARSERS[version] = _parse if version == VERSION else _parse_other


class PacketIn:
    """A packet that a switch sent up, decoded."""

    def __init__(self, connection: Connection, packet: decode.PacketIn) -> None:
        self.datapath = connection
        self.packet = packet


ofp_event._create_ofp_msg_ev_class(PacketIn)

PacketInEvent = ofp_event.EventPacketIn
StateEvent = ofp_event.EventOFPStateChange
PortEvent = ofp_event.EventOFPPortStateChange
HelloEvent = ofp_event.EventOFPHello


def on(event: Any, *states: Any) -> Callable[[F], F]:
    """Make a method of an app the handler of an event, in the given states."""
    decorate: Callable[[F], F] = handler.set_ev_cls(event, list(states) or None)
    return decorate


#: Who is told of an error, a barrier or bundle reply, or a part of a description: by the
#: connection, the message's kind and its bytes.
Answered = Callable[[Connection, int, bytes], None]
_answered: list[Answered] = []


def replies_to(answered: Answered) -> None:
    """Have `answered` called with every reply of every switch that has been greeted, within the
    greenthread that reads from it: it must not wait for anything."""
    _answered.append(answered)


#: Messages that are handed over as they are, and descriptions of which the same holds.
_RAW = {wire.ERROR, wire.BARRIER_REPLY, wire.BUNDLE_CONTROL}
_DESCRIPTIONS = {
    wire.MP_FLOW_DESC,
    wire.MP_GROUP_DESC,
    wire.MP_METER_DESC,
    wire.MP_GROUP_STATS,
    wire.MP_METER_STATS,
}
#: What the framework keeps a connection by.
_THEIRS = {
    wire.HELLO,
    wire.ECHO_REQUEST,
    wire.ECHO_REPLY,
    wire.FEATURES_REPLY,
}
_generic = dict(PARSERS)
#: Ports of one switch: more than any has, so that nobody tells of ports for ever.
MAX_PORTS = 10_000


def _parse(
    connection: Connection, version: int, kind: int, length: int, xid: int, data: bytes
) -> Any:
    data = bytes(data)
    if kind == wire.PACKET_IN:
        return _packet_in(connection, data)
    described = -1
    if kind == wire.MULTIPART_REPLY and len(data) >= 10:
        described = int.from_bytes(data[8:10], "big")
    if kind in _RAW or described in _DESCRIPTIONS:
        if connection.state == MAIN:
            for answered in _answered:
                answered(connection, kind, data)
        return None
    ports = kind == wire.PORT_STATUS or described == wire.MP_PORT_DESC
    # A port may change before the switch has told its ports: there is no such attribute then.
    if ports and len(getattr(connection, "ports", None) or ()) > MAX_PORTS:
        log.error(
            "a switch is sent away: it tells of more than %d ports",
            MAX_PORTS,
            extra={"address": connection.address},
        )
        close(connection)
        return None
    if kind in _THEIRS or ports:
        return _generic[version](connection, version, kind, length, xid, data)
    log.debug(
        "a message that nobody asked for", extra={"kind": kind, "address": connection.address}
    )
    return None


def _packet_in(connection: Connection, data: bytes) -> PacketIn | None:
    try:
        return PacketIn(connection, decode.packet_in(data))
    except wire.Malformed as cause:
        log.error(
            "a switch sent a malformed packet-in: %s; it is dropped",
            cause,
            extra={"address": connection.address},
        )
        return None


def _parse_other(
    connection: Connection, version: int, kind: int, length: int, xid: int, data: bytes
) -> Any:
    """Of other versions only a hello has a meaning: it tells what a switch can speak."""
    if kind == wire.HELLO:
        return _generic[version](connection, version, kind, length, xid, data)
    return None


def run(apps: list[str], bound: socket.socket, tls: ssl.SSLContext | None) -> None:
    """Load the apps, listen at the socket `bound` and serve the switches that connect until the
    process is told to stop; what the apps share is then closed. Raises SettingsError where
    somebody else has begun to listen there."""
    ofp_handler.OpenFlowController = lambda: lambda: serve(bound, tls)
    cfg.CONF(args=[], project=PACKAGE, default_config_files=[])
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
