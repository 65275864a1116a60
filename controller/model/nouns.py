"""The nouns: what Pleach knows to be so, as frozen typed records.

Every record names its `kind` (as the store, the feed and REST call it) and its `key`
(unique within the kind). Numbers such as `Tenant.number` are handed out by the store once
and never reused while the record lives; switches carry them in registers and labels.
"""

from __future__ import annotations

from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from controller.model.addresses import Dpid, Id, Mac, PortKey, PortName, eui64_link_local
from controller.model.calendar import Occurrence

#: Widths of what the numbers are packed into: conntrack zones have 16 bits, an MPLS label
#: 20 (RFC 3032), of which the payload type takes 1 for subnets and 8 for edges and paths.
MAX_TENANT_NUMBER = 0xFFFF
MAX_SUBNET_NUMBER = (1 << 18) - 5
MAX_DATAPATH_NUMBER = (1 << 12) - 2


#: bit/s: no more than adds up exactly in a double.
Bps = Annotated[int, Field(gt=0, le=10**15)]


class Value(BaseModel):
    """A part of a record: frozen, and with no field but its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Record(Value):
    """A noun with an identity."""

    kind: ClassVar[str]

    @property
    def key(self) -> str:
        """The record's identity within its kind."""
        raise NotImplementedError


class Action(StrEnum):
    """What an access decision does with a packet."""

    ALLOW = "allow"
    DENY = "deny"


class Tenant(Record):
    """A customer: an address space of its own, apart from every other."""

    kind: ClassVar[str] = "tenant"
    id: Id
    name: str = Field("", max_length=200)
    #: Access between VMs of this tenant where no access rule says otherwise.
    inside: Action = Action.ALLOW
    number: Annotated[int, Field(ge=0, le=MAX_TENANT_NUMBER)] = 0

    @property
    def key(self) -> str:
        return self.id


def _first4(data: dict[str, Any]) -> IPv4Address:
    network: IPv4Network = data["cidr"]
    return network.network_address + (1 if network.prefixlen < 32 else 0)


def _first6(data: dict[str, Any]) -> IPv6Address | None:
    network: IPv6Network | None = data["cidr6"]
    return None if network is None else network.network_address + 1


class Subnet(Record):
    """A broadcast domain of one tenant, with the fabric as its gateway."""

    kind: ClassVar[str] = "subnet"
    id: Id
    tenant: Id
    cidr: IPv4Network
    #: First usable address of `cidr` where not given; of `cidr6` for `gateway6`, where None
    #: means that IPv6 stays inside the subnet.
    gateway: IPv4Address = Field(default_factory=_first4)
    cidr6: IPv6Network | None = None
    gateway6: IPv6Address | None = Field(default_factory=_first6)
    dhcp: bool = True
    dns: tuple[IPv4Address, ...] = ()
    domain: str = Field("", max_length=253)
    lease_s: Annotated[int, Field(ge=60, le=31_536_000)] = 86_400
    #: Bytes of an IP packet. An uplink must carry 8 bytes more (two MPLS labels).
    mtu: Annotated[int, Field(ge=576, le=9_000)] = 1_500
    number: Annotated[int, Field(ge=0, le=MAX_SUBNET_NUMBER)] = 0

    @model_validator(mode="after")
    def _gateways_inside(self) -> Self:
        if self.cidr.prefixlen > 30:
            raise ValueError(f"{self.cidr} has no room for a gateway and a VM: use /30 or wider")
        if self.gateway not in self.cidr:
            raise ValueError(f"gateway {self.gateway} lies outside {self.cidr}")
        if self.gateway in (self.cidr.network_address, self.cidr.broadcast_address):
            raise ValueError(f"gateway {self.gateway} is the network or broadcast address")
        if self.cidr6 is None:
            if self.gateway6 is not None:
                raise ValueError("gateway6 is given without cidr6")
        elif self.gateway6 is not None and self.gateway6 not in self.cidr6:
            raise ValueError(f"gateway6 {self.gateway6} lies outside {self.cidr6}")
        return self

    @property
    def key(self) -> str:
        return self.id


