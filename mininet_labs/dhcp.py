"""A guest's DHCP client (RFC 2131, 2132): just enough to ask, take and hand back a lease.

Speaks through a packet socket, as a host without an address must, and changes nothing on the
machine: Debian's clients would rewrite `/etc/resolv.conf`.
"""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import dataclass
from ipaddress import IPv4Address

from controller.waiting import readable

_ETH_P_IP = 0x0800
_COOKIE = b"\x63\x82\x53\x63"
_BOOTP = struct.Struct("!4BIHH4s4s4s4s16s64s128s")
_ASK_AGAIN_S = 1.0
_DISCOVER, _OFFER, _REQUEST, _ACK, _NAK = 1, 2, 3, 5, 6
#: Subnet mask, router, DNS, domain, MTU, lease time, static routes.
_WANTED = bytes((1, 3, 6, 15, 26, 51, 121))


class DhcpError(RuntimeError):
    """No lease: nobody answered in time, or the server refused."""


@dataclass(frozen=True, slots=True)
class Lease:
    """What a server granted; `lease_s` in seconds, `options` raw by their number."""

    address: IPv4Address
    prefix: int
    gateway: IPv4Address | None
    dns: tuple[IPv4Address, ...]
    server: IPv4Address
    lease_s: int
    options: dict[int, bytes]


def lease(interface: str, mac: str, timeout_s: float = 10.0) -> Lease:
    """Discover and request over `interface` of the caller's namespace; DhcpError where no lease
    comes within `timeout_s`."""
    hardware = bytes.fromhex(mac.replace(":", ""))
    transaction = int.from_bytes(hardware[-4:], "big") ^ (time.monotonic_ns() & 0xFFFFFFFF)
    deadline = time.monotonic() + timeout_s
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_IP)) as wire:
        wire.bind((interface, _ETH_P_IP))
        client = _Client(wire, hardware, transaction, deadline)
        offered, options = client.ask({53: bytes([_DISCOVER])}, _OFFER)
        chosen = {53: bytes([_REQUEST]), 50: offered.packed, 54: options.get(54, b"")}
        granted, options = client.ask(chosen, _ACK)
    return _lease(granted, options)


def _lease(address: IPv4Address, options: dict[int, bytes]) -> Lease:
    try:
        mask = int(IPv4Address(options[1]))
        routers = _addresses(options.get(3, b""))
        return Lease(
            address=address,
            prefix=mask.bit_count(),
            gateway=routers[0] if routers else None,
            dns=_addresses(options.get(6, b"")),
            server=IPv4Address(options[54]),
            lease_s=int.from_bytes(options[51], "big"),
            options=options,
        )
    except (KeyError, ValueError) as error:
        raise DhcpError(f"the lease of {address} lacks or garbles an option: {error}") from error


def _addresses(data: bytes) -> tuple[IPv4Address, ...]:
    return tuple(IPv4Address(data[i : i + 4]) for i in range(0, len(data) - 3, 4))


@dataclass(frozen=True, slots=True)
class _Client:
    wire: socket.socket
    hardware: bytes
    transaction: int
    deadline: float

    def ask(self, options: dict[int, bytes], kind: int) -> tuple[IPv4Address, dict[int, bytes]]:
        """Send until an answer of `kind` comes; return its address and options."""
        frame = self._frame({**options, 55: _WANTED, 61: b"\x01" + self.hardware})
        while (now := time.monotonic()) < self.deadline:
            self.wire.send(frame)
            answer = self._hear(kind, min(now + _ASK_AGAIN_S, self.deadline))
            if answer is not None:
                return answer
        raise DhcpError(f"no DHCP server answered message {options[53][0]} in time")

    def _hear(self, kind: int, until: float) -> tuple[IPv4Address, dict[int, bytes]] | None:
        while (left := until - time.monotonic()) > 0:
            if not readable([self.wire.fileno()], left):
                return None
            answer = self._parse(self.wire.recv(2_048))
            if answer is None:
                continue
            said = answer[1].get(53, b"\0")[0]
            if said == _NAK:
                raise DhcpError(f"refused: {answer[1].get(56, b'without a reason').decode()}")
            if said == kind:
                return answer
        return None

    def _frame(self, options: dict[int, bytes]) -> bytes:
        bootp = _BOOTP.pack(
            *(1, 1, 6, 0, self.transaction, 0, 0),
            *(bytes(4), bytes(4), bytes(4), bytes(4)),
            *(self.hardware, b"", b""),
        )
        tail = b"".join(bytes((code, len(value))) + value for code, value in options.items())
        payload = (bootp + _COOKIE + tail + b"\xff").ljust(300, b"\0")
        datagram = struct.pack("!HHHH", 68, 67, 8 + len(payload), 0) + payload
        head = struct.pack(
            "!BBHHHBBH4s4s", 0x45, 0x10, 20 + len(datagram), 0, 0, 64, 17, 0, bytes(4), b"\xff" * 4
        )
        head = head[:10] + struct.pack("!H", _checksum(head)) + head[12:]
        return b"\xff" * 6 + self.hardware + struct.pack("!H", _ETH_P_IP) + head + datagram

    def _parse(self, frame: bytes) -> tuple[IPv4Address, dict[int, bytes]] | None:
        """The address and options of an answer meant for this client."""
        packet = frame[14:]
        head = (packet[0] & 15) * 4 if packet else 0
        if not 20 <= head <= len(packet) or packet[9] != 17 or _checksum(packet[:head]):
            return None
        datagram = packet[head:]
        payload = datagram[8:]
        if datagram[:4] != struct.pack("!HH", 67, 68) or len(payload) < _BOOTP.size + 4:
            return None
        fields = _BOOTP.unpack_from(payload)
        if fields[0] != 2 or fields[4] != self.transaction or fields[11][:6] != self.hardware:
            return None
        if payload[_BOOTP.size : _BOOTP.size + 4] != _COOKIE:
            return None
        return IPv4Address(fields[8]), _options(payload[_BOOTP.size + 4 :])


def _options(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    position = 0
    while position + 1 < len(data) and data[position] != 255:
        code, length = data[position], data[position + 1]
        if code == 0:
            position += 1
            continue
        # RFC 3396: an option given twice continues.
        found[code] = found.get(code, b"") + data[position + 2 : position + 2 + length]
        position += 2 + length
    return found


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071); 0 over a header that carries a right one."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
