"""Addresses and names: the small value types that every noun is made of."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")

#: Source address of every distributed gateway, the same on every edge so that a VM's
#: neighbour cache stays true when the VM moves. Locally administered (IEEE 802, bit 0x02).
GATEWAY_MAC = "02:00:5e:00:53:01"


def normalise_mac(value: object) -> str:
    """Return `value` as six lower-case colon-separated octets, or raise ValueError."""
    if not isinstance(value, str):
        raise ValueError("a MAC address is written as text, such as 02:00:00:00:00:01")
    mac = value.strip().lower().replace("-", ":")
    if not _MAC.fullmatch(mac):
        raise ValueError(f"{value!r} is no MAC address: write it like 02:00:00:00:00:01")
    return mac


def _unicast(mac: str) -> str:
    if int(mac[:2], 16) & 1:
        raise ValueError(f"{mac} is a group address: a NIC needs a unicast MAC")
    if mac == "00:00:00:00:00:00":
        raise ValueError("00:00:00:00:00:00 cannot be a NIC's MAC")
    if mac == GATEWAY_MAC:
        raise ValueError(f"{mac} belongs to the fabric's gateways: choose another MAC")
    return mac


def mac_to_int(mac: str) -> int:
    """`mac` (six octets, colon-separated) as a 48-bit number."""
    return int(mac.replace(":", ""), 16)


def mac_from_int(number: int) -> str:
    """A 48-bit number as six colon-separated octets."""
    return ":".join(f"{number >> shift & 0xFF:02x}" for shift in range(40, -8, -8))


def eui64_link_local(mac: str) -> IPv6Address:
    """The link-local address that a host makes of its MAC (RFC 4291, appendix A)."""
    m = mac_to_int(mac)
    interface = ((m >> 24) ^ 0x020000) << 40 | 0xFFFE << 24 | (m & 0xFFFFFF)
    return IPv6Address(0xFE80 << 112 | interface)


#: A unicast MAC in its one normal form.
Mac = Annotated[str, BeforeValidator(normalise_mac), AfterValidator(_unicast)]

#: A name that a person or a VM manager chose; UUIDs fit.
Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,126}$")]

#: The name of a port as the switch tells it (Linux allows 15 bytes, other systems more).
PortName = Annotated[str, Field(pattern=r"^[^\s/\x00-\x1f]{1,63}$")]


def parse_dpid(value: object) -> int:
    """A datapath id from a number, `0x…`, or the 16 hex digits that Open vSwitch prints."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("a datapath id is a number or 16 hex digits")
    if isinstance(value, int):
        dpid = value
    elif re.fullmatch(r"(0x[0-9a-fA-F]{1,16})|[0-9a-fA-F]{16}", value):
        dpid = int(value, 16)
    else:
        raise ValueError(f"{value!r} is no datapath id: write 16 hex digits or 0x…")
    if not 0 < dpid < 1 << 64:
        raise ValueError(f"{value!r} is no datapath id: it must lie between 1 and 2^64 - 1")
    return dpid


def format_dpid(dpid: int) -> str:
    """A datapath id as Open vSwitch prints it: 16 hex digits."""
    return f"{dpid:016x}"


#: A datapath id, always carried as 16 hex digits: JSON numbers lose bits past 2^53.
Dpid = Annotated[str, BeforeValidator(lambda v: format_dpid(parse_dpid(v)))]

#: A port of a datapath, as the records of ports and links are named: 16 hex digits:number.
PortKey = Annotated[str, Field(pattern=r"^[0-9a-f]{16}:[1-9][0-9]{0,9}$")]

__all__ = [
    "GATEWAY_MAC",
    "Dpid",
    "IPv4Address",
    "IPv6Address",
    "Id",
    "Mac",
    "PortKey",
    "PortName",
    "eui64_link_local",
    "format_dpid",
    "mac_from_int",
    "mac_to_int",
    "normalise_mac",
    "parse_dpid",
]
