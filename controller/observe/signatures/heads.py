"""Who sent a packet to whom? Its head, as Open vSwitch would read it."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from controller.model.signatures import PORTS

_IPV4, _IPV6 = 0x0800, 0x86DD
_PORT_PAIR = struct.Struct(">HH")
#: Extension headers that are gone past (RFC 8200, 4; RFC 4302), and the units of their lengths.
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _OPTIONS = 0, 43, 44, 51, 60
_EXTENSIONS = {_HOP_BY_HOP: 8, _ROUTING: 8, _FRAGMENT: 0, _AUTHENTICATION: 4, _OPTIONS: 8}


class Head(NamedTuple):
    """Hardware and IP addresses, protocol number and ports (0 where there are none)."""

    sender: str
    receiver: str
    source: IPv4Address | IPv6Address
    target: IPv4Address | IPv6Address
    protocol: int
    source_port: int
    port: int


def head(frame: bytes) -> Head | None:
    """The head of an untagged Ethernet frame; None where it carries no IP or ends too soon."""
    if len(frame) < 14:
        return None
    kind = int.from_bytes(frame[12:14], "big")
    read = _ipv4(frame) if kind == _IPV4 else _ipv6(frame) if kind == _IPV6 else None
    if read is None:
        return None
    source, target, protocol, at = read
    ports = (0, 0)
    if protocol in PORTS and at:
        if len(frame) < at + 4:
            return None
        ports = _PORT_PAIR.unpack_from(frame, at)
    return Head(
        frame[6:12].hex(":"), frame[:6].hex(":"), source, target, protocol, ports[0], ports[1]
    )


_Read = tuple[IPv4Address | IPv6Address, IPv4Address | IPv6Address, int, int]


def _ipv4(frame: bytes) -> _Read | None:
    """Addresses, protocol, and where its header begins: 0 in fragments that have none."""
    if len(frame) < 34 or frame[14] >> 4 != 4 or frame[14] & 15 < 5:
        return None
    later = int.from_bytes(frame[20:22], "big") & 0x1FFF
    start = 0 if later else 14 + 4 * (frame[14] & 15)
    return IPv4Address(frame[26:30]), IPv4Address(frame[30:34]), frame[23], start


def _ipv6(frame: bytes) -> _Read | None:
    if len(frame) < 54 or frame[14] >> 4 != 6:
        return None
    following, at = frame[20], 54
    while following in _EXTENSIONS:
        if len(frame) < at + 8:
            return None
        unit = _EXTENSIONS[following]
        if following == _FRAGMENT and int.from_bytes(frame[at + 2 : at + 4], "big") >> 3:
            return IPv6Address(frame[22:38]), IPv6Address(frame[38:54]), frame[at], 0
        length = 8 + unit * frame[at + 1]
        following, at = frame[at], at + length
    return IPv6Address(frame[22:38]), IPv6Address(frame[38:54]), following, at