class Nic(Value):
    """One interface of a VM, with the only addresses that it may send from."""

    mac: Mac
    subnet: Id
    ipv4: IPv4Address | None = None
    ipv6: IPv6Address | None = None
    #: Made of the MAC (EUI-64) where not given.
    link_local: IPv6Address | None = None

    @model_validator(mode="after")
    def _is_link_local(self) -> Self:
        if self.link_local is not None and not self.link_local.is_link_local:
            raise ValueError(f"{self.link_local} is not link-local (fe80::/10)")
        return self

    @property
    def ipv6_link_local(self) -> IPv6Address:
        """The link-local address that this NIC uses."""
        return self.link_local or eui64_link_local(self.mac)


class Vm(Record):
    """A virtual machine, wherever it runs."""

    kind: ClassVar[str] = "vm"
    id: Id
    tenant: Id
    name: str = Field("", max_length=200)
    nics: tuple[Nic, ...] = Field(min_length=1, max_length=16)
    #: Groups that access rules select members by.
    groups: tuple[Id, ...] = Field((), max_length=64)

    @property
    def key(self) -> str:
        return self.id


class HostState(StrEnum):
    """What a hypervisor last said of itself."""

    UP = "up"
    DOWN = "down"
    DRAINING = "draining"


class Host(Record):
    """A hypervisor, attached to the fabric by one edge datapath."""

    kind: ClassVar[str] = "host"
    id: Id
    datapath: Dpid
    site: Id = "default"
    state: HostState = HostState.UP
    #: The port of the datapath to which the first packets of services are copied, for the
    #: host's agent to identify them. Without one they go up to the controller.
    dpi_port: PortName | None = None

    @property
    def key(self) -> str:
        return self.id


class Placement(Record):
    """Where a VM runs: a host, and for each NIC in order the port it is plugged into."""

    kind: ClassVar[str] = "placement"
    vm: Id
    host: Id
    ports: tuple[PortName, ...]

    @property
    def key(self) -> str:
        return self.vm


class Phase(StrEnum):
    """How far a migration has come, as the fabric sees it."""

    #: Rules stand at both places, and packets for the VM go to both.
    STARTED = "started"
    #: The VM was seen at the target: packets go there; the source drains.
    ACTIVATED = "activated"
    #: The source is gone; established connections are still given grace.
    SETTLING = "settling"
    FINISHED = "finished"
    #: All taken back; the VM never left the source.
    FAILED = "failed"


class Migration(Record):
    """One move of one VM. `ports` are those at the target; times are Unix seconds, UTC."""

    kind: ClassVar[str] = "migration"
    id: Id
    vm: Id
    source: Id
    source_ports: tuple[PortName, ...]
    target: Id
    ports: tuple[PortName, ...]
    phase: Phase = Phase.STARTED
    #: What ended the STARTED phase: "packet" or "event".
    activated_by: Literal["packet", "event"] | None = None
    started_at: float
    activated_at: float | None = None
    ended_at: float | None = None

    @property
    def key(self) -> str:
        return self.id

    @property
    def open(self) -> bool:
        """Whether the fabric still treats the VM in a special way because of this move."""
        return self.phase in (Phase.STARTED, Phase.ACTIVATED, Phase.SETTLING)


class Protocol(StrEnum):
    """What an access rule can name above IP."""

    ANY = "any"
    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"
    SCTP = "sctp"


class Selector(Value):
    """A set of VMs or addresses; all that is given must hold, and nothing given means any."""

    vms: tuple[Id, ...] = ()
    groups: tuple[Id, ...] = ()
    subnets: tuple[Id, ...] = ()
    cidrs: tuple[IPv4Network | IPv6Network, ...] = ()

    @property
    def any(self) -> bool:
        """Whether everything is selected."""
        return not (self.vms or self.groups or self.subnets or self.cidrs)


class PortRange(Value):
    """Destination ports `first` to `last`, both included."""

    first: Annotated[int, Field(ge=0, le=65_535)]
    last: Annotated[int, Field(ge=0, le=65_535)]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.last < self.first:
            raise ValueError(f"port range {self.first}-{self.last} ends before it begins")
        return self


