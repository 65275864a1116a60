"""Which address, and what else, is a NIC told by DHCP? A server (RFC 2131, options of RFC
2132) that knows one client, the NIC that the frame came from, and one address for it.

It keeps no leases: the address belongs to the NIC for as long as the NIC is in the store, so
offers and acknowledgements follow from the request alone.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address

from controller.act.dataplane.answers.packets import (
    BROADCAST,
    UDP,
    in_ipv4,
    mac_bytes,
    read_ipv4,
    udp,
)
from controller.model.nouns import Nic, Subnet

CLIENT_PORT, SERVER_PORT = 68, 67
_EVERYBODY = IPv4Address(0xFFFFFFFF)
_NOBODY = IPv4Address(0)
_BOOTP = struct.Struct("!4B4sHH4s4s4s4s16s64s128s4s")
_BOOTREQUEST, _BOOTREPLY, _ETHERNET = 1, 2, 1
_COOKIE = bytes((99, 130, 83, 99))
_BROADCAST_FLAG = 0x8000
#: Bytes of a BOOTP message at least (RFC 1542, 2.1).
_MIN_MESSAGE = 300
#: Bytes of an IP packet that every client takes (RFC 2131, 2), and its headers before BOOTP.
_MIN_PACKET, _HEADERS = 576, 28


class Message(IntEnum):
    """DHCP message types (RFC 2132, 9.6)."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6
    RELEASE = 7
    INFORM = 8


class Option(IntEnum):
    """Options that are read or written (RFC 2132; 82: RFC 3046)."""

    PAD = 0
    SUBNET_MASK = 1
    ROUTER = 3
    DNS = 6
    DOMAIN = 15
    MTU = 26
    BROADCAST = 28
    REQUESTED_ADDRESS = 50
    LEASE = 51
    OVERLOAD = 52
    MESSAGE_TYPE = 53
    SERVER = 54
    MESSAGE = 56
    MAX_SIZE = 57
    RENEW = 58
    REBIND = 59
    CLIENT_ID = 61
    RELAY_AGENT = 82
    END = 255


#: Options whose length is fixed, among those that are read.
_SIZES = {
    Option.REQUESTED_ADDRESS: 4,
    Option.OVERLOAD: 1,
    Option.MESSAGE_TYPE: 1,
    Option.SERVER: 4,
    Option.MAX_SIZE: 2,
}


@dataclass(frozen=True, slots=True)
class _Request:
    xid: bytes
    broadcast: bool
    #: The address that the client says it uses; 0.0.0.0 where none.
    ciaddr: IPv4Address
    chaddr: bytes
    options: Mapping[int, bytes]

    def address(self, option: Option) -> IPv4Address | None:
        value = self.options.get(option)
        return None if value is None else IPv4Address(value)


def dhcp(frame: bytes, nic: Nic, subnet: Subnet) -> bytes | None:
    """The reply to a DHCP request of `nic`, which is in `subnet`; from its gateway.

    The checksum of the request's UDP is not verified: a VM whose interface offloads it sends
    it unfinished, and what the request says decides about its sender alone.
    """
    if not subnet.dhcp or nic.ipv4 is None:
        return None
    message = _message(frame, nic, subnet)
    request = None if message is None else _parse(message, nic)
    if request is None:
        return None
    answer = _verdict(request, nic.ipv4, subnet.gateway)
    if answer is None:
        return None
    reply = _reply(request, answer, nic.ipv4, subnet)
    broadcast = answer is Message.NAK or (request.broadcast and request.ciaddr == _NOBODY)
    to_mac, to = (BROADCAST, _EVERYBODY) if broadcast else (mac_bytes(nic.mac), nic.ipv4)
    segment = udp(subnet.gateway, to, (SERVER_PORT, CLIENT_PORT), reply)
    return in_ipv4(to_mac, subnet.gateway, to, UDP, segment)


# --- Reading ----------------------------------------------------------------------------


def _message(frame: bytes, nic: Nic, subnet: Subnet) -> bytes | None:
    """The BOOTP message of a frame that is for this server."""
    packet = read_ipv4(frame)
    if packet is None or packet.protocol != UDP or packet.fragment or len(packet.payload) < 8:
        return None
    if packet.eth_source != mac_bytes(nic.mac):
        return None
    # A renewal of a lease of some other server is for that server to answer.
    if packet.destination not in (_EVERYBODY, subnet.gateway, subnet.cidr.broadcast_address):
        return None
    source, to, length, _ = struct.unpack_from("!4H", packet.payload)
    if (source, to) != (CLIENT_PORT, SERVER_PORT) or not 8 <= length <= len(packet.payload):
        return None
    return packet.payload[8:length]


def _parse(message: bytes, nic: Nic) -> _Request | None:
    if len(message) < _BOOTP.size:
        return None
    (op, hardware, size, _, xid, _, flags, ciaddr, _, _, giaddr, chaddr, sname, file, magic) = (
        _BOOTP.unpack_from(message)
    )
    if (op, hardware, size, magic) != (_BOOTREQUEST, _ETHERNET, 6, _COOKIE):
        return None
    # There is no relay between a port and its edge: whoever claims to be one is none.
    if any(giaddr) or chaddr[:6] != mac_bytes(nic.mac):
        return None
    options = _all_options(message[_BOOTP.size :], file, sname)
    if options is None:
        return None
    broadcast = bool(flags & _BROADCAST_FLAG)
    return _Request(xid, broadcast, IPv4Address(ciaddr), chaddr, options)


