"""What does a router say of a packet that it cannot carry further? ICMP errors of RFC 792 and
RFC 4443, and the packets about which none may be sent (RFC 1122, 3.2.2; RFC 4443, 2.4 e).
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Final, Literal

from controller.act.dataplane.answers.packets import (
    GATEWAY,
    ICMP,
    ICMPV6,
    TCP,
    UDP,
    Packet,
    icmp,
    in_icmpv6,
    in_ipv4,
    read_ipv4,
    read_ipv6,
)
from controller.model.addresses import GATEWAY_MAC, eui64_link_local
from controller.model.nouns import Subnet

Why = Literal["host", "net", "port", "admin"]

_UNREACHABLE, _TIME_EXCEEDED = 3, 11
_UNREACHABLE6, _TIME_EXCEEDED6, _REDIRECT6 = 1, 3, 137
#: RFC 792 and RFC 1812, 5.2.7.1; RFC 4443, 3.1.
_CODES: Final[dict[Why, int]] = {"net": 0, "host": 1, "port": 3, "admin": 13}
_CODES6: Final[dict[Why, int]] = {"net": 0, "admin": 1, "host": 3, "port": 4}
#: ICMP messages that are questions or their answers (IANA); any other may be an error.
_NO_ERRORS = frozenset({0, 8, 9, 10, 13, 14, 15, 16, 17, 18, 42, 43})
#: ICMPv6 types below this are errors, known or not (RFC 4443, 2.1).
_INFORMATIONAL6 = 128
#: DCCP, SCTP and UDP-Lite have ports as TCP and UDP have them.
_WITH_PORTS = frozenset({TCP, UDP, 33, 132, 136})
#: Bytes of the packet that are quoted: as many as fit into 576 (RFC 1812, 4.3.2.3) and 1280
#: bytes (RFC 4443, 2.4 c) with the headers in front.
_QUOTE = 576 - 20 - 8
_QUOTE6 = 1280 - 40 - 8
#: Precedence of ICMP errors (RFC 1812, 4.3.2.5).
_INTERNETWORK_CONTROL = 0xC0
_UNUSED = bytes(4)
_LINK_LOCAL = eui64_link_local(GATEWAY_MAC)


def time_exceeded(frame: bytes, subnet: Subnet) -> bytes | None:
    """The error about a packet whose TTL or hop limit ran out at the gateway of `subnet`."""
    packet = read_ipv4(frame)
    if packet is not None:
        return _error(packet, subnet, subnet.gateway, _TIME_EXCEEDED, 0)
    packet6 = read_ipv6(frame)
    if packet6 is not None:
        return _error6(packet6, _own(packet6, subnet), _TIME_EXCEEDED6, 0)
    return None


def unreachable(frame: bytes, subnet: Subnet, why: Why) -> bytes | None:
    """The error about a packet that the gateway of `subnet` cannot deliver.

    "port" speaks for the destination itself, and therefore comes from the address that the
    packet was sent to (RFC 4443, 2.2 a); protocols without ports are not answered.
    """
    packet = read_ipv4(frame)
    if packet is not None:
        if why == "port" and packet.protocol not in _WITH_PORTS:
            return None
        source = packet.destination if why == "port" else subnet.gateway
        return _error(packet, subnet, source, _UNREACHABLE, _CODES[why])
    packet6 = read_ipv6(frame)
    if packet6 is not None:
        if why == "port" and packet6.protocol not in _WITH_PORTS:
            return None
        source6 = packet6.destination if why == "port" else _own(packet6, subnet)
        return _error6(packet6, source6, _UNREACHABLE6, _CODES6[why])
    return None


def _own(packet: Packet[IPv6Address], subnet: Subnet) -> IPv6Address:
    if subnet.gateway6 is None or packet.source.is_link_local:
        return _LINK_LOCAL
    return subnet.gateway6


def _error(
    packet: Packet[IPv4Address], subnet: Subnet, source: IPv4Address, kind: int, code: int
) -> bytes | None:
    if not _may_hear_of(packet) or not _one_host(packet.source, subnet):
        return None
    if packet.protocol == ICMP and (not packet.payload or packet.payload[0] not in _NO_ERRORS):
        return None
    to = packet.destination
    if to.is_multicast or to in _broadcasts(subnet):
        return None
    message = icmp(kind, code, _UNUSED + packet.datagram[:_QUOTE])
    return in_ipv4(packet.eth_source, source, packet.source, ICMP, message, _INTERNETWORK_CONTROL)


def _error6(packet: Packet[IPv6Address], source: IPv6Address, kind: int, code: int) -> bytes | None:
    sender, to = packet.source, packet.destination
    if not _may_hear_of(packet) or to.is_multicast or to.is_unspecified:
        return None
    if sender.is_unspecified or sender.is_multicast or sender.is_loopback:
        return None
    if packet.protocol == ICMPV6 and (
        not packet.payload or packet.payload[0] < _INFORMATIONAL6 or packet.payload[0] == _REDIRECT6
    ):
        return None
    body = _UNUSED + packet.datagram[:_QUOTE6]
    return in_icmpv6((GATEWAY, packet.eth_source), (source, packet.source), 64, (kind, code, body))


def _may_hear_of(packet: Packet[IPv4Address] | Packet[IPv6Address]) -> bool:
    """Whether link and fragmentation allow an error: a later fragment does not show whether
    it is of an ICMP error itself."""
    sender = packet.eth_source
    return not (packet.to_group or packet.later_fragment or sender[0] & 1 or not any(sender))


def _one_host(address: IPv4Address, subnet: Subnet) -> bool:
    """Whether a source address stands for exactly one host (RFC 1122, 3.2.2)."""
    return not (
        address.is_multicast
        or address.is_loopback
        or address.is_reserved
        or address in _broadcasts(subnet)
    )


def _broadcasts(subnet: Subnet) -> tuple[IPv4Address, ...]:
    """Broadcast addresses that the gateway can know of, with the old form of all zeros
    (RFC 1122, 3.3.6)."""
    net = subnet.cidr
    whole = IPv4Address(0), IPv4Address(0xFFFFFFFF)
    return (*whole, net.network_address, net.broadcast_address)
