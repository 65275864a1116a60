"""Which framework speaks OpenFlow in this process, os-ken or Ryu, and what of it is mended?

With `framework` and `ryu_manager` this is the one seam to it: no other module imports either.
Each stands in an environment of its own (.venv, .venv-ryu), and the one that is found is taken.
os-ken is Ryu's heir: for us they differ by the names of the package and of the class of apps,
and by faults. The hub is eventlet's under both: under os-ken's own threads an exception in a
handler ends its app, and a lost connection is never noticed.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

from apps import door
from controller.act.dataplane.openflow import wire

log = logging.getLogger(__name__)

#: The framework of this process, as the setting `southbound.framework` calls it.
NAME: Literal["os-ken", "ryu"] = "os-ken" if find_spec("os_ken") else "ryu"
#: The name of its package, and of its own settings.
PACKAGE = {"os-ken": "os_ken", "ryu": "ryu"}[NAME]

if NAME == "os-ken":
    os.environ.setdefault("OSKEN_HUB_TYPE", "eventlet")
else:
    import eventlet.wsgi

    # What Ryu lets a handler of a web socket return. Eventlet no longer has the name: it marks
    # such answers by itself, and then wants nothing more to send.
    eventlet.wsgi.ALREADY_HANDLED = ()


def module(name: str) -> Any:
    """A module of the framework, such as "lib.hub"."""
    return import_module(f"{PACKAGE}.{name}")


# `app_manager` must come before `controller`, which looks for it half-way through its import.
app_manager = module("base.app_manager")
controller = module("controller.controller")
cfg = module("cfg")
handler = module("controller.handler")
hub = module("lib.hub")
ofp_event = module("controller.ofp_event")
ofp_handler = module("controller.ofp_handler")
ofproto_parser = module("ofproto.ofproto_parser")
ofproto_v1_5 = module("ofproto.ofproto_v1_5")

#: Seconds that a switch has from connecting to having told its ports.
GREETING_S = 15.0

#: What every app derives from.
AppBase: Any = app_manager.OSKenApp if NAME == "os-ken" else app_manager.RyuApp

#: How the framework makes an object of a message: of the connection, the header's fields and
#: the message's bytes.
Parser = Callable[[Any, int, int, int, int, bytes], Any]
#: Its parsers by OpenFlow version.
PARSERS: dict[int, Parser] = ofproto_parser._MSG_PARSERS


def plain_hello(data: bytes) -> bytes:
    """A hello without the padding between its elements (OpenFlow 1.5.1, 7.5.1): both frameworks
    know of none, and would bend over a length of zero for ever, serving nobody else. Raises
    Malformed where an element is not what its length says."""
    elements, at = b"", wire.HEADER_SIZE
    while at < len(data):
        length = wire.PROPERTY.unpack_from(data, at)[1] if at + 4 <= len(data) else 0
        if not wire.PROPERTY.size <= length <= len(data) - at:
            raise wire.Malformed("hello", f"an element of {length} bytes, {len(data) - at} left")
        elements += data[at : at + length]
        at += (length + 7) // 8 * 8
    version, kind, _, xid = wire.HEADER.unpack_from(data)
    return wire.HEADER.pack(version, kind, wire.HEADER_SIZE + len(elements), xid) + elements


def _mend_hello(parse: Parser) -> Parser:
    def mended(connection: Any, version: int, kind: int, length: int, xid: int, data: bytes) -> Any:
        if kind != wire.HELLO:
            return parse(connection, version, kind, length, xid, data)
        try:
            plain = plain_hello(bytes(data))
        except wire.Malformed as cause:
            log.error("a switch is sent away: %s", cause, extra={"address": connection.address})
            connection.close()
            return None
        return parse(connection, version, kind, len(plain), xid, plain)

    return mended


def _mend_properties(version: str) -> None:
    """Refuse a property without a length, as os-ken's 1.5 parser does: others would read it for
    ever."""
    base = module(f"ofproto.{version}_parser").OFPPropBase
    theirs = base.parse.__func__

    def parse(cls: Any, data: bytes) -> Any:
        if not wire.PROPERTY.unpack_from(data)[1]:
            raise ValueError("a property without a length")
        return theirs(cls, data)

    base.parse = classmethod(parse)


def _mend_connections() -> None:
    """Let what switches send be read through `door.BufferedSocket`, each having its turn, and
    send away who does not say who he is."""
    connect = controller.Datapath.__init__

    def connected(self: Any, connection: Any, address: object) -> None:
        connect(self, door.BufferedSocket(connection, address, lambda: hub.sleep(0)), address)
        hub.spawn_after(GREETING_S, _greeted, self)

    controller.Datapath.__init__ = connected


def _greeted(connection: Any) -> None:
    if connection.state in (handler.HANDSHAKE_DISPATCHER, handler.CONFIG_DISPATCHER):
        log.warning(
            "a switch is sent away: it did not say who it is within %g s",
            GREETING_S,
            extra={"address": connection.address},
        )
        connection.close()


for _version, _parse in PARSERS.items():
    PARSERS[_version] = _mend_hello(_parse)
for _module in ("ofproto_v1_4", "ofproto_v1_5"):
    _mend_properties(_module)
_mend_connections()


def spawn(function: Callable[..., None], *args: object) -> None:
    """Run a function on a greenthread of its own."""
    hub.spawn(function, *args)


def close(connection: Any) -> None:
    """End a connection, at once or a moment later. All apps are told, and one whose queue is full
    is waited for: that must not be done by the app itself."""
    spawn(connection.close)


def serve(listening: socket.socket, tls: ssl.SSLContext | None) -> None:
    """Have the framework serve whoever connects, for ever. Its own server shares the port with
    whoever else listens there, tells of a failed handshake by a traceback alone, and Ryu's gets
    no second switch through TLS."""
    while True:
        try:
            accepted, address = listening.accept()
        except OSError as error:
            log.error("a switch could not be let in: %s", error.strerror or error)
            hub.sleep(1.0)
            continue
        spawn(_admit, accepted, address, tls)


def _admit(accepted: socket.socket, address: object, tls: ssl.SSLContext | None) -> None:
    connection: socket.socket | None = accepted
    if tls is not None:
        connection = door.secured(accepted, address, tls, hub.Timeout)
    if connection is not None:
        controller.datapath_connection_factory(connection, address)
