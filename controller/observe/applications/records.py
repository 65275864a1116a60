"""What is known of an application: the records that observing leaves behind, and their JSON."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

UNKNOWN = "unknown"


class Kind(StrEnum):
    """How an answer came about, the surest first."""

    #: nDPI recognised the protocol in what was sent.
    CONFIRMED = "confirmed"
    #: A trained classifier recognised sizes, directions and timing.
    BEHAVIOURAL = "behavioural"
    #: From a port or an address alone.
    GUESSED = "guessed"
    UNKNOWN = "unknown"


class Direction(StrEnum):
    """What told initiator and responder apart."""

    #: TCP's SYN or SYN and ACK.
    SYN = "syn"
    #: One port is that of a known service, the other is not.
    PORT = "port"
    #: Who was seen first.
    FIRST = "first"


@dataclass(frozen=True, slots=True, order=True)
class Service:
    """Where something answers: a VM (or an address, where none is known), "tcp", "udp" or the
    number of another IP protocol, and the port (0 where there is none)."""

    vm: str
    protocol: str
    port: int

    def __str__(self) -> str:
        return f"{self.vm} {self.protocol}/{self.port}"


class Endpoint(NamedTuple):
    """One side of a flow. The MAC is empty where the link has none."""

    address: str
    port: int
    mac: str = ""


class Verdict(NamedTuple):
    """What the first packets of one flow tell. Times are in seconds, `first_seen` since 1970."""

    #: What the feeder gave with the packets, such as a number for the tenant.
    scope: int
    protocol: str
    vlan: int
    initiator: Endpoint
    responder: Endpoint
    direction: Direction
    #: "TLS" or "TLS.Facebook": nDPI's protocol, and the application in it.
    application: str
    kind: Kind
    category: str
    #: How the category came about; behaviour may tell more than "TLS" does.
    category_kind: Kind
    #: Probability of the category where it is behavioural, else 1 or 0.
    confidence: float
    #: nDPI's words for how it came to its answer.
    method: str
    risks: tuple[str, ...]
    server_name: str
    first_seen: float
    #: Packets looked at.
    packets: int
    #: From the SYN to the initiator's ACK of the answer.
    handshake_s: float | None
    #: From the request (or the handshake, where the server speaks first) to the first response.
    response_s: float | None
    #: Seconds since `first_seen` and payload bytes (negative from the responder), a packet each.
    trace: tuple[tuple[float, int], ...] = ()

    @property
    def master(self) -> str:
        """The protocol, without the application in it."""
        return self.application.partition(".")[0]


@dataclass(frozen=True, slots=True)
class ResponseTimes:
    """Medians in seconds, None without a sample, and the number of samples."""

    handshake_s: float | None
    handshakes: int
    response_s: float | None
    responses: int


@dataclass(frozen=True, slots=True)
class Application:
    """What is known of one service, from one or several flows to it."""

    service: Service
    application: str
    kind: Kind
    category: str
    category_kind: Kind
    confidence: float
    risks: tuple[str, ...]
    #: Other applications that flows to the same service were confirmed as, with their number.
    conflicts: tuple[tuple[str, int], ...]
    #: When it was concluded (seconds since 1970), and from how many flows and packets.
    at: float
    flows: int
    packets: int
    times: ResponseTimes
