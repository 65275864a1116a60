"""How much traffic may there be next? Past matrices are mended, and made into scenarios.

A matrix holds bit/s from the row's edge to the column's. Scenarios are matrices that may come,
with weights; routing is chosen for all of them together, not for one guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from controller.decide.paths.network import Floats, PathsError

#: Notes name at most this many pairs, so that they can be read.
_NAMED = 5
_NOTHING_USABLE = (
    "no traffic matrix has a usable number: wait for the first interval of counters, or route "
    "evenly until then"
)


@dataclass(frozen=True, slots=True)
class Past:
    """Matrices as measured, (time, edges, edges) in bit/s, after mending; `notes` say what was
    mended."""

    values: Floats
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Scenarios:
    """Demands that may come, (scenarios, edges, edges) in bit/s; `weights` sum to 1."""

    demands: Floats
    weights: Floats

    @property
    def mean(self) -> Floats:
        """The expected matrix."""
        mean: Floats = np.tensordot(self.weights, self.demands, axes=1)
        return mean


@dataclass(frozen=True, slots=True)
class Sampling:
    """How scenarios are made of the past.

    A third each: matrices as they were; the forecast times the errors that earlier forecasts
    had at one time, which keeps what pairs do together; and the forecast times errors drawn
    for each pair on its own, which are combinations that have not been seen.
    """

    #: Matrices of the past that are looked at.
    window: int = 36
    #: Matrices after which one counts half.
    half_life: float = 16.0
    #: Share of the newest matrix in the moving average that stands for a forecast.
    smoothing: float = 0.3
    #: Scenarios with errors drawn for each pair on its own.
    drawn: int = 36
    #: An error beyond this factor counts as this factor.
    most: float = 5.0


_SAMPLING = Sampling()


def mended(values: npt.ArrayLike, edges: Sequence[str]) -> Past:
    """Matrices fit to decide on: what no traffic can be (NaN, infinite, negative as after a
    counter's reset) takes the pair's last good value, or 0 before there is one. PathsError
    where the shape is wrong or no number is good."""
    raw = np.array(values, dtype=np.float64)
    if raw.ndim != 3 or raw.shape[1:] != (len(edges), len(edges)):
        raise PathsError(
            f"traffic matrices have the shape {raw.shape}: for {len(edges)} edges give "
            f"(time, {len(edges)}, {len(edges)}), bit/s from row to column"
        )
    off = ~np.eye(len(edges), dtype=bool)
    good = np.isfinite(raw) & (raw >= 0)
    whole = (good | ~off).all(axis=(1, 2))
    if not len(raw) or (len(edges) > 1 and not (good & off).any()):
        raise PathsError(_NOTHING_USABLE)
    notes = []
    for index in np.flatnonzero(~whole).tolist():
        wrong = ~good[index] & off
        which = "every pair" if wrong.sum() == off.sum() else _pairs(wrong, edges)
        notes.append(f"matrix {index} of {len(raw)}: {which} took the last good value")
    good[:, ~off] = True
    raw[:, ~off] = 0.0
    position = np.where(good, np.arange(len(raw))[:, None, None], -1)
    latest = np.maximum.accumulate(position, axis=0)
    filled = np.take_along_axis(np.where(good, raw, 0.0), np.maximum(latest, 0), axis=0)
    return Past(np.where(latest >= 0, filled, 0.0), tuple(notes))


def smoothed(past: Floats, share: float) -> Floats:
    """Exponentially smoothed matrices: entry t is the forecast for t from before t, with one
    more entry than `past` for the time to come."""
    forecast = np.empty((len(past) + 1, *past.shape[1:]))
    forecast[0] = past[0]
    for index, matrix in enumerate(past):
        forecast[index + 1] = share * matrix + (1 - share) * forecast[index]
    return forecast


def scenarios(
    past: Floats, seed: int, sampling: Sampling = _SAMPLING, forecasts: Floats | None = None
) -> Scenarios:
    """What may come after `past` (time, edges, edges).

    `forecasts` (time + 1, edges, edges) are those made for each time of the past and for the
    time to come; a moving average where not given. `seed` makes the draws repeatable.
    """
    if forecasts is None:
        forecasts = smoothed(past, sampling.smoothing)
    if forecasts.shape != (len(past) + 1, *past.shape[1:]):
        raise PathsError(
            f"forecasts have the shape {forecasts.shape}: give one for each of the {len(past)} "
            "past matrices and one for the time to come"
        )
    seen = past[-sampling.window :]
    age = np.arange(len(seen))[::-1]
    recent = 0.5 ** (age / sampling.half_life)
    recent = recent / recent.sum()
    if len(past) < 2:
        return Scenarios(seen, recent)
    ahead = np.maximum(forecasts[-1], 0.0)
    errors = _errors(seen, forecasts[-len(seen) - 1 : -1], sampling.most)
    parts: list[tuple[Floats, Floats]] = [(seen, recent), (ahead * errors, recent)]
    if sampling.drawn:
        drawn = _drawn(errors, sampling.drawn, seed)
        parts.append((ahead * drawn, np.full(sampling.drawn, 1.0 / sampling.drawn)))
    return Scenarios(
        np.concatenate([matrices for matrices, _ in parts]),
        np.concatenate([weights for _, weights in parts]) / len(parts),
    )


def moved(
    matrices: Floats,
    sent: Floats,
    received: Floats,
    source: int,
    target: int,
) -> Floats:
    """Matrices as they would have been with a VM at the edge `target` in place of `source`
    (positions). `sent` and `received` (edges,) are the VM's bit/s to and from each edge.

    What it exchanged with the edge that it joins leaves the fabric; what it exchanges with the
    edge that it leaves enters it. No entry falls below 0.
    """
    moved_matrices = matrices.copy()
    moved_matrices[:, source, :] -= sent
    moved_matrices[:, target, :] += sent
    moved_matrices[:, :, source] -= received
    moved_matrices[:, :, target] += received
    every = np.arange(matrices.shape[1])
    moved_matrices[:, every, every] = 0.0
    return np.maximum(moved_matrices, 0.0)


def _errors(seen: Floats, forecasts: Floats, most: float) -> Floats:
    """What was over what was forecast, with a floor that keeps idle pairs from exploding."""
    floor = 1e-4 * max(float(seen.mean()), 1.0)
    return np.clip((seen + floor) / (np.maximum(forecasts, 0.0) + floor), 0.0, most)


def _drawn(errors: Floats, count: int, seed: int) -> Floats:
    random = np.random.default_rng(seed)
    size = errors.shape[1]
    pick = random.integers(0, len(errors), size=(count, size, size))
    return np.take_along_axis(errors, pick, axis=0)


def _pairs(wrong: npt.NDArray[np.bool_], edges: Sequence[str]) -> str:
    where = np.argwhere(wrong)
    named = [f"{edges[a]} to {edges[b]}" for a, b in where[:_NAMED]]
    more = f" and {len(where) - _NAMED} more" if len(where) > _NAMED else ""
    return ", ".join(named) + more
