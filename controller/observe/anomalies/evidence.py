"""What does an investigation tell? The evidence around an alert, in words. Pure.

Evidence is kept as JSON. What belongs to each kind of it is bounded here, so that a bundle has
some 100 KB at most however large the fabric is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from controller.history.series import Series
from controller.model.metrics import METRICS
from controller.observe.anomalies.alerts import Alert

Json = dict[str, Any]

#: Seconds of metrics before an alert's first signal and after its last one, and of the time
#: before that they are compared with.
BEFORE_S = 6 * 3_600.0
AFTER_S = 1_800.0
USUAL_S = 86_400.0
#: Seconds around the first signal in which something else may have to do with it.
NEAR_S = 3_600.0
#: Entries of each kind that are kept, and of which words tell.
MOST = 50
_TOLD = 5
#: Of a metric is told that is this many times its usual deviations away.
_FAR = 3.0


@dataclass(frozen=True, slots=True)
class Bundle:
    """What was gathered, each of it as JSON, most telling first; `missing` says what could not be
    gathered, and why."""

    metrics: Json = field(default_factory=dict)
    host: Json = field(default_factory=dict)
    placement: Json = field(default_factory=dict)
    migrations: Sequence[Json] = ()
    services: Sequence[Json] = ()
    talks: Sequence[Json] = ()
    denials: Sequence[Json] = ()
    role: Json = field(default_factory=dict)
    alerts: Sequence[Json] = ()
    changes: Sequence[Json] = ()
    packets: Json = field(default_factory=dict)
    missing: Sequence[str] = ()


def series_of(found: Mapping[str, Series], usual: Mapping[str, Series]) -> Json:
    """Metrics as evidence: those of which anything is known, all on the same grid, and what each
    was before (mean, deviation and maximum; null where nothing was)."""
    known = {name: series for name, series in found.items() if np.isfinite(series.values).any()}
    if not known:
        return {}
    times = next(iter(known.values())).times
    return {
        "times": times.tolist(),
        "values": {name: _plain(series.values) for name, series in known.items()},
        "usual": {name: _usual(usual[name].values) for name in known if name in usual},
    }


def words(alert: Alert, bundle: Bundle) -> tuple[str, ...]:
    """The evidence in words, the most telling first."""
    lines = [
        *_of_metrics(alert, bundle.metrics),
        *_of_moves(alert, bundle),
        *_of_role(bundle),
        *_of_others(alert, bundle),
        *_listed("changed within the hour before", bundle.changes, _change),
        *_listed("denied", bundle.denials, _denial),
        *_listed("talked with", bundle.talks, _talk),
        *_listed("answers", bundle.services, _service),
        *_of_packets(bundle.packets),
        *bundle.missing,
    ]
    return tuple(lines)


def as_json(alert: Alert, bundle: Bundle, now: float, complete: bool) -> Json:
    """What is kept of an investigation; bounded."""
    parts = {name: getattr(bundle, name) for name in Bundle.__slots__}
    bounded = {
        name: list(part[:MOST]) if isinstance(part, list | tuple) else part
        for name, part in parts.items()
    }
    return {
        **bounded,
        "words": words(alert, bundle),
        "gathered_at": now,
        "complete": complete,
    }


def _plain(values: Iterable[float]) -> list[float | None]:
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]


def _usual(values: np.ndarray[Any, np.dtype[np.float64]]) -> Json | None:
    known = values[np.isfinite(values)]
    if not known.size:
        return None
    told = {"mean": known.mean(), "deviation": known.std(), "most": known.max()}
    return {name: float(f"{value:.6g}") for name, value in told.items()}


def _of_metrics(alert: Alert, metrics: Json) -> list[str]:
    """Which metrics were far from what they were the day before, the farthest first."""
    if not metrics:
        return []
    times = np.array(metrics["times"])
    then = (times >= alert.first_at - 900.0) & (times <= alert.last_at)
    far = []
    for name, values in metrics["values"].items():
        usual = metrics["usual"].get(name)
        seen = np.array(values, np.float64)[then]
        seen = seen[np.isfinite(seen)]
        if usual is None or not seen.size:
            continue
        most = float(seen[np.argmax(np.abs(seen - usual["mean"]))])
        width = max(usual["deviation"], 0.02 * abs(usual["mean"]), 1e-9)
        distance = abs(most - usual["mean"]) / width
        if distance > _FAR:
            unit = METRICS[name].unit.value
            text = (
                f"{name} came to {most:.4g} {unit}, where {usual['mean']:.4g} was the mean "
                f"of the day before and {usual['most']:.4g} the most"
            )
            far.append((distance, text))
    told = [text for _, text in sorted(far, reverse=True)[:_TOLD]]
    return told or ["no metric of the VM was far from what it was the day before"]


def _of_moves(alert: Alert, bundle: Bundle) -> list[str]:
    lines = []
    if bundle.placement:
        lines.append(f"runs on {bundle.placement['host']}")
    for move in bundle.migrations[:_TOLD]:
        ago = alert.first_at - move["started_at"]
        when = f"{abs(ago) / 60:.0f} min {'before' if ago >= 0 else 'after'} the first signal"
        lines.append(f"migration {move['id']} from {move['source']} to {move['target']}, {when}")
    return lines


def _of_role(bundle: Bundle) -> list[str]:
    if not bundle.role:
        return []
    return [f"plays {bundle.role['id']}, as {bundle.role['count'] - 1} others do"]


def _of_others(alert: Alert, bundle: Bundle) -> list[str]:
    if not bundle.alerts:
        return ["nothing else was reported of it, its host or its role around then"]
    lines = []
    for other in bundle.alerts[:_TOLD]:
        what = other["kind"].replace("_", " ")
        whose = "also of it" if other["vm"] == alert.vm else f"of {other['vm']} ({other['near']})"
        lines.append(f"{whose}: alert {other['id']}, {what}: {other['why']}")
    return lines


def _listed(lead: str, entries: Sequence[Json], tell: Any) -> list[str]:
    if not entries:
        return []
    more = len(entries) - _TOLD
    told = "; ".join(tell(entry) for entry in entries[:_TOLD])
    return [f"{lead}: {told}{f'; and {more} more' if more > 0 else ''}"]


def _change(entry: Json) -> str:
    at = datetime.fromtimestamp(entry["at"], UTC).strftime("%H:%M:%S")
    return f"{entry['action']} of {entry['subject']} by {entry['actor']} at {at} UTC"


def _denial(entry: Json) -> str:
    return (
        f"{entry['packets']} packets from {entry['vm']} to {entry['peer']} "
        f"{entry['protocol']}/{entry['port']}"
    )


def _talk(entry: Json) -> str:
    new = ", for the first time" if entry.get("new") else ""
    return (
        f"{entry['peer']} {entry['protocol']}/{entry['port']} "
        f"({entry['bytes_out']:.4g} bytes out, {entry['bytes_in']:.4g} in{new})"
    )


def _service(entry: Json) -> str:
    risks = f", risky: {', '.join(entry['risks'])}" if entry.get("risks") else ""
    return f"{entry['application']} at {entry['protocol']}/{entry['port']} ({entry['how']}{risks})"


def _of_packets(packets: Json) -> list[str]:
    if not packets:
        return []
    if not packets["count"]:
        return ["it sent and received nothing while its packets were copied"]
    return [f"{packets['count']} of its packets are kept (pleach alerts packets)"]
