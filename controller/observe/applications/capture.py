"""Which frames arrive at the DPI port of an edge?

A packet socket on one interface, with a bounded buffer in the kernel and its count of drops.
Needs CAP_NET_RAW.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from .captures import Frame
from .frames import ETHERNET, RAW_IP

# linux/if_packet.h, linux/if_arp.h, asm-generic/socket.h
_ETH_P_ALL = 0x0003
_SOL_PACKET = 263
_PACKET_ADD_MEMBERSHIP, _PACKET_STATISTICS, _PACKET_AUXDATA = 1, 6, 8
_PACKET_MR_PROMISC = 1
_PACKET_OUTGOING = 4
_SO_TIMESTAMPNS = 35
_SO_RCVBUFFORCE = 33
_TP_STATUS_VLAN_VALID = 0x10
_LINKS = {1: ETHERNET, 772: ETHERNET, 65534: RAW_IP, 512: RAW_IP}

_statistics = struct.Struct("II")
_membership = struct.Struct("iHH8s")
_auxdata = struct.Struct("IIIHHHH")
_timespec = struct.Struct("qq")
_ANCILLARY = socket.CMSG_SPACE(_auxdata.size) + socket.CMSG_SPACE(_timespec.size)


class SnifferError(Exception):
    """An interface that cannot be listened to: which, why, and what to do."""


@dataclass(slots=True)
class SnifferCounters:
    """What became of the frames at the interface."""

    seen: int = 0
    #: Frames for which the kernel had no room, because nobody fetched them in time.
    dropped: int = 0


class Sniffer:
    """The frames that arrive at an interface; those that leave by it are not shown.

    `buffer` is what the kernel keeps for us, in bytes.
    """

    def __init__(self, interface: str, buffer: int = 8 * 1024 * 1024) -> None:
        self.counters = SnifferCounters()
        try:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        except PermissionError as error:
            raise SnifferError(
                f"{interface}: may not be listened to; run this with CAP_NET_RAW"
            ) from error
        try:
            self._set_up(interface, buffer)
        except OSError as error:
            self._socket.close()
            raise SnifferError(f"{interface}: cannot be listened to: {error.strerror}") from error

    def _set_up(self, interface: str, buffer: int) -> None:
        number = socket.if_nametoindex(interface)
        packets = self._socket
        packets.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        packets.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        try:
            packets.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer)
        except PermissionError:  # without CAP_NET_ADMIN the system's limit holds
            packets.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        packets.bind((interface, _ETH_P_ALL))
        joined = _membership.pack(number, _PACKET_MR_PROMISC, 0, b"")
        packets.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, joined)
        packets.setblocking(False)
        self._link = _LINKS.get(packets.getsockname()[3])
        if self._link is None:
            raise OSError(0, "its link layer is neither Ethernet nor IP")

    def frames(self, limit: int) -> Iterator[Frame]:
        """What has arrived, at most `limit` frames; never waits."""
        assert self._link is not None
        for _ in range(limit):
            try:
                data, ancillary, _, origin = self._socket.recvmsg(65_536, _ANCILLARY)
            except BlockingIOError:
                return
            except OSError as error:
                raise SnifferError(f"cannot be listened to any more: {error.strerror}") from error
            self.counters.seen += 1
            if origin[2] != _PACKET_OUTGOING:
                yield _frame(self._link, data, ancillary)

    def count(self) -> SnifferCounters:
        """The counters, with what the kernel has dropped so far."""
        told = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _statistics.size)
        self.counters.dropped += _statistics.unpack(told)[1]  # reading sets it to 0
        return self.counters

    def fileno(self) -> int:
        """The descriptor, to be waited on."""
        return self._socket.fileno()

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()


def _frame(link: int, data: bytes, ancillary: list[tuple[int, int, bytes]]) -> Frame:
    time, tag = 0.0, None
    for level, kind, value in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, nanoseconds = _timespec.unpack(value)
            time = seconds + nanoseconds * 1e-9
        elif (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA):
            status, _, _, _, _, tci, _ = _auxdata.unpack(value)
            tag = tci if status & _TP_STATUS_VLAN_VALID else None
    if tag is not None and link == ETHERNET:
        # The kernel takes the outermost VLAN tag away and tells it aside.
        data = data[:12] + struct.pack("!HH", 0x8100, tag) + data[12:]
    return Frame(time, link, data, len(data))
