"""What does the operator say of classes and priorities? The file policies/qos.yaml.

Everything wrong with it is told at once, with file, line and field.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from controller.settings import Problem, SettingsError

#: Code points by name: RFC 4594 (classes of service), RFC 5865 (VOICE-ADMIT), RFC 8622 (LE).
DSCP: Mapping[str, int] = {
    "DF": 0,
    "LE": 1,
    "EF": 46,
    "VA": 44,
    **{f"CS{n}": 8 * n for n in range(8)},
    **{f"AF{n}{drop}": 8 * n + 2 * drop for n in range(1, 5) for drop in range(1, 4)},
}

_MEGA = 1e6
_Name = Annotated[str, Field(min_length=1, max_length=64)]
_Rate = Annotated[float, Field(ge=0, le=1e9)]
_Uplink = Annotated[float, Field(gt=0, le=1e9)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class QosClass(_Section):
    """A class of traffic; see the comments of the file."""

    #: A code point, 0 to 63; a name in the file.
    dscp: Annotated[int, Field(ge=0, le=63)]
    queue: Annotated[int, Field(ge=0, le=7)]
    share: Annotated[float, Field(gt=0, le=1)]
    most: Annotated[float, Field(gt=0, le=1)] = 1.0
    paths: Literal["latency", "utilisation"] = "utilisation"
    categories: list[_Name] = []
    applications: list[_Name] = []

    @field_validator("dscp", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if value.upper() not in DSCP:
            near = difflib.get_close_matches(value.upper(), DSCP, 1)
            hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(DSCP)}"
            raise ValueError(f"there is no DSCP {value}: {hint}")
        return DSCP[value.upper()]

    @model_validator(mode="after")
    def _room(self) -> Self:
        if self.most < self.share:
            raise ValueError(f"most ({self.most}) is below share ({self.share}): raise it")
        return self


class Priority(_Section):
    """What a VM weighs when bandwidth is short."""

    weight: Annotated[float, Field(gt=0, le=1e6)]


class VmRule(_Section):
    """What some VMs get, each direction. Rates in Mbit/s; no ceiling where none is given."""

    vms: list[_Name] = []
    groups: list[_Name] = []
    tenants: list[_Name] = []
    priority: _Name
    guarantee_mbps: _Rate = 0.0
    ceiling_mbps: _Rate | None = None
    #: Class of what they send where no service is known.
    traffic: _Name | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.ceiling_mbps is not None and self.ceiling_mbps < self.guarantee_mbps:
            raise ValueError(
                f"ceiling_mbps ({self.ceiling_mbps:g}) is below guarantee_mbps "
                f"({self.guarantee_mbps:g}): raise it"
            )
        return self

    def holds(self, vm: str, tenant: str, groups: Sequence[str]) -> bool:
        """Whether the rule is for a VM."""
        if not (self.vms or self.groups or self.tenants):
            return True
        named = vm in self.vms or tenant in self.tenants
        return named or any(group in self.groups for group in groups)


class Terms(_Section):
    """What a VM gets in each direction: weight, and bit/s of guarantee and ceiling."""

    priority: str
    weight: float
    guarantee_bps: float
    ceiling_bps: float | None
    #: Class of what it sends where no service is known; None is the default one.
    traffic: str | None = None


class QosPolicy(_Section):
    """The whole file."""

    classes: dict[_Name, QosClass]
    default: _Name
    priorities: dict[_Name, Priority]
    vms: list[VmRule]
    #: Mbit/s of hosts' uplinks, in each direction, by host; and of every other host's.
    hosts: dict[_Name, _Uplink] = {}
    uplink_mbps: _Uplink | None = None

    @field_validator("classes")
    @classmethod
    def _apart(cls, classes: dict[str, QosClass]) -> dict[str, QosClass]:
        for what in ("queue", "dscp"):
            owners: dict[int, str] = {}
            for name, made in classes.items():
                number = getattr(made, what)
                if owners.setdefault(number, name) != name:
                    raise ValueError(
                        f"{what} {number} is of {owners[number]} and of {name}: give each its own"
                    )
        total = sum(made.share for made in classes.values())
        if total > 1 + 1e-9:
            raise ValueError(f"the shares sum to {total:g}: lower some, to 1 at most")
        for what in ("categories", "applications"):
            owner: dict[str, str] = {}
            for name, made in classes.items():
                for member in getattr(made, what):
                    if owner.setdefault(member, name) != name:
                        raise ValueError(
                            f"{member} is in {owner[member]} and in {name}: leave it in one"
                        )
        return classes

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.default not in self.classes:
            raise ValueError(
                f"default is {self.default}, which is no class: choose {', '.join(self.classes)}"
            )
        unknown = [rule.priority for rule in self.vms if rule.priority not in self.priorities]
        if unknown:
            raise ValueError(
                f"vms name the priority {unknown[0]}, which is not there: choose "
                f"{', '.join(self.priorities)}"
            )
        strange = [rule.traffic for rule in self.vms if rule.traffic not in (None, *self.classes)]
        if strange:
            raise ValueError(
                f"vms name the class {strange[0]}, which is not there: choose "
                f"{', '.join(self.classes)}"
            )
        if not self.vms or not self.vms[-1].holds("", "", ()):
            raise ValueError("the last entry of vms must be for all: add {priority: …} at the end")
        return self

    def class_of(self, application: str, category: str) -> str:
        """The class of an application: by its name first, then by its category."""
        for what, name in (("applications", application), ("categories", category)):
            for class_name, made in self.classes.items():
                if name in getattr(made, what):
                    return class_name
        return self.default

    def terms(self, vm: str, tenant: str, groups: Sequence[str]) -> Terms:
        """What a VM gets: by the first rule that is for it."""
        rule = next(rule for rule in self.vms if rule.holds(vm, tenant, groups))
        ceiling = rule.ceiling_mbps
        return Terms(
            priority=rule.priority,
            weight=self.priorities[rule.priority].weight,
            guarantee_bps=rule.guarantee_mbps * _MEGA,
            ceiling_bps=None if ceiling is None else ceiling * _MEGA,
            traffic=rule.traffic,
        )

    def uplink_bps(self, host: str) -> float | None:
        """What a host's uplink carries in each direction; None where nobody says."""
        mbps = self.hosts.get(host, self.uplink_mbps)
        return None if mbps is None else mbps * _MEGA


