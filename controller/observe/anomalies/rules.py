"""What is an operator told of, and how loudly? The file policies/alerts.yaml.

Everything wrong with the file is told at once, with file, line and field.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from controller.model.metrics import METRICS, Scope
from controller.observe.anomalies.alerts import Kind, Severity, Signal
from controller.settings import Section, read_policy

#: The rules that come with Pleach.
DEFAULT = Path(__file__).parents[3] / "policies" / "alerts.yaml"


def _known_metric(name: str) -> str:
    if name not in METRICS or METRICS[name].scope is not Scope.VM:
        known = ", ".join(m.name for m in METRICS.values() if m.scope is Scope.VM)
        raise ValueError(f"there is no metric {name} of VMs: there are {known}")
    return name


_Metric = Annotated[str, AfterValidator(_known_metric)]
_Pattern = Annotated[str, Field(min_length=1, max_length=127)]
_Score = Annotated[float, Field(ge=1, le=1e6)]
_Seconds = Annotated[float, Field(gt=0, le=31_536_000)]


class KindRules(Section):
    """When signals of one kind become an alert, a critical one, and are over."""

    score: _Score = 1.0
    critical: _Score = 3.0
    quiet_s: _Seconds = 86_400.0
    except_vms: Annotated[tuple[_Pattern, ...], Field(strict=False)] = ()


class MetricRules(Section):
    """`least` is the smallest difference that can matter, in the metric's unit."""

    least: Annotated[float, Field(ge=0)] = 0.0


class PatternRules(KindRules):
    """Of metrics that leave their own past; `false_per_week` counts reports that are nothing,
    over all series."""

    quiet_s: _Seconds = 21_600.0
    false_per_week: Annotated[float, Field(gt=0, le=1e6)] = 10.0
    metrics: Annotated[dict[_Metric, MetricRules], Field(default_factory=dict)]


class Limit(Section):
    """A metric must not be above (or below) something for `for_s` seconds."""

    metric: _Metric
    above: float | None = None
    below: float | None = None
    for_s: Annotated[float, Field(ge=300, le=86_400)] = 900.0
    severity: Annotated[Severity, Field(strict=False)] = Severity.WARNING
    #: Which VMs; without, all.
    vms: Annotated[tuple[_Pattern, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.above is None) == (self.below is None):
            raise ValueError("give either above or below")
        return self

    def concerns(self, vm: str) -> bool:
        """Whether it is about `vm`."""
        return not self.vms or any(fnmatchcase(vm, pattern) for pattern in self.vms)


class Rules(Section):
    """The whole file."""

    own_pattern: PatternRules = PatternRules(metrics={})
    role: KindRules = KindRules(quiet_s=172_800.0)
    new_peer: KindRules = KindRules(score=1.5, critical=10.0)
    scan: KindRules = KindRules()
    exfiltration: KindRules = KindRules()
    limits: Annotated[tuple[Limit, ...], Field(strict=False)] = ()

    def of(self, kind: Kind) -> KindRules:
        """Those about one kind; about limits, what holds for own patterns."""
        if kind is Kind.LIMIT:
            return KindRules(quiet_s=self.own_pattern.quiet_s)
        found: KindRules = getattr(self, kind.value)
        return found

    def wanted(self, signals: Iterable[Signal]) -> list[Signal]:
        """Those that an operator is told of."""
        return [
            signal
            for signal in signals
            if signal.score >= self.of(signal.kind).score
            and not any(fnmatchcase(signal.vm, p) for p in self.of(signal.kind).except_vms)
        ]

    def severity(self, signal: Signal) -> Severity:
        """How bad it is."""
        if signal.severity is not None:
            return signal.severity
        critical = signal.score >= self.of(signal.kind).critical
        return Severity.CRITICAL if critical else Severity.WARNING


def load(path: Path | None = None) -> Rules:
    """The rules of a file, by default of what comes with Pleach. Raises SettingsError with
    everything that is wrong with it."""
    return read_policy(Rules, path or DEFAULT)
