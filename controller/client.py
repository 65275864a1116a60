"""How does a program talk to Pleach? A typed, synchronous client of its REST interface.

    with Client("http://127.0.0.1:8640", token) as pleach:
        pleach.put(Tenant(id="acme"))
        told = pleach.place("web-1", "hv1", ["vnet7"])
        pleach.vm("web-1", wait=True, revision=told.revision)

Calls that may be repeated safely are: reads, PUT, DELETE, and events (by their id).
"""

from __future__ import annotations

import random
import socket
import ssl
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from controller.api import (
    CLOUDEVENT,
    CLOUDEVENTS,
    JSON,
    MSGPACK,
    RESOURCES,
    AlertInfo,
    AlertNote,
    Alerts,
    AlertStatus,
    Bandwidths,
    BatchReply,
    BehaviourInfo,
    Changes,
    DenialInfo,
    Denials,
    EventReply,
    Explained,
    Fault,
    FlowVerdict,
    FlowVerdicts,
    ForecastReply,
    Health,
    HistoryReply,
    HistoryStatus,
    Investigation,
    LoopInfo,
    LoopsInfo,
    Metrics,
    NewReservation,
    NewToken,
    PathDecisions,
    PathsBetween,
    ProblemBody,
    Ready,
    RoleInfo,
    Roles,
    SampleBatch,
    SampleReply,
    SignatureInfo,
    Signatures,
    TokenInfo,
    Tokens,
    TokenSecret,
    Topology,
    TunnelBandwidth,
    VerdictsReply,
    VmBandwidth,
    VmStatus,
)
from controller.model.nouns import (
    Migration,
    Nic,
    Placement,
    RateLimit,
    Record,
    Reservation,
    Service,
)

R = TypeVar("R", bound=Record)
M = TypeVar("M", bound=BaseModel)

_PATHS: dict[type[Record], str] = {
    **{cls: path for path, cls in RESOURCES.items()},
    Placement: "placements",
    Migration: "migrations",
    Service: "services",
    Reservation: "reservations",
}
_RETRY_STATUS = frozenset({429, 503})
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_AWAY = (
    "See that the brain runs (`pleach brain`), that the URL is right, and whether it asks for a "
    "client's certificate."
)
_UNTRUSTED = (
    "See that the URL names the brain as its certificate does, and tell which authority signed "
    "that: PLEACH_CA=FILE for the command line, agent.ca for an agent."
)


class Problem(Exception):  # noqa: N818 - the name that RFC 9457 gives it
    """What the server refused, or that it cannot be reached (`status` 0)."""

    def __init__(self, body: ProblemBody, retry_after_s: float = 0.0) -> None:
        super().__init__(f"{body.detail}: {body.mend}" if body.mend else body.detail)
        self.body = body
        #: Seconds after which the server asks to be asked again; 0 where it does not say.
        self.retry_after_s = retry_after_s

    @property
    def type(self) -> str:
        """The stable name of the kind of problem, such as "duplicate"."""
        return self.body.type.rpartition(":")[2]

    @property
    def status(self) -> int:
        """The HTTP status; 0 where there was no answer."""
        return self.body.status

    @property
    def detail(self) -> str:
        """What was wrong."""
        return self.body.detail

    @property
    def mend(self) -> str:
        """What to do."""
        return self.body.mend

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Each fault of the request's body, with its place."""
        return self.body.faults


