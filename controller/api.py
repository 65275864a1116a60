"""What does REST say? The shapes of replies and requests, as server and client share them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, RootModel, model_validator

from controller.model.addresses import Id
from controller.model.nouns import (
    AccessRule,
    Bps,
    CalendarEvent,
    Datapath,
    Host,
    Known,
    Label,
    Link,
    LinkSpeed,
    Marking,
    Migration,
    Placement,
    Port,
    RateLimit,
    Record,
    RouteClass,
    Service,
    ServiceProtocol,
    Span,
    Subnet,
    Tenant,
    Tunnel,
    Vm,
)

#: Media types (CloudEvents 1.0 JSON format, section 3; RFC 9457, section 3).
CLOUDEVENT = "application/cloudevents+json"
CLOUDEVENTS = "application/cloudevents-batch+json"
JSON = "application/json"
PROBLEM = "application/problem+json"
MSGPACK = "application/vnd.msgpack"
#: Header of a reply to a change: the store's revision that holds it.
REVISION_HEADER = "pleach-revision"

#: The records that are resources to be written, by the path under /v1.
RESOURCES: dict[str, type[Record]] = {
    "tenants": Tenant,
    "subnets": Subnet,
    "vms": Vm,
    "hosts": Host,
    "access-rules": AccessRule,
    "link-speeds": LinkSpeed,
    "tunnels": Tunnel,
    "calendar": CalendarEvent,
}


class Reply(BaseModel):
    """A part of a reply. A client ignores fields that it does not know."""

    model_config = ConfigDict(frozen=True)


class Fault(Reply):
    """One thing that is wrong; `pointer` (RFC 6901) is its place in the request's body."""

    pointer: str
    detail: str


class ProblemBody(Reply):
    """An RFC 9457 problem: `type` is stable, `mend` says what to do."""

    type: str
    title: str
    status: int
    detail: str
    mend: str = ""
    faults: tuple[Fault, ...] = ()


class EventReply(Reply):
    """What became of one event, and the store's revision that holds its effect."""

    source: str
    id: str
    outcome: Literal["applied", "unchanged", "late", "replayed", "ignored"]
    revision: int
    reason: str
    warnings: tuple[str, ...] = ()
    #: With `wait=applied`: when the last switch confirmed it (Unix seconds, UTC).
    confirmed_at: float | None = None


class BatchReply(Reply):
    """What became of each event of a batch, in its order."""

    revision: int
    results: tuple[EventReply | ProblemBody, ...]


R = TypeVar("R")


class Page(Reply, Generic[R]):
    """Records by ascending key; `next` is to be given as `after` for those that follow."""

    items: tuple[R, ...]
    next: str | None = None
    revision: int


class EdgeProgress(Reply):
    """How far one datapath has come; times are Unix seconds, UTC."""

    datapath: str
    revision: int
    confirmed_at: float
    connected: bool
    pending: int
    error: str | None = None


class VmStatus(Reply):
    """A VM with where it is and whether the switches have confirmed that."""

    vm: Vm
    placement: Placement | None = None
    migration: Migration | None = None
    status: Literal["defined", "placed", "applied", "migrating"]
    #: The revision that `applied` speaks of.
    revision: int
    #: Whether every connected datapath, and the VM's own edges for certain, confirmed it.
    applied: bool
    #: When the last of them did so (Unix seconds, UTC).
    confirmed_at: float | None = None
    #: What is still waited for.
    waiting_for: tuple[str, ...] = ()
    #: Datapaths other than the VM's own that are not connected: they will follow.
    unreachable: tuple[str, ...] = ()


class Topology(Reply):
    """The fabric as it was discovered, the hosts on it, and how far each datapath is."""

    revision: int
    datapaths: tuple[Datapath, ...]
    ports: tuple[Port, ...]
    links: tuple[Link, ...]
    hosts: tuple[Host, ...]
    progress: tuple[EdgeProgress, ...]


class ChangeEntry(Reply):
    """One change; `record` is None where it was removed."""

    revision: int
    kind: str
    key: str
    record: dict[str, Any] | None


class Changes(Reply):
    """Changes by ascending revision; go on with `after=revision`."""

    revision: int
    changes: tuple[ChangeEntry, ...]


