"""Which IP packet does a frame carry, between whom?

Looks through link layers, VLANs, MPLS, PPPoE and the tunnels that nDPI looks through (IP in IP,
GRE, GTP-U, VXLAN, TZSP, CAPWAP). Frames come from the network, so nothing in them is believed:
each access is checked, and what does not fit is no packet.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

#: Link types (https://www.tcpdump.org/linktypes.html) that a live interface can have.
ETHERNET = 1
RAW_IP = 101

TCP, UDP = 6, 17
SYN, ACK = 0x02, 0x10
#: Where addresses and ports stand in a plain frame; see `plain_ends`.
ENDS = slice(26, 38)

_IPV4, _IPV6, _BRIDGED, _GRE_PPP = 0x0800, 0x86DD, 0x6558, 0x880B
_VLANS = frozenset({0x8100, 0x88A8, 0x9100})
_MPLS = frozenset({0x8847, 0x8848})
_PPPOE = 0x8864
_IP_IN_IP, _IPV6_IN_IP, _GRE = 4, 41, 47
_GTP_U, _VXLAN, _TZSP, _CAPWAP = 2152, 4789, 37008, 5247
_PPP_TYPES = {0x0021: _IPV4, 0x0057: _IPV6}
#: IPv6 extension headers that tell their length in units of 8 bytes (RFC 8200).
_EXTENSIONS = frozenset({0, 43, 60, 135, 139, 140})
_FRAGMENT, _AUTHENTICATION = 44, 51
#: More headers in each other are taken for an attack.
_MAX_DEPTH = 12

_u16 = struct.Struct("!H").unpack_from
_u32 = struct.Struct("!I").unpack_from
_ipv4 = struct.Struct("!xxHxxHxB").unpack_from
_tcp = struct.Struct("!HH8xBB").unpack_from
_udp = struct.Struct("!HHH").unpack_from
#: Ethernet and IPv4 without options, as most frames are.
_ends = struct.Struct("!4s4sHH").pack
_PLAIN = b"\x08\x00\x45"
_common = struct.Struct("!12xHBxHxxHxBxx4s4s").unpack_from


class Packet(NamedTuple):
    """An IP packet in a frame. Ports are 0 where the protocol has none."""

    protocol: int
    source: bytes
    destination: bytes
    source_port: int
    destination_port: int
    #: The innermost VLAN id, or 0.
    vlan: int
    #: Where the IP header begins in the frame, and how many bytes of the packet are there.
    at: int
    length: int
    #: Where the header above IP begins.
    above: int
    #: Bytes above TCP or UDP that the headers announce, or above IP for other protocols.
    payload: int
    #: TCP flags, or 0.
    flags: int


class _Refused(Exception):  # noqa: N818 - says that a frame is none of ours; nobody sees it
    pass


def decode(link: int, frame: bytes) -> Packet | None:
    """The innermost IP packet of a frame; None where there is none, only a later fragment of
    one, or where the frame is damaged."""
    try:
        if link == ETHERNET:
            packet = _plain(frame)
            if packet is not None:
                return packet
        kind, at = _LINKS[link](frame, 0)
        return _packet(frame, kind, at, 0, 0)
    except (struct.error, IndexError, KeyError, _Refused):
        return None


def plain_ends(packet: tuple[int, bytes, bytes, int, int, int]) -> bytes | None:
    """Addresses and ports as they stand at ENDS in plain frames (Ethernet, IPv4 without
    options, TCP or UDP) of a packet that begins with these six fields; None where its frames
    are not plain, or could carry others in a tunnel."""
    protocol, source, destination, sport, dport, vlan = packet
    if protocol not in (TCP, UDP) or len(source) != 4 or vlan:
        return None
    if protocol == UDP and (sport in _UDP_TUNNELS or dport in _UDP_TUNNELS):
        return None
    return _ends(source, destination, sport, dport)


def is_plain(frame: bytes, protocol: int) -> bool:
    """Whether a frame that has ENDS is plain, and of this protocol."""
    return frame[23] == protocol and frame[12:15] == _PLAIN


def _plain(frame: bytes) -> Packet | None:
    """The packet of a frame of the most common form; None where it is of another."""
    kind, first, total, fragment, protocol, source, destination = _common(frame)
    present = len(frame) - 14
    if kind != _IPV4 or first != 0x45 or fragment & 0x1FFF or not 20 <= total <= present:
        return None
    if protocol == TCP:
        sport, dport, offset, flags = _tcp(frame, 34)
        payload = total - 20 - (offset >> 4) * 4
        if payload < 0 or offset < 0x50:
            return None
        flags &= 0x3F
    elif protocol == UDP:
        sport, dport, _ = _udp(frame, 34)
        payload, flags = total - 28, 0
        if payload < 0 or dport in _UDP_TUNNELS or sport in _UDP_TUNNELS:
            return None
    else:
        return None
    return Packet(protocol, source, destination, sport, dport, 0, 14, total, 34, payload, flags)


def _packet(frame: bytes, kind: int, at: int, vlan: int, depth: int) -> Packet:
    """The packet whose header of EtherType `kind` begins at `at`."""
    if kind in (_IPV4, _IPV6):
        version = frame[at] >> 4
        if version == 4:
            return _packet_v4(frame, at, vlan, depth)
        if version == 6:
            return _packet_v6(frame, at, vlan, depth)
        raise _Refused
    if depth >= _MAX_DEPTH:
        raise _Refused
    if kind in _VLANS:
        tag, kind = _u16(frame, at)[0], _u16(frame, at + 2)[0]
        return _packet(frame, kind, at + 4, tag & 0xFFF, depth + 1)
    if kind in _MPLS:
        return _packet(frame, *_below_labels(frame, at), vlan, depth + 1)
    if kind == _PPPOE:
        return _packet(frame, _ppp_type(_u16(frame, at + 6)[0]), at + 8, vlan, depth + 1)
    raise _Refused


def _packet_v4(frame: bytes, at: int, vlan: int, depth: int) -> Packet:
    header = (frame[at] & 0x0F) * 4
    total, fragment, protocol = _ipv4(frame, at)
    present = len(frame) - at
    if total == 0:  # left to the network card, which sends it in segments
        total = present
    if header < 20 or total < header or present < header or fragment & 0x1FFF:
        raise _Refused
    source, destination = frame[at + 12 : at + 16], frame[at + 16 : at + 20]
    return _transport(frame, protocol, at + header, at, total, (source, destination, vlan, depth))


def _packet_v6(frame: bytes, at: int, vlan: int, depth: int) -> Packet:
    total = 40 + _u16(frame, at + 4)[0]
    protocol, above = frame[at + 6], at + 40
    if total == 40 and protocol != 59:
        total = len(frame) - at
    if len(frame) < above:
        raise _Refused
    for _ in range(_MAX_DEPTH):
        if protocol in _EXTENSIONS:
            protocol, above = frame[above], above + 8 + frame[above + 1] * 8
        elif protocol == _FRAGMENT:
            if _u16(frame, above + 2)[0] & 0xFFF8:
                raise _Refused
            protocol, above = frame[above], above + 8
        elif protocol == _AUTHENTICATION:
            protocol, above = frame[above], above + 8 + frame[above + 1] * 4
        else:
            break
    source, destination = frame[at + 8 : at + 24], frame[at + 24 : at + 40]
    return _transport(frame, protocol, above, at, total, (source, destination, vlan, depth))


def _transport(
    frame: bytes,
    protocol: int,
    above: int,
    at: int,
    total: int,
    rest: tuple[bytes, bytes, int, int],
) -> Packet:
    """The packet at `at` of `total` bytes, with the header of `protocol` at `above`."""
    source, destination, vlan, depth = rest
    announced = total - (above - at)
    length = min(total, len(frame) - at)
    if protocol == TCP:
        sport, dport, offset, flags = _tcp(frame, above)
        payload = announced - (offset >> 4) * 4
        if payload < 0 or offset < 0x50:
            raise _Refused
        return Packet(
            TCP, source, destination, sport, dport, vlan, at, length, above, payload, flags & 0x3F
        )
    if protocol == UDP:
        sport, dport, _ = _udp(frame, above)
        if announced < 8:
            raise _Refused
        inner = _UDP_TUNNELS.get(dport) or _UDP_TUNNELS.get(sport)
        if inner is not None and depth < _MAX_DEPTH:
            try:
                kind, start = inner(frame, above + 8)
                return _packet(frame, kind, start, vlan, depth + 1)
            except (struct.error, IndexError, _Refused):
                pass  # the port alone makes no tunnel: a flow of its own
        return Packet(
            UDP, source, destination, sport, dport, vlan, at, length, above, announced - 8, 0
        )
    if protocol in (_IP_IN_IP, _IPV6_IN_IP):
        return _packet(frame, _IPV4, above, vlan, _deeper(depth))
    if protocol == _GRE:
        return _packet(frame, *_below_gre(frame, above), vlan, _deeper(depth))
    if announced < 0:
        raise _Refused
    return Packet(protocol, source, destination, 0, 0, vlan, at, length, above, announced, 0)


def _deeper(depth: int) -> int:
    if depth >= _MAX_DEPTH:
        raise _Refused
    return depth + 1


# What is below another header: its EtherType, and where it begins.


def _ethernet(frame: bytes, at: int) -> tuple[int, int]:
    kind = _u16(frame, at + 12)[0]
    if kind >= 0x600:
        return kind, at + 14
    return _below_llc(frame, at + 14)


def _below_llc(frame: bytes, at: int) -> tuple[int, int]:
    """IEEE 802.2, with SNAP."""
    if frame[at] != 0xAA or frame[at + 1] != 0xAA:
        raise _Refused
    return _u16(frame, at + 6)[0], at + 8


def _below_labels(frame: bytes, at: int) -> tuple[int, int]:
    """RFC 3032: what is under a stack of labels must be guessed from its first bits."""
    for _ in range(_MAX_DEPTH):
        bottom = frame[at + 2] & 1
        at += 4
        if bottom:
            break
    version = frame[at] >> 4
    if version in (4, 6):
        return _IPV4, at
    if frame[at] == frame[at + 1] == 0:  # RFC 4448: a control word before the Ethernet frame
        at += 4
    return _ethernet(frame, at)


def _below_gre(frame: bytes, at: int) -> tuple[int, int]:
    """RFC 2784, RFC 2890, and RFC 2637 for PPTP."""
    flags, kind = _u16(frame, at)[0], _u16(frame, at + 2)[0]
    at += 4
    at += 4 * bool(flags & 0x8000) + 4 * bool(flags & 0x2000) + 4 * bool(flags & 0x1000)
    if kind == _GRE_PPP:
        at += 4 * bool(flags & 0x0080)
        return _ppp(frame, at)
    if kind == _BRIDGED:
        return _ethernet(frame, at)
    return kind, at


def _ppp_type(protocol: int) -> int:
    try:
        return _PPP_TYPES[protocol]
    except KeyError:
        raise _Refused from None


def _ppp(frame: bytes, at: int) -> tuple[int, int]:
    """RFC 1661; the address and control fields of RFC 1662 may stand before it."""
    if frame[at] == 0xFF and frame[at + 1] == 0x03:
        at += 2
    if frame[at] & 1:  # compressed to one byte
        return _ppp_type(frame[at]), at + 1
    return _ppp_type(_u16(frame, at)[0]), at + 2


def _hdlc(frame: bytes, at: int) -> tuple[int, int]:
    """Cisco's HDLC, or PPP in its place."""
    if frame[at] in (0x0F, 0x8F):
        return _u16(frame, at + 2)[0], at + 4
    return _ppp(frame, at)


