"""Settings: one YAML file plus environment, refused with place, cause and hint where wrong.

`PLEACH_CONFIG` names the file; `PLEACH_NORTHBOUND__PORT=8640` sets `northbound.port` and
wins over the file.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from controller.model.calendar import Demanded

PREFIX = "PLEACH_"
CONFIG = "PLEACH_CONFIG"
#: Variables that are no settings: the file itself, what the REST client reads, and the mark
#: that labs leave on what they start.
OTHER_VARIABLES = frozenset({CONFIG, "PLEACH_URL", "PLEACH_TOKEN", "PLEACH_CA", "PLEACH_SANDBOX"})


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong: `place` is file:line or an environment variable."""

    place: str
    field: str
    cause: str
    hint: str = ""

    def __str__(self) -> str:
        field = f"{self.field}: " if self.field else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{self.place}: {field}{self.cause}{hint}"


class SettingsError(Exception):
    """Settings that cannot be used; `problems` has everything that is wrong."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


S = TypeVar("S", bound=BaseModel)


class Section(BaseModel):
    """Frozen, typed strictly, and with no field but its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


_PASSWORDS = re.compile(
    r"(?P<user>://[^\s:/?#@]*):\S*@|(?P<name>[?&](?:ssl)?password=)[^\s&#'\"]*", re.IGNORECASE
)


def masked(text: str) -> str:
    """`text` with `***` for the password of every URL in it, for logs, errors and screens."""
    return _PASSWORDS.sub(
        lambda found: f"{found['user']}:***@" if found["user"] else f"{found['name']}***", text
    )


def _one_engine(url: str) -> str:
    engine = url.partition(":")[0].partition("+")[0]
    if engine not in ENGINES or url.count("://") != 1:
        raise ValueError(
            "the store lies in one database, of one engine: write sqlite:////full/path.db or "
            "postgresql://user@host/database"
        )
    return url


#: The engines that `store.url` may name.
ENGINES = ("sqlite", "postgresql")

#: Strict typing would refuse the text of a path.
FilePath = Annotated[Path, Field(strict=False), AfterValidator(lambda path: path.expanduser())]
TcpPort = Annotated[int, Field(ge=0, le=65_535)]
Seconds = Annotated[float, Field(gt=0, le=31_536_000)]
Framework = Literal["os-ken", "ryu"]


class Tls(Section):
    """TLS of one door: off without a certificate. All files are PEM."""

    certificate: FilePath | None = None
    key: FilePath | None = None
    #: Who signs the certificates of clients; these are asked for where it is given.
    client_ca: FilePath | None = None
    #: Turn away clients without a certificate that `client_ca` signed.
    require_client_certificate: bool = False

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            given, absent = ("key", "certificate") if self.key else ("certificate", "key")
            raise ValueError(f"{given} is given without {absent}: give both or none")
        if self.client_ca is not None and self.certificate is None:
            raise ValueError("client_ca has no meaning without certificate and key")
        if self.require_client_certificate and self.client_ca is None:
            raise ValueError("require_client_certificate needs client_ca")
        return self

    @property
    def enabled(self) -> bool:
        """Whether the door speaks TLS."""
        return self.certificate is not None

    def check(self, section: str) -> None:
        """Raise SettingsError where a file of `section` (such as "northbound.tls") cannot be
        read."""
        problems = []
        for name in ("certificate", "key", "client_ca"):
            path: Path | None = getattr(self, name)
            if path is None:
                continue
            try:
                path.open("rb").close()
            except OSError as error:
                cause = f"cannot be read: {error.strerror}"
                hint = f"put a PEM file there that Pleach's user may read, or correct {name}"
                problems.append(Problem(str(path), f"{section}.{name}", cause, hint))
        if problems:
            raise SettingsError(*problems)


