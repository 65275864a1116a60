"""Who has this IPv6 address, and who routes here? Answers to neighbour and router
solicitations (RFC 4861), which the fabric gives for every NIC of a subnet and for its gateway.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from ipaddress import IPv6Address

from controller.act.dataplane.answers.packets import (
    GATEWAY,
    ICMPV6,
    Packet,
    checksum,
    in_icmpv6,
    mac_bytes,
    pseudo_header,
    read_ipv6,
)
from controller.model.addresses import GATEWAY_MAC, eui64_link_local
from controller.model.nouns import Nic, Subnet

#: Gives the MAC that owns an address in the sender's subnet, the gateway's included.
Resolve = Callable[[IPv6Address], str | None]

_ROUTER_SOLICITATION, _ROUTER_ADVERTISEMENT, _SOLICITATION, _ADVERTISEMENT = range(133, 137)
_SOURCE_MAC, _TARGET_MAC, _PREFIX, _MTU = 1, 2, 3, 5
_ROUTER, _SOLICITED, _OVERRIDE = 1 << 31, 1 << 30, 1 << 29
_ON_LINK, _AUTONOMOUS = 0x80, 0x40
#: Packets of this protocol that crossed a router show it by less (RFC 4861, 11.2).
_HOP_LIMIT = 255
_ALL_NODES = IPv6Address("ff02::1")
_ALL_NODES_MAC = bytes.fromhex("333300000001")
_SOLICITED_NODE = int(IPv6Address("ff02::1:ff00:0"))
_LINK_LOCAL = eui64_link_local(GATEWAY_MAC)
#: Defaults of RFC 4861, 6.2.1, in seconds, and the hop limit that hosts shall use.
_ROUTER_LIFETIME_S, _VALID_S, _PREFERRED_S = 1_800, 2_592_000, 604_800
_HOSTS_HOP_LIMIT = 64
#: Below it there is no IPv6, and hosts ignore what says otherwise (RFC 8200, 5).
_MIN_MTU = 1_280


def neighbour(frame: bytes, nic: Nic, subnet: Subnet, resolve: Resolve) -> bytes | None:
    """The advertisement that answers the solicitation of `nic`, which is in `subnet`.

    A NIC that asks for its own address, as it does to find out whether it is alone with it,
    hears nothing; where `resolve` knows another owner, it hears of it.
    """
    packet = read_ipv6(frame)
    if packet is None or not _sound(packet, nic):
        return None
    kind = packet.payload[0]
    if kind == _SOLICITATION:
        return _advertise(packet, nic, resolve)
    if kind == _ROUTER_SOLICITATION:
        return _advertise_router(packet, nic, subnet)
    return None


def _sound(packet: Packet[IPv6Address], nic: Nic) -> bool:
    """What RFC 4861, 6.1.1 and 7.1.1 ask of every solicitation, and RFC 6980 of fragments;
    and that it comes from the NIC's own addresses."""
    message = packet.payload
    if packet.protocol != ICMPV6 or packet.fragment or packet.ttl != _HOP_LIMIT:
        return False
    if len(message) < 8 or message[1] != 0 or packet.eth_source != mac_bytes(nic.mac):
        return False
    if not (packet.source.is_unspecified or packet.source in _addresses(nic)):
        return False
    pseudo = pseudo_header(packet.source, packet.destination, ICMPV6, len(message))
    return checksum(pseudo + message) == 0


def _addresses(nic: Nic) -> tuple[IPv6Address | None, IPv6Address]:
    return nic.ipv6, nic.ipv6_link_local


def _option_kinds(field: bytes) -> frozenset[int] | None:
    """Types of the options, or None where one is not wholly there or has no length."""
    kinds, at = set(), 0
    while at < len(field):
        size = field[at + 1] * 8 if at + 1 < len(field) else 0
        if size == 0 or at + size > len(field):
            return None
        kinds.add(field[at])
        at += size
    return frozenset(kinds)


def _advertise(packet: Packet[IPv6Address], nic: Nic, resolve: Resolve) -> bytes | None:
    message = packet.payload
    kinds = _option_kinds(message[24:])
    if len(message) < 24 or kinds is None:
        return None
    target = IPv6Address(message[8:24])
    group = IPv6Address(_SOLICITED_NODE | int(target) & 0xFFFFFF)
    probe = packet.source.is_unspecified
    if probe and (packet.destination != group or _SOURCE_MAC in kinds):
        return None
    if not (packet.destination.is_multicast or packet.destination == target):
        return None
    if target.is_multicast or target.is_unspecified or target in _addresses(nic):
        return None
    owner = resolve(target)
    if owner is None or owner == nic.mac:
        return None
    flags = _OVERRIDE | (0 if probe else _SOLICITED) | (_ROUTER if owner == GATEWAY_MAC else 0)
    mac = mac_bytes(owner)
    body = struct.pack("!I16sBB6s", flags, target.packed, _TARGET_MAC, 1, mac)
    to_mac, to = _back(packet)
    return in_icmpv6((mac, to_mac), (target, to), _HOP_LIMIT, (_ADVERTISEMENT, 0, body))


def _advertise_router(packet: Packet[IPv6Address], nic: Nic, subnet: Subnet) -> bytes | None:
    kinds = _option_kinds(packet.payload[8:])
    if kinds is None or (packet.source.is_unspecified and _SOURCE_MAC in kinds):
        return None
    if not (packet.destination.is_multicast or packet.destination == _LINK_LOCAL):
        return None
    prefix = subnet.cidr6
    if prefix is None:
        return None
    own = int(prefix.network_address) | int(eui64_link_local(nic.mac)) & (1 << 64) - 1
    # A host that made itself any other address would only be stopped by port security.
    autonomous = prefix.prefixlen == 64 and nic.ipv6 is not None and int(nic.ipv6) == own
    flags = _ON_LINK | (_AUTONOMOUS if autonomous else 0)
    body = struct.pack("!BBHII", _HOSTS_HOP_LIMIT, 0, _ROUTER_LIFETIME_S, 0, 0)
    body += struct.pack("!BB6s", _SOURCE_MAC, 1, GATEWAY)
    if subnet.mtu >= _MIN_MTU:
        body += struct.pack("!BBHI", _MTU, 1, 0, subnet.mtu)
    head = _PREFIX, 4, prefix.prefixlen, flags, _VALID_S, _PREFERRED_S, 0
    body += struct.pack("!BBBBIII16s", *head, prefix.network_address.packed)
    to_mac, to = _back(packet)
    message = (_ROUTER_ADVERTISEMENT, 0, body)
    return in_icmpv6((GATEWAY, to_mac), (_LINK_LOCAL, to), _HOP_LIMIT, message)


def _back(packet: Packet[IPv6Address]) -> tuple[bytes, IPv6Address]:
    """Where the answer goes: to all nodes where the sender has no address yet."""
    if packet.source.is_unspecified:
        return _ALL_NODES_MAC, _ALL_NODES
    return packet.eth_source, packet.source
