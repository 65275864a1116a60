"""What does a frame carry, and how is one made? Ethernet II, IPv4 (RFC 791), IPv6 (RFC 8200),
and the Internet checksum (RFC 1071).

Reading is strict: a packet that is not wholly there, or that contradicts itself, is None.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Generic, TypeVar

from controller.act.dataplane.pipeline import IPV4, IPV6
from controller.model.addresses import GATEWAY_MAC

Address = TypeVar("Address", IPv4Address, IPv6Address)

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
_ETHERNET = struct.Struct("!6s6sH")
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_DONT_FRAGMENT = 0x4000
_FRAGMENT, _AUTHENTICATION = 44, 51
#: Extension headers that say their length in units of 8 bytes (RFC 8200, 4; RFC 7045, 4).
_EXTENSIONS = frozenset({0, 43, 60, 135, 139, 140})


def mac_bytes(mac: str) -> bytes:
    """The six octets of a MAC address in its normal form."""
    return bytes.fromhex(mac.replace(":", ""))


GATEWAY = mac_bytes(GATEWAY_MAC)
BROADCAST = b"\xff" * 6


@dataclass(frozen=True, slots=True)
class Packet(Generic[Address]):
    """An IP packet in an untagged Ethernet frame."""

    eth_source: bytes
    eth_destination: bytes
    source: Address
    destination: Address
    #: TTL, or hop limit.
    ttl: int
    #: Of what follows all extension headers.
    protocol: int
    #: What follows all IP headers.
    payload: bytes
    #: Whether it is one, the first included, or says so with an IPv6 fragment header.
    fragment: bool
    #: Whether it is a fragment other than the first, so that `payload` has no header.
    later_fragment: bool
    #: The packet from its first IP header on, without the padding of the frame.
    datagram: bytes

    @property
    def to_group(self) -> bool:
        """Whether the frame was broadcast or multicast on its link."""
        return bool(self.eth_destination[0] & 1)


def read_ipv4(frame: bytes) -> Packet[IPv4Address] | None:
    """The IPv4 packet that a frame carries, its header's checksum verified."""
    body = _body(frame, IPV4)
    if body is None or len(body) < _IPV4.size:
        return None
    first, _, total, _, offset, ttl, protocol, _, source, to = _IPV4.unpack_from(body)
    header = (first & 0xF) * 4
    if first >> 4 != 4 or not _IPV4.size <= header <= total <= len(body):
        return None
    if checksum(body[:header]):
        return None
    return Packet(
        frame[6:12],
        frame[:6],
        IPv4Address(source),
        IPv4Address(to),
        ttl,
        protocol,
        body[header:total],
        fragment=bool(offset & 0x3FFF),
        later_fragment=bool(offset & 0x1FFF),
        datagram=body[:total],
    )


def read_ipv6(frame: bytes) -> Packet[IPv6Address] | None:
    """The IPv6 packet that a frame carries, its extension headers passed over."""
    body = _body(frame, IPV6)
    if body is None or len(body) < _IPV6.size:
        return None
    first, length, after, hop_limit, source, to = _IPV6.unpack_from(body)
    if first >> 28 != 6 or _IPV6.size + length > len(body):
        return None
    datagram = body[: _IPV6.size + length]
    upper = _upper(datagram, after)
    if upper is None:
        return None
    protocol, start, fragment, later = upper
    return Packet(
        frame[6:12],
        frame[:6],
        IPv6Address(source),
        IPv6Address(to),
        hop_limit,
        protocol,
        datagram[start:],
        fragment,
        later,
        datagram,
    )


def destination(frame: bytes) -> IPv4Address | IPv6Address | None:
    """The address that the frame's IP packet is for, or None where there is no sound one."""
    packet = read_ipv4(frame) or read_ipv6(frame)
    return None if packet is None else packet.destination


def _body(frame: bytes, ethertype: int) -> bytes | None:
    if len(frame) < _ETHERNET.size or int.from_bytes(frame[12:14], "big") != ethertype:
        return None
    return frame[_ETHERNET.size :]


def _upper(datagram: bytes, header: int) -> tuple[int, int, bool, bool] | None:
    """Protocol and start of what follows the extension headers; whether a fragment header
    is among them, and whether it is one of a later fragment."""
    at, fragment = _IPV6.size, False
    while header in _EXTENSIONS or header in (_FRAGMENT, _AUTHENTICATION):
        if at + 8 > len(datagram):
            return None
        following = datagram[at]
        if header == _FRAGMENT:
            fragment = True
            size = 8
            if int.from_bytes(datagram[at + 2 : at + 4], "big") >> 3:
                return following, at + size, True, True
        elif header == _AUTHENTICATION:
            size = (datagram[at + 1] + 2) * 4
        else:
            size = (datagram[at + 1] + 1) * 8
        header, at = following, at + size
    return (header, at, fragment, False) if at <= len(datagram) else None


# --- Making -----------------------------------------------------------------------------


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071); 0 over data that holds its own right checksum."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def pseudo_header(source: Address, to: Address, protocol: int, length: int) -> bytes:
    """What transport checksums cover besides the segment (RFC 768; RFC 8200, 8.1)."""
    if isinstance(source, IPv4Address):
        return source.packed + to.packed + struct.pack("!BBH", 0, protocol, length)
    return source.packed + to.packed + struct.pack("!II", length, protocol)


def in_ipv4(
    to_mac: bytes, source: IPv4Address, to: IPv4Address, protocol: int, body: bytes, tos: int = 0
) -> bytes:
    """A frame from the gateway with an IPv4 packet. It is never fragmented, so its
    identification may be 0 (RFC 6864, 4.1)."""
    total = _IPV4.size + len(body)
    fields = (0x45, tos, total, 0, _DONT_FRAGMENT, 64, protocol)
    blank = _IPV4.pack(*fields, 0, source.packed, to.packed)
    header = _IPV4.pack(*fields, checksum(blank), source.packed, to.packed)
    return _ETHERNET.pack(to_mac, GATEWAY, IPV4) + header + body


def udp(source: IPv4Address, to: IPv4Address, ports: tuple[int, int], body: bytes) -> bytes:
    """A UDP datagram (RFC 768) between the two addresses and the two ports."""
    length = 8 + len(body)
    blank = struct.pack("!4H", *ports, length, 0) + body
    # 0 would say that there is no checksum.
    found = checksum(pseudo_header(source, to, UDP, length) + blank) or 0xFFFF
    return struct.pack("!4H", *ports, length, found) + body


def icmp(kind: int, code: int, body: bytes) -> bytes:
    """An ICMP message (RFC 792); `body` is all that follows the checksum."""
    blank = struct.pack("!BBH", kind, code, 0) + body
    return struct.pack("!BBH", kind, code, checksum(blank)) + body


def in_icmpv6(
    macs: tuple[bytes, bytes],
    addresses: tuple[IPv6Address, IPv6Address],
    hop_limit: int,
    message: tuple[int, int, bytes],
) -> bytes:
    """A frame with an ICMPv6 message (RFC 4443): `macs` and `addresses` are those of source
    and destination, `message` is type, code and all that follows the checksum."""
    kind, code, body = message
    source, to = addresses
    length = 4 + len(body)
    blank = struct.pack("!BBH", kind, code, 0) + body
    found = checksum(pseudo_header(source, to, ICMPV6, length) + blank)
    header = _IPV6.pack(6 << 28, length, ICMPV6, hop_limit, source.packed, to.packed)
    segment = struct.pack("!BBH", kind, code, found) + body
    return _ETHERNET.pack(macs[1], macs[0], IPV6) + header + segment
