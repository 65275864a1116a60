"""Which frames does a capture file hold?

Reads pcap (draft-ietf-opsawg-pcap) and pcapng (draft-ietf-opsawg-pcapng), checking every length
against what is there. A file that is cut or damaged gives all frames before the damage, and
`trouble` says what ended it.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

#: No frame of a link that Pleach can tap is longer (a TSO packet of 64 KiB and its headers).
MAX_FRAME = 262_144
_MAX_BLOCK = 16 * 1024 * 1024

#: The magic number at the start of a pcap file: byte order, and seconds in a tick.
_PCAP = {
    b"\xd4\xc3\xb2\xa1": ("<", 1e-6),
    b"\xa1\xb2\xc3\xd4": (">", 1e-6),
    b"\x4d\x3c\xb2\xa1": ("<", 1e-9),
    b"\xa1\xb2\x3c\x4d": (">", 1e-9),
}
_SECTION = b"\x0a\x0d\x0d\x0a"
_BYTE_ORDERS = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}
_INTERFACE, _OLD_PACKET, _SIMPLE_PACKET, _PACKET = 1, 2, 3, 6
_TIME_RESOLUTION, _TIME_OFFSET = 9, 14


class CaptureError(Exception):
    """A file that is no capture: where, why, and what would be one."""


class Frame(NamedTuple):
    """One frame: when it was seen (seconds since 1970), its link type, what was captured of it,
    and how long it was."""

    time: float
    link: int
    data: bytes
    wire_length: int


class Capture:
    """The frames of one file, to be iterated over once.

    `trouble` is empty until something was found wrong; then the frames end.
    """

    def __init__(self, data: bytes | mmap.mmap, name: str) -> None:
        magic = bytes(data[:4])
        if magic not in _PCAP and magic != _SECTION:
            raise CaptureError(f"{name}: neither pcap nor pcapng; name a file made by tcpdump -w")
        self.trouble = ""
        self._data = data
        self._ng = magic == _SECTION

    @classmethod
    def open(cls, path: Path) -> Capture:
        """The capture in a file. Raises CaptureError where it is none or cannot be read."""
        try:
            with path.open("rb") as file:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:  # an empty file cannot be mapped
            raise CaptureError(f"{path}: is empty; name a file made by tcpdump -w") from error
        except OSError as error:
            raise CaptureError(
                f"{path}: cannot be read: {error.strerror}; name a file made by tcpdump -w"
            ) from error
        return cls(data, str(path))

    def __iter__(self) -> Iterator[Frame]:
        return self._blocks() if self._ng else self._records()

    def _records(self) -> Iterator[Frame]:
        data, end = self._data, len(self._data)
        order, tick = _PCAP[bytes(data[:4])]
        if end < 24:
            self.trouble = "ends within the file header"
            return
        # The upper bits tell the length of a frame check sequence.
        link = struct.unpack_from(order + "I", data, 20)[0] & 0xFFFF
        header = struct.Struct(order + "IIII").unpack_from
        at = 24
        while at + 16 <= end:
            seconds, ticks, captured, length = header(data, at)
            at += 16
            if captured > MAX_FRAME:
                self.trouble = f"a frame of {captured} bytes at byte {at - 16}"
                return
            if at + captured > end:
                self.trouble = f"ends within the frame at byte {at - 16}"
                return
            yield Frame(seconds + ticks * tick, link, data[at : at + captured], length)
            at += captured
        if at < end:
            self.trouble = f"ends within the frame header at byte {at}"

    def _blocks(self) -> Iterator[Frame]:
        data, end = self._data, len(self._data)
        section = _Section("<")
        at = 0
        while at + 12 <= end:
            if data[at : at + 4] == _SECTION:
                section = _Section(_BYTE_ORDERS.get(bytes(data[at + 8 : at + 12]), ""))
            if not section.order:
                self.trouble = f"a section of no known byte order at byte {at}"
                return
            kind, length = struct.unpack_from(section.order + "II", data, at)
            if length < 12 or length % 4 or length > _MAX_BLOCK:
                self.trouble = f"a block of {length} bytes at byte {at}"
                return
            if at + length > end:
                self.trouble = f"ends within the block at byte {at}"
                return
            try:
                frame = section.read(kind, data[at + 8 : at + length - 4])
            except (struct.error, IndexError):
                self.trouble = f"a block that contradicts itself at byte {at}"
                return
            if frame is not None:
                yield frame
            at += length
        if at < end:
            self.trouble = f"ends within the block at byte {at}"


class _Section:
    """A section of a pcapng file: its byte order and interfaces."""

    def __init__(self, order: str) -> None:
        self.order = order
        #: Link type, seconds in a tick, seconds to add, and how much is captured of a frame.
        self._interfaces: list[tuple[int, float, int, int]] = []
        if order:
            self._five = struct.Struct(order + "IIIII").unpack_from
            self._old = struct.Struct(order + "HHIIII").unpack_from

    def read(self, kind: int, body: bytes) -> Frame | None:
        """The frame in a block, if it holds one. Raises struct.error or IndexError where the
        block contradicts itself."""
        if kind == _PACKET:
            number, high, low, captured, length = self._five(body)
        elif kind == _OLD_PACKET:
            number, _, high, low, captured, length = self._old(body)
        elif kind == _SIMPLE_PACKET:
            return self._simple(body)
        else:
            if kind == _INTERFACE:
                self._interfaces.append(self._interface(body))
            return None
        link, tick, offset, _ = self._interfaces[number]
        if captured > min(MAX_FRAME, len(body) - 20):
            raise IndexError
        return Frame(offset + (high << 32 | low) * tick, link, body[20 : 20 + captured], length)

    def _simple(self, body: bytes) -> Frame:
        (length,) = struct.unpack_from(self.order + "I", body)
        link, _, _, limit = self._interfaces[0]
        captured = min(length, limit or length, MAX_FRAME)
        if captured > len(body) - 4:
            raise IndexError
        return Frame(0.0, link, body[4 : 4 + captured], length)

    def _interface(self, body: bytes) -> tuple[int, float, int, int]:
        link, _, limit = struct.unpack_from(self.order + "HHI", body)
        tick, offset, at = 1e-6, 0, 8
        while at + 4 <= len(body):
            code, length = struct.unpack_from(self.order + "HH", body, at)
            value = body[at + 4 : at + 4 + length]
            if code == 0:
                break
            if code == _TIME_RESOLUTION and len(value) == 1:
                exponent = value[0] & 0x7F
                tick = 2.0**-exponent if value[0] & 0x80 else 10.0**-exponent
            elif code == _TIME_OFFSET and len(value) == 8:
                (offset,) = struct.unpack(self.order + "q", value)
            at += 4 + (length + 3 & ~3)
        return link, tick, offset, limit