#: The policy that comes with Pleach.
DEFAULT = Path(__file__).parents[3] / "policies" / "qos.yaml"


def load(path: Path | None = None) -> QosPolicy:
    """The policy in a file, or the one that comes with Pleach. Raises SettingsError."""
    path = path or DEFAULT
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(Problem(str(path), "", f"cannot be read: {error}")) from error
    return parse(text, str(path))


def parse(text: str, file: str) -> QosPolicy:
    """The policy in the text of `file`. SettingsError with everything that is wrong with it."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark else file
        cause = getattr(error, "problem", None) or str(error)
        raise SettingsError(Problem(place, "", f"is not YAML: {cause}")) from error
    problems = [
        Problem(f"{file}:{line}", name, "is set a second time", "leave one of them")
        for name, line in _twice(root, ())
    ]
    try:
        policy = QosPolicy.model_validate({} if data is None else data)
    except ValidationError as error:
        problems += [_problem(file, root, dict(found)) for found in error.errors()]
        raise SettingsError(*problems) from error
    if problems:
        raise SettingsError(*problems)
    return policy


def _twice(node: yaml.Node | None, above: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Fields that are there more than once, of which YAML would take the last in silence."""
    if not isinstance(node, yaml.MappingNode):
        return
    seen = set()
    for key, value in node.value:
        name = (*above, str(key.value))
        if key.value in seen:
            yield ".".join(name), key.start_mark.line + 1
        seen.add(key.value)
        yield from _twice(value, name)


def _problem(file: str, root: yaml.Node | None, error: Mapping[str, Any]) -> Problem:
    loc = [str(part) for part in error["loc"] if part != "[key]"]
    cause = str(error["msg"]).removeprefix("Value error, ")
    hint = ""
    if error["type"] == "extra_forbidden":
        cause = "there is no such field"
        known = set(_model(loc).model_fields)
        near = difflib.get_close_matches(loc[-1], known, 1)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(sorted(known))}"
    elif error["type"] != "value_error" and isinstance(error["input"], str | int | float):
        cause = f"{cause}, not {error['input']!r}"
    return Problem(f"{file}:{_line(root, loc)}", ".".join(loc), cause, hint)


def _model(loc: Sequence[str]) -> type[BaseModel]:
    """What the section that `loc` leads into is made of."""
    if len(loc) > 1 and loc[0] == "classes":
        return QosClass
    if len(loc) > 1 and loc[0] == "priorities":
        return Priority
    return VmRule if len(loc) > 1 and loc[0] == "vms" else QosPolicy


def _line(node: yaml.Node | None, loc: Sequence[str]) -> int:
    """The line of a field, or of the closest thing above it."""
    line = int(node.start_mark.line) + 1 if node is not None else 1
    if isinstance(node, yaml.SequenceNode) and loc and int(loc[0]) < len(node.value):
        return _line(node.value[int(loc[0])], loc[1:])
    if isinstance(node, yaml.MappingNode) and loc:
        for key, value in node.value:
            if key.value == loc[0]:
                return _line(value, loc[1:]) if loc[1:] else int(key.start_mark.line) + 1
    return line
