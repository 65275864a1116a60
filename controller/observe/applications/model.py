"""What kind of application behaves like this?

A forest of decision trees over sizes, directions and timing of a flow's first packets, as
`training.py` fits it. The file holds arrays and text only, so reading one runs no code of its
maker; and to answer needs numpy alone.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log1p
from typing import Any

import numpy as np
import numpy.typing as npt

from .flows import Trace

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]

#: Changes with the meaning of the features.
VERSION = 1
#: Packets with payload that are described one by one.
_SHOWN = 8
#: Fewer packets with payload say too little.
_LEAST = 2
#: A file is refused beyond this.
_MAX_NODES = 20_000_000

FEATURES = (
    "tcp",
    *(f"size_{n}" for n in range(_SHOWN)),
    *(f"gap_{n}" for n in range(1, _SHOWN)),
    "packets_out",
    "packets_in",
    "bytes_out",
    "bytes_in",
    "mean_out",
    "mean_in",
    "max_out",
    "max_in",
    "spread",
    "turns",
    "first_response",
    "duration",
)


class ModelError(Exception):
    """A file that is no model of this version."""


def features(protocol: str, trace: Trace) -> list[float] | None:
    """The values of FEATURES for a flow; None where too few of its packets carry anything.

    Sizes are in bytes, negative from the responder; bytes and times as log(1 + x), times in ms.
    """
    carried = [(at, size) for at, size in trace if size]
    if len(carried) < _LEAST:
        return None
    times = [at for at, _ in carried]
    sizes = [size for _, size in carried]
    gaps = [_ms(b - a) for a, b in pairwise(times)]
    out, back = [s for s in sizes if s > 0], [-s for s in sizes if s < 0]
    turns = sum((a > 0) != (b > 0) for a, b in pairwise(sizes))
    asked = next((at for at, size in carried if size > 0), times[0])
    answered = next((at for at, size in carried if size < 0), times[-1])
    shown = sizes[:_SHOWN]
    between = gaps[: _SHOWN - 1]
    return [
        float(protocol == "tcp"),
        *map(float, shown),
        *[0.0] * (_SHOWN - len(shown)),
        *between,
        *[-1.0] * (_SHOWN - 1 - len(between)),
        float(len(out)),
        float(len(back)),
        log1p(sum(out)),
        log1p(sum(back)),
        _mean(out),
        _mean(back),
        float(max(out, default=0)),
        float(max(back, default=0)),
        float(np.std([abs(size) for size in sizes])),
        float(turns),
        _ms(answered - asked),
        _ms(times[-1] - times[0]),
    ]


def _ms(seconds: float) -> float:
    return log1p(max(0.0, seconds) * 1000)


def _mean(sizes: Sequence[int]) -> float:
    return sum(sizes) / len(sizes) if sizes else 0.0


@dataclass(frozen=True, slots=True)
class Model:
    """The trees, node by node: at a node without a feature (-1) is a leaf."""

    categories: tuple[str, ...]
    roots: Ints
    feature: Ints
    threshold: Floats
    left: Ints
    right: Ints
    #: Probability of each category at a leaf, (nodes, categories).
    leaves: Floats
    #: Calibration: the forest's share of votes, to the share of answers that were right.
    votes: Floats
    right_share: Floats

    def probabilities(self, values: Sequence[float]) -> Floats:
        """The trees' votes for each category, (categories,)."""
        # As in scikit-learn, values are compared in single precision.
        given = np.asarray(values, dtype=np.float32)
        at = self.roots.copy()
        while True:
            feature = self.feature[at]
            inner = feature >= 0
            if not inner.any():
                break
            goes_left = given[feature] <= self.threshold[at]
            at = np.where(inner, np.where(goes_left, self.left[at], self.right[at]), at)
        votes: Floats = self.leaves[at].mean(axis=0)
        return votes

    def classify(self, protocol: str, trace: Trace) -> tuple[str, float] | None:
        """The most likely category and the probability that it is right; None where too few
        packets carry anything."""
        values = features(protocol, trace)
        if values is None:
            return None
        votes = self.probabilities(values)
        best = int(votes.argmax())
        return self.categories[best], float(np.interp(votes[best], self.votes, self.right_share))

    def to_bytes(self) -> bytes:
        """The file."""
        about = json.dumps(
            {"version": VERSION, "features": FEATURES, "categories": self.categories}
        )
        file = io.BytesIO()
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _ARRAYS}
        np.savez_compressed(file, about=np.frombuffer(about.encode(), np.uint8), **arrays)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Model:
        """What `to_bytes` gave. Raises ModelError."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                about = json.loads(file["about"].tobytes())
                arrays = {name: file[name] for name in _ARRAYS}
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ModelError(f"is no model of applications: {error}") from error
        if about.get("version") != VERSION or about.get("features") != list(FEATURES):
            raise ModelError("was made for other features; train it again")
        model = cls(categories=tuple(about["categories"]), **arrays)
        model._check()
        return model

    def _check(self) -> None:
        """Raise ModelError where an answer could run out of an array, or never end."""
        nodes = len(self.feature)
        sound = (
            0 < nodes <= _MAX_NODES
            and self.leaves.shape == (nodes, len(self.categories))
            and all(len(a) == nodes for a in (self.threshold, self.left, self.right))
            and len(self.roots) > 0
            and bool(((self.roots >= 0) & (self.roots < nodes)).all())
            and bool((self.feature < len(FEATURES)).all())
        )
        if sound:
            inner = np.flatnonzero(self.feature >= 0)
            below = np.stack([self.left[inner], self.right[inner]])
            # Children stand after their parents, so each step goes on and ends.
            sound = bool(((below > inner) & (below < nodes)).all())
        if not sound or len(self.votes) == 0 or len(self.votes) != len(self.right_share):
            raise ModelError("contradicts itself; train it again")


_ARRAYS = (
    "roots",
    "feature",
    "threshold",
    "left",
    "right",
    "leaves",
    "votes",
    "right_share",
)
