"""A dense network that tells all quantiles of a row at once: smooth where trees have steps.

Two hidden layers (SiLU: Elfwing, Uchibe and Doya 2018) on the rows of `features`, learned by the
sum of the pinball losses with AdamW (Loshchilov and Hutter 2019), dropout, and a rate that rises
and falls once. Inputs and outputs have tails of several powers of ten: both go through arcsinh,
which is linear near zero and a logarithm far from it.

It is small enough for numpy, which gives up the interpreter's lock meanwhile: to learn takes
half a minute, to tell 5 microseconds a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.predict.demand.examples import Examples
from controller.predict.demand.targets import QUANTILES

#: What an input may be after scaling: further out nothing was learned.
_FARTHEST_IN = 6.0
#: Before it is stretched by sinh, what an output may be: 548 units of the scale.
_FARTHEST_OUT = 7.0
#: Rows that are told at once: what a processor's cache holds.
_ROWS = 2_048
#: Examples by which inputs are scaled: more do not tell more.
_SCALED_BY = 100_000
#: Constants of AdamW, and the share of steps in which the rate rises.
_MOMENTUM, _SQUARES, _TINY, _DECAY = 0.9, 0.999, 1e-8, 0.01
_RISE = 0.1
#: Of the gradient's length, what is at most used: one example far out would undo a thousand.
_LONGEST = 1.0

_Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Descent:
    """How a network learns: neurons of each hidden layer, times that it sees as many examples
    as there are, examples of a step, the highest rate, and the share of neurons that are left
    out at a time."""

    width: int = 256
    epochs: int = 5
    batch: int = 1_024
    rate: float = 1.5e-3
    drop: float = 0.15


@dataclass(frozen=True)
class Network:
    """Weights [inputs, outputs] and biases of each layer, and the `middle` and `spread` of the
    inputs, after arcsinh."""

    middle: _Floats
    spread: _Floats
    weights_1: _Floats
    biases_1: _Floats
    weights_2: _Floats
    biases_2: _Floats
    weights_3: _Floats
    biases_3: _Floats

    def __post_init__(self) -> None:
        """Raises ValueError for arrays that are no such network."""
        columns = len(self.middle)
        for name, weights, biases in self.layers():
            if weights.ndim != 2 or weights.shape != (columns, len(biases)):
                raise ValueError(f"layer {name} is of {weights.shape}, after {columns} inputs")
            columns = len(biases)
        if self.spread.shape != self.middle.shape or not (self.spread > 0).all():
            raise ValueError("spreads of inputs that are not positive")
        if not all(np.isfinite(array).all() for array in self.arrays().values()):
            raise ValueError("weights that are not finite")

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> Network:
        """What `arrays` told. Raises KeyError or ValueError where they are something else."""
        found = {field.name: arrays[field.name] for field in fields(cls)}
        if any(array.dtype != np.float32 for array in found.values()):
            raise ValueError("weights that are not in single precision")
        return cls(**found)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The network as arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def layers(self) -> list[tuple[str, _Floats, _Floats]]:
        """Name, weights and biases of each."""
        return [
            ("1", self.weights_1, self.biases_1),
            ("2", self.weights_2, self.biases_2),
            ("3", self.weights_3, self.biases_3),
        ]

    def __call__(self, rows: _Floats) -> _Floats:
        """Outputs [outputs, rows] for `rows` [columns, rows]."""
        told = np.empty((len(self.biases_3), rows.shape[1]), dtype=np.float32)
        for at in range(0, rows.shape[1], _ROWS):
            values = _scaled(rows[:, at : at + _ROWS].T, self.middle, self.spread)
            for _, weights, biases in self.layers()[:-1]:
                values = values @ weights
                values += biases
                values *= _sigmoid(values)
            told[:, at : at + _ROWS] = _stretched(values @ self.weights_3 + self.biases_3).T
        return told


@dataclass(frozen=True, slots=True)
class Lesson:
    """What several networks may learn from: `inputs` [examples, columns], scaled by `middle` and
    `spread`, the `outcomes`, and each example's `share` of all that is drawn."""

    inputs: _Floats
    outcomes: _Floats
    share: NDArray[np.float64]
    middle: _Floats
    spread: _Floats