class Client:
    """A connection to one server. To be used by one thread at a time.

    `ca` is a file of certificates to trust beside the system's; `certificate` is this
    client's own (certificate, key). `timeout_s` bounds one attempt, `attempts` their number.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        ca: Path | None = None,
        certificate: tuple[Path, Path] | None = None,
        timeout_s: float = 30.0,
        attempts: int = 4,
    ) -> None:
        # Without TLS an empty one does: to load the system's certificates takes 0.1 s.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if url.startswith("https:"):
            context = ssl.create_default_context()
            if ca is not None:
                context.load_verify_locations(ca)
            if certificate is not None:
                context.load_cert_chain(*certificate)
        self._http = httpx.Client(
            base_url=url,
            headers={"authorization": f"Bearer {token}"},
            timeout=timeout_s,
            verify=context,
            trust_env=False,
        )
        self._url = url
        self._attempts = attempts
        self._source = f"/pleach-client/{socket.gethostname()}"

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # Records. Every method raises Problem.

    def put(self, record: R) -> R:
        """Make `record`, or replace it; returns it as stored."""
        path = f"/v1/{_PATHS[type(record)]}/{record.key}"
        return self._parse(type(record), self._call("PUT", path, body=record))

    def create(self, record: R) -> R:
        """Make `record`; a Problem where its id is taken."""
        answer = self._call("POST", f"/v1/{_PATHS[type(record)]}", body=record, again=False)
        return self._parse(type(record), answer)

    def get(self, cls: type[R], key: str) -> R:
        """One record (a VM's definition alone; `vm` tells more)."""
        answer = self._call("GET", f"/v1/{_PATHS[cls]}/{key}")
        if _PATHS[cls] == "vms":
            vm = self._parse(VmStatus, answer).vm
            assert isinstance(vm, cls)
            return vm
        return self._parse(cls, answer)

    def list(self, cls: type[R], **filters: str) -> Iterator[R]:
        """All records of a kind by key, read page by page; filters: tenant, subnet, host, mac,
        vm; of services: vm, application, category."""
        after = ""
        while True:
            query = {"limit": "500", "after": after, **filters}
            page = self._call("GET", f"/v1/{_PATHS[cls]}", query=query).json()
            yield from TypeAdapter(list[cls]).validate_python(page["items"])  # type: ignore[valid-type]
            if page["next"] is None:
                return
            after = page["next"]

    def delete(self, cls: type[Record], key: str, *, force: bool = False) -> None:
        """Remove a record; `force` for a VM that is placed."""
        query = {"force": "true"} if force else {}
        self._call("DELETE", f"/v1/{_PATHS[cls]}/{key}", query=query)

    # VMs

    def vm(
        self,
        key: str,
        *,
        wait: bool = False,
        revision: int | None = None,
        timeout_s: float | None = None,
    ) -> VmStatus:
        """A VM and its status; with `wait`, once the switches have confirmed `revision`
        (else the newest), or a Problem that tells what they lacked."""
        query: dict[str, str] = {"wait": "applied"} if wait else {}
        if revision is not None:
            query["revision"] = str(revision)
        if timeout_s is not None:
            query["timeout"] = str(timeout_s)
        return self._parse(VmStatus, self._call("GET", f"/v1/vms/{key}", query=query))

    def place(
        self,
        vm: str,
        host: str,
        ports: Sequence[str],
        *,
        wait: bool = False,
        timeout_s: float | None = None,
    ) -> EventReply:
        """Tell that the VM runs at `host`, its NICs in order at `ports`; `wait` as in `send`."""
        event = self.event("vm.placed", {"vm": vm, "host": host, "ports": [*ports]})
        return self.send(event, wait=wait, timeout_s=timeout_s)

    def update(
        self,
        vm: str,
        *,
        nics: Iterable[Nic] | None = None,
        groups: Iterable[str] | None = None,
        ports: Iterable[str] | None = None,
    ) -> EventReply:
        """Tell new NICs, groups or ports; what is None stays."""
        data: dict[str, object] = {"vm": vm}
        if nics is not None:
            data["nics"] = [nic.model_dump(mode="json", exclude_none=True) for nic in nics]
        if groups is not None:
            data["groups"] = [*groups]
        if ports is not None:
            data["ports"] = [*ports]
        return self.tell("vm.updated", **data)

    def remove(self, vm: str, host: str) -> EventReply:
        """Tell that the VM runs at `host` no more."""
        return self.tell("vm.removed", vm=vm, host=host)

    def start_migration(
        self, migration: str, vm: str, source: str, target: str, ports: Sequence[str]
    ) -> EventReply:
        """Tell that the VM begins to move to `target`, where `ports` wait for it."""
        return self.tell(
            "vm.migration.started",
            migration=migration,
            vm=vm,
            source=source,
            target=target,
            ports=[*ports],
        )

    def complete_migration(
        self, migration: str, vm: str, target: str | None = None, ports: Sequence[str] | None = None
    ) -> EventReply:
        """Tell that the VM runs at the target."""
        data: dict[str, object] = {"migration": migration, "vm": vm}
        if target is not None and ports is not None:
            data.update(target=target, ports=[*ports])
        return self.tell("vm.migration.completed", **data)

    def fail_migration(self, migration: str, vm: str, reason: str = "") -> EventReply:
        """Tell that the VM stays where it was."""
        return self.tell("vm.migration.failed", migration=migration, vm=vm, reason=reason)

    # Events

    def event(self, kind: str, data: Mapping[str, object]) -> dict[str, object]:
        """A CloudEvent that happened now, with an id of its own."""
        return {
            "specversion": "1.0",
            "id": str(uuid.uuid4()),
            "source": self._source,
            "type": kind,
            "time": datetime.now(UTC).isoformat(),
            "datacontenttype": JSON,
            "data": {**data},
        }

    def tell(self, kind: str, **data: object) -> EventReply:
        """Send one event that happened now, such as `tell("host.draining", host="hv1")`."""
        return self.send(self.event(kind, data))

    def send(
        self, event: Mapping[str, object], *, wait: bool = False, timeout_s: float | None = None
    ) -> EventReply:
        """Send one CloudEvent as it is; with `wait`, return once the switches have confirmed
        it, or raise a Problem that tells what they lacked (the event stands then too)."""
        query: dict[str, str] = {"wait": "applied"} if wait else {}
        if timeout_s is not None:
            query["timeout"] = str(timeout_s)
        answer = self._call("POST", "/v1/events", query=query, body=event, media=CLOUDEVENT)
        return self._parse(EventReply, answer)

    def send_batch(self, events: Iterable[Mapping[str, object]]) -> BatchReply:
        """Send CloudEvents together; the reply has a result for each, a problem too."""
        answer = self._call("POST", "/v1/events", body=[*events], media=CLOUDEVENTS)
        return self._parse(BatchReply, answer)

    # The rest

    def topology(self) -> Topology:
        """Datapaths, ports, links, hosts, and how far each datapath is."""
        return self._parse(Topology, self._call("GET", "/v1/topology"))

    def forget_datapath(self, dpid: str) -> None:
        """Forget a decommissioned switch."""
        self._call("DELETE", f"/v1/datapaths/{dpid}")

    def changes(self, after: int, *, limit: int = 1_000, timeout_s: float | None = None) -> Changes:
        """Changes after a revision, waiting for one; a Problem of type "compacted" where
        they are not kept any more."""
        query = {"after": str(after), "limit": str(limit)}
        if timeout_s is not None:
            query["timeout"] = str(timeout_s)
        return self._parse(Changes, self._call("GET", "/v1/changes", query=query))

    def explain(
        self, *, vm: str | None = None, datapath: str | None = None, cookie: str | None = None
    ) -> Explained:
        """The flow entries for a VM, at a datapath, or with a cookie, and why they are there."""
        given = {"vm": vm, "datapath": datapath, "cookie": cookie, "limit": "100000"}
        query = {name: value for name, value in given.items() if value is not None}
        return self._parse(Explained, self._call("GET", "/v1/explain", query=query))

    # Bandwidth

    def bandwidth(self, vm: str) -> VmBandwidth:
        """What a VM may send and receive, and why."""
        return self._parse(VmBandwidth, self._call("GET", f"/v1/bandwidth/{vm}"))

    def bandwidths(self) -> Bandwidths:
        """The same of all VMs of which there is something to tell, by VM, and what is wrong."""
        found: list[VmBandwidth] = []
        after = ""
        while True:
            query = {"limit": "500", "after": after}
            page = self._parse(Bandwidths, self._call("GET", "/v1/bandwidth", query=query))
            found += page.items
            if page.next is None:
                return page.model_copy(update={"items": tuple(found)})
            after = page.next

    def limit(self, limit: RateLimit) -> RateLimit:
        """Limit a VM."""
        return self._parse(RateLimit, self._call("PUT", f"/v1/bandwidth/{limit.vm}", body=limit))

    def unlimit(self, vm: str) -> None:
        """Take the limit off a VM."""
        self._call("DELETE", f"/v1/bandwidth/{vm}")

    # Paths and tunnels

    def paths(self, source: str, to: str, *, history: int = 0) -> PathsBetween:
        """The paths between the edges of two datapaths, hosts or VMs, with what so many earlier
        decisions said of them."""
        query = {"from": source, "to": to, "history": str(history)}
        return self._parse(PathsBetween, self._call("GET", "/v1/paths", query=query))

    def path_decisions(self, limit: int = 20, before: int | None = None) -> PathDecisions:
        """What was decided on paths, newest first."""
        query = {"limit": str(limit)} | ({} if before is None else {"before": str(before)})
        return self._parse(PathDecisions, self._call("GET", "/v1/paths/decisions", query=query))

    def tunnel_bandwidth(self, tunnel: str) -> TunnelBandwidth:
        """What of a tunnel is reserved, and what could still be."""
        return self._parse(TunnelBandwidth, self._call("GET", f"/v1/tunnels/{tunnel}/bandwidth"))

    def reserve(self, tunnel: str, asked: NewReservation) -> Reservation:
        """Reserve a part of a tunnel. Problem (conflict) tells what is free instead."""
        # Named here, so that the request may be repeated.
        named = asked.model_copy(update={"id": asked.id or f"r-{uuid.uuid4()}"})
        answer = self._call("POST", f"/v1/tunnels/{tunnel}/reservations", body=named)
        return self._parse(Reservation, answer)

    def release(self, reservation: str) -> None:
        """Give back what was reserved."""
        self._call("DELETE", f"/v1/reservations/{reservation}")

    # Time series

    def send_samples(self, batch: SampleBatch) -> SampleReply:
        """Send samples; what is accepted is on the server's disk with the reply."""
        return self._parse(SampleReply, self._call("POST", "/v1/samples", body=batch))

    def send_packed_samples(self, packed: bytes, coding: str) -> SampleReply:
        """Send samples as MessagePack that is compressed by `coding`, such as "zstd"."""
        answer = self._call("POST", "/v1/samples", body=packed, media=MSGPACK, coding=coding)
        return self._parse(SampleReply, answer)

    def history(
        self,
        subject: str,
        metrics: Sequence[str],
        start: float,
        end: float,
        *,
        step: float | None = None,
        how: Literal["mean", "max"] = "mean",
    ) -> HistoryReply:
        """Metrics of a VM, host or port from `start` to `end`, Unix seconds; without `step`
        the samples as they are."""
        query: dict[str, str | Sequence[str]] = {"metric": [*metrics], "how": how}
        query |= {"start": str(start), "end": str(end)}
        if step is not None:
            query["step"] = str(step)
        answer = self._call("GET", f"/v1/history/{subject}", query=query)
        return self._parse(HistoryReply, answer)

    def forecast(
        self, vm: str, metric: str = "cpu", *, horizon_h: float | None = None
    ) -> ForecastReply:
        """What a VM is about to need, up to `horizon_h` hours ahead, as last forecast."""
        query = {"metric": metric}
        if horizon_h is not None:
            query["horizon"] = str(horizon_h)
        return self._parse(ForecastReply, self._call("GET", f"/v1/forecasts/{vm}", query=query))

    def history_status(self) -> HistoryStatus:
        """How the history is."""
        return self._parse(HistoryStatus, self._call("GET", "/v1/history"))

    def tell_flows(self, verdicts: Sequence[FlowVerdict]) -> VerdictsReply:
        """Tell what the first packets of flows to services say; at most 1,000 at once. To tell
        the same once more counts as further flows."""
        told = FlowVerdicts(verdicts=tuple(verdicts))
        answer = self._call("POST", "/v1/services", body=told, again=False)
        return self._parse(VerdictsReply, answer)

    def metrics(self) -> Metrics:
        """All metrics with units and bounds."""
        return self._parse(Metrics, self._call("GET", "/v1/metrics"))

    # Alerts

    def alerts(
        self,
        filters: Mapping[str, str] | None = None,
        *,
        before: int | None = None,
        since: int | None = None,
        limit: int = 100,
        timeout_s: float | None = None,
    ) -> Alerts:
        """A page of alerts, the newest first; filters: state, kind, severity, vm. With `since`
        those that changed after that version, waiting for one."""
        given: dict[str, object] = {
            "before": before,
            "since": since,
            "limit": limit,
            "timeout": timeout_s,
        }
        given |= filters or {}
        query = {name: str(value) for name, value in given.items() if value is not None}
        return self._parse(Alerts, self._call("GET", "/v1/alerts", query=query))

    def alert(self, number: int) -> AlertStatus:
        """One alert, and what of it is not yet told."""
        return self._parse(AlertStatus, self._call("GET", f"/v1/alerts/{number}"))

    def investigation(self, number: int) -> Investigation:
        """The evidence around an alert."""
        return self._parse(Investigation, self._call("GET", f"/v1/alerts/{number}/investigation"))

    def packets(self, number: int) -> bytes:
        """Some packets of the VM that an alert is about, as a pcap file."""
        return self._call("GET", f"/v1/alerts/{number}/packets.pcap").content

    def acknowledge_alert(self, number: int, note: str = "") -> AlertInfo:
        """Say that somebody sees to it."""
        path = f"/v1/alerts/{number}/acknowledge"
        return self._parse(AlertInfo, self._call("POST", path, body=AlertNote(note=note)))

    def close_alert(self, number: int, note: str = "") -> AlertInfo:
        """Say that it is over."""
        path = f"/v1/alerts/{number}/close"
        return self._parse(AlertInfo, self._call("POST", path, body=AlertNote(note=note)))

    def signatures(self, **filters: str | float | None) -> Iterator[SignatureInfo]:
        """Who talks to whom, read page by page; filters: vm, peer, protocol, port, tenant, since,
        until (Unix seconds), hourly ("true" for one item an hour)."""
        return self._pages("/v1/signatures", Signatures, filters)

    def denials(self, **filters: str | float | None) -> Iterator[DenialInfo]:
        """What access denied, read page by page; filters as of `signatures`."""
        return self._pages("/v1/denials", Denials, filters)

    def _pages(
        self, path: str, kind: type[Any], filters: Mapping[str, str | float | None]
    ) -> Iterator[Any]:
        query = {name: str(value) for name, value in filters.items() if value is not None}
        while True:
            page = self._parse(kind, self._call("GET", path, query={"limit": "1000", **query}))
            yield from page.items
            if page.next is None:
                return
            query["after"] = page.next

    def behaviour(self, vm: str) -> BehaviourInfo:
        """How a VM behaves, and who behaves like it."""
        return self._parse(BehaviourInfo, self._call("GET", f"/v1/vms/{vm}/behaviour"))

    def roles(self) -> tuple[RoleInfo, ...]:
        """Groups of VMs that behave alike."""
        return self._parse(Roles, self._call("GET", "/v1/roles")).items

    def loops(self) -> tuple[LoopInfo, ...]:
        """How each loop of the brain fares."""
        return self._parse(LoopsInfo, self._call("GET", "/v1/loops")).items

    # Tokens and health

    def tokens(self) -> tuple[TokenInfo, ...]:
        """All tokens, without their secrets."""
        return self._parse(Tokens, self._call("GET", "/v1/tokens")).items

    def create_token(self, token: NewToken) -> TokenSecret:
        """Make a token; its secret is told this once."""
        return self._parse(TokenSecret, self._call("POST", "/v1/tokens", body=token, again=False))

    def revoke_token(self, name: str) -> None:
        """Revoke a token."""
        self._call("DELETE", f"/v1/tokens/{name}")

    def health(self) -> Health:
        """Whether the server answers; needs no token."""
        return self._parse(Health, self._call("GET", "/v1/health"))

    def ready(self) -> Ready:
        """Whether the store can be read, and how many datapaths are connected."""
        return self._parse(Ready, self._call("GET", "/v1/ready"))

    # How a call is made

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | Sequence[str]] | None = None,
        body: object = None,
        media: str = JSON,
        coding: str | None = None,
        again: bool = True,
    ) -> httpx.Response:
        """One call, repeated where it failed on the way or was put off; `again` is whether
        it may be repeated once it may have had its effect."""
        headers = {"content-type": media} if body is not None else {}
        if coding is not None:
            headers["content-encoding"] = coding
        content = _content(body)
        pause = _FIRST_PAUSE_S
        for left in reversed(range(self._attempts)):
            try:
                answer = self._http.request(
                    method, path, params=query, content=content, headers=headers
                )
            except httpx.TransportError as error:
                lost = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                if left == 0 or (lost and not again):
                    raise self._unreachable(error) from error
            else:
                if answer.is_success:
                    return answer
                repeated = left < self._attempts - 1
                if method == "DELETE" and answer.status_code == 404 and repeated:
                    return answer  # the attempt before had its effect, and its reply was lost
                if left == 0 or not again or answer.status_code not in _RETRY_STATUS:
                    raise _problem(answer)
                pause = max(pause, _retry_after(answer))
            time.sleep(min(pause, _LONGEST_PAUSE_S) * random.uniform(0.8, 1.2))  # noqa: S311
            pause *= 2
        raise AssertionError("the last attempt returns or raises")

    def _unreachable(self, error: Exception) -> Problem:
        return Problem(
            ProblemBody(
                type="urn:pleach:problem:unreachable",
                title="The server cannot be reached",
                status=0,
                detail=f"{self._url}: {error or type(error).__name__}",
                mend=_UNTRUSTED if "CERTIFICATE_VERIFY_FAILED" in str(error) else _AWAY,
            )
        )

    def _parse(self, model: type[M], answer: httpx.Response) -> M:
        try:
            return model.model_validate_json(answer.content)
        except ValidationError as error:
            raise Problem(
                ProblemBody(
                    type="urn:pleach:problem:not-understood",
                    title="The reply is not understood",
                    status=answer.status_code,
                    detail=f"{answer.url}: {error.errors()[0]['msg']}",
                    mend="See that the URL is that of a Pleach of the same version.",
                )
            ) from error


def _content(body: object) -> str | bytes | None:
    if body is None or isinstance(body, bytes):
        return body
    if isinstance(body, BaseModel):
        return body.model_dump_json(exclude={"number"})
    return TypeAdapter(Any).dump_json(body).decode()


def _problem(answer: httpx.Response) -> Problem:
    try:
        return Problem(ProblemBody.model_validate_json(answer.content), _retry_after(answer))
    except ValidationError:
        return Problem(
            ProblemBody(
                type="about:blank",
                title=answer.reason_phrase,
                status=answer.status_code,
                detail=f"{answer.url} answered {answer.status_code} {answer.text[:200]}",
                mend="See that the URL is that of a Pleach.",
            ),
            _retry_after(answer),
        )


def _retry_after(answer: httpx.Response) -> float:
    value = answer.headers.get("retry-after", "")
    return float(value) if value.isdigit() else 0.0
