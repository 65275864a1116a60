"""Which protocols do we recognise that nDPI does not know?

By what each side says first over TCP: so many bytes of it as `OPENING` tells.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from .frames import Packet

#: Bytes that are kept of what a side says first.
OPENING = 64

#: iperf3 begins each test with a cookie of 36 letters and a NUL, which the server answers with
#: the state PARAM_EXCHANGE (iperf 3.12, src/iperf_api.h, src/iperf_util.c: make_cookie).
_COOKIE = re.compile(rb"[a-z2-7]{36}\0")
_PARAM_EXCHANGE = b"\x09"


def _iperf3(asked: bytes, answered: bytes) -> bool:
    return _COOKIE.fullmatch(asked) is not None and answered == _PARAM_EXCHANGE


_KNOWN: dict[str, Callable[[bytes, bytes], bool]] = {"iPerf3": _iperf3}

#: What they are called.
NAMES = frozenset(_KNOWN)


def recognised(asked: bytes, answered: bytes) -> str | None:
    """The protocol in which the initiator says `asked` first and the responder `answered`."""
    return next((name for name, is_it in _KNOWN.items() if is_it(asked, answered)), None)


def said(packet: Packet, frame: bytes) -> bytes:
    """The beginning of what a TCP packet carries; nothing where that is not in the frame."""
    if packet.above + 12 >= len(frame):
        return b""
    at = packet.above + (frame[packet.above + 12] >> 4) * 4
    return frame[at : at + min(packet.payload, OPENING)]