class AccessRule(Record):
    """One rule of a tenant's access policy; replies to what it allows are allowed too."""

    kind: ClassVar[str] = "access_rule"
    id: Id
    tenant: Id
    action: Action = Action.ALLOW
    #: The higher wins; at equal priority DENY wins.
    priority: Annotated[int, Field(ge=1, le=1_000)] = 100
    source: Selector = Selector()
    destination: Selector = Selector()
    protocol: Protocol = Protocol.ANY
    ports: tuple[PortRange, ...] = ()
    number: Annotated[int, Field(ge=0, lt=1 << 28)] = 0

    @model_validator(mode="after")
    def _ports_need_a_protocol(self) -> Self:
        if self.ports and self.protocol not in (Protocol.TCP, Protocol.UDP, Protocol.SCTP):
            raise ValueError(f"ports have no meaning for protocol {self.protocol}")
        return self

    @property
    def key(self) -> str:
        return self.id


class Datapath(Record):
    """A switch. It is an edge where a host names it, and a core switch otherwise."""

    kind: ClassVar[str] = "datapath"
    dpid: Dpid
    name: str = Field("", max_length=63)
    connected: bool = False
    number: Annotated[int, Field(ge=0, le=MAX_DATAPATH_NUMBER)] = 0

    @property
    def key(self) -> str:
        return self.dpid


class Port(Record):
    """A port as its switch describes it."""

    kind: ClassVar[str] = "port"
    datapath: Dpid
    number: Annotated[int, Field(ge=1, le=0xFFFFFEFF)]
    name: PortName
    up: bool = True
    #: Whether frames get through, as far as the switch can tell: BFD's word where it watches.
    live: bool = True
    #: bit/s; 0 where the switch does not say.
    speed: Annotated[int, Field(ge=0)] = 0

    @property
    def key(self) -> str:
        return f"{self.datapath}:{self.number}"


class Watch(StrEnum):
    """How the failure of a link is seen."""

    #: By the carrier of its ports; where that stays though nothing gets through, by LLDP.
    PORT = "port"
    #: By the switches themselves, in a fraction of a second (RFC 5880).
    BFD = "bfd"


class Link(Record):
    """One direction of a cable or tunnel between two ports."""

    kind: ClassVar[str] = "link"
    datapath: Dpid
    port: int
    to_datapath: Dpid
    to_port: int
    #: bit/s; 0 where nobody said.
    capacity: Annotated[int, Field(ge=0)] = 0
    up: bool = True
    watch: Watch = Watch.PORT
    #: Whether it is kept down because it failed too often of late.
    damped: bool = False
    #: Seconds from one end to the other, as probes measured them; None while nobody has.
    latency_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None

    @property
    def key(self) -> str:
        return f"{self.datapath}:{self.port}"


#: Services that are known of a VM at most. What answers at more ports is looked at no further.
MAX_SERVICES = 128
#: How an answer came about: nDPI recognised what was sent; a trained classifier recognised how it
#: was sent; by the port alone.
Known = Literal["confirmed", "behavioural", "guessed", "unknown"]
Label = Annotated[str, Field(min_length=1, max_length=100)]
Span = Annotated[float, Field(ge=0, le=86_400)]
ServiceProtocol = Annotated[
    str, Field(pattern=r"^(tcp|udp|sctp|[0-9]|[1-9][0-9]|1[0-9][0-9]|2[0-4][0-9]|25[0-5])$")
]


