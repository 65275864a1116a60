"""What do the first packets of each flow tell?

A bounded table of flows. The first packets of each are shown to nDPI and timed; when nothing
more is to be learned from a flow there is one verdict, and its later packets cost a look-up.
nDPI and the behavioural classifier come from outside, so all this runs without them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from socket import AF_INET, AF_INET6, inet_ntop
from typing import Any, Protocol

from .frames import ACK, ENDS, ETHERNET, SYN, TCP, UDP, Packet, decode, is_plain, plain_ends
from .naming import NDPI_UNKNOWN, Naming
from .own import recognised, said
from .records import UNKNOWN, Direction, Endpoint, Kind, Verdict

#: Who talks to whom, as seen from the sender: scope, and the first six fields of a Packet.
Key = tuple[int, tuple[int, bytes, bytes, int, int, int]]
Trace = Sequence[tuple[float, int]]

_PROTOCOLS = {TCP: "tcp", UDP: "udp", 1: "icmp", 58: "icmpv6", 132: "sctp"}


class Finding(Protocol):
    """What an engine says of a flow; see `engine.Finding`."""

    @property
    def label(self) -> str: ...
    @property
    def category(self) -> str: ...
    @property
    def sure(self) -> bool: ...
    @property
    def method(self) -> str: ...
    @property
    def risks(self) -> tuple[str, ...]: ...
    @property
    def server_name(self) -> str: ...


class Engine(Protocol):
    """What looks into packets; see `engine.Engine` and `process.Noted`."""

    def begin(self, key: Key, time: float, packet: Packet, frame: bytes) -> Any: ...
    def more(self, key: Key, flow: Any, time: float, packet: Packet, frame: bytes) -> None: ...
    def decided(self, flow: Any) -> bool: ...
    def end(self, key: Key, flow: Any) -> Finding: ...


class Behaviour(Protocol):
    """What knows applications by how they behave; see `behaviour.Model`."""

    def classify(self, protocol: str, trace: Trace) -> tuple[str, float] | None:
        """Category and calibrated probability, or None where there is too little to go by."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is kept and for how long."""

    #: Packets of a flow that are looked at.
    packets: int = 10
    #: Flows that are kept, and seconds without a packet after which one is over.
    flows: int = 32_768
    idle_s: float = 30.0
    #: Verdicts say the sizes and times of as many packets, also where fewer were enough.
    traces: bool = False


@dataclass(slots=True)
class Counters:
    """What became of the frames, since the table was made."""

    frames: int = 0
    #: Frames without an IP packet that begins in them.
    ignored: int = 0
    flows: int = 0
    #: Flows that were ended early because the table was full.
    evicted: int = 0

    def since(self, before: Counters) -> Counters:
        """What has been counted since it stood at `before`."""
        return Counters(
            self.frames - before.frames,
            self.ignored - before.ignored,
            self.flows - before.flows,
            self.evicted - before.evicted,
        )


