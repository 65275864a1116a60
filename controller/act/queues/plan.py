"""Which queues does a port get? One a class of service, with filters that tell packets apart. Pure.

A class has its share of the port when all want more, and what others leave up to its most. IP
packets are told apart by DSCP, labelled ones by the label's traffic class (RFC 5462), which is
the number of their queue; LLDP and ARP go with the highest class, for the fabric hangs on them.
The same holds on whatever datapath: the kernel sends out of these ports, where Open vSwitch
forwards in user space too, and there `set_queue` would have no effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

IPV4, IPV6, MPLS, ARP, LLDP = 0x0800, 0x86DD, 0x8847, 0x0806, 0x88CC

#: All that filters look at.
PROTOCOLS = (IPV4, IPV6, MPLS, ARP, LLDP)
#: Where the code lies in the first 32 bits, and its width as a mask.
_BITS = {IPV4: (18, 0x3F), IPV6: (22, 0x3F), MPLS: (9, 0x7)}
#: Priorities of filters of one EtherType.
_PRIORITIES = 1_000

#: Number of the root class; those of the queues follow.
ROOT = 1
_FIRST = 0x10
#: Seconds of a class's share that may wait in its queue, and the least packets that may.
DEPTH_S, LEAST_PACKETS = 0.1, 32
#: Bytes of a full frame.
FRAME = 1_526
#: Seconds of its rate that a class may send at once, so that timers of the kernel suffice.
_BURST_S = 0.002


class ClassOfService(Protocol):
    """What a plan needs to know of a class."""

    @property
    def dscp(self) -> int:
        """Its code point."""

    @property
    def queue(self) -> int:
        """Its queue, and its traffic class."""

    @property
    def share(self) -> float:
        """Of the port when all want more."""

    @property
    def most(self) -> float:
        """Of the port whatever others want."""


@dataclass(frozen=True, slots=True)
class Queue:
    """One class of HTB. Rates in bytes/s, its depth in packets, and its burst in bytes; of two
    that want more than their rate, the one with the lower `priority` is served first."""

    minor: int
    rate: int
    ceil: int
    priority: int
    depth: int
    burst: int


@dataclass(frozen=True, slots=True, order=True)
class Filter:
    """Packets of an EtherType with a code (DSCP, or the label's traffic class; without meaning for
    others) go to a queue."""

    protocol: int
    code: int
    minor: int

    @property
    def priority(self) -> int:
        """Tells protocol and code, so that a filter can be known by it."""
        return _PRIORITIES * (1 + PROTOCOLS.index(self.protocol)) + self.code

    @property
    def bits(self) -> tuple[int, int]:
        """Value and mask of the first 32 bits from the network header on (RFC 791, 8200, 3032)."""
        shift, mask = {IPV4: (18, 0x3F), IPV6: (22, 0x3F), MPLS: (9, 0x7)}.get(
            self.protocol, (0, 0)
        )
        return self.code << shift, mask << shift


def filter_of(priority: int, minor: int) -> Filter | None:
    """The filter that has `priority`; None where none of ours has."""
    which, code = divmod(priority, _PRIORITIES)
    if not 1 <= which <= len(PROTOCOLS):
        return None
    return Filter(PROTOCOLS[which - 1], code, minor)


@dataclass(frozen=True, slots=True)
class Plan:
    """All of one port: `rate` in bytes/s."""

    rate: int
    default: int
    queues: tuple[Queue, ...]
    filters: tuple[Filter, ...]


def plan(classes: Mapping[str, ClassOfService], default: str, rate_bps: float) -> Plan:
    """The queues of a port that carries `rate_bps`. ValueError where that is no rate."""
    if not 8_000 <= rate_bps <= 8e12:
        raise ValueError(f"a port carries 8 kbit/s to 8 Tbit/s, and not {rate_bps:g} bit/s")
    rate = int(rate_bps / 8)
    queues = tuple(
        _queue(made, rate) for made in sorted(classes.values(), key=lambda made: made.queue)
    )
    filters = [found for made in classes.values() for found in _filters(made)]
    top = queues[-1].minor
    filters += [Filter(protocol, 0, top) for protocol in (ARP, LLDP)]
    return Plan(rate, minor(classes[default].queue), queues, tuple(sorted(filters)))


def minor(queue: int) -> int:
    """The number of a queue's class of HTB."""
    return _FIRST + queue


def _queue(made: ClassOfService, rate: int) -> Queue:
    own = max(1, int(rate * made.share))
    ceil = max(own, int(rate * made.most))
    depth = max(LEAST_PACKETS, int(own * DEPTH_S / FRAME))
    burst = max(2 * FRAME, int(ceil * _BURST_S))
    return Queue(minor(made.queue), own, ceil, 7 - made.queue, depth, burst)


def _filters(made: ClassOfService) -> tuple[Filter, ...]:
    number = minor(made.queue)
    return (
        Filter(IPV4, made.dscp, number),
        Filter(IPV6, made.dscp, number),
        Filter(MPLS, made.queue, number),
    )
