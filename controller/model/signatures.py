"""Who talks to whom, as the fabric tells it apart: signatures, and which of them are counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import NamedTuple

from controller.model.nouns import Vm

#: Numbers of protocols that have ports, and of those that are told apart by name
#: (IANA, Assigned Internet Protocol Numbers).
TCP, UDP, SCTP, ICMP, ICMPV6 = 6, 17, 132, 1, 58
PORTS = frozenset({TCP, UDP, SCTP})
NAMES = {TCP: "tcp", UDP: "udp", SCTP: "sctp", ICMP: "icmp", ICMPV6: "icmp"}

#: The peer that stands for all others of a VM that has too many.
OTHERS = "*"


class Signature(NamedTuple):
    """The NIC `mac` of `vm` begins connections to `peer` by a protocol (its number), to a port
    (0 where the protocol has none). `peer` is one address, or a prefix."""

    vm: str
    mac: str
    peer: IPv4Network | IPv6Network
    protocol: int
    port: int


class Counter(NamedTuple):
    """What tells one set of counters at a switch from another: as `Signature`, whose VM is told
    by `mac`. Without `peer` they count all else of a VM, without protocol and port."""

    mac: str
    peer: IPv4Network | IPv6Network | None
    protocol: int
    port: int


class Counts(NamedTuple):
    """Packets and bytes (of frames) of what begins connections, of the rest of what was sent, and
    of replies."""

    begun: int = 0
    begun_bytes: int = 0
    rest: int = 0
    rest_bytes: int = 0
    back: int = 0
    back_bytes: int = 0


class Denied(NamedTuple):
    """What was denied: of `source`, to `target`, met at the edge of the one who has `mac`."""

    mac: str
    source: IPv4Address | IPv6Address
    target: IPv4Address | IPv6Address
    protocol: int
    port: int


@dataclass(frozen=True, slots=True)
class Talked:
    """What was counted, in the hour that began `hour` hours after 1970-01-01 (UTC) or altogether:
    `vm` began `connections` to `peer` (a VM, a prefix if `external`, or OTHERS), sent `packets_out`
    and was sent `packets_in`; bytes are those of frames. Times are Unix seconds."""

    vm: str
    peer: str
    protocol: str
    port: int
    hour: int
    tenant: str
    external: bool
    connections: int
    packets_out: int
    bytes_out: int
    packets_in: int
    bytes_in: int
    first_at: float
    last_at: float


@dataclass(frozen=True, slots=True)
class Refused:
    """What access denied, in an hour or altogether: as `Talked`. `vm` is an address where no VM
    has it."""

    vm: str
    peer: str
    protocol: str
    port: int
    hour: int
    tenant: str
    external: bool
    packets: int
    bytes: int
    first_at: float
    last_at: float


@dataclass(frozen=True, slots=True)
class Reading:
    """How far one set of counters had counted at `datapath`. `vm` is whose they are; `kept` says
    that the controller put them there; `used_at` is when they counted last (Unix seconds)."""

    datapath: str
    counter: Counter
    vm: str
    kept: bool
    counts: Counts
    used_at: float


def protocol_name(number: int) -> str:
    """A protocol as access rules call it, or its number."""
    return NAMES.get(number, str(number))


def prefix_of(
    address: IPv4Address | IPv6Address, prefix4: int, prefix6: int
) -> IPv4Network | IPv6Network:
    """The network of an address that is grouped with its neighbours."""
    length = prefix4 if isinstance(address, IPv4Address) else prefix6
    return ip_network((address, length), strict=False)


def addresses(vm: Vm) -> set[IPv4Address | IPv6Address]:
    """All addresses that a VM may have."""
    found: set[IPv4Address | IPv6Address] = set()
    for nic in vm.nics:
        found.update(a for a in (nic.ipv4, nic.ipv6, nic.ipv6_link_local) if a is not None)
    return found


@dataclass(slots=True)
class Observed:
    """What the edges are to count: signatures by VM; the VMs that have more of them than are
    told apart (`crowded`); and the lengths of the prefixes that others than VMs are grouped by."""

    signatures: dict[str, set[Signature]] = field(default_factory=dict)
    crowded: set[str] = field(default_factory=set)
    prefix4: int = 24
    prefix6: int = 48

    def concerns(self, vm: str) -> bool:
        """Whether there are rules for the VM."""
        return vm in self.signatures or vm in self.crowded