class FlowTable:
    """The flows that are being looked at. Verdicts gather in `verdicts`, for the caller to take.

    Flows of the keys in `poisoned` are not shown to the engine.
    """

    def __init__(
        self,
        engine: Engine,
        naming: Naming,
        limits: Limits,
        behaviour: Behaviour | None = None,
        poisoned: Collection[Key] = (),
    ) -> None:
        self.verdicts: list[Verdict] = []
        self.counters = Counters()
        self._engine = engine
        self._naming = naming
        self._limits = limits
        self._behaviour = behaviour
        self._poisoned = frozenset(poisoned)
        self._flows: dict[Key, _Flow] = {}
        #: Flows of which nothing more is to be learned, by the addresses and ports of plain
        #: frames. Where two have the same ones, frames of the other are decoded as any.
        self._told: dict[bytes, _Flow] = {}
        self._categories: dict[tuple[str, str], str] = {}
        self._open = 0
        self._now = 0.0
        self._swept = 0.0

    def feed(self, scope: int, time: float, link: int, frame: bytes) -> None:
        """Look at a frame, seen at `time` (seconds since 1970)."""
        counters = self.counters
        counters.frames += 1
        if link == ETHERNET:
            told = self._told.get(frame[ENDS])
            if told is not None and told.is_of(scope, frame):
                told.last = time
                return
        packet = decode(link, frame)
        if packet is None:
            counters.ignored += 1
            return
        if time > self._now:
            self._now = time
            if time - self._swept > self._limits.idle_s / 2:
                self.expire(time)
        key = (scope, packet[:6])
        flow = self._flows.get(key)
        if flow is None:
            self._begin(key, time, link, packet, frame)
        else:
            flow.last = time
            if not flow.told:
                self._more(flow, time, packet, frame)

    def expire(self, now: float) -> None:
        """End the flows that have been idle for long at `now`."""
        self._swept = now
        before = now - self._limits.idle_s
        for flow in {id(flow): flow for flow in self._flows.values()}.values():
            if flow.last < before:
                self._forget(flow)

    def finish(self) -> None:
        """End all flows."""
        while self._flows:
            self._forget(next(iter(self._flows.values())))

    def _begin(self, key: Key, time: float, link: int, packet: Packet, frame: bytes) -> None:
        if self._open >= self._limits.flows:
            self.counters.evicted += 1
            self._forget(next(iter(self._flows.values())))
        scope, (protocol, source, destination, sport, dport, vlan) = key
        flow = _Flow(key, (scope, (protocol, destination, source, dport, sport, vlan)), time)
        if link == ETHERNET:
            flow.macs = (frame[6:12], frame[:6])
        self._flows[flow.key] = self._flows[flow.reverse] = flow
        self._open += 1
        self.counters.flows += 1
        flow.see(time, packet, True)
        flow.hear(packet, frame, True)
        if flow.key in self._poisoned or flow.reverse in self._poisoned:
            self._tell(flow, None)
            return
        flow.native = self._engine.begin(key, time, packet, frame)
        self._look(flow)

    def _more(self, flow: _Flow, time: float, packet: Packet, frame: bytes) -> None:
        ahead = packet[:6] == flow.key[1]
        flow.see(time, packet, ahead)
        flow.hear(packet, frame, ahead)
        if flow.native is not None:
            self._engine.more(flow.key, flow.native, time, packet, frame)
        self._look(flow)

    def _look(self, flow: _Flow) -> None:
        """Conclude where enough is known of a flow."""
        native = flow.native
        full = len(flow.trace) >= self._limits.packets
        if native is not None and (full or flow.own or self._engine.decided(native)):
            flow.finding = self._engine.end(flow.key, native)
            flow.native = None
            flow.decided_at = len(flow.trace)
        known = flow.native is None and flow.response_s is not None
        if full or (known and not self._limits.traces):
            self._conclude(flow)

    def _forget(self, flow: _Flow) -> None:
        self._conclude(flow)
        for key in (flow.key, flow.reverse):
            self._flows.pop(key, None)
            ends = plain_ends(key[1])
            if ends is not None and self._told.get(ends) is flow:
                del self._told[ends]
        self._open -= 1

    def _conclude(self, flow: _Flow) -> None:
        if flow.told:
            return
        if flow.native is not None:
            flow.finding = self._engine.end(flow.key, flow.native)
            flow.native = None
            flow.decided_at = len(flow.trace)
        self._tell(flow, flow.finding)

    def _tell(self, flow: _Flow, finding: Finding | None) -> None:
        flow.told = True
        for _, packet in (flow.key, flow.reverse):
            ends = plain_ends(packet)
            if ends is not None:
                self._told[ends] = flow
        self.verdicts.append(self._verdict(flow, finding))
        flow.release()

    def _verdict(self, flow: _Flow, finding: Finding | None) -> Verdict:
        scope, (number, source, destination, sport, dport, vlan) = flow.key
        protocol = _PROTOCOLS.get(number) or str(number)
        ends = (
            Endpoint(_address(source), sport, flow.macs[0].hex(":")),
            Endpoint(_address(destination), dport, flow.macs[1].hex(":")),
        )
        forward, direction = self._direction(flow, protocol, sport, dport)
        initiator, responder = ends if forward else ends[::-1]
        application, kind, method = self._named(finding, flow.own, protocol, responder.port)
        category = self._category(application, finding.category if finding else "")
        category_kind, confidence = kind, 0.0 if kind is Kind.UNKNOWN else 1.0
        trace = flow.trace if forward else [(at, -size) for at, size in flow.trace]
        behaved = self._behaved(protocol, trace, application, kind)
        if behaved is not None:
            (category, confidence), category_kind = behaved, Kind.BEHAVIOURAL
            if kind is not Kind.CONFIRMED:
                application, kind, method = UNKNOWN, Kind.BEHAVIOURAL, "behaviour"
        return Verdict(
            scope,
            protocol,
            vlan,
            initiator,
            responder,
            direction,
            application,
            kind,
            category,
            category_kind,
            confidence,
            method,
            finding.risks if finding else (),
            finding.server_name if finding else "",
            flow.first,
            flow.decided_at or len(flow.trace),
            flow.handshake_s,
            flow.response_s if forward == flow.forward else None,
            tuple(trace) if self._limits.traces else (),
        )

    def _category(self, application: str, ndpi: str) -> str:
        known = self._categories.get((application, ndpi))
        if known is None:
            known = self._naming.category(application, ndpi)
            self._categories[application, ndpi] = known
        return known

    def _direction(
        self, flow: _Flow, protocol: str, sport: int, dport: int
    ) -> tuple[bool, Direction]:
        """Whether who was seen first is the initiator, and how that is known."""
        if flow.direction is Direction.SYN:
            return flow.forward, Direction.SYN
        here = self._naming.serves(protocol, sport)
        there = self._naming.serves(protocol, dport)
        if here == there:
            return True, Direction.FIRST
        return there, Direction.PORT

    def _behaved(
        self, protocol: str, trace: Trace, application: str, kind: Kind
    ) -> tuple[str, float] | None:
        """What behaviour says of a flow that its packets do not name, or only say to be hidden."""
        if self._behaviour is None:
            return None
        if kind is Kind.CONFIRMED and application not in self._naming.opaque:
            return None
        answer = self._behaviour.classify(protocol, trace)
        return None if answer is None or answer[1] < self._naming.answer_from else answer

    def _named(
        self, finding: Finding | None, own: str | None, protocol: str, port: int
    ) -> tuple[str, Kind, str]:
        """Application, how it is known, and in which way."""
        if own is not None and not (finding and finding.sure):
            return own, Kind.CONFIRMED, "own"
        if finding is None:
            return UNKNOWN, Kind.UNKNOWN, "crashed"
        if finding.label != NDPI_UNKNOWN:
            kind = Kind.CONFIRMED if finding.sure else Kind.GUESSED
            return finding.label, kind, finding.method
        suggested = self._naming.suggested(protocol, port)
        if suggested is not None:
            return suggested, Kind.GUESSED, "policy_port"
        return UNKNOWN, Kind.UNKNOWN, finding.method