def _all_options(field: bytes, file: bytes, sname: bytes) -> dict[int, bytes] | None:
    """Options of all fields that hold some (RFC 2131, 4.1), parts put together (RFC 3396)."""
    options: dict[int, bytes] = {}
    if not _collect(field, options):
        return None
    overload = options.get(Option.OVERLOAD, b"\0")
    if overload not in (b"\0", b"\1", b"\2", b"\3"):
        return None
    if overload[0] & 1 and not _collect(file, options):
        return None
    if overload[0] & 2 and not _collect(sname, options):
        return None
    if any(len(options.get(code, bytes(size))) != size for code, size in _SIZES.items()):
        return None
    return options


def _collect(field: bytes, options: dict[int, bytes]) -> bool:
    """Add the options of one field; whether all of them are wholly there."""
    at = 0
    while at < len(field) and field[at] != Option.END:
        code = field[at]
        at += 1
        if code == Option.PAD:
            continue
        end = at + 1 + field[at] if at < len(field) else at + 1
        if end > len(field):
            return False
        options[code] = options.get(code, b"") + field[at + 1 : end]
        at = end
    return True


# --- Deciding ---------------------------------------------------------------------------


def _verdict(request: _Request, address: IPv4Address, server: IPv4Address) -> Message | None:
    """The answer's type (RFC 2131, 4.3), for a client whose one address is `address`."""
    kind = request.options.get(Option.MESSAGE_TYPE, b"\0")[0]
    if kind == Message.DISCOVER:
        return Message.OFFER
    if kind == Message.INFORM:
        return Message.ACK if request.ciaddr == address else None
    if kind != Message.REQUEST:
        return None
    if request.address(Option.SERVER) not in (None, server):
        return None
    # The client names its address in the option while it selects or reboots, and in the
    # field while it renews or rebinds; wherever it is named, it must be the right one.
    claimed = {request.address(Option.REQUESTED_ADDRESS), request.ciaddr} - {None, _NOBODY}
    if not claimed:
        return None
    return Message.ACK if claimed == {address} else Message.NAK


# --- Answering --------------------------------------------------------------------------


def _reply(request: _Request, answer: Message, address: IPv4Address, subnet: Subnet) -> bytes:
    leased = request.options[Option.MESSAGE_TYPE][0] != Message.INFORM
    yiaddr = address if leased and answer is not Message.NAK else _NOBODY
    ciaddr = request.ciaddr if answer is Message.ACK else _NOBODY
    head = _BOOTP.pack(
        *(_BOOTREPLY, _ETHERNET, 6, 0, request.xid),
        *(0, _BROADCAST_FLAG if request.broadcast else 0),
        *(ciaddr.packed, yiaddr.packed, _NOBODY.packed, _NOBODY.packed, request.chaddr),
        *(b"", b"", _COOKIE),
    )
    packet = int.from_bytes(request.options.get(Option.MAX_SIZE, b"\0"), "big")
    most = min(max(packet, _MIN_PACKET), subnet.mtu) - _HEADERS
    if answer is Message.NAK:
        text = f"the address of this interface is {address}".encode()
        options = _option(Option.MESSAGE, text)
        wishes: tuple[bytes, ...] = ()
    else:
        options = _network(subnet) + (_lease(subnet.lease_s) if leased else b"")
        wishes = _names(subnet)
    options = (
        _option(Option.MESSAGE_TYPE, bytes((answer,)))
        + _option(Option.SERVER, subnet.gateway.packed)
        + options
    )
    room = most - len(head) - len(options) - 1
    return (head + options + _fitted(request, wishes, room) + b"\xff").ljust(_MIN_MESSAGE, b"\0")


def _fitted(request: _Request, wishes: tuple[bytes, ...], room: int) -> bytes:
    """What else there is to say, the more important first, as far as it fits; but what a
    relay agent put in comes last (RFC 3046, 2.2; client identifier: RFC 6842)."""
    identity = _echo(request, Option.CLIENT_ID)
    relay = _echo(request, Option.RELAY_AGENT)
    chosen = []
    for part in (identity, relay, *wishes):
        if len(part) <= room:
            chosen.append(part)
            room -= len(part)
    if relay in chosen:
        chosen.remove(relay)
        chosen.append(relay)
    return b"".join(chosen)


def _network(subnet: Subnet) -> bytes:
    # The mask stands before the router (RFC 2132, 3.3).
    return (
        _option(Option.SUBNET_MASK, subnet.cidr.netmask.packed)
        + _option(Option.ROUTER, subnet.gateway.packed)
        + _option(Option.BROADCAST, subnet.cidr.broadcast_address.packed)
        + _option(Option.MTU, struct.pack("!H", subnet.mtu))
    )


def _lease(seconds: int) -> bytes:
    """Lease, renewal and rebinding times with the factors of RFC 2131, 4.4.5."""
    return b"".join(
        _option(code, struct.pack("!I", value))
        for code, value in (
            (Option.LEASE, seconds),
            (Option.RENEW, seconds // 2),
            (Option.REBIND, seconds * 7 // 8),
        )
    )


def _names(subnet: Subnet) -> tuple[bytes, ...]:
    """Options that a client can do without, if there is no room."""
    out = []
    if subnet.dns:
        out.append(_option(Option.DNS, b"".join(server.packed for server in subnet.dns)))
    if subnet.domain and subnet.domain.isascii():
        out.append(_option(Option.DOMAIN, subnet.domain.encode("ascii")))
    return tuple(out)


def _echo(request: _Request, option: Option) -> bytes:
    value = request.options.get(option)
    return b"" if value is None else _option(option, value)


def _option(code: Option, value: bytes) -> bytes:
    """One option, in parts where it is longer than one can be (RFC 3396)."""
    parts = [value[at : at + 255] for at in range(0, len(value), 255)] or [b""]
    return b"".join(bytes((code, len(part))) + part for part in parts)
