"""What does a message say? CloudEvents 1.0 of hypervisors as typed events. Pure.

An event is a CloudEvent (https://github.com/cloudevents/spec, v1.0.2) whose `type` is one of
`EventType` and whose `data` is the model that `DATA` names for it. `time` is required here,
because events about the same VM are put in order by it. Extension attributes are allowed
and not read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from controller.model.addresses import Id, PortName
from controller.model.nouns import Nic, Value

#: RFC 3339, section 5.6; a zone is required.
_RFC3339 = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d{1,9})?([Zz]|[+-]\d{2}:\d{2})")
_MAX_NAME = 255
#: CloudEvents 1.0.2, section "Type System": what a String does not hold.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class EventType(StrEnum):
    """The events that are understood."""

    VM_PLACED = "vm.placed"
    VM_UPDATED = "vm.updated"
    VM_REMOVED = "vm.removed"
    MIGRATION_STARTED = "vm.migration.started"
    MIGRATION_COMPLETED = "vm.migration.completed"
    MIGRATION_FAILED = "vm.migration.failed"
    HOST_UP = "host.up"
    HOST_DOWN = "host.down"
    HOST_DRAINING = "host.draining"


class Why(StrEnum):
    """Why something asked for is refused."""

    MALFORMED = "malformed"
    UNKNOWN = "unknown"
    CONFLICT = "conflict"
    FUTURE = "future"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong at one place (`pointer`: RFC 6901, from the event's root)."""

    pointer: str
    detail: str


class Refused(Exception):  # noqa: N818 - a refusal is an answer, not a failure of ours
    """An event that has no effect and whose sender can do something about it."""

    def __init__(self, why: Why, detail: str, mend: str, faults: tuple[Fault, ...] = ()) -> None:
        super().__init__(detail)
        self.why = why
        self.detail = detail
        self.mend = mend
        self.faults = faults


def _distinct(ports: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(ports)) != len(ports):
        raise ValueError("two NICs cannot share one port: name one port for each NIC, in order")
    return ports


Ports = Annotated[
    tuple[PortName, ...], Field(min_length=1, max_length=16), AfterValidator(_distinct)
]


class VmPlaced(Value):
    """The VM runs at `host`, each NIC in order plugged into the port of that name."""

    vm: Id
    host: Id
    ports: Ports


class VmUpdated(Value):
    """What is given replaces what was: NICs, groups, or the ports at the present host."""

    vm: Id
    nics: Annotated[tuple[Nic, ...], Field(min_length=1, max_length=16)] | None = None
    groups: Annotated[tuple[Id, ...], Field(max_length=64)] | None = None
    ports: Ports | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.nics is None and self.groups is None and self.ports is None:
            raise ValueError("nothing is updated: give nics, groups or ports")
        return self


class VmRemoved(Value):
    """The VM runs at `host` no more. Its definition stays."""

    vm: Id
    host: Id


class MigrationStarted(Value):
    """The VM begins to move from `source`; `ports` wait for its NICs at `target`."""

    migration: Id
    vm: Id
    source: Id
    target: Id
    ports: Ports


class MigrationCompleted(Value):
    """The VM runs at the target; with `target` and `ports` it stands without a `started`."""

    migration: Id
    vm: Id
    target: Id | None = None
    ports: Ports | None = None


class MigrationFailed(Value):
    """The VM stays where it was."""

    migration: Id
    vm: Id
    reason: str = Field("", max_length=1_000)


class HostEvent(Value):
    """The host itself came up, went down, or is being emptied."""

    host: Id