class StoreSettings(Section):
    """The state of record."""

    #: Where it lies: `sqlite:////full/path.db` or `postgresql://user@host/database` (a URI of
    #: libpq; passwords by PGPASSWORD, PGPASSFILE or `?passfile=`, or in the URL, which is
    #: never shown). By default `pleach.db` in `state_dir`.
    url: Annotated[
        str,
        AfterValidator(_one_engine),
        PlainSerializer(masked, when_used="json"),
        Field(repr=False),
    ]
    #: Entries of the change feed that are kept; who is further behind takes a snapshot.
    feed_keep: Annotated[int, Field(ge=100)] = 100_000
    #: Seconds to wait for another writer.
    busy_timeout_s: Annotated[float, Field(ge=0, le=3_600)] = 10.0


def _history_engine(url: str) -> str:
    if url.partition("://")[0] not in HISTORY_ENGINES:
        raise ValueError(
            "history.url begins with one of " + ", ".join(f"{name}://" for name in HISTORY_ENGINES)
        )
    return url


#: The schemes that `history.url` may have.
HISTORY_ENGINES = ("duckdb", "victoriametrics", "http", "https")


class HistorySettings(Section):
    """Time series."""

    #: Where they are kept: `duckdb:///full/path` of a directory, by default `history` in
    #: `state_dir`, or `victoriametrics://host:port` (also http:// or https://), which then
    #: keeps and forgets by its own settings.
    url: Annotated[
        str,
        AfterValidator(_history_engine),
        PlainSerializer(masked, when_used="json"),
        Field(repr=False),
    ]
    #: Days for which samples are kept, then means over 5 minutes, then over an hour.
    raw_days: Annotated[float, Field(gt=0, le=3_650)] = 8.0
    five_minute_days: Annotated[float, Field(gt=0, le=36_500)] = 90.0
    hourly_days: Annotated[float, Field(gt=0, le=36_500)] = 1_100.0
    #: Bytes of all files of time series; the oldest go first, samples before means.
    max_bytes: Annotated[int, Field(ge=1 << 20)] = 200 << 30
    #: Bytes of the disk that are left to others: less is free, and nothing more is taken.
    min_free_bytes: Annotated[int, Field(ge=0)] = 256 << 20
    #: Seconds that a sample may be old, and that its time may lie in the future.
    late_s: Annotated[float, Field(ge=60, le=31_536_000)] = 86_400.0
    skew_s: Annotated[float, Field(ge=0, le=3_600)] = 30.0
    #: Seconds between two writes to the engine.
    flush_s: Annotated[float, Field(gt=0, le=600)] = 10.0
    #: Seconds for which nothing may have come for an hour that is over, before it is packed.
    settle_s: Annotated[float, Field(ge=0, le=86_400)] = 600.0
    #: Values that may wait for the engine, in memory (12 bytes each) and in the log.
    queue_values: Annotated[int, Field(ge=1_000)] = 10_000_000
    #: Values per second and token, on average (0 is no limit), and at once beyond that.
    values_per_s: Annotated[float, Field(ge=0)] = 20_000.0
    burst_values: Annotated[int, Field(ge=1)] = 2_000_000
    #: Bytes of one batch in JSON, which others have to wait for, and of one in MessagePack.
    max_json_bytes: Annotated[int, Field(ge=1_024, le=1 << 26)] = 512 << 10
    max_batch_bytes: Annotated[int, Field(ge=1_024, le=1 << 28)] = 8 << 20
    #: Memory and threads of DuckDB.
    memory_bytes: Annotated[int, Field(ge=64 << 20)] = 256 << 20
    threads: Annotated[int, Field(ge=1, le=256)] = 1

    @model_validator(mode="after")
    def _kept_until_means_are_made(self) -> Self:
        if self.raw_days * 86_400 < self.late_s + 2 * 86_400:
            raise ValueError(
                "raw_days must be two days longer than late_s: means of a day are made once no "
                "sample of it can come any more"
            )
        return self