class Role(StrEnum):
    """What the bearer of a token may do."""

    #: Send events about one host, and read.
    HYPERVISOR = "hypervisor"
    OPERATOR = "operator"
    VIEWER = "viewer"


class NewToken(BaseModel):
    """A token to be made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Id
    role: Role
    #: The host of a hypervisor's token.
    host: Id | None = None
    #: Seconds until it expires; None is never.
    lifetime_s: Annotated[float, Field(gt=0, le=10 * 31_536_000)] | None = None

    @model_validator(mode="after")
    def _host_of_a_hypervisor(self) -> Self:
        if (self.role is Role.HYPERVISOR) != (self.host is not None):
            raise ValueError("a hypervisor's token names its host, and no other token does")
        return self


class TokenInfo(Reply):
    """A token, but for its secret; times are Unix seconds, UTC."""

    name: str
    role: Role
    host: str | None = None
    created_at: float
    expires_at: float | None = None


class TokenSecret(TokenInfo):
    """A token just made. The secret is told this once."""

    secret: str


class Tokens(Reply):
    """All tokens."""

    items: tuple[TokenInfo, ...]


class Health(Reply):
    """That the process answers, and which version it is."""

    status: Literal["ok"] = "ok"
    version: str


class Ready(Reply):
    """That the store can be read and written; how many datapaths are connected."""

    revision: int
    datapaths: int
    connected: int


class ExplainedRule(Reply):
    """One flow entry that the state of record asks for, and why it is there."""

    datapath: str
    table: str
    priority: int
    match: str
    actions: str
    owner: str
    reason: str
    cookie: str


class Explained(Reply):
    """Flow entries in the order in which a packet meets them; `total` counts those left off
    too."""

    revision: int
    total: int
    items: tuple[ExplainedRule, ...]


class SampleBatch(BaseModel):
    """Samples of VMs, hosts and ports: a row for each subject and time, a column for each
    metric (or its counter), null where there is no sample. In MessagePack, numbers are
    little-endian byte strings: `times` and metrics float64, `codes` (int32) the index of each
    row's subject in `subjects`; a metric with gaps is a pair of its numbers and a byte for
    each row, 0 for a gap."""

    #: Numbers its batches by `sequence`, so that one that is sent again is not taken again;
    #: another name is needed whenever numbering starts anew.
    sender: Annotated[str, Field(min_length=1, max_length=128)]
    sequence: Annotated[int, Field(ge=0, lt=1 << 63)]
    #: The sender's clock when it sent this, Unix seconds.
    sent_at: float | None = None
    subjects: tuple[str, ...]
    #: Unix seconds, UTC.
    times: tuple[float, ...]
    metrics: dict[str, tuple[float | None, ...]]


class RefusedSamples(Reply):
    """So many samples were not taken; `detail` tells one of them."""

    reason: str
    count: int
    detail: str


class SampleReply(Reply):
    """What became of a batch; what was accepted is on the disk. `resets` counters began anew,
    which leaves a gap. `clock_offset_s` is how far the sender's clock is ahead."""

    outcome: Literal["taken", "duplicate"]
    accepted: int
    refused: tuple[RefusedSamples, ...] = ()
    resets: int = 0
    clock_offset_s: float | None = None


class HistoryReply(Reply):
    """Time series of one VM, host or port: a value for each of `times`, null for a gap."""

    subject: str
    #: Seconds of [time, time + step) for which each value stands; null for samples as they are.
    step: float | None
    how: Literal["mean", "max"]
    #: Unix seconds, UTC.
    times: tuple[float, ...]
    metrics: dict[str, tuple[float | None, ...]]


class HistoryStatus(Reply):
    """How the history is. Times are Unix seconds; null where the engine does not tell. What
    is counted (`batches` by outcome, `refused` samples by reason) begins with the process."""

    engine: str
    place: str
    bytes: int | None
    oldest: float | None
    newest: float | None
    #: Hours whose samples are not yet packed into files.
    unpacked_hours: int | None
    #: Values that are acknowledged and not yet with the engine.
    waiting_values: int
    log_bytes: int
    batches: dict[str, int]
    refused: dict[str, int]
    #: Why the engine takes nothing at the moment.
    trouble: str | None