def _raw(frame: bytes, at: int) -> tuple[int, int]:
    return _IPV4, at  # the version is looked at anyway


def _null(frame: bytes, at: int) -> tuple[int, int]:
    return _IPV4, at + 4


def _cooked(frame: bytes, at: int) -> tuple[int, int]:
    return _u16(frame, at + 14)[0], at + 16


def _cooked_2(frame: bytes, at: int) -> tuple[int, int]:
    return _u16(frame, at)[0], at + 20


def _wifi(frame: bytes, at: int) -> tuple[int, int]:
    """IEEE 802.11 data frames that are not encrypted."""
    control, flags = frame[at], frame[at + 1]
    if control & 0x0C != 0x08 or control & 0x40 or flags & 0x40:
        raise _Refused
    header = 24 + 6 * (flags & 3 == 3) + 2 * bool(control & 0x80)
    return _below_llc(frame, at + header)


def _radiotap(frame: bytes, at: int) -> tuple[int, int]:
    length = frame[at + 2] | frame[at + 3] << 8
    return _wifi(frame, at + length)


def _ppi(frame: bytes, at: int) -> tuple[int, int]:
    length = frame[at + 2] | frame[at + 3] << 8
    link = int.from_bytes(frame[at + 4 : at + 8], "little")
    if link == ETHERNET:
        return _ethernet(frame, at + length)
    raise _Refused


