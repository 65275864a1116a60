"""What does the operator say of applications? The file policies/applications.yaml.

Everything wrong with the file is told at once, with file, line and field.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from controller.settings import Problem, SettingsError

from .flows import Limits
from .naming import OTHER, Naming
from .records import UNKNOWN
from .services import Rules

#: The policy that comes with Pleach.
DEFAULT = Path(__file__).parents[3] / "policies" / "applications.yaml"

_Name = Annotated[str, Field(min_length=1, max_length=64)]
_PROTOCOLS = ("tcp", "udp")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Members(_Section):
    """What belongs to a category: applications by nDPI's names, and nDPI's own categories."""

    applications: list[_Name] = []
    ndpi: list[_Name] = []


class Looking(_Section):
    """How much is looked at before there is a verdict."""

    packets: Annotated[int, Field(ge=1, le=100)] = 10
    idle_s: Annotated[float, Field(gt=0, le=3600)] = 30.0


class Verifying(_Section):
    """How services are tapped; see `services.Rules`."""

    flows: Annotated[int, Field(ge=1, le=100)] = 1
    attempts: Annotated[int, Field(ge=1, le=1000)] = 12
    every_s: Annotated[float, Field(gt=0)] = 86_400.0
    retry_s: Annotated[float, Field(gt=0)] = 3_600.0
    jitter: Annotated[float, Field(ge=0, lt=1)] = 0.2
    patience_s: Annotated[float, Field(gt=0)] = 600.0


class Behaving(_Section):
    """When the behavioural classifier's answer counts."""

    #: The least calibrated probability of its answer.
    answer_from: Annotated[float, Field(gt=0, le=1)] = 0.8
    #: Protocols that hide what they carry.
    opaque: list[_Name] = []


class ApplicationPolicy(_Section):
    """The whole file."""

    looking: Looking = Looking()
    verifying: Verifying = Verifying()
    behaviour: Behaving = Behaving()
    categories: dict[_Name, Members] = {}
    #: What a port suggests where nothing else is known, by protocol.
    ports: dict[str, dict[int, _Name]] = {}

    @field_validator("ports")
    @classmethod
    def _known(cls, ports: dict[str, dict[int, str]]) -> dict[str, dict[int, str]]:
        for protocol, names in ports.items():
            if protocol not in _PROTOCOLS:
                raise ValueError(f"{protocol} has no ports: choose tcp or udp")
            for port in names:
                if not 0 < port < 65_536:
                    raise ValueError(f"{port} is no port: choose 1 to 65535")
        return ports

    @model_validator(mode="after")
    def _once(self) -> Self:
        for what in ("applications", "ndpi"):
            owners: dict[str, str] = {}
            for category, members in self.categories.items():
                if category == UNKNOWN:
                    raise ValueError(f"{UNKNOWN} is what has no category: choose another name")
                for name in getattr(members, what):
                    if owners.setdefault(name, category) != category:
                        raise ValueError(
                            f"{name} is in {owners[name]} and in {category}: leave it in one"
                        )
        return self

    def naming(self) -> Naming:
        """The tables for telling categories."""
        return Naming(
            {name: c for c, members in self.categories.items() for name in members.applications},
            {name: c for c, members in self.categories.items() for name in members.ndpi},
            {
                f"{protocol}/{port}": name
                for protocol, names in self.ports.items()
                for port, name in names.items()
            },
            frozenset(self.behaviour.opaque),
            self.behaviour.answer_from,
        )

    def limits(self, traces: bool = False) -> Limits:
        """How much the worker looks at."""
        return Limits(self.looking.packets, idle_s=self.looking.idle_s, traces=traces)

    def rules(self) -> Rules:
        """How services are tapped."""
        return Rules(**self.verifying.model_dump())

    @property
    def names(self) -> tuple[str, ...]:
        """All categories."""
        return (*self.categories, OTHER)


def load(path: Path = DEFAULT) -> ApplicationPolicy:
    """The policy in a file. Raises SettingsError with everything that is wrong with it."""
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except OSError as error:
        raise SettingsError(Problem(str(path), "", error.strerror or str(error))) from error
    except UnicodeDecodeError as error:
        raise SettingsError(Problem(str(path), "", "is not UTF-8 text")) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        cause = getattr(error, "problem", None) or str(error)
        raise SettingsError(Problem(place, "", f"is not YAML: {cause}")) from error
    twice = [
        Problem(f"{path}:{line}", name, "is set a second time") for name, line in _twice(root, "")
    ]
    try:
        policy = ApplicationPolicy.model_validate(data or {})
    except ValidationError as error:
        raise SettingsError(*twice, *(_problem(path, root, dict(e)) for e in error.errors())) from (
            error
        )
    if twice:
        raise SettingsError(*twice)
    return policy


def _twice(node: yaml.Node | None, above: str) -> Iterator[tuple[str, int]]:
    """Fields that a mapping has more than once, of which YAML would take the last in silence."""
    if not isinstance(node, yaml.MappingNode):
        return
    seen = set()
    for key, value in node.value:
        name = f"{above}.{key.value}" if above else str(key.value)
        if key.value in seen:
            yield name, key.start_mark.line + 1
        seen.add(key.value)
        yield from _twice(value, name)


def _problem(path: Path, root: yaml.Node | None, error: dict[str, Any]) -> Problem:
    loc = [str(part) for part in error["loc"] if part != "[key]"]
    message = str(error["msg"]).removeprefix("Value error, ")
    hint = ""
    if error["type"] == "extra_forbidden":
        known = sorted(_fields(loc[:-1]))
        near = difflib.get_close_matches(loc[-1], known, 1)
        message = "there is no such field"
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
    elif not isinstance(error["input"], dict | list | BaseModel):
        message = f"{message}, not {error['input']!r}"
    return Problem(f"{path}:{_line(root, loc)}", ".".join(loc), message, hint)


def _fields(loc: list[str]) -> set[str]:
    model: type[BaseModel] = ApplicationPolicy
    if len(loc) == 2 and loc[0] == "categories":
        model = Members
    elif len(loc) == 1:
        annotation = ApplicationPolicy.model_fields[loc[0]].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return set(model.model_fields)


def _line(node: yaml.Node | None, loc: list[str]) -> int:
    """The line of a field, or of the closest thing above it."""
    if node is None:
        return 1
    line = int(node.start_mark.line) + 1
    if not loc:
        return line
    if isinstance(node, yaml.SequenceNode) and loc[0].isdigit() and int(loc[0]) < len(node.value):
        return _line(node.value[int(loc[0])], loc[1:])
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == loc[0]:
                return _line(value, loc[1:]) if loc[1:] else int(key.start_mark.line) + 1
    return line