class ForecastSteps(Reply):
    """A forecast of one target ("5min" and "hours": means; "hour-peaks" and "day-peak": largest
    values of 5 minutes), and why it is so. Values are in the metric's own unit."""

    target: str
    #: When each step begins, Unix seconds, and how many seconds it lasts.
    times: tuple[int, ...]
    step: int
    #: For each of the levels 0.5, 0.9, 0.95 and 0.99 a value for each of `times`.
    quantiles: dict[str, tuple[float, ...]]
    #: Which steps may need more than `capacity`; null is a capacity that is not known.
    capacity: float | None
    above_capacity: tuple[bool, ...]
    #: The model that was chosen, by these recent losses (1 is the seasonal naive error).
    model: str
    losses: dict[str, float]
    #: The past that it saw: seconds that were known, the first and the last (Unix seconds).
    known_s: int
    first: int | None
    last: int | None
    notes: tuple[str, ...]


class ForecastQuality(Reply):
    """How earlier forecasts of one target by one model turned out: mean pinball loss and mean
    absolute error over the seasonal naive error, and the share of steps below level 0.95."""

    target: str
    model: str
    forecasts: int
    loss: float
    error: float
    below95: float


class ForecastReply(Reply):
    """What a VM will need of one metric, as forecast at `origin` (Unix seconds)."""

    vm: str
    metric: str
    origin: int
    forecasts: tuple[ForecastSteps, ...]
    quality: tuple[ForecastQuality, ...]


class MetricInfo(Reply):
    """A metric: about a vm, host or port; no value above `most` is believed. `counter` is the
    name under which its ever-growing count is taken."""

    name: str
    scope: str
    unit: str
    most: float
    counter: str | None


class Metrics(Reply):
    """All metrics."""

    items: tuple[MetricInfo, ...]


class AlertInfo(Reply):
    """An alert: signals of one kind about one thing. Times are Unix seconds, UTC; `score` is the
    strongest signal over the bound of what is usual, `why` its words; `by` who acknowledged or
    closed it, null for the product itself. Each change takes the next `version` of all alerts."""

    id: int
    version: int
    kind: str
    vm: str
    metric: str | None
    state: Literal["open", "acknowledged", "closed"]
    severity: Literal["warning", "critical"]
    score: float
    why: str
    count: int
    first_at: float
    last_at: float
    changed_at: float
    by: str | None


class Alerts(Reply):
    """Alerts, the newest first; `next` is to be given as `before` for those that follow. With
    `since`, in the order of their changes: go on with `since=version`."""

    items: tuple[AlertInfo, ...]
    next: int | None = None
    version: int


class AlertDelivery(Reply):
    """What of an alert somebody is still to be told, or was not told in the end (`gave_up_at`).
    `target` is an address without its password; null where the settings name it no more."""

    target: str | None
    version: int
    made_at: float
    attempts: int
    due_at: float
    gave_up_at: float | None
    error: str | None


class AlertStatus(Reply):
    """One alert, and what of it is not yet told."""

    alert: AlertInfo
    deliveries: tuple[AlertDelivery, ...]