def _vxlan(frame: bytes, at: int) -> tuple[int, int]:
    """RFC 7348."""
    if not frame[at] & 0x08:
        raise _Refused
    return _ethernet(frame, at + 8)


def _gtp(frame: bytes, at: int) -> tuple[int, int]:
    """3GPP TS 29.281: G-PDUs of version 1."""
    flags, message = frame[at], frame[at + 1]
    if flags >> 5 != 1 or message != 0xFF:
        raise _Refused
    at += 8
    if flags & 0x07:
        following = frame[at + 3] if flags & 0x04 else 0
        at += 4
        while following:
            length = frame[at] * 4
            if length == 0:
                raise _Refused
            at += length
            following = frame[at - 1]
    return _IPV4, at


def _tzsp(frame: bytes, at: int) -> tuple[int, int]:
    """https://en.wikipedia.org/wiki/TZSP: received Ethernet frames after tagged fields."""
    version, kind, link = struct.unpack_from("!BBH", frame, at)
    if (version, kind, link) != (1, 0, 1):
        raise _Refused
    at += 4
    while frame[at] != 1:
        at += 1 if frame[at] == 0 else 2 + frame[at + 1]
    return _ethernet(frame, at + 1)


def _capwap(frame: bytes, at: int) -> tuple[int, int]:
    """RFC 5415: data frames of IEEE 802.11."""
    if frame[at] & 0x0F:
        raise _Refused
    length = (frame[at + 1] >> 3) * 4
    return _capwap_wifi(frame, at + length)


def _capwap_wifi(frame: bytes, at: int) -> tuple[int, int]:
    # Access controllers send the frame control field in either byte order.
    if frame[at] & 0x0C == 0x08:
        return _wifi(frame, at)
    if frame[at + 1] & 0x0C != 0x08:
        raise _Refused
    return _below_llc(frame, at + 24 + 2 * bool(frame[at + 1] & 0x80))


_Layer = Callable[[bytes, int], tuple[int, int]]

_LINKS: dict[int, _Layer] = {
    0: _null,
    ETHERNET: _ethernet,
    9: _ppp,
    12: _raw,
    14: _raw,
    50: _hdlc,
    RAW_IP: _raw,
    104: _hdlc,
    105: _wifi,
    108: _null,
    113: _cooked,
    127: _radiotap,
    192: _ppi,
    228: _raw,
    229: _raw,
    276: _cooked_2,
}
_UDP_TUNNELS: dict[int, _Layer] = {
    _GTP_U: _gtp,
    _VXLAN: _vxlan,
    _TZSP: _tzsp,
    _CAPWAP: _capwap,
}