class NorthboundSettings(Section):
    """The REST door."""

    host: str = "127.0.0.1"
    port: TcpPort = 8640
    tls: Tls = Tls()
    #: Bytes of one request.
    max_body_bytes: Annotated[int, Field(ge=1_024, le=1 << 30)] = 1 << 20
    #: Events of one batch.
    max_batch: Annotated[int, Field(ge=1, le=100_000)] = 1_000
    #: Requests per second and token, on average; 0 is no limit.
    requests_per_s: Annotated[float, Field(ge=0)] = 2_000.0
    #: Requests that one token may make at once beyond that.
    burst: Annotated[int, Field(ge=1)] = 4_000
    #: Seconds that `?wait=applied` waits at most.
    wait_timeout_s: Seconds = 10.0
    #: Seconds that an event's time may lie in the future.
    event_skew_s: Annotated[float, Field(ge=0)] = 300.0
    #: Seconds for which event ids are remembered.
    event_memory_s: Seconds = 604_800.0


class DampingSettings(Section):
    """When a link that flaps is not used (RFC 2439, 4.2). Each failure adds 1 to its penalty."""

    #: Penalty from which on a link is damped, and below which it may be used again.
    cutoff: Annotated[float, Field(gt=0, le=1_000)] = 3.0
    reuse: Annotated[float, Field(gt=0, le=1_000)] = 1.0
    #: Seconds in which a penalty halves.
    half_life_s: Seconds = 30.0
    #: Seconds that a link is damped at most after its last failure.
    max_s: Seconds = 120.0

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.reuse >= self.cutoff:
            raise ValueError("reuse must be less than cutoff, or nothing would be damped")
        least = self.half_life_s * math.log2(self.cutoff / self.reuse)
        if self.max_s < least:
            raise ValueError(f"max_s must be {least:.0f} or more: to fade to reuse takes that long")
        return self


def _ovsdb(value: str) -> str:
    for remote in filter(None, (word.strip() for word in value.split(","))):
        if not re.fullmatch(r"unix:/.+|tcp:(\[[^\]]+\]|[^:]+):\d{1,5}", remote):
            raise ValueError(f"{remote!r} is none of unix:/PATH and tcp:HOST:PORT")
    return value


class SouthboundSettings(Section):
    """The OpenFlow door."""

    host: str = "127.0.0.1"
    port: TcpPort = 6653
    tls: Tls = Tls()
    #: Seconds between two comparisons of a switch's tables with what they should be.
    reconcile_s: Seconds = 30.0
    #: Seconds between two LLDP frames of a port.
    lldp_s: Seconds = 5.0
    #: Seconds without LLDP after which a link counts as gone (port status is quicker).
    link_timeout_s: Seconds = 30.0
    #: OVSDB servers of the switches, separated by commas, to have BFD watch the links between
    #: them: `unix:/PATH` or `tcp:HOST:PORT`. Other links are watched by port status and LLDP.
    ovsdb: Annotated[str, AfterValidator(_ovsdb)] = ""
    #: Milliseconds between two BFD packets; a link is lost when three are missing.
    bfd_ms: Annotated[int, Field(ge=10, le=10_000)] = 100
    damping: DampingSettings = DampingSettings()
    #: Messages that one switch may have got and not yet confirmed.
    window: Annotated[int, Field(ge=1, le=1_000_000)] = 2_000
    #: What speaks OpenFlow.
    framework: Framework = "os-ken"
    #: The Python of the environment that has Ryu; by default what `make ryu` made.
    ryu_python: FilePath | None = None

    @property
    def ovsdb_remotes(self) -> tuple[str, ...]:
        """The servers that `ovsdb` names."""
        return tuple(filter(None, (word.strip() for word in self.ovsdb.split(","))))

    @model_validator(mode="after")
    def _links_outlive_a_frame(self) -> Self:
        if self.link_timeout_s <= self.lldp_s:
            raise ValueError("link_timeout_s must be longer than lldp_s, or links would flap")
        return self


class DpiSettings(Section):
    """How it is told what answers at the ports of VMs."""

    #: Whether switches copy the first packets of connections to services not yet identified.
    tap: bool = True
    #: The file with categories and rules; by default that which comes with Pleach.
    policy: FilePath | None = None
    #: A behavioural classifier that `pleach dpi train` made.
    model: FilePath | None = None
    #: The Python that has nfstream, where that which runs the southbound process has not; by
    #: default that of `make setup`.
    python: FilePath | None = None


