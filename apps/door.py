"""Who comes in as a switch? The listening socket, the TLS handshake, and reading what is sent.

Runs on eventlet's sockets, which `apps.southbound` puts in the place of Python's.
"""

from __future__ import annotations

import _socket
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from controller.act.dataplane.openflow import wire
from controller.settings import Problem, SettingsError, Tls

log = logging.getLogger(__name__)

#: Gives a context that raises the exception where it takes longer than so many seconds.
Limit = Callable[[float, Exception], AbstractContextManager[object]]

#: Seconds that a TLS handshake may take.
HANDSHAKE_S = 5.0
#: Connections that wait to be accepted; a fabric's switches may all come at once.
_BACKLOG = 1024
#: Bytes of one reading from a switch's socket.
_READ = 1 << 16

#: What OpenSSL's reasons mean here, and what mends it.
_REASONS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it showed no certificate: give it one that "
    "southbound.tls.client_ca signed, on Open vSwitch by `ovs-vsctl set-ssl KEY CERTIFICATE CA`",
    "UNSUPPORTED_PROTOCOL": "it speaks no TLS from TLS 1.2 on: update it",
    "WRONG_VERSION_NUMBER": "it does not speak TLS: point it here by ssl:, not by tcp:",
}
#: How a TLS connection begins: with a record of the handshake (RFC 8446, 5.1).
_TLS_HANDSHAKE = 0x16
_DISTRUST = (
    "it does not trust southbound.tls.certificate: tell it who signed that, on Open vSwitch by "
    "`ovs-vsctl set-ssl KEY CERTIFICATE CA`"
)


def context(tls: Tls) -> ssl.SSLContext | None:
    """The server's side of `southbound.tls`; None where that is off. SettingsError where a file
    cannot be used.

    With `client_ca` no switch comes in without a certificate of it: a switch has nothing else
    to show.
    """
    if tls.certificate is None:
        return None
    tls.check("southbound.tls")
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # What OpenSSL takes as the least otherwise is the distribution's choice (RFC 8996).
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        made.load_cert_chain(tls.certificate, tls.key)
        if tls.client_ca is not None:
            made.load_verify_locations(tls.client_ca)
            made.verify_mode = ssl.CERT_REQUIRED
    except ssl.SSLError as error:
        # Which of the files it is, OpenSSL does not say.
        files = ", ".join(str(file) for file in (tls.certificate, tls.key, tls.client_ca) if file)
        raise SettingsError(
            Problem(
                files,
                "southbound.tls",
                f"cannot be used ({error.reason or error})",
                "give a PEM certificate, the key that belongs to it, and as client_ca, if any, "
                "PEM certificates too",
            )
        ) from error
    return made


def bind(host: str, port: int) -> socket.socket:
    """A socket for `listen`. SettingsError where the address cannot be had, or somebody listens
    there: of two processes that shared a port, each would get some of the switches."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, proto)
        # Connections of a process that has just ended do not keep its port.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise _not_here(host, port, error) from error
    return bound


def listen(bound: socket.socket) -> None:
    """Let connections come in. SettingsError as for `bind`."""
    try:
        bound.listen(_BACKLOG)
    except OSError as error:
        host, port = bound.getsockname()[:2]
        raise _not_here(host, port, error) from error


def _not_here(host: str, port: int, error: OSError) -> SettingsError:
    cause = f"cannot be listened at: {error.strerror or error}"
    hint = "choose another southbound.port or host, or end what uses it"
    return SettingsError(Problem(f"{host}:{port}", "southbound.port", cause, hint))


def secured(
    accepted: socket.socket, address: object, tls: ssl.SSLContext, limit: Limit
) -> ssl.SSLSocket | None:
    """The TLS connection of a switch that has just connected; None, with the reason in the log,
    where it is turned away."""
    connection: socket.socket = accepted
    try:
        with limit(HANDSHAKE_S, TimeoutError(f"no TLS handshake within {HANDSHAKE_S:g} s")):
            connection = made = tls.wrap_socket(
                accepted, server_side=True, do_handshake_on_connect=False
            )
            made.do_handshake()
    except OSError as error:
        connection.close()
        log.warning("a switch is turned away: %s", _reason(error), extra={"address": address})
        return None
    return made


def _reason(error: OSError) -> str:
    match error:
        case ssl.SSLCertVerificationError():
            return (
                f"its certificate is not accepted ({error.verify_message}): give it one that "
                "southbound.tls.client_ca signed"
            )
        case ssl.SSLZeroReturnError() | ssl.SSLEOFError() | ConnectionError():
            return "it ended the connection in the TLS handshake"
        case ssl.SSLError(reason=str(reason)):
            alert = reason.partition("_ALERT_")[2]
            if alert == "UNKNOWN_CA" or "CERTIFICATE" in alert:
                return f"{_DISTRUST} ({reason})"
            return _REASONS.get(reason, f"the TLS handshake failed ({reason})")
    return str(error)


def stranger(first: int) -> str | None:
    """Why who begins a connection with the byte `first` is no switch, and what mends it; None
    where it may be one: every OpenFlow message begins with its version."""
    if first == _TLS_HANDSHAKE:
        return (
            "it speaks TLS, which is off here: point it here by tcp:, not by ssl:, or set "
            "southbound.tls"
        )
    if not 1 <= first <= wire.VERSION:
        return (
            f"it begins with the byte 0x{first:02x}, which is no version of OpenFlow: point "
            "nothing but switches here"
        )
    return None


class BufferedSocket:
    """A connection of which small pieces are read from memory: the framework asks for 8 bytes
    at a time, and each time would be a turn of the hub. Before more is read from the switch,
    `pause` lets others have theirs: one that always has more to say would leave them none."""

    def __init__(self, connection: Any, address: object, pause: Callable[[], None]) -> None:
        self._connection = connection
        self._address = address
        self._pause = pause
        self._buffer = b""
        self._at = 0
        self._begun = False

    def recv(self, size: int) -> bytes:
        """At most `size` bytes, none at the end. OSError as a socket raises it, and where the
        other side is no switch; TimeoutError where nothing came in the connection's time."""
        if self._at == len(self._buffer):
            self._pause()
            try:
                self._buffer = self._connection.recv(_READ)
            except ssl.SSLError as error:
                # No such session can go on. The framework takes it for a pause without a word,
                # and would end only because OpenSSL tells of an end when it reads again.
                reason = error.reason or str(error)
                log.warning(
                    "a switch's TLS connection is broken: %s",
                    reason,
                    extra={"address": self._address},
                )
                raise ConnectionError(reason) from error
            self._at = 0
            if self._buffer and not self._begun:
                self._begun = True
                self._look(self._buffer[0])
        piece = self._buffer[self._at : self._at + size]
        self._at += len(piece)
        return piece

    def _look(self, first: int) -> None:
        """The framework would tell of a version that it does not know by a traceback alone."""
        reason = stranger(first)
        if reason is not None:
            log.warning("a switch is turned away: %s", reason, extra={"address": self._address})
            raise ConnectionError(reason)

    def shutdown(self, how: int) -> None:
        """Send no more; what the switch still sends can be read until it ends too."""
        if isinstance(self._connection, ssl.SSLSocket):
            # TLS's own would forget the session while somebody may be reading from it.
            _socket.socket.shutdown(self._connection, how)
        else:
            self._connection.shutdown(how)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)
