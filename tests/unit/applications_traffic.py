"""Conversations of real applications, as frames, for the tests of what tells them apart."""

from __future__ import annotations

import ssl
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from scapy.layers.dns import DNS, DNSQR, DNSRR
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from controller.observe.applications.captures import Frame

CLIENT, SERVER = "10.0.0.1", "10.0.0.2"
CLIENT_MAC, SERVER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
#: What is said: by the client (True) or the server, and the bytes.
Said = Sequence[tuple[bool, bytes]]

HTTP: Said = [
    (True, b"GET / HTTP/1.1\r\nHost: www.example.org\r\nUser-Agent: test\r\nAccept: */*\r\n\r\n"),
    (
        False,
        b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi",
    ),
]
SSH: Said = [
    (False, b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"),
    (True, b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"),
]
POSTGRESQL: Said = [
    (True, struct.pack("!II", 8, 80877103)),
    (False, b"N"),
    (True, struct.pack("!II", 41, 196608) + b"user\0alice\0database\0orders\0\0\0\0\0"),
    (False, b"R" + struct.pack("!II", 8, 0)),
]
REDIS: Said = [(True, b"*1\r\n$4\r\nPING\r\n"), (False, b"+PONG\r\n")] * 2
MQTT: Said = [
    (True, b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04test"),
    (False, b"\x20\x02\x00\x00"),
    (True, b"\x82\x08\x00\x01\x00\x03a/b\x00"),
    (False, b"\x90\x03\x00\x01\x00"),
]
SMTP: Said = [
    (False, b"220 mail.example.org ESMTP Postfix\r\n"),
    (True, b"EHLO client.example.org\r\n"),
    (False, b"250-mail.example.org\r\n250 SMTPUTF8\r\n"),
    (True, b"MAIL FROM:<a@example.org>\r\n"),
]


def hello(name: str) -> bytes:
    """What a TLS client says first, to the server `name`."""
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake without an answer")


def ethernet(client: bool, payload: Packet) -> bytes:
    """A frame from client or server."""
    macs = (CLIENT_MAC, SERVER_MAC) if client else (SERVER_MAC, CLIENT_MAC)
    return bytes(Ether(src=macs[0], dst=macs[1]) / payload)


def ip(client: bool, version: int = 4) -> Packet:
    """The IP header from client or server."""
    ends = (CLIENT, SERVER) if client else (SERVER, CLIENT)
    if version == 4:
        return IP(src=ends[0], dst=ends[1])
    return IPv6(src=f"fd00::{ends[0][-1]}", dst=f"fd00::{ends[1][-1]}")


def tcp(
    port: int,
    said: Said,
    sport: int = 40_000,
    start: float = 1_000.0,
    step: float = 0.001,
    version: int = 4,
) -> list[Frame]:
    """A TCP connection to `port`: the handshake, and what is said; a packet each `step` s."""
    numbers = {True: 1_000, False: 9_000}
    frames: list[Frame] = []

    def send(client: bool, flags: str, payload: bytes = b"") -> None:
        ports = (sport, port) if client else (port, sport)
        header = TCP(
            sport=ports[0],
            dport=ports[1],
            flags=flags,
            seq=numbers[client],
            ack=numbers[not client] if "A" in flags else 0,
        )
        packet = (
            ip(client, version) / header / Raw(payload) if payload else ip(client, version) / header
        )
        data = ethernet(client, packet)
        frames.append(Frame(start + step * len(frames), 1, data, len(data)))
        numbers[client] += len(payload) + ("S" in flags)

    send(True, "S")
    send(False, "SA")
    send(True, "A")
    for client, payload in said:
        send(client, "PA", payload)
    return frames


def udp(port: int, said: Said, sport: int = 40_000, start: float = 1_000.0) -> list[Frame]:
    """Datagrams to and from `port`, one each millisecond."""
    frames = []
    for number, (client, payload) in enumerate(said):
        ports = (sport, port) if client else (port, sport)
        data = ethernet(client, ip(client) / UDP(sport=ports[0], dport=ports[1]) / Raw(payload))
        frames.append(Frame(start + number * 0.001, 1, data, len(data)))
    return frames


def dns(name: str) -> Said:
    """A question for an address, and the answer."""
    question = DNSQR(qname=name)
    answer = DNSRR(rrname=name, rdata="192.0.2.1")
    return [
        (True, bytes(DNS(id=7, rd=1, qd=question))),
        (False, bytes(DNS(id=7, qr=1, qd=question, an=answer))),
    ]


def pcap(frames: Iterable[Frame], link: int = 1) -> bytes:
    """A capture file."""
    parts = [struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, link)]
    for frame in frames:
        seconds, rest = divmod(frame.time, 1)
        size = len(frame.data)
        parts.append(struct.pack("<IIII", int(seconds), int(rest * 1e6), size, frame.wire_length))
        parts.append(frame.data)
    return b"".join(parts)


def capture(path: Path, frames: Iterable[Frame]) -> Path:
    """A capture file at `path`."""
    path.write_bytes(pcap(frames))
    return path