class AlertNote(BaseModel):
    """What someone has to say who acknowledges or closes an alert."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    note: Annotated[str, Field(max_length=500)] = ""


class Investigation(Reply):
    """The evidence around an alert: in words, and by its kinds. `complete` once nothing more is
    gathered; `gathered_at` is null before anything was (Unix seconds, UTC)."""

    alert: int
    gathered_at: float | None
    complete: bool
    words: tuple[str, ...]
    evidence: dict[str, Any]


class AlertmanagerAlert(Reply):
    """An alert as Alertmanager takes it; times are RFC 3339."""

    labels: dict[str, str]
    annotations: dict[str, str]
    startsAt: str  # noqa: N815 - Alertmanager's names
    endsAt: str  # noqa: N815
    generatorURL: str  # noqa: N815


class AlertmanagerAlerts(RootModel[tuple[AlertmanagerAlert, ...]]):
    """The body of `POST /api/v2/alerts` of an Alertmanager."""


class LoopInfo(Reply):
    """How a loop of the brain fares; `trouble` is what is wrong, "" where nothing is. Times are
    in seconds, `last_at` Unix."""

    name: str
    every_s: float
    turns: int
    failures: int
    last_at: float | None
    last_s: float | None
    trouble: str


class LoopsInfo(Reply):
    """All loops."""

    items: tuple[LoopInfo, ...]


class VmBandwidth(Reply):
    """What a VM may send and receive, in kbit/s (None: it has no meter), and why; the operator's
    limit; what its meters passed of late, where they were read; how its packets are marked."""

    vm: str
    out_kbit: int | None
    in_kbit: int | None
    out_reason: str
    in_reason: str
    limit: RateLimit | None = None
    out_passed_kbit: float | None = None
    in_passed_kbit: float | None = None
    marking: Marking | None = None


class Bandwidths(Reply):
    """What VMs may send and receive, by VM; `next` is to be given as `after` for those that
    follow. `trouble` says what cannot be decided, such as guarantees that cannot be kept
    together; the rates before it stand then."""

    items: tuple[VmBandwidth, ...]
    next: str | None = None
    revision: int
    trouble: str = ""


class FlowVerdict(BaseModel):
    """What the first packets of one flow to a port of a VM tell; times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vm: Id
    #: "tcp", "udp", "sctp" or the number of another IP protocol.
    protocol: ServiceProtocol
    port: Annotated[int, Field(ge=0, le=65_535)]
    #: nDPI's name, "unknown" where it has none.
    application: Label
    how: Known
    category: Label
    category_how: Known
    #: Of the category, where behaviour told it.
    confidence: Annotated[float, Field(ge=0, le=1)] = 1.0
    risks: tuple[Label, ...] = Field((), max_length=64)
    #: How many were looked at.
    packets: Annotated[int, Field(ge=1, le=1_000)]
    handshake_s: Span | None = None
    response_s: Span | None = None


class FlowVerdicts(BaseModel):
    """Verdicts on flows, in the order in which they came about."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdicts: tuple[FlowVerdict, ...] = Field(max_length=1_000)


class RefusedVerdict(Reply):
    """A verdict that was not taken: its place among those sent, and why."""

    index: int
    reason: Literal["unknown_vm", "not_yours"]


class VerdictsReply(Reply):
    """How many verdicts were taken, and the services that are settled by them."""

    accepted: int
    refused: tuple[RefusedVerdict, ...] = ()
    settled: tuple[Service, ...] = ()
    revision: int


class PathWay(Reply):
    """One path: the datapaths in order, the tree that labels name, its share of the traffic as
    equal buckets of a group, and its latency in seconds one way, where all links are measured."""

    nodes: tuple[str, ...]
    tree: int
    buckets: int
    share: float
    latency_s: float | None = None


class PathOpinion(Reply):
    """What an earlier decision said of a route; bit/s, Unix seconds."""

    decision: int
    at: float
    expected: float
    high: float
    reasons: tuple[str, ...]


class PathRoute(Reply):
    """How a class of traffic goes now, and why: `chosen` for the traffic, or spread evenly over
    planned trees. `expected` bit/s are foreseen on average, `high` in one case of twenty."""

    traffic_class: RouteClass
    chosen: bool
    ways: tuple[PathWay, ...]
    expected: float | None = None
    high: float | None = None
    reasons: tuple[str, ...] = ()
    earlier: tuple[PathOpinion, ...] = ()


class PathLink(Reply):
    """What is foreseen on a link, in bit/s: on average, and in one case of twenty."""

    source: str
    target: str
    capacity: float
    expected: float
    high: float


class PathDecision(Reply):
    """One decision on all paths. `worst`, `even_worst` and `optimum` are the worst link's mean
    utilisation: as decided, split evenly over shortest paths, and at the best possible."""

    id: int
    at: float
    trigger: str
    worst: float
    even_worst: float
    optimum: float | None
    edges: int
    scenarios: int
    changed: int
    took_s: float
    notes: tuple[str, ...]
    links: tuple[PathLink, ...]


class PathDecisions(Reply):
    """Decisions, newest first; `next` is to be given as `before` for earlier ones. `unchosen` says
    why none is made, where none is."""

    items: tuple[PathDecision, ...]
    next: int | None = None
    unchosen: str = ""


class PathsBetween(Reply):
    """The routes from one edge to another, the links that they use, and the newest decision."""

    revision: int
    ingress: str
    egress: str
    routes: tuple[PathRoute, ...]
    links: tuple[PathLink, ...]
    decision: PathDecision | None = None


class NewReservation(BaseModel):
    """Bandwidth of a tunnel that is asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Made up where not given.
    id: Id | None = None
    #: bit/s
    rate: Bps
    #: Out of the port that the tunnel names, or into it.
    forward: bool = True
    purpose: str = Field("", max_length=200)
    #: Seconds until it ends by itself.
    lifetime_s: Annotated[float, Field(gt=0, le=31_536_000)] = 3_600.0