class _Flow:
    """A flow, from the side of who was seen first."""

    __slots__ = (
        "acked",
        "asked",
        "decided_at",
        "direction",
        "finding",
        "first",
        "forward",
        "handshake_s",
        "key",
        "last",
        "macs",
        "native",
        "openings",
        "own",
        "response_s",
        "reverse",
        "syn",
        "syn_acked",
        "told",
        "trace",
    )

    def __init__(self, key: Key, reverse: Key, time: float) -> None:
        self.key = key
        self.reverse = reverse
        self.macs = (b"", b"")
        self.native: Any = None
        self.finding: Finding | None = None
        #: What each side said first, who was seen first under True, until both have; and the
        #: protocol that we recognised by that.
        self.openings: dict[bool, bytes] | None = {}
        self.own: str | None = None
        self.decided_at = 0
        self.told = False
        self.first = self.last = time
        #: Whether who was seen first is the initiator, and how that is known.
        self.forward = True
        self.direction = Direction.FIRST
        #: Seconds since the first packet, and payload bytes, negative from the other side.
        self.trace: list[tuple[float, int]] = []
        self.syn: float | None = None
        self.syn_acked = False
        self.acked: float | None = None
        self.asked: float | None = None
        self.handshake_s: float | None = None
        self.response_s: float | None = None

    def see(self, time: float, packet: Packet, ahead: bool) -> None:
        """Time a packet, from who was seen first where it is `ahead`."""
        if packet.flags:
            self._see_flags(time, packet.flags, ahead)
        payload = packet.payload
        self.trace.append((time - self.first, payload if ahead else -payload))
        if payload == 0 or self.response_s is not None:
            return
        if ahead == self.forward:
            self.asked = time
            return
        since = self.asked if self.asked is not None else self.acked
        if since is not None and time >= since:
            self.response_s = time - since

    def hear(self, packet: Packet, frame: bytes, ahead: bool) -> None:
        """Recognise what nDPI does not know, by what both sides say first."""
        if self.openings is None or packet.payload == 0 or packet.protocol != TCP:
            return
        self.openings.setdefault(ahead, said(packet, frame))
        if len(self.openings) == 2:
            self.own = recognised(self.openings[self.forward], self.openings[not self.forward])
            self.openings = None

    def _see_flags(self, time: float, flags: int, ahead: bool) -> None:
        """Time the handshake of TCP, and learn from it who began."""
        if flags & SYN:
            if self.direction is not Direction.SYN:
                self.direction = Direction.SYN
                self.forward = ahead != bool(flags & ACK)
            if flags & ACK:
                self.syn_acked = True
            elif self.syn is None:
                self.syn = time
        elif self.syn_acked and self.acked is None and flags & ACK and ahead == self.forward:
            self.acked = time
            if self.syn is not None and time >= self.syn:
                self.handshake_s = time - self.syn

    def is_of(self, scope: int, frame: bytes) -> bool:
        """Whether a frame with the addresses and ports of this flow is of it."""
        return self.key[0] == scope and is_plain(frame, self.key[1][0])

    def release(self) -> None:
        """Let go of what only looking needed."""
        self.trace = []
        self.finding = None


def _address(packed: bytes) -> str:
    return inet_ntop(AF_INET if len(packed) == 4 else AF_INET6, packed)
