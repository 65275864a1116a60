"""What is an operator told, once, and what became of it? Alerts as records with a state. Pure.

Findings of one kind about one thing are one alert for as long as it is not closed: a further one
adds to it. An alert is open, acknowledged by someone, or closed, by someone or because nothing
was found any more; what comes after that is a new alert.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from controller.observe.anomalies.bank import Finding, View
from controller.observe.anomalies.signatures import Deviation, What

if TYPE_CHECKING:  # slow to import, and the brain needs nothing of it
    from controller.observe.anomalies.roles import Stray


class Kind(StrEnum):
    """What a thing deviates from, or what it does."""

    OWN_PATTERN = "own_pattern"
    ROLE = "role"
    NEW_PEER = "new_peer"
    SCAN = "scan"
    EXFILTRATION = "exfiltration"
    LIMIT = "limit"


class Severity(StrEnum):
    """How bad it is, the worst last."""

    WARNING = "warning"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """The higher the worse."""
        return list(Severity).index(self)


class State(StrEnum):
    """Where an alert stands."""

    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Signal:
    """One thing found: about a VM (or host or port) and, for OWN_PATTERN and LIMIT, its metric.

    `score` is at least 1, the bound of what is reported; `why` says it in words and numbers;
    `at` is in Unix seconds, UTC; `severity` is given where a rule says it.
    """

    kind: Kind
    vm: str
    metric: str
    at: float
    score: float
    why: str
    severity: Severity | None = None

    @property
    def key(self) -> str:
        """What makes signals one alert."""
        return f"{self.kind}/{self.vm}/{self.metric}"


@dataclass(frozen=True, slots=True)
class Alert:
    """Signals of one kind about one thing: the first and the last, how many, and the strongest
    one's score and words; `severity` is the worst that it had. `by` is who acknowledged or closed
    it; "" for the product itself."""

    id: str
    kind: Kind
    vm: str
    metric: str
    state: State
    first_at: float
    last_at: float
    count: int
    score: float
    why: str
    changed_at: float
    by: str = ""
    severity: Severity = Severity.WARNING

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.vm}/{self.metric}"


class WrongStateError(ValueError):
    """An alert that cannot be moved as was asked."""


def of_finding(finding: Finding, vm: str, metric: str) -> Signal:
    """A deviation of a metric from its own past."""
    view, way = _VIEWS[finding.view], 0 if finding.upward else 1
    why = (
        f"{metric} {view[way]}: {finding.value:.4g} where {finding.expected:.4g} is usual, "
        f"{finding.score:.2g} times the bound of its own past"
    )
    return Signal(Kind.OWN_PATTERN, vm, metric, finding.at, finding.score, why)


def of_deviation(deviation: Deviation) -> Signal:
    """A deviation of communication from its own past."""
    names = ", ".join(deviation.about)
    value, expected = deviation.value, deviation.expected
    kind, why = {
        What.NEW_PEER: (
            Kind.NEW_PEER,
            f"{value:.0f} peers never seen before: {names}; usual are {expected:.2g} an hour",
        ),
        What.SCAN: (
            Kind.SCAN,
            f"{value:.0f} endpoints tried for the first time within an hour, where up to "
            f"{expected:.0f} would be believed: {names}, ...",
        ),
        What.VOLUME: (
            Kind.EXFILTRATION,
            f"{value:.4g} bytes sent out of the fabric within an hour, where up to "
            f"{expected:.4g} would be believed",
        ),
    }[deviation.what]
    return Signal(kind, deviation.source, "", deviation.at, deviation.score, why)


def of_stray(stray: Stray, feature: str, at: float) -> Signal:
    """A VM that is unlike its role, most of all in `feature`."""
    why = (
        f"unlike the others of role {stray.role}, most of all in {feature}: "
        f"{stray.distance:.2g} from their middle, where {stray.usual:.2g} is usual"
    )
    return Signal(Kind.ROLE, stray.vm, "", at, stray.score, why)


def take(
    standing: Mapping[str, Alert],
    signal: Signal,
    new_id: str,
    severity: Severity = Severity.WARNING,
) -> Alert:
    """The alert that `signal`, which is as bad as `severity`, opens (as `new_id`) or adds to.

    `standing` are the alerts that are not closed, by key. A signal that is older than the
    alert's last one widens it, and moves nothing back.
    """
    alert = standing.get(signal.key)
    if alert is None or alert.state is State.CLOSED:
        return Alert(
            new_id, signal.kind, signal.vm, signal.metric, State.OPEN, signal.at, signal.at,
            1, signal.score, signal.why, signal.at, "", severity,
        )  # fmt: skip
    stronger = signal.score > alert.score
    return replace(
        alert,
        first_at=min(alert.first_at, signal.at),
        last_at=max(alert.last_at, signal.at),
        count=alert.count + 1,
        score=max(alert.score, signal.score),
        why=signal.why if stronger else alert.why,
        severity=max(severity, alert.severity, key=lambda one: one.rank),
    )


def moved(alert: Alert, to: State, at: float, by: str) -> Alert:
    """The alert in another state, by `by` at `at`; itself if it is in that state already.

    Raises WrongStateError for a closed one, and for opening one again.
    """
    if to is alert.state:
        return alert
    if to not in _NEXT[alert.state]:
        allowed = " or ".join(_NEXT[alert.state]) or "nothing: a new finding opens a new alert"
        raise WrongStateError(
            f"alert {alert.id} is {alert.state} and cannot become {to}; it can become {allowed}"
        )
    return replace(alert, state=to, changed_at=max(at, alert.changed_at), by=by)


def settled(alert: Alert, now: float, quiet_s: float) -> Alert:
    """Closed where it is open and nothing was found for `quiet_s` seconds. What someone
    acknowledged is theirs to close."""
    if alert.state is State.OPEN and now - alert.last_at > quiet_s:
        return moved(alert, State.CLOSED, now, "")
    return alert


_NEXT: dict[State, tuple[State, ...]] = {
    State.OPEN: (State.ACKNOWLEDGED, State.CLOSED),
    State.ACKNOWLEDGED: (State.CLOSED,),
    State.CLOSED: (),
}
#: Each view in words, upward and downward.
_VIEWS: dict[View, tuple[str, str]] = {
    View.SPIKE: ("rose suddenly", "fell suddenly"),
    View.BURST: ("was high over some samples", "was low over some samples"),
    View.LEVEL: ("moved to a higher level", "moved to a lower level"),
    View.SPREAD: ("moves more than it did", "moves less than it did"),
    View.SHARP: ("rose out of a calm stretch", "fell out of a calm stretch"),
}