def lesson(shown: Examples, like: Network | None = None) -> Lesson:
    """What is shown, scaled as for the network `like`, or as it needs to be."""
    rows = shown.rows
    middle, spread = (like.middle, like.spread) if like else _usual(rows)
    inputs = np.empty(rows.shape, dtype=np.float32)
    for at in range(0, len(rows), _ROWS):
        inputs[at : at + _ROWS] = _scaled(rows[at : at + _ROWS], middle, spread)
    share = shown.weights / shown.weights.sum()
    return Lesson(inputs, shown.values.astype(np.float32), share, middle, spread)


def learn(
    given: Lesson, descent: Descent, rng: np.random.Generator, begin: Network | None = None
) -> Network:
    """A network for a lesson, each of whose examples counts as much as its share says; one that
    begins with what `begin` knows already, which must be scaled alike, learns from fewer epochs.
    Raises ValueError where learning comes to no end that is finite."""
    width = len(begin.biases_1) if begin else descent.width
    state = _State.begun((given.inputs.shape[1], width, width, len(QUANTILES)), rng)
    if begin:
        state.take(begin)
    count = len(given.inputs)
    batch = min(descent.batch, count)
    steps = max(1, count // batch)
    for epoch in range(descent.epochs):
        drawn = rng.choice(count, steps * batch, p=given.share)
        for step in range(steps):
            some = drawn[step * batch : (step + 1) * batch]
            done = (epoch * steps + step) / (descent.epochs * steps)
            rate = descent.rate * _course(done)
            state.descend(given.inputs[some], given.outcomes[some], rate, descent, rng)
    if not np.isfinite(state.flat).all():
        raise ValueError("a network did not learn: its weights are not finite")
    (w1, b1), (w2, b2), (w3, b3) = state.layers
    parts = (part.copy() for part in (w1, b1, w2, b2, w3, b3))
    return Network(given.middle, given.spread, *parts)


def _usual(rows: _Floats) -> tuple[_Floats, _Floats]:
    """Middle and spread of each column of `rows`, after arcsinh."""
    known = _compressed(rows[:: max(1, len(rows) // _SCALED_BY)])
    middle = np.nan_to_num(np.nanmedian(known, axis=0)).astype(np.float32)
    spread = np.nan_to_num(np.nanstd(known, axis=0), nan=1.0).astype(np.float32)
    return middle, np.where(spread > 1e-6, spread, np.float32(1.0))


def _course(done: float) -> float:
    """The share of the highest rate when so much is done: up, and down to nothing (one cycle:
    Smith and Topin 2019)."""
    if done < _RISE:
        return 0.04 + 0.48 * (1 - float(np.cos(np.pi * done / _RISE)))
    return 0.5 * (1 + float(np.cos(np.pi * (done - _RISE) / (1 - _RISE))))


class _State:
    """What learning changes: all weights in one array, of which the layers are views."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        sizes = list(pairwise(shape))
        total = sum(i * o + o for i, o in sizes)
        self.flat = np.zeros(total, dtype=np.float32)
        self.slope = np.zeros_like(self.flat)
        self.layers = _views(self.flat, sizes)
        self._slopes = _views(self.slope, sizes)
        self._mean, self._square = np.zeros_like(self.flat), np.zeros_like(self.flat)
        self._steps = 0

    @classmethod
    def begun(cls, shape: tuple[int, ...], rng: np.random.Generator) -> _State:
        """With random weights, about as large as keeps the size of what passes (Glorot and
        Bengio 2010)."""
        state = cls(shape)
        for weights, _ in state.layers:
            limit = np.sqrt(6.0 / sum(weights.shape))
            weights[...] = rng.uniform(-limit, limit, weights.shape)
        return state

    def take(self, begin: Network) -> None:
        """Go on from the weights of `begin`."""
        for (weights, biases), (_, from_weights, from_biases) in zip(
            self.layers, begin.layers(), strict=True
        ):
            weights[...], biases[...] = from_weights, from_biases

    def descend(
        self, x: _Floats, came: _Floats, rate: float, how: Descent, rng: np.random.Generator
    ) -> None:
        """One step by the examples `x` [examples, inputs]."""
        (w1, b1), (w2, b2), (w3, b3) = self.layers
        first, slope_1 = _neurons(x @ w1 + b1, how.drop, rng)
        second, slope_2 = _neurons(first @ w2 + b2, how.drop, rng)
        self._backward(x, first, second, slope_1, slope_2, _pull(second @ w3 + b3, came))
        self._step(rate)

    def _backward(
        self,
        x: _Floats,
        first: _Floats,
        second: _Floats,
        slope_1: _Floats,
        slope_2: _Floats,
        pull: _Floats,
    ) -> None:
        (_, _), (w2, _), (w3, _) = self.layers
        (dw1, db1), (dw2, db2), (dw3, db3) = self._slopes
        np.matmul(second.T, pull, out=dw3)
        pull.sum(axis=0, out=db3)
        back = (pull @ w3.T) * slope_2
        np.matmul(first.T, back, out=dw2)
        back.sum(axis=0, out=db2)
        back = (back @ w2.T) * slope_1
        np.matmul(x.T, back, out=dw1)
        back.sum(axis=0, out=db1)

    def _step(self, rate: float) -> None:
        length = float(np.sqrt(np.dot(self.slope, self.slope)))
        if length > _LONGEST:
            self.slope *= _LONGEST / length
        self._steps += 1
        self._mean += (1 - _MOMENTUM) * (self.slope - self._mean)
        self._square += (1 - _SQUARES) * (self.slope * self.slope - self._square)
        mean = self._mean / (1 - _MOMENTUM**self._steps)
        root = np.sqrt(self._square / (1 - _SQUARES**self._steps)) + _TINY
        self.flat *= 1 - rate * _DECAY
        self.flat -= rate * mean / root


def _views(flat: _Floats, sizes: list[tuple[int, int]]) -> list[tuple[_Floats, _Floats]]:
    found, at = [], 0
    for inputs, outputs in sizes:
        end = at + inputs * outputs
        found.append((flat[at:end].reshape(inputs, outputs), flat[end : end + outputs]))
        at = end + outputs
    return found


def _neurons(values: _Floats, drop: float, rng: np.random.Generator) -> tuple[_Floats, _Floats]:
    """What neurons pass on of `values`, and its slope; some are left out, others stand in."""
    gate = _sigmoid(values)
    passed = values * gate
    slope = gate + passed * (1 - gate)
    if drop:
        kept = (rng.random(values.shape, dtype=np.float32) >= drop) * np.float32(1 / (1 - drop))
        passed *= kept
        slope *= kept
    return passed, slope


def _pull(told: _Floats, came: _Floats) -> _Floats:
    """The slope of the mean pinball loss by what is told before it is stretched."""
    levels = np.array(QUANTILES, dtype=np.float32)
    below = came[:, None] > _stretched(told)
    pull = np.where(below, -levels, 1 - levels) * np.cosh(
        np.clip(told, -_FARTHEST_OUT, _FARTHEST_OUT)
    )
    return np.asarray(pull / told.size, dtype=np.float32)


def _sigmoid(values: _Floats) -> _Floats:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-values)))


def _stretched(told: _Floats) -> _Floats:
    return np.asarray(np.sinh(np.clip(told, -_FARTHEST_OUT, _FARTHEST_OUT)))


def _compressed(rows: _Floats) -> _Floats:
    """Inputs on the scale on which they are learned; NaN where nothing is known."""
    return np.asarray(np.arcsinh(np.where(np.isfinite(rows), rows, np.nan)))


def _scaled(rows: _Floats, middle: _Floats, spread: _Floats) -> _Floats:
    """[rows, columns]; what is not known is as it mostly is."""
    values = (_compressed(rows) - middle) / spread
    return np.asarray(np.clip(np.nan_to_num(values, copy=False), -_FARTHEST_IN, _FARTHEST_IN))