class MigrationSettings(Section):
    """How long the fabric treats a VM that moved in a special way."""

    #: Seconds after the activation for which packets still under way to the source are served.
    drain_s: Annotated[float, Field(ge=0, le=3_600)] = 2.0
    #: Seconds after the activation for which established connections are let through.
    grace_s: Annotated[float, Field(ge=0, le=86_400)] = 300.0
    #: Seconds that a migration is remembered after its end.
    memory_s: Seconds = 2_592_000.0


def _listed(value: object) -> object:
    """What the environment writes as one text, separated by commas."""
    if isinstance(value, str):
        return tuple(word.strip() for word in value.split(",") if word.strip())
    return tuple(value) if isinstance(value, list) else value


def _web(url: str) -> str:
    if not re.fullmatch(r"https?://[^\s/?#]+\S*", url):
        raise ValueError("an address begins with http:// or https:// and a host")
    return url


#: An address that may hold a password, which is never shown.
WebAddress = Annotated[str, AfterValidator(_web), PlainSerializer(masked, when_used="json")]


class AlertSettings(Section):
    """What is out of the ordinary, and who is told of it."""

    #: The rules that an operator edits; by default policies/alerts.yaml as it comes with Pleach.
    rules: FilePath | None = None
    #: Who is told of each alert that opens, gets worse, is acknowledged or closes: a CloudEvent
    #: each, in JSON (structured mode), in order. Several by commas.
    webhooks: Annotated[tuple[WebAddress, ...], BeforeValidator(_listed), Field(repr=False)] = ()
    #: An Alertmanager, such as http://127.0.0.1:9093, which is told every `resend_s` seconds.
    alertmanager: Annotated[WebAddress | None, Field(repr=False)] = None
    resend_s: Annotated[float, Field(ge=1, le=3_600)] = 60.0
    #: Who signs their certificates, PEM, beside the system's authorities.
    ca: FilePath | None = None
    #: Seconds after which it is given up to deliver something, and of the longest pause between
    #: two attempts.
    give_up_s: Seconds = 86_400.0
    longest_pause_s: Seconds = 300.0
    #: Under which address people reach this controller, for links in what they are told.
    link: WebAddress = "http://127.0.0.1:8640"
    #: Seconds between two looks at what came in.
    every_s: Annotated[float, Field(ge=0.05, le=3_600)] = 15.0
    #: Seconds that samples of 5 minutes have to arrive before these are judged.
    settle_s: Annotated[float, Field(ge=0, le=3_600)] = 60.0
    #: Seconds between two checkpoints of what was learned; what came since is read again.
    checkpoint_s: Seconds = 21_600.0
    #: Seconds for which closed alerts are kept.
    memory_s: Seconds = 7_776_000.0


class BehaviourSettings(Section):
    """How each VM behaves."""

    #: Seconds in which every VM has its turn, and of the past that is looked at.
    round_s: Seconds = 21_600.0
    window_s: Annotated[float, Field(ge=21_600, le=31_536_000)] = 1_209_600.0
    #: Seconds between two groupings into roles.
    roles_s: Seconds = 86_400.0
    #: Weeks for which a VM's earlier behaviour is kept, to be compared with.
    weeks: Annotated[int, Field(ge=1, le=104)] = 8
    #: Seconds between two looks at whose turn it is.
    every_s: Annotated[float, Field(ge=0.05, le=3_600)] = 60.0


def _source(value: str) -> str:
    if value and not re.match(r"[a-z][a-z0-9+.-]*://", value):
        raise ValueError("this is no URI such as qemu:///system or http://127.0.0.1:9090")
    return value


Uri = Annotated[str, AfterValidator(_source), PlainSerializer(masked, when_used="json")]