class TunnelShare(Reply):
    """One direction of a tunnel, in bit/s."""

    capacity: int
    reserved: int
    free: int


class TunnelBandwidth(Reply):
    """What of a tunnel is reserved out of its port and into it, and what could still be."""

    tunnel: str
    forward: TunnelShare
    backward: TunnelShare


class RhythmInfo(Reply):
    """A period in seconds, and the share of the variance that lies at it (0 to 1)."""

    length_s: float
    strength: float


class MetricBehaviour(Reply):
    """How a metric behaves, over `days` of samples with the mean `mean` (in its unit).

    `wavelet` has the shares of energy of changes within 10, 20, ... minutes and of slow ones;
    `trend` is the change along all of it in deviations; `burstiness` -1 for regular, near 1 for
    rare bursts; `autocorrelation` the likeness to 5 minutes and an hour before; `variation` the
    deviation over the mean."""

    days: float
    mean: float
    rhythms: tuple[RhythmInfo, ...]
    wavelet: tuple[float, ...]
    trend: float
    burstiness: float
    autocorrelation: tuple[float, ...]
    variation: float


class NearInfo(Reply):
    """A VM that behaved alike in the week from `week_from` on (Unix seconds); the distance is in
    units of the spread of all VMs."""

    vm: str
    week_from: float
    distance: float


class BehaviourInfo(Reply):
    """How a VM behaves, as of `at` (Unix seconds; null while too little is known), who behaves
    or behaved like that, and its role."""

    vm: str
    at: float | None
    role: str | None
    metrics: dict[str, MetricBehaviour]
    near: tuple[NearInfo, ...]


class RoleInfo(Reply):
    """VMs that behave and communicate alike. `since` and `at` (Unix seconds) tell when the role
    was first and last found, `stayed` which share of its members of before it kept, `groups`
    to which groups most of its members belong."""

    id: str
    members: tuple[str, ...]
    since: float
    at: float
    stayed: float
    groups: tuple[str, ...]


class Roles(Reply):
    """All roles, the largest first."""

    items: tuple[RoleInfo, ...]


class SignatureInfo(Reply):
    """Who talks to whom: `vm` began `connections` by a protocol to a port (0 where it has none) of
    `peer`: a VM of its tenant, a prefix if `external`, or "*" for all beyond those that are told
    apart. Packets and bytes (of frames) are counted by the switches, `out` what `vm` sent.
    `application` is what is known to answer there. `hour` is the beginning of the hour, or of the
    first one where hours are added up; all times are Unix seconds, UTC."""

    vm: str
    peer: str
    protocol: str
    port: int
    tenant: str
    external: bool
    application: str | None
    hour: float
    connections: int
    packets_out: int
    bytes_out: int
    packets_in: int
    bytes_in: int
    first_at: float
    last_at: float


class Signatures(Reply):
    """One page of signatures by VM, peer, protocol and port; `next` is to be given as `after`."""

    items: tuple[SignatureInfo, ...]
    next: str | None


class DenialInfo(Reply):
    """What access denied: as for signatures. `vm` is an address where no VM has it."""

    vm: str
    peer: str
    protocol: str
    port: int
    tenant: str
    external: bool
    hour: float
    packets: int
    bytes: int
    first_at: float
    last_at: float


class Denials(Reply):
    """One page of denials by VM, peer, protocol and port; `next` is to be given as `after`."""

    items: tuple[DenialInfo, ...]
    next: str | None
