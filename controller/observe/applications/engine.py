"""What does nDPI say of a flow?

nDPI comes as the shared library that nfstream brings (LGPL-3), and is fed packet by packet
through nfstream's own entry points: no capture, no meter processes. It is native code that reads
what strangers send, so this module is loaded in a worker process only (`worker.py`).
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Any, NamedTuple

from _lib_engine import ffi, lib

from .frames import Packet

#: How nDPI came to its answer. A port, an address or an unfinished match makes it a guess; so
#: does its aggressive mode, which takes look-alikes.
_SURE = frozenset(
    {
        lib.NDPI_CONFIDENCE_NBPF,
        lib.NDPI_CONFIDENCE_DPI,
        lib.NDPI_CONFIDENCE_DPI_CACHE,
        lib.NDPI_CONFIDENCE_CUSTOM_RULE,
    }
)
_CONFIDENCES: dict[int, str] = {
    number: name.removeprefix("NDPI_CONFIDENCE_").lower()
    for number, name in ffi.typeof("ndpi_confidence_t").elements.items()
}
_RISKS = [
    ffi.string(lib.ndpi_risk_shortnames[number]).decode("ascii")
    for number in range(lib.NDPI_MAX_RISK)
]
#: The count of packets after which nfstream itself would end a flow; ours are ended before.
_NEVER = 255
_FOREVER = 1 << 62
_LARGEST = (1 << 64) - 1
_END = bytes(1)
_BYTES = ffi.typeof("uint8_t[]")


class Finding(NamedTuple):
    """What nDPI says: protocol, or protocol.application; "Unknown" where it cannot tell."""

    label: str
    #: nDPI's own category.
    category: str
    sure: bool
    #: How it came to that, in nDPI's words.
    method: str
    risks: tuple[str, ...]
    #: The server's name, from TLS, QUIC, HTTP or DNS.
    server_name: str


class EngineError(Exception):
    """nDPI could not be set up, or had no memory for a flow."""


class Engine:
    """nDPI with its memory of earlier flows."""

    def __init__(self) -> None:
        checker = ffi.new("struct dissector_checker *")
        checker.flow_size = ffi.sizeof("struct ndpi_flow_struct")
        checker.flow_tcp_size = ffi.sizeof("struct ndpi_flow_tcp_struct")
        checker.flow_udp_size = ffi.sizeof("struct ndpi_flow_udp_struct")
        self._dissector = lib.dissector_init(checker)
        if self._dissector == ffi.NULL:
            raise EngineError(
                "the library of nfstream does not fit its own header; install the pinned version"
            )
        lib.dissector_configure(self._dissector)
        self._packet = ffi.new("struct nf_packet *")
        self._buffer = ffi.buffer(self._packet)
        self._pack = _packet_layout().pack_into

    def close(self) -> None:
        """Free nDPI; every flow must have been ended."""
        lib.dissector_cleanup(self._dissector)

    def begin(self, time: float, packet: Packet, frame: bytes) -> Any:
        """A flow that begins with `packet` of `frame` (seconds since 1970). Raises EngineError."""
        held = self._set(time, packet, frame)
        flow = lib.meter_initialize_flow(self._packet, 0, 0, 0, _NEVER, self._dissector, 0)
        del held
        if flow == ffi.NULL:
            raise EngineError("no memory for a flow")
        return flow

    def more(self, flow: Any, time: float, packet: Packet, frame: bytes) -> None:
        """Show the next packet of a flow to nDPI."""
        held = self._set(time, packet, frame)
        lib.meter_update_flow(
            flow, self._packet, _FOREVER, _FOREVER, 0, 0, 0, _NEVER, self._dissector, 0
        )
        del held

    def decided(self, flow: Any) -> bool:
        """Whether further packets would add nothing to what nDPI says."""
        return bool(flow.detected_protocol.state == lib.NDPI_STATE_CLASSIFIED)

    def end(self, flow: Any) -> Finding:
        """What nDPI says of a flow, which is over with this: a guess where it is not sure."""
        lib.meter_expire_flow(flow, _NEVER, self._dissector)
        method, name = flow.confidence, flow.requested_server_name
        finding = Finding(
            _text(flow.application_name),
            _text(flow.category_name),
            method in _SURE,
            _CONFIDENCES.get(method, str(method)),
            _risks(flow.ndpi_flow.risk),
            _text(name) if name[0] != _END else "",
        )
        lib.meter_free_flow(flow, _NEVER, 0, 1)
        return finding

    def _set(self, time: float, packet: Packet, frame: bytes) -> Any:
        """Make `packet` the one that is fed; what is returned keeps its bytes in place."""
        protocol, source, destination, sport, dport, vlan, at, length, _, _, flags = packet
        self._pack(
            self._buffer,
            0,
            int(time * 1000) & _LARGEST,
            source,
            destination,
            sport,
            dport,
            4 if len(source) == 4 else 6,
            protocol,
            vlan,
            flags,
            length if length <= 0xFFFF else 0xFFFF,
        )
        held = ffi.from_buffer(_BYTES, frame)
        self._packet.ip_content = held + at
        return held


def _packet_layout() -> struct.Struct:
    """How the fields that matter lie in nfstream's struct nf_packet."""
    kinds = {
        "time": "Q",
        "src_ip": "16s",
        "dst_ip": "16s",
        "src_port": "H",
        "dst_port": "H",
        "ip_version": "B",
        "protocol": "B",
        "vlan_id": "H",
        "fin": "H",  # and the other flags, from the lowest bit on
        "ip_content_len": "H",
    }
    offsets = {name: field.offset for name, field in ffi.typeof("struct nf_packet").fields}
    layout, at = "=", 0
    for name, kind in kinds.items():
        gap = offsets[name] - at
        if gap < 0:
            raise EngineError("nfstream lays out packets anew; install the pinned version")
        layout += f"{gap}x{kind}"
        at = offsets[name] + struct.calcsize("=" + kind)
    return struct.Struct(layout)


@lru_cache(maxsize=1024)
def _risks(bits: int) -> tuple[str, ...]:
    return tuple(name for number, name in enumerate(_RISKS) if bits >> number & 1)


def _text(characters: Any) -> str:
    text: str = ffi.string(characters).decode("utf-8", errors="replace")
    return text