class ForecastSettings(Section):
    """What VMs are about to need."""

    #: What is forecast; nothing, if empty. Several by commas.
    metrics: Annotated[tuple[Demanded, ...], BeforeValidator(_listed)] = get_args(Demanded)
    #: A file of events that are known to come, such as policies/calendar.yaml.
    calendar: FilePath | None = None
    #: What any VM can send and receive at most (Mbit/s), and read and write (MB/s each), where
    #: nothing says more exactly. Forecasts above what a VM can use say so; None: not known.
    nic_mbps: Annotated[float, Field(gt=0, le=1e7)] | None = None
    disk_mb_s: Annotated[float, Field(gt=0, le=1e7)] | None = None
    #: Seconds between two rounds of forecasts, and between two looks at what is due.
    round_s: Annotated[float, Field(ge=1, le=86_400)] = 3_600.0
    every_s: Annotated[float, Field(ge=0.05, le=3_600)] = 60.0
    #: Steps of 5 minutes that are told; of hours it is always 24.
    five_minute_steps: Annotated[int, Field(ge=1, le=288)] = 12
    #: Seconds between two trainings of the model for all VMs, the days of past that it learns
    #: from, and of how many VMs at most.
    retrain_s: Seconds = 86_400.0
    learn_days: Annotated[float, Field(ge=7, le=366)] = 56.0
    learn_vms: Annotated[int, Field(ge=1, le=100_000)] = 1_000
    #: VMs for which slow models are tried in each round: those that are forecast worst.
    slow_vms: Annotated[int, Field(ge=0, le=10_000)] = 20
    #: Days for which it is kept how good forecasts were.
    memory_days: Annotated[float, Field(gt=0, le=3_650)] = 60.0


