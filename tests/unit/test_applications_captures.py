"""What a capture file holds, and how far it is read where it is damaged."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.observe.applications.captures import MAX_FRAME, Capture, CaptureError, Frame
from tests.unit import applications_traffic as traffic

FRAMES = traffic.tcp(80, traffic.HTTP, start=1_700_000_000.25)


def pcap(order: str, magic: int, tick: int) -> bytes:
    """A file of FRAMES with `tick` ticks a second."""
    parts = [struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65_535, 0x1000_0001)]
    for frame in FRAMES:
        whole, rest = divmod(frame.time, 1)
        size = len(frame.data)
        parts.append(struct.pack(order + "IIII", int(whole), round(rest * tick), size, size + 9))
        parts.append(frame.data)
    return b"".join(parts)


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    length = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + length + body + length


def section(order: str) -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))


def interface(order: str, link: int = 1, options: bytes = b"", snap: int = 0) -> bytes:
    return block(order, 1, struct.pack(order + "HHI", link, 0, snap) + options)


def enhanced(order: str, frame: Frame, ticks: int, number: int = 0) -> bytes:
    at = struct.pack(order + "II", ticks >> 32, ticks & 0xFFFFFFFF)
    sizes = struct.pack(order + "II", len(frame.data), frame.wire_length)
    return block(order, 6, struct.pack(order + "I", number) + at + sizes + frame.data)


def pcapng(order: str) -> bytes:
    """A file of FRAMES in nanoseconds since an hour after 1970."""
    nanoseconds = struct.pack(order + "HHB3x", 9, 1, 9)
    later = struct.pack(order + "HHq", 14, 8, 3_600)
    end = struct.pack(order + "HH", 0, 0)
    return b"".join(
        [
            section(order),
            interface(order, options=nanoseconds + later + end),
            block(order, 5, b"statistics"),
            *(enhanced(order, f, round((f.time - 3_600) * 1e9)) for f in FRAMES),
        ]
    )


FILES = {
    "microseconds, little": pcap("<", 0xA1B2C3D4, 1_000_000),
    "microseconds, big": pcap(">", 0xA1B2C3D4, 1_000_000),
    "nanoseconds, little": pcap("<", 0xA1B23C4D, 1_000_000_000),
    "nanoseconds, big": pcap(">", 0xA1B23C4D, 1_000_000_000),
    "pcapng, little": pcapng("<"),
    "pcapng, big": pcapng(">"),
}


@pytest.mark.parametrize("name", FILES)
def test_frames(name: str) -> None:
    capture = Capture(FILES[name], name)
    read = list(capture)
    assert [frame.data for frame in read] == [frame.data for frame in FRAMES]
    assert [frame.time for frame in read] == pytest.approx([f.time for f in FRAMES], abs=1e-6)
    assert {frame.link for frame in read} == {1}
    assert capture.trouble == ""


def test_sections_and_interfaces() -> None:
    a, b = FRAMES[:2]
    old = struct.pack("<HHIIII", 1, 0, 0, 0, len(b.data), len(b.data)) + b.data
    data = b"".join(
        [
            section(">"),
            interface(">", 113),
            enhanced(">", a, 1_000_000),
            section("<"),
            interface("<", 1),
            interface("<", 101, snap=20),
            enhanced("<", a, 5_000_000, number=1),
            block("<", 2, old),
            block("<", 3, struct.pack("<I", len(a.data)) + a.data),
        ]
    )
    capture = Capture(data, "x")
    read = list(capture)
    assert [(f.time, f.link, len(f.data)) for f in read] == [
        (1.0, 113, len(a.data)),
        (5.0, 101, len(a.data)),
        (0.0, 101, len(b.data)),
        (0.0, 1, len(a.data)),
    ]
    assert capture.trouble == ""


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_anywhere_gives_what_is_before(name: str) -> None:
    whole = list(Capture(FILES[name], name))
    lengths = set()
    for cut in range(4, len(FILES[name])):
        capture = Capture(FILES[name][:cut], name)
        read = list(capture)
        assert read == whole[: len(read)]
        lengths.add(len(read))
        # Between two frames nothing shows that there were more.
        assert capture.trouble == "" or capture.trouble.startswith(("ends within", "a section"))
    assert lengths == set(range(len(whole)))


@given(st.sampled_from(sorted(FILES)), st.data())
def test_damaged_files_end(name: str, data: st.DataObject) -> None:
    damaged = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(4, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    for frame in Capture(bytes(damaged), name):
        assert len(frame.data) <= min(MAX_FRAME, len(damaged))


@pytest.mark.parametrize(
    ("data", "trouble"),
    [
        (FILES["microseconds, little"][:24] + b"\xff" * 16, "a frame of 4294967295 bytes at"),
        (FILES["microseconds, little"][:20], "ends within the file header"),
        (section("<") + b"\x06\0\0\0\x0b\0\0\0" + bytes(8), "a block of 11 bytes at byte 28"),
        (section("<") + enhanced("<", FRAMES[0], 1), "a block that contradicts itself at byte 28"),
        (b"\x0a\x0d\x0d\x0a" + bytes(24), "a section of no known byte order at byte 0"),
    ],
    ids=["long frame", "header", "short block", "no interface", "byte order"],
)  # fmt: skip
def test_trouble(data: bytes, trouble: str) -> None:
    capture = Capture(data, "x")
    assert list(capture) == []
    assert capture.trouble.startswith(trouble)


def test_opening(tmp_path: Path) -> None:
    file = tmp_path / "a.pcap"
    file.write_bytes(FILES["microseconds, little"])
    assert len(list(Capture.open(file))) == len(FRAMES)
    file.write_bytes(b"GIF89a")
    with pytest.raises(CaptureError, match="neither pcap nor pcapng; name a file"):
        Capture.open(file)
    with pytest.raises(CaptureError, match="cannot be read: Is a directory"):
        Capture.open(tmp_path)