class Service(Record):
    """What answers at a port of a VM, as its packets tell; times in seconds."""

    kind: ClassVar[str] = "service"
    vm: Id
    #: "tcp", "udp", "sctp" or the number of another IP protocol.
    protocol: ServiceProtocol
    #: 0 where the protocol has none.
    port: Annotated[int, Field(ge=0, le=65_535)]
    #: nDPI's name: "TLS", or "TLS.Facebook" for what is in it; "unknown".
    application: Label
    how: Known
    #: One of the policy's, and how that is known: behaviour may tell more than "TLS" does.
    category: Label
    category_how: Known
    confidence: Annotated[float, Field(ge=0, le=1)]
    #: nDPI's words for what is risky about it.
    risks: tuple[Label, ...] = Field((), max_length=64)
    #: Other applications that flows to it were recognised as.
    conflicts: tuple[Label, ...] = Field((), max_length=16)
    #: When that was concluded (Unix seconds, UTC), from how many flows and packets.
    concluded_at: float
    flows: Annotated[int, Field(ge=0)]
    packets: Annotated[int, Field(ge=0)]
    #: Medians: of TCP's handshake, and from a request to the first response.
    handshake_s: Span | None = None
    response_s: Span | None = None
    #: Whether its first packets are being looked at again, and when that changes by itself.
    tapped: bool = False
    due: float

    @property
    def key(self) -> str:
        return f"{self.vm}:{self.protocol}:{self.port}"


#: kbit/s of a meter.
Kbit = Annotated[int, Field(ge=1, le=0xFFFF_FFFF)]
#: Milliseconds of a meter's rate that may pass at once after a pause. Linux's TCP waits at least
#: 200 ms for what was lost: what it may send meanwhile must not be lost to it. Measured on Open
#: vSwitch 3.1, of rates of 5 to 60 Mbit/s TCP then has .99 to 1.04, with 100 ms .5 to .95.
BURST_MS = 500
BurstMs = Annotated[int, Field(ge=10, le=60_000)]


class RateLimit(Record):
    """What an operator lets a VM send (`out_kbit`) and receive, in kbit/s; None is no limit."""

    kind: ClassVar[str] = "rate_limit"
    vm: Id
    out_kbit: Kbit | None = None
    in_kbit: Kbit | None = None
    burst_ms: BurstMs = BURST_MS

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if self.out_kbit is None and self.in_kbit is None:
            raise ValueError("nothing is limited: give out_kbit or in_kbit, or delete the limit")
        return self

    @property
    def key(self) -> str:
        return self.vm


class Capture(Record):
    """What a VM sends and receives is copied for an alert: at most `packets`, until `until` (Unix
    seconds, UTC)."""

    kind: ClassVar[str] = "capture"
    vm: Id
    alert: Annotated[int, Field(ge=1)]
    packets: Annotated[int, Field(ge=1, le=1_000)]
    until: float

    @property
    def key(self) -> str:
        return self.vm


class Bandwidth(Record):
    """What was decided that a VM may send and receive, in kbit/s, and why; None is no meter."""

    kind: ClassVar[str] = "bandwidth"
    vm: Id
    out_kbit: Kbit | None = None
    in_kbit: Kbit | None = None
    burst_ms: BurstMs = BURST_MS
    out_reason: str = Field("", max_length=500)
    in_reason: str = Field("", max_length=500)

    @property
    def key(self) -> str:
        return self.vm


class Mark(Value):
    """What the edge writes on packets: `dscp` in the IP header, `traffic` in the traffic class of
    the label (RFC 5462); `paths` is the class by which paths are chosen (`pipeline.Class`)."""

    name: str = Field(max_length=64)
    dscp: Annotated[int, Field(ge=0, le=63)] = 0
    traffic: Annotated[int, Field(ge=0, le=7)] = 0
    paths: Annotated[int, Field(ge=0, le=255)] = 0


class ServiceMark(Value):
    """The mark of what goes to a port of a VM, and of what comes from it."""

    protocol: Literal["tcp", "udp"]
    port: Annotated[int, Field(ge=1, le=65_535)]
    mark: Mark


class Marking(Record):
    """How the packets of a VM are marked: those of its services, and `default`, where it has
    one, all others that it sends."""

    kind: ClassVar[str] = "marking"
    vm: Id
    default: Mark | None = None
    services: tuple[ServiceMark, ...] = Field((), max_length=1_000)

    @property
    def key(self) -> str:
        return self.vm


