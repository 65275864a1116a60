"""A network that tells all quantiles of a row at once, by choosing among what was seen.

Of the columns of `features`, the first are values that the series had: recent ones, those at the
same time of other days, quantiles and peaks. For each quantile the network gives shares to them,
as attention does, and tells their mean; what none of them says, it adds. So what it tells mostly
stays within what there was, however odd the series, and a copy of yesterday costs it nothing.

Two hidden layers (SiLU: Elfwing, Uchibe and Doya 2018) learn by the sum of the pinball losses
with AdamW (Loshchilov and Hutter 2019) and a rate that rises and falls once. Neurons are left out
at random, and values hidden, so that no one of them is relied upon. Inputs and what is added have
tails of several powers of ten: both go through arcsinh, which is linear near zero and a logarithm
far from it.

It is small enough for numpy, which gives up the interpreter's lock meanwhile: to learn three
million times from an example takes a minute, to tell 7 microseconds a row.
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
#: What a value among which is chosen may be, in units of the scale.
_FARTHEST_SEEN = 500.0
#: Before it is stretched by sinh, what is added may be: 548 units of the scale.
_FARTHEST_OUT = 7.0
#: Rows that are told at once: what a processor's cache holds.
_ROWS = 512
#: Examples by which inputs are scaled: more do not tell more.
_SCALED_BY = 100_000
#: Constants of AdamW, and the share of steps in which the rate rises.
_MOMENTUM, _SQUARES, _TINY, _DECAY = 0.9, 0.999, 1e-8, 0.01
_RISE = 0.1
#: Of the gradient's length, what is at most used: one example far out would undo a thousand.
_LONGEST = 1.0
#: Steps in which all examples are seen once, at least, and examples of the smallest of them.
_STEPS, _SMALLEST = 128, 64
#: Deviation of the weights of shares at first: about all that was seen counts alike.
_ALIKE = 0.02
#: What stands for the share of a value that is hidden, before the exponential.
_HIDDEN = np.float32(-1e4)

_Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Descent:
    """How a network learns: neurons of each hidden layer, times that it sees as many examples
    as a lesson has, examples of a step at most, the highest rate, and the shares of neurons that
    are left out and of seen values that are hidden at a time."""

    width: int = 256
    epochs: int = 5
    batch: int = 1_024
    rate: float = 1.5e-3
    drop: float = 0.15
    hide: float = 0.3


@dataclass(frozen=True)
class Network:
    """Weights [inputs, outputs] and biases of each layer, and the `middle` and `spread` of the
    inputs, after arcsinh.

    Layers 1 and 2 are hidden. The third, of both, tells what is added; the fourth the shares, for
    each quantile those of the first inputs and of the base, which is 0.
    """

    middle: _Floats
    spread: _Floats
    weights_1: _Floats
    biases_1: _Floats
    weights_2: _Floats
    biases_2: _Floats
    weights_added: _Floats
    biases_added: _Floats
    weights_shares: _Floats
    biases_shares: _Floats

    def __post_init__(self) -> None:
        """Raises ValueError for arrays that are no such network."""
        columns, hidden = len(self.middle), len(self.biases_2)
        before = (columns, len(self.biases_1), hidden, hidden)
        for inputs, (name, weights, biases) in zip(before, self.layers(), strict=True):
            if weights.ndim != 2 or weights.shape != (inputs, len(biases)):
                raise ValueError(f"layer {name} is of {weights.shape}, after {inputs} inputs")
        if not self.outputs or len(self.biases_shares) != self.outputs * (self.seen + 1):
            raise ValueError(f"{len(self.biases_shares)} shares for {self.outputs} quantiles")
        if not 0 <= self.seen <= columns:
            raise ValueError(f"layer shares chooses among {self.seen} of {columns} inputs")
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
            ("added", self.weights_added, self.biases_added),
            ("shares", self.weights_shares, self.biases_shares),
        ]

    @property
    def outputs(self) -> int:
        """Quantiles that it tells."""
        return len(self.biases_added)

    @property
    def seen(self) -> int:
        """The number of inputs, the first ones, among which it chooses."""
        return len(self.biases_shares) // self.outputs - 1

    def __call__(self, rows: _Floats) -> _Floats:
        """Outputs [outputs, rows] for `rows` [columns, rows]."""
        return self.explained(rows, np.empty((self.seen + 1, 0), dtype=np.float32))[0]

    def explained(self, rows: _Floats, sources: _Floats) -> tuple[_Floats, _Floats]:
        """Outputs for `rows`, and the shares [rows, sources] that `sources` [seen + 1, sources]
        together have in the first."""
        told = np.empty((self.outputs, rows.shape[1]), dtype=np.float32)
        counted = np.empty((rows.shape[1], sources.shape[1]), dtype=np.float32)
        for at in range(0, rows.shape[1], _ROWS):
            some = rows[:, at : at + _ROWS].T
            values = _scaled(some, self.middle, self.spread)
            for _, weights, biases in self.layers()[:2]:
                values = values @ weights
                values += biases
                values *= _sigmoid(values)
            added = _stretched(values @ self.weights_added + self.biases_added)
            shares = _shares(values @ self.weights_shares + self.biases_shares, self.outputs)
            told[:, at : at + _ROWS] = (added + _mean(shares, _seen(some, self.seen))).T
            counted[at : at + _ROWS] = shares[:, 0] @ sources
        return told, counted


@dataclass(frozen=True, slots=True)
class Lesson:
    """What several networks may learn from: `rows` [examples, columns], whose first `seen`
    columns can be chosen among, the `outcomes`, each example's `share` of all that is drawn, and
    the `middle` and `spread` by which rows are scaled."""

    rows: _Floats
    seen: int
    outcomes: _Floats
    share: NDArray[np.float64]
    middle: _Floats
    spread: _Floats


def lesson(shown: Examples, like: Lesson | Network | None = None) -> Lesson:
    """What is shown, scaled as for `like`, or as it needs to be."""
    middle, spread = (like.middle, like.spread) if like else _usual(shown.rows)
    share = shown.weights / shown.weights.sum()
    outcomes = shown.values.astype(np.float32)
    return Lesson(shown.rows, shown.levels, outcomes, share, middle, spread)


class Learner:
    """A network that learns, from one lesson or from several that are alike.

    One that begins with what `begin` knows, which must be of lessons scaled alike, needs fewer
    epochs.
    """

    def __init__(
        self, descent: Descent, rng: np.random.Generator, begin: Network | None = None
    ) -> None:
        self._descent, self._rng, self._begin = descent, rng, begin
        self._state: _State | None = None
        self._scaled: tuple[_Floats, _Floats] | None = None  # middle and spread
        self._done = 0.0

    def study(self, given: Lesson, part: float = 1.0) -> None:
        """Learn from `given`, whose examples count as much as their shares say, for so large a
        part of the whole course."""
        descent, rng = self._descent, self._rng
        if self._state is None:
            if self._begin:
                self._state = _State.gone_on(self._begin)
            else:
                self._state = _State.begun(given.rows.shape[1], descent.width, given.seen, rng)
            self._scaled = given.middle, given.spread
        # Few examples are learned in small steps: otherwise there would be too few of these.
        batch = min(descent.batch, len(given.rows), max(_SMALLEST, len(given.rows) // _STEPS))
        steps = max(1, round(part * descent.epochs * len(given.rows) / batch))
        drawn = rng.choice(len(given.rows), (steps, batch), p=given.share)
        for step, some in enumerate(drawn):
            rate = descent.rate * _course(self._done + part * step / steps)
            rows = given.rows[some]
            inputs = _scaled(rows, given.middle, given.spread)
            self._state.descend(
                inputs, _seen(rows, given.seen), given.outcomes[some], rate, descent, rng
            )
        self._done += part

    def network(self) -> Network:
        """What was learned. Raises ValueError where nothing was, or learning came to no end that
        is finite."""
        if not self._state or not self._scaled or not np.isfinite(self._state.flat).all():
            raise ValueError("a network did not learn: its weights are not finite")
        layers = (part.copy() for layer in self._state.layers for part in layer)
        return Network(*self._scaled, *layers)


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

    def __init__(self, shape: list[tuple[int, int]]) -> None:
        total = sum(i * o + o for i, o in shape)
        self.flat = np.zeros(total, dtype=np.float32)
        self.slope = np.zeros_like(self.flat)
        self.layers = _views(self.flat, shape)
        self._slopes = _views(self.slope, shape)
        self._mean, self._square = np.zeros_like(self.flat), np.zeros_like(self.flat)
        self._steps = 0

    @classmethod
    def begun(cls, columns: int, width: int, seen: int, rng: np.random.Generator) -> _State:
        """With random weights, about as large as keeps the size of what passes (Glorot and
        Bengio 2010); nothing is added at first."""
        outputs = len(QUANTILES)
        hidden = list(pairwise((columns, width, width)))
        state = cls([*hidden, (width, outputs), (width, outputs * (seen + 1))])
        for weights, _ in state.layers[:2]:
            limit = np.sqrt(6.0 / sum(weights.shape))
            weights[...] = rng.uniform(-limit, limit, weights.shape)
        shares = state.layers[3][0]
        shares[...] = rng.normal(scale=_ALIKE, size=shares.shape)
        return state

    @classmethod
    def gone_on(cls, begin: Network) -> _State:
        """With the weights of `begin`."""
        known = begin.layers()
        state = cls([(len(weights), len(biases)) for _, weights, biases in known])
        for (weights, biases), (_, from_weights, from_biases) in zip(
            state.layers, known, strict=True
        ):
            weights[...], biases[...] = from_weights, from_biases
        return state

    def descend(
        self,
        x: _Floats,
        seen: _Floats,
        came: _Floats,
        rate: float,
        how: Descent,
        rng: np.random.Generator,
    ) -> None:
        """One step by the examples `x` [examples, inputs], `seen` [examples, values]."""
        (w1, b1), (w2, b2), (w3, b3), (w4, b4) = self.layers
        first, slope_1 = _neurons(x @ w1 + b1, how.drop, rng)
        second, slope_2 = _neurons(first @ w2 + b2, how.drop, rng)
        added = second @ w3 + b3
        # The base is never hidden, so that there is always something to choose.
        hidden = rng.random(seen.shape, dtype=np.float32) < how.hide if how.hide else None
        shares = _shares(second @ w4 + b4, len(QUANTILES), hidden)
        chosen = _mean(shares, seen)
        pull = _pull(chosen + _stretched(added), came)
        shares[..., :-1] *= seen[:, None] - chosen[..., None]
        shares[..., -1] *= -chosen
        shares *= pull[..., None]
        bound = np.clip(added, -_FARTHEST_OUT, _FARTHEST_OUT)
        back = [pull * np.cosh(bound), shares.reshape(len(x), -1)]
        self._backward(x, first, second, slope_1, slope_2, back)
        self._step(rate)

    def _backward(
        self,
        x: _Floats,
        first: _Floats,
        second: _Floats,
        slope_1: _Floats,
        slope_2: _Floats,
        pulls: list[_Floats],
    ) -> None:
        (_, _), (w2, _), *last = self.layers
        (dw1, db1), (dw2, db2), *slopes = self._slopes
        back = np.zeros_like(second)
        for pull, (weights, _), (slope, bias) in zip(pulls, last, slopes, strict=True):
            np.matmul(second.T, pull, out=slope)
            pull.sum(axis=0, out=bias)
            back += pull @ weights.T
        back *= slope_2
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


def _shares(values: _Floats, outputs: int, hidden: NDArray[np.bool_] | None = None) -> _Floats:
    """Shares [rows, outputs, seen + 1] that are 1 together, from what the last layer says of
    them [rows, outputs * (seen + 1)]."""
    shares = values.reshape(len(values), outputs, -1)
    if hidden is not None:
        np.copyto(shares[..., :-1], _HIDDEN, where=hidden[:, None])
    shares -= shares.max(axis=2, keepdims=True)
    np.exp(shares, out=shares)
    shares /= shares.sum(axis=2, keepdims=True)
    return shares


def _mean(shares: _Floats, seen: _Floats) -> _Floats:
    """The mean [rows, outputs] of what was seen and of the base, by their shares."""
    return np.asarray(np.matmul(shares[..., :-1], seen[..., None])[..., 0])


def _seen(rows: _Floats, count: int) -> _Floats:
    """The values that there are to choose among; what is not known is as the base."""
    values = np.nan_to_num(rows[:, :count], posinf=_FARTHEST_SEEN, neginf=-_FARTHEST_SEEN)
    return np.clip(values, -_FARTHEST_SEEN, _FARTHEST_SEEN)


def _pull(told: _Floats, came: _Floats) -> _Floats:
    """The slope of the mean pinball loss by what is told."""
    levels = np.array(QUANTILES, dtype=np.float32)
    below = came[:, None] > told
    return np.asarray(np.where(below, -levels, 1 - levels) / told.size, dtype=np.float32)


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