EventData = (
    VmPlaced
    | VmUpdated
    | VmRemoved
    | MigrationStarted
    | MigrationCompleted
    | MigrationFailed
    | HostEvent
)
DATA: dict[EventType, type[EventData]] = {
    EventType.VM_PLACED: VmPlaced,
    EventType.VM_UPDATED: VmUpdated,
    EventType.VM_REMOVED: VmRemoved,
    EventType.MIGRATION_STARTED: MigrationStarted,
    EventType.MIGRATION_COMPLETED: MigrationCompleted,
    EventType.MIGRATION_FAILED: MigrationFailed,
    EventType.HOST_UP: HostEvent,
    EventType.HOST_DOWN: HostEvent,
    EventType.HOST_DRAINING: HostEvent,
}


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `at` is its `time` in Unix seconds (UTC); `fingerprint` tells its content."""

    source: str
    id: str
    type: EventType
    at: float
    data: EventData
    fingerprint: str

    @property
    def about(self) -> str:
        """The VM or host that the event is about, for logs."""
        return self.data.host if isinstance(self.data, HostEvent) else self.data.vm


def parse(message: object) -> Event:
    """A CloudEvent in its JSON form (already decoded) as an Event.

    Raises Refused (MALFORMED) with every fault found and where it is.
    """
    if not isinstance(message, Mapping):
        raise _malformed([Fault("", "an event is a JSON object")])
    faults: list[Fault] = []
    if message.get("specversion") != "1.0":
        faults.append(Fault("/specversion", 'this must be "1.0"'))
    names = {}
    for name in ("id", "source", "type", "time"):
        value = message.get(name)
        if not isinstance(value, str) or not 0 < len(value) <= _MAX_NAME:
            faults.append(Fault(f"/{name}", f"a text of 1 to {_MAX_NAME} characters is required"))
        elif _CONTROL.search(value):
            faults.append(Fault(f"/{name}", "a text without control characters is required"))
        else:
            names[name] = value
    at = _time(names["time"], faults) if "time" in names else 0.0
    kind = _type(names["type"], faults) if "type" in names else None
    if message.get("datacontenttype", "application/json") != "application/json":
        faults.append(Fault("/datacontenttype", "only application/json is understood"))
    if "data_base64" in message:
        faults.append(Fault("/data_base64", "give the data as JSON in /data"))
    data = _data(kind, message.get("data"), faults) if kind is not None else None
    if faults or data is None or kind is None:
        raise _malformed(faults)
    return Event(
        source=names["source"],
        id=names["id"],
        type=kind,
        at=at,
        data=data,
        fingerprint=_fingerprint(kind, at, message.get("data")),
    )


def faults_of(error: ValidationError, under: str = "") -> list[Fault]:
    """A pydantic error as faults, each with its place below the pointer `under`."""
    return [
        Fault(
            "/".join(
                [under, *(str(part).replace("~", "~0").replace("/", "~1") for part in e["loc"])]
            ),
            e["msg"].removeprefix("Value error, "),
        )
        for e in error.errors(include_url=False, include_context=False, include_input=False)
        if e["type"] != "default_factory_not_called"  # follows from another fault
    ]


def _malformed(faults: list[Fault]) -> Refused:
    first = faults[0]
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return Refused(
        Why.MALFORMED,
        f"{first.pointer or 'the event'}: {first.detail}{more}",
        "Correct what `faults` lists and send the event again.",
        tuple(faults),
    )


def _time(text: str, faults: list[Fault]) -> float:
    if _RFC3339.fullmatch(text):
        try:
            return datetime.fromisoformat(text.upper()).astimezone(UTC).timestamp()
        except (ValueError, OverflowError):
            pass  # the form was right, the date was not: the same fault is reported below
    faults.append(
        Fault("/time", f"{text!r} is no RFC 3339 time with a zone: write 2030-01-31T08:00:00.5Z")
    )
    return 0.0


def _type(text: str, faults: list[Fault]) -> EventType | None:
    try:
        return EventType(text)
    except ValueError:
        faults.append(Fault("/type", f"{text!r} is none of {', '.join(EventType)}"))
        return None


def _data(kind: EventType, data: object, faults: list[Fault]) -> EventData | None:
    try:
        return DATA[kind].model_validate(data)
    except ValidationError as error:
        faults.extend(faults_of(error, "/data"))
        return None


def _fingerprint(kind: EventType, at: float, data: Any) -> str:
    text = json.dumps([kind, at, data], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
