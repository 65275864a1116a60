"""What is kept of how a VM behaves: the features of each metric, and all of them as one vector.

The functions that compute are called by name in another process; what is slow to import is
imported in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: The metrics of a VM that say how it behaves.
METRICS = (
    "cpu",
    "memory",
    "net_rx",
    "net_tx",
    "disk_read",
    "disk_write",
    "connections",
    "connections_new",
    "response_time",
)
#: Seconds between two samples.
STEP_S = 300.0
#: Details of the wavelet transform, of 2, 4, ... samples, and the rest.
_SCALES = 7
_LAGS = 2


@dataclass(frozen=True, slots=True)
class Rhythm:
    """A period in seconds, and the share of the variance that lies at it (0 to 1)."""

    length_s: float
    strength: float


@dataclass(frozen=True, slots=True)
class Metric:
    """How one metric behaves (see `features.Features`), over `days` of samples with the mean
    `mean`, in the metric's unit."""

    days: float
    mean: float
    rhythms: tuple[Rhythm, ...]
    wavelet: tuple[float, ...]
    trend: float
    burstiness: float
    autocorrelation: tuple[float, ...]
    variation: float

    def vector(self) -> Array:
        """As numbers, in the order of FEATURES."""
        first = self.rhythms[0] if self.rhythms else Rhythm(STEP_S, 0.0)
        return np.array(
            (
                np.log2(first.length_s / STEP_S),
                first.strength,
                *self.wavelet,
                self.trend,
                self.burstiness,
                *self.autocorrelation,
                self.variation,
            )
        )


#: What the numbers of a metric's vector are.
FEATURES = (
    "the length of its period",
    "the strength of its period",
    *(f"changes within {2 ** (n + 1) * 5} min" for n in range(_SCALES - 1)),
    "slow changes",
    "trend",
    "burstiness",
    "likeness to 5 min before",
    "likeness to an hour before",
    "variation",
)


def feature(place: int) -> str:
    """What number `place` of a VM's vector is, in words."""
    return f"{FEATURES[place % len(FEATURES)]} of {METRICS[place // len(FEATURES)]}"


def vector(metrics: Mapping[str, Metric]) -> Array:
    """A VM's metrics as numbers, NaN for those that are not known."""
    unknown = np.full(len(FEATURES), np.nan)
    parts = [metrics[name].vector() if name in metrics else unknown for name in METRICS]
    return np.concatenate(parts)


def of_json(data: Mapping[str, Mapping[str, Any]]) -> dict[str, Metric]:
    """Metrics as they were kept in JSON."""
    return {
        name: Metric(
            **{
                **fields,
                "rhythms": tuple(Rhythm(**rhythm) for rhythm in fields["rhythms"]),
                "wavelet": tuple(fields["wavelet"]),
                "autocorrelation": tuple(fields["autocorrelation"]),
            }
        )
        for name, fields in data.items()
    }


def to_json(metrics: Mapping[str, Metric]) -> dict[str, dict[str, Any]]:
    """Metrics as they are kept: rounded, since nothing hangs on the rest."""
    return {name: _rounded(asdict(metric)) for name, metric in metrics.items()}


def portraits(values: Mapping[str, Array]) -> list[dict[str, Metric]]:
    """Of each VM the metrics of which enough is known: `values` are (VMs, steps of STEP_S), NaN
    for gaps. A series begins with its first sample."""
    from controller.observe.behaviour.features import features

    many = max((len(rows) for rows in values.values()), default=0)
    found: list[dict[str, Metric]] = [{} for _ in range(many)]
    for name, rows in values.items():
        for place, row in enumerate(rows):
            there = np.flatnonzero(np.isfinite(row))
            known = features(row[there[0] :]) if there.size else None
            if known is None:
                continue
            found[place][name] = Metric(
                days=(row.size - int(there[0])) * STEP_S / 86_400.0,
                mean=float(row[there].mean()),
                rhythms=tuple(Rhythm(p.length * STEP_S, p.strength) for p in known.periods),
                wavelet=known.wavelet,
                trend=known.trend,
                burstiness=known.burstiness,
                autocorrelation=known.autocorrelation,
                variation=known.variation,
            )
    return found


def nearest(
    keys: list[tuple[str, ...]], vectors: Array, asked: Array, most: int
) -> list[list[tuple[tuple[str, ...], float]]]:
    """Of each row of `asked`, the keys of the nearest of `vectors` with their distances, as
    `neighbours.nearest` finds them."""
    from controller.observe.behaviour import neighbours

    found = neighbours.nearest(keys, vectors, asked, most)
    return [[(one.key, one.distance) for one in row] for row in found]


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return value