class LinkSpeed(Record):
    """What one direction of a link carries, as an operator says: above what its port says, and
    kept where the link is rediscovered."""

    kind: ClassVar[str] = "link_speed"
    #: The link, as its record has it: dpid:port.
    id: PortKey
    #: bit/s
    speed: Bps

    @property
    def key(self) -> str:
        return self.id


class Tunnel(Record):
    """A link to another site, whose bandwidth can be reserved, in each direction by itself."""

    kind: ClassVar[str] = "tunnel"
    id: Id
    #: The port that it leaves by, as of a link: dpid:port. Traffic out of there goes forward.
    link: PortKey
    #: bit/s in each direction.
    capacity: Bps
    #: Share of the capacity that may be reserved; the rest is always for others.
    reservable: Annotated[float, Field(ge=0, le=1)] = 0.9

    @property
    def key(self) -> str:
        return self.id


class Reservation(Record):
    """So much of one direction of a tunnel, for somebody, until some time."""

    kind: ClassVar[str] = "reservation"
    id: Id
    tunnel: Id
    #: bit/s
    rate: Bps
    #: Whether out of the port that the tunnel names, or into it.
    forward: bool = True
    #: What it is for, such as a migration.
    purpose: str = Field("", max_length=200)
    #: When it ends by itself; Unix seconds, UTC.
    expires_at: Annotated[float, Field(ge=0, allow_inf_nan=False)]

    @property
    def key(self) -> str:
        return self.id


class RouteClass(StrEnum):
    """Traffic that has routes of its own; what is in no class goes with BULK."""

    BULK = "bulk"
    INTERACTIVE = "interactive"


class Way(Value):
    """One path of a route: the datapaths in order, the tree that its label names, and which of
    the route's equal buckets lead there."""

    nodes: tuple[Dpid, ...] = Field(min_length=2, max_length=64)
    tree: Annotated[int, Field(ge=0, le=63)]
    buckets: tuple[Annotated[int, Field(ge=0, lt=256)], ...] = Field(min_length=1)


class Route(Record):
    """How traffic of a class is spread from one edge to another, as it was last decided."""

    kind: ClassVar[str] = "route"
    ingress: Dpid
    egress: Dpid
    traffic_class: RouteClass = RouteClass.BULK
    ways: tuple[Way, ...] = Field(min_length=1, max_length=64)

    @model_validator(mode="after")
    def _buckets_once(self) -> Self:
        taken = sorted(bucket for way in self.ways for bucket in way.buckets)
        if taken != list(range(len(taken))):
            raise ValueError(f"buckets are numbered from 0, each once, and not {taken}")
        if any((w.nodes[0], w.nodes[-1]) != (self.ingress, self.egress) for w in self.ways):
            raise ValueError(f"a way leads from {self.ingress} to {self.egress}")
        return self

    @property
    def key(self) -> str:
        return route_key(self.ingress, self.egress, self.traffic_class)


def route_key(ingress: str, egress: str, traffic_class: RouteClass) -> str:
    """The key of a route."""
    return f"{ingress}:{egress}:{traffic_class}"


class CalendarEvent(Occurrence, Record):
    """Something known to come that changes what VMs need, which forecasts take into account."""

    kind: ClassVar[str] = "calendar_event"
    id: Id

    @property
    def key(self) -> str:
        return self.id


#: Every kind of record, in an order in which each refers only to those before it.
RECORDS: tuple[type[Record], ...] = (
    Datapath,
    Port,
    Link,
    Tenant,
    Subnet,
    Host,
    Vm,
    Placement,
    Migration,
    AccessRule,
    Service,
    RateLimit,
    Bandwidth,
    Marking,
    Capture,
    LinkSpeed,
    Tunnel,
    Reservation,
    Route,
    CalendarEvent,
)
#: What is only told of a VM, and goes with it.
BELONGINGS: dict[type[Record], tuple[type[Record], ...]] = {
    Vm: (Service, RateLimit, Bandwidth, Marking, Capture)
}
KINDS: dict[str, type[Record]] = {record.kind: record for record in RECORDS}
