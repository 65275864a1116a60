"""What are metrics called in a Prometheus? The file policies/prometheus.yaml, and, pure, what its
series say of VMs and hosts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from controller.agent.records import Raw
from controller.model.metrics import COUNTERS, METRICS, Scope
from controller.settings import Section, read_policy

#: The mapping that comes with Pleach.
DEFAULT = Path(__file__).parents[2] / "policies" / "prometheus.yaml"

Selector = Annotated[str, Field(min_length=1, max_length=2_000)]


class Choice(Section):
    """One way to know a metric."""

    select: Selector
    minus: Selector | None = None
    of: str | None = None
    count: bool = False


class Kind(Section):
    """Metrics of VMs, or of hosts."""

    #: The label whose value names one.
    label: Annotated[str, Field(min_length=1)]
    #: Ids by values of the label, where these are none.
    ids: dict[str, str] = Field(default_factory=dict)
    metrics: dict[str, list[Choice]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _of_what_is_there(self) -> Self:
        for name, choices in self.metrics.items():
            for choice in choices:
                if choice.of is not None and choice.of not in self.metrics:
                    raise ValueError(f"{name} is a share of {choice.of}, which is not here")
        return self


class PrometheusNames(Section):
    """The whole file."""

    delay_s: Annotated[float, Field(ge=0, le=600)] = 10.0
    most_s: Annotated[float, Field(gt=0, le=86_400)] = 3_600.0
    vm: Kind = Kind(label="domain")
    host: Kind = Kind(label="instance")

    @model_validator(mode="after")
    def _known(self) -> Self:
        for kind, scope in ((self.vm, Scope.VM), (self.host, Scope.HOST)):
            for name in kind.metrics:
                metric = METRICS.get(name) or COUNTERS.get(name)
                if not name.startswith("_") and (metric is None or metric.scope is not scope):
                    raise ValueError(f"{name} is no metric of a {scope}; see GET /v1/metrics")
        return self

    @property
    def selectors(self) -> tuple[str, ...]:
        """All that is to be asked for."""
        found: dict[str, None] = {}
        for kind in (self.vm, self.host):
            for choice in (choice for choices in kind.metrics.values() for choice in choices):
                found[choice.select] = None
                if choice.minus is not None:
                    found[choice.minus] = None
        return tuple(found)


def load(path: Path = DEFAULT) -> PrometheusNames:
    """The mapping in a file. Raises SettingsError with everything that is wrong with it."""
    return read_policy(PrometheusNames, path)


@dataclass(frozen=True, slots=True)
class Sample:
    """A value of a series, which is told by its labels, at a time (Unix seconds)."""

    labels: Mapping[str, str]
    at: float
    value: float


#: The values of one thing at one time: by selector, then by series.
_Told = Mapping[str, Mapping[str, float]]


def readings(
    names: PrometheusNames, told: Mapping[str, Iterable[Sample]]
) -> Iterator[tuple[str, float, Raw]]:
    """What the samples that each selector found say: (id, time, what was read), by time. What
    Prometheus scraped together has the same time there."""
    for kind, name_of in ((names.vm, _as_it_is), (names.host, _without_port)):
        asked = {c.select for choices in kind.metrics.values() for c in choices}
        asked |= {c.minus for choices in kind.metrics.values() for c in choices if c.minus}
        moments: dict[tuple[float, str], dict[str, dict[str, float]]] = defaultdict(dict)
        for selector in asked:
            for sample in told.get(selector, ()):
                value = sample.labels.get(kind.label)
                if value:
                    subject = kind.ids.get(value) or name_of(value)
                    series = moments[sample.at, subject].setdefault(selector, {})
                    series[_series(sample.labels)] = sample.value
        for (at, subject), found in sorted(moments.items(), key=lambda moment: moment[0]):
            yield subject, at, _raw(kind, found)


def _raw(kind: Kind, told: _Told) -> Raw:
    gauges: dict[str, float] = {}
    counts: dict[str, Mapping[str, float]] = {}
    shares: dict[str, tuple[Mapping[str, float], float]] = {}
    for name, choices in kind.metrics.items():
        choice = _chosen(choices, told)
        if choice is None or name.startswith("_"):
            continue
        series = told[choice.select]
        if choice.of is not None:
            cpus = _gauge(_chosen(kind.metrics[choice.of], told), told)
            if cpus is not None:
                shares[name] = (series, cpus)
        elif name in COUNTERS:
            counts[name] = series
        elif (value := _gauge(choice, told)) is not None:
            gauges[name] = value
    return Raw(gauges, counts, shares)


def _chosen(choices: Sequence[Choice], told: _Told) -> Choice | None:
    """The first for which there is all that it needs."""
    for choice in choices:
        if told.get(choice.select) and (choice.minus is None or told.get(choice.minus)):
            return choice
    return None


def _gauge(choice: Choice | None, told: _Told) -> float | None:
    if choice is None:
        return None
    series = told[choice.select]
    if choice.count:
        return float(len(series))
    less = sum(told[choice.minus].values()) if choice.minus is not None else 0.0
    return sum(series.values()) - less


def _series(labels: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in sorted(labels.items()))


_NameOf = Callable[[str], str]


def _as_it_is(value: str) -> str:
    return value


def _without_port(value: str) -> str:
    name, colon, port = value.rpartition(":")
    return name.strip("[]") if colon and port.isdigit() else value