class AgentSettings(Section):
    """The agent of a hypervisor, which tells the controller what its host and VMs do."""

    #: Id of this host at the controller; by default the machine's name.
    host: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,126})?$")] = ""
    #: The controller, such as https://pleach:8640; by default the one of this machine.
    url: Uri = ""
    #: A file with the token of this hypervisor; by default `agent.token` in `state_dir`.
    token_file: FilePath | None = None
    #: Who signed the controller's certificate, where the system does not know, and this
    #: agent's own certificate. All files are PEM.
    ca: FilePath | None = None
    certificate: FilePath | None = None
    key: FilePath | None = None
    #: Where libvirt is asked; empty: not at all.
    libvirt: Uri = "qemu:///system"
    #: What is the id of a VM: its name (with libvirt the domain's, at a switch `iface-id`), its
    #: uuid (the domain's; `vm-uuid` or `vm-id`), or whatever the controller calls the VM that
    #: has its NIC's mac (`attached-mac`).
    identify: Literal["name", "uuid", "mac"] = "name"
    #: The Open vSwitch bridge that the VMs are plugged into; empty: no switch is asked. With
    #: libvirt it is asked for connections only.
    bridge: str = ""
    #: The switch's database, `unix:/PATH` or `tcp:HOST:PORT`.
    ovsdb: Annotated[str, AfterValidator(_ovsdb)] = "unix:/var/run/openvswitch/db.sock"
    #: Mbit/s that each port of the bridge carries: it then gets a queue for each class of
    #: `bandwidth.policy`. 0: none, and what there is of ours is taken off.
    port_mbps: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    #: Connections known to this host, beyond which they are not counted by VM.
    max_connections: Annotated[int, Field(ge=0)] = 100_000
    #: The interface behind the DPI port of the host's switch, at which first packets of services
    #: are looked at; empty: none. `dpi_port` of the host's record names the port.
    dpi_interface: Annotated[str, Field(max_length=15)] = ""
    #: A Prometheus whose samples are passed on; empty: none.
    prometheus: Uri = ""
    #: What its metrics are called here; by default policies/prometheus.yaml.
    prometheus_names: FilePath | None = None
    #: Seconds between two samples, and between two looks at all VMs beside their events.
    interval_s: Annotated[float, Field(ge=1, le=3_600)] = 10.0
    look_s: Annotated[float, Field(ge=1, le=3_600)] = 60.0
    #: Bytes of samples that wait on the disk while the controller is away; the oldest go first.
    queue_bytes: Annotated[int, Field(ge=1 << 16, le=1 << 40)] = 64 << 20
    #: Values of one batch of samples.
    batch_values: Annotated[int, Field(ge=1_000, le=1_000_000)] = 50_000

    @model_validator(mode="after")
    def _certificate_and_key(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            given, absent = ("key", "certificate") if self.key else ("certificate", "key")
            raise ValueError(f"{given} is given without {absent}: give both or none")
        return self


class PathSettings(Section):
    """How traffic is measured, and paths chosen for it."""

    #: Whether paths are chosen; else all stays on the planned trees.
    enabled: bool = True
    #: Seconds of traffic that one measured matrix tells of.
    measure_s: Annotated[float, Field(ge=0.5, le=3_600)] = 60.0
    #: Matrices that are kept to decide from.
    keep: Annotated[int, Field(ge=12, le=10_000)] = 300
    #: Seconds between two decisions where nothing else calls for one.
    every_s: Seconds = 300.0
    #: Seconds between two looks at whether something does: a failure, a migration.
    look_s: Annotated[float, Field(ge=0.1, le=60)] = 1.0
    #: Whatever traffic comes, no link is loaded more than this many times the worst link's
    #: load with even splits.
    hedge: Annotated[float, Field(ge=1, le=1_000)] = 4.0
    #: Share of a link that interactive traffic may use by its quickest ways.
    ceiling: Annotated[float, Field(gt=0, le=1)] = 0.5
    #: bit/s of a link of which neither its ports nor an operator tell a speed.
    default_speed: Annotated[int, Field(gt=0, le=10**15)] = 10**10
    #: With more edges all stays on the planned trees.
    max_edges: Annotated[int, Field(ge=2, le=4_094)] = 64


class BandwidthSettings(Section):
    """How bandwidth is shared out, and traffic put into classes."""

    #: Whether it is decided; what an operator limits is limited all the same.
    enabled: bool = True
    #: Classes, priorities, guarantees, ceilings and uplinks; by default policies/qos.yaml as it
    #: comes with Pleach, which shares out nothing.
    policy: FilePath | None = None
    #: Seconds within which a burst that nobody foresaw is answered. Meters are read twice in it.
    interval_s: Annotated[float, Field(ge=0.2, le=600)] = 2.0
    #: A meter keeps its rate when a new one differs by no more than this share.
    hysteresis: Annotated[float, Field(ge=0, le=1)] = 0.05


class LogSettings(Section):
    """Logs: one event a line, on stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "text"] = "json"


def default_state_dir() -> Path:
    """/var/lib/pleach for root, ~/.local/state/pleach for others."""
    return Path("/var/lib/pleach") if os.geteuid() == 0 else Path.home() / ".local/state/pleach"


class SignatureSettings(Section):
    """Who talks to whom, as the edges count it."""

    #: Seconds between two readings of a switch's counters.
    poll_s: Annotated[float, Field(ge=0.2, le=60)] = 10.0
    #: Lengths of the prefixes by which others than VMs of the tenant are told apart.
    prefix4: Annotated[int, Field(ge=8, le=32)] = 24
    prefix6: Annotated[int, Field(ge=16, le=128)] = 48
    #: Signatures of one VM that are told apart; what it begins beyond them is counted as one.
    most_per_vm: Annotated[int, Field(ge=1, le=10_000)] = 500
    #: Seconds without a packet after which a signature is not counted any more.
    idle_s: Seconds = 86_400.0
    #: Days for which it is known who talked to whom, and what was denied.
    keep_days: Annotated[float, Field(gt=0, le=36_500)] = 400.0


class Settings(Section):
    """All settings."""

    #: Directory of everything that Pleach keeps.
    state_dir: Annotated[FilePath, AfterValidator(lambda path: path.absolute())]
    store: StoreSettings
    history: HistorySettings
    northbound: NorthboundSettings = NorthboundSettings()
    southbound: SouthboundSettings = SouthboundSettings()
    dpi: DpiSettings = DpiSettings()
    migration: MigrationSettings = MigrationSettings()
    paths: PathSettings = PathSettings()
    bandwidth: BandwidthSettings = BandwidthSettings()
    alerts: AlertSettings = AlertSettings()
    behaviour: BehaviourSettings = BehaviourSettings()
    forecast: ForecastSettings = ForecastSettings()
    agent: AgentSettings = AgentSettings()
    signatures: SignatureSettings = SignatureSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        state_dir = data.get("state_dir", default_state_dir())
        given = {"state_dir": state_dir}
        for section, url in (
            ("store", "sqlite:///{}/pleach.db"),
            ("history", "duckdb://{}/history"),
        ):
            value = data.get(section, {})
            if isinstance(value, dict) and isinstance(state_dir, str | Path):
                at = Path(state_dir).expanduser().absolute()
                value = {"url": url.format(at), **value}
            given[section] = value
        return {**data, **given}


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings of the file `path` (or the one that `PLEACH_CONFIG` names, or none) and of
    `environ`. SettingsError tells everything that is wrong with them."""
    if path is None and environ.get(CONFIG):
        path = Path(environ[CONFIG])
    places: dict[tuple[str, ...], str] = {}
    data: dict[str, Any] = {} if path is None else _read(path, places)
    problems = _overlay(data, environ, places)
    try:
        settings = Settings.model_validate(data)
    except ValidationError as error:
        problems += [_explain(dict(e), places, str(path or "defaults")) for e in error.errors()]
    if problems:
        raise SettingsError(*problems)
    return settings


def read_policy(model: type[S], path: Path) -> S:
    """A YAML file that an operator edits, as `model`. SettingsError tells everything that is
    wrong with it, by file and line."""
    places: dict[tuple[str, ...], str] = {}
    data = _read(path, places)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = [_explain(dict(e), places, str(path), model) for e in error.errors()]
        raise SettingsError(*problems) from error


def safe_directory(path: Path, owner: int | None = None) -> Path:
    """Make `path` a directory that nobody else can look into (0700), and its parents as the
    umask says; one that is there already must belong to this user, root or `owner` (a user
    id), and be writable by its owner alone. Raises SettingsError, or OSError where the
    system refuses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.stat()
    if found.st_uid not in (os.geteuid(), 0, owner):
        cause = f"belongs to user {found.st_uid}, who could replace what lies in it"
    elif found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        cause = f"others may write into it (mode {stat.S_IMODE(found.st_mode):04o})"
    else:
        return path
    hint = f"chown {os.geteuid()} {path} && chmod 0700 {path}, or choose another directory"
    raise SettingsError(Problem(str(path), "", cause, hint))


def _read(path: Path, places: dict[tuple[str, ...], str]) -> dict[str, Any]:
    """The mapping in a YAML file; `places` gets file:line of every field."""
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        hint = f"correct --config or {CONFIG}"
        raise SettingsError(Problem(str(path), "", error.strerror or str(error), hint)) from error
    except UnicodeDecodeError as error:
        raise SettingsError(Problem(str(path), "", "is not UTF-8 text")) from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        cause = f"is no YAML: {error.problem}"
        raise SettingsError(Problem(f"{path}:{line}", "", cause)) from error
    except yaml.YAMLError as error:
        raise SettingsError(Problem(str(path), "", f"is no YAML: {error}")) from error
    if node is None:
        return {}
    problems: list[Problem] = []
    data = _Reader(path, places, problems).value(node, ())
    if not problems and not isinstance(data, dict):
        problems.append(Problem(f"{path}:1", "", "a mapping of sections is wanted here"))
    if problems:
        raise SettingsError(*problems)
    assert isinstance(data, dict)
    return data


class _Reader:
    """Makes plain values of YAML nodes and notes where each came from."""

    def __init__(
        self, path: Path, places: dict[tuple[str, ...], str], problems: list[Problem]
    ) -> None:
        self._path, self._places, self._problems = path, places, problems
        self._scalars = yaml.constructor.SafeConstructor()
        self._above: list[yaml.Node] = []

    def value(self, node: yaml.Node, loc: tuple[str, ...]) -> object:
        self._places.setdefault(loc, self._place(node))
        if any(node is above for above in self._above):
            self._problem(node, loc, "contains itself")
            return None
        self._above.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, loc)
            if isinstance(node, yaml.SequenceNode):
                return [self.value(n, (*loc, str(i))) for i, n in enumerate(node.value)]
            try:
                return self._scalars.construct_object(node)
            except (yaml.YAMLError, ValueError) as error:
                self._problem(node, loc, f"cannot be read: {error}")
                return None
        finally:
            self._above.pop()

    def _mapping(self, node: yaml.MappingNode, loc: tuple[str, ...]) -> dict[str, object]:
        out: dict[str, object] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            at = (*loc, name)
            if name in out:
                first = self._places[at].rpartition(":")[2]
                self._problem(key, at, f"is set a second time (first in line {first})")
                continue
            self._places[at] = self._place(key)
            out[name] = self.value(value, at)
        return out

    def _place(self, node: yaml.Node) -> str:
        return f"{self._path}:{node.start_mark.line + 1}"

    def _problem(self, node: yaml.Node, loc: tuple[str, ...], cause: str) -> None:
        self._problems.append(Problem(self._place(node), ".".join(loc), cause))


def _overlay(
    data: dict[str, Any], environ: Mapping[str, str], places: dict[tuple[str, ...], str]
) -> list[Problem]:
    """Put what the environment sets into `data`; returns what is wrong with it."""
    problems = []
    known = {PREFIX + "__".join(loc).upper(): loc for loc in _leaves(Settings)}
    for name in sorted(n for n in environ if n.startswith(PREFIX) and n not in OTHER_VARIABLES):
        loc = known.get(name)
        if loc is None:
            hint = _closest(name, [*known, *OTHER_VARIABLES])
            problems.append(Problem(name, "", "there is no such setting", hint))
            continue
        try:
            value = _adapter(loc).validate_strings(environ[name], strict=False)
        except ValidationError as error:
            problems.append(Problem(name, ".".join(loc), _message(dict(error.errors()[0]))))
            continue
        section: Any = data
        for part in loc[:-1]:
            section = section.setdefault(part, {}) if isinstance(section, dict) else None
        if isinstance(section, dict):  # else the file is wrong there, and that is told later
            section[loc[-1]] = value
            places[loc] = name
    return problems


def _leaves(model: type[BaseModel], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    leaves = []
    for name, field in model.model_fields.items():
        loc = (*above, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            leaves += _leaves(field.annotation, loc)
        else:
            leaves.append(loc)
    return leaves


def section_at(loc: tuple[str, ...], root: type[BaseModel] | None = None) -> type[BaseModel] | None:
    """The section at `loc` of `root`, by default of all settings."""
    model: type[BaseModel] = root or Settings
    for part in loc:
        field = model.model_fields.get(part)
        annotation = None if field is None else field.annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return None
        model = annotation
    return model


def _adapter(loc: tuple[str, ...]) -> TypeAdapter[Any]:
    """What makes a value of the field `loc` of text."""
    section = section_at(loc[:-1])
    assert section is not None
    field = section.model_fields[loc[-1]]
    annotation: Any = field.annotation
    for meta in field.metadata:
        annotation = Annotated[annotation, meta]
    return TypeAdapter(annotation)


def _explain(
    error: dict[str, Any],
    places: Mapping[tuple[str, ...], str],
    source: str,
    root: type[BaseModel] | None = None,
) -> Problem:
    loc = tuple(str(part) for part in error["loc"] if part != "[key]")
    at = loc
    while at not in places and at:
        at = at[:-1]
    place = places.get(at, source)
    if error["type"] == "extra_forbidden":
        section = section_at(loc[:-1], root)
        if section is StoreSettings and loc[-1] in ENGINES:
            hint = "the store has one engine, which store.url names"
        else:
            hint = "" if section is None else _closest(loc[-1], list(section.model_fields))
        return Problem(place, ".".join(loc), "there is no such setting", hint)
    return Problem(place, ".".join(loc), _message(error), _choices(loc, root))


def _message(error: dict[str, Any]) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    given = error["input"]
    return message if isinstance(given, dict) else f"{message}, not {masked(repr(given))}"


def _choices(loc: tuple[str, ...], root: type[BaseModel] | None) -> str:
    section = section_at(loc[:-1], root) if loc else None
    field = section.model_fields.get(loc[-1]) if section else None
    if field is not None and get_args(field.annotation) and isinstance(field.default, str):
        return "choose one of " + ", ".join(map(str, get_args(field.annotation)))
    return ""


def _closest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else f"known here: {', '.join(sorted(known))}"
