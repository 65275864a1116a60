"""How is the behavioural classifier made, and how good is it?

A forest (scikit-learn's ExtraTrees) over `model.FEATURES`. Flows of one capture resemble each
other, so captures are never split between fitting, calibrating and judging.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.isotonic import IsotonicRegression
from sklearn.model_selection import GroupKFold, GroupShuffleSplit

from .model import Floats, Model, features
from .naming import OTHER
from .records import UNKNOWN, Kind, Verdict

#: Flows of one category in one capture that are learned from at most.
_PER_CAPTURE = 200
#: What has fewer captures or flows cannot be told from the capture that it is in.
_LEAST_CAPTURES, _LEAST_FLOWS = 3, 8
_FOLDS = 5


class TrainingError(Exception):
    """There is not enough to learn from."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A labelled flow: the values of FEATURES, its category, and the capture that it is from."""

    values: tuple[float, ...]
    category: str
    capture: str


@dataclass(frozen=True, slots=True)
class Report:
    """How well a model did on captures that it had not seen."""

    captures: int
    flows: int
    #: Share of flows that it answered for, at the least probability that was asked for.
    answered: float
    #: Share of its answers that were right; None without answers.
    right: float | None
    #: Share that would be right without abstaining, and by always naming the most common one.
    right_if_all: float
    right_of_commonest: float
    #: Mean distance between the told probability and the share that was right, in ten bins.
    calibration_error: float


@dataclass(frozen=True, slots=True)
class Trained:
    """A model of all samples, and how one of three quarters of the captures did on the rest."""

    model: Model
    report: Report
    flows: dict[str, int]
    #: Categories that were left out for want of captures or flows.
    left_out: dict[str, int]


def samples(
    capture: str, verdicts: Iterable[Verdict], category: Callable[[Verdict], str | None]
) -> list[Sample]:
    """The flows of a capture to learn from; `category` gives a flow's label, or None."""
    taken: Counter[str] = Counter()
    found = []
    for verdict in verdicts:
        label = category(verdict)
        values = features(verdict.protocol, verdict.trace)
        if label is None or values is None or taken[label] >= _PER_CAPTURE:
            continue
        taken[label] += 1
        found.append(Sample(tuple(values), label, capture))
    return found


def confirmed_category(verdict: Verdict) -> str | None:
    """The label that nDPI gives where it is sure."""
    if verdict.kind is not Kind.CONFIRMED or verdict.category in (UNKNOWN, OTHER):
        return None
    return verdict.category


def train(given: Sequence[Sample], seed: int, answer_from: float, trees: int) -> Trained:
    """Fit, calibrate and judge forests of so many trees. Raises TrainingError where there is
    too little to learn from."""
    kept, left_out = _enough(given)
    captures = {s.capture for s in kept}
    if len({s.category for s in kept}) < 2 or len(captures) < 2 * _FOLDS:
        raise TrainingError(
            f"{len(kept)} flows of {len(captures)} captures are too few: give captures of at least "
            f"two categories, {_LEAST_CAPTURES} captures with {_LEAST_FLOWS} flows of each, and "
            f"{2 * _FOLDS} captures in all"
        )
    groups = [s.capture for s in kept]
    split = GroupShuffleSplit(1, test_size=0.25, random_state=seed)
    learn, judge = next(split.split(kept, groups=groups))
    report = _judge(
        _fit([kept[i] for i in learn], seed, trees), [kept[i] for i in judge], answer_from
    )
    flows = Counter(s.category for s in kept)
    return Trained(_fit(kept, seed, trees), report, dict(sorted(flows.items())), left_out)


def _enough(given: Sequence[Sample]) -> tuple[list[Sample], dict[str, int]]:
    captures: dict[str, set[str]] = defaultdict(set)
    flows = Counter(s.category for s in given)
    for sample in given:
        captures[sample.category].add(sample.capture)
    kept = {c for c in flows if flows[c] >= _LEAST_FLOWS and len(captures[c]) >= _LEAST_CAPTURES}
    left_out = {c: flows[c] for c in sorted(flows) if c not in kept}
    return [s for s in given if s.category in kept], left_out


def _fit(given: Sequence[Sample], seed: int, trees: int) -> Model:
    """A forest of all samples, calibrated by forests of parts that answer for the others."""
    values, categories, groups = _arrays(given)
    flows = Counter(groups.tolist())
    # Many flows of one capture tell little more than a few of them.
    weights = np.array([flows[group] ** -0.5 for group in groups.tolist()])
    forest = _forest(seed, trees).fit(values, categories, weights)
    votes = np.zeros(len(given))
    correct = np.zeros(len(given))
    folds = GroupKFold(min(_FOLDS, len(set(groups))))
    for learn, judge in folds.split(values, categories, groups):
        part = _forest(seed, trees).fit(values[learn], categories[learn], weights[learn])
        told = part.predict_proba(values[judge])
        best = told.argmax(axis=1)
        votes[judge] = told.max(axis=1)
        correct[judge] = part.classes_[best] == categories[judge]
    curve = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(votes, correct)
    return _model(forest, curve.X_thresholds_, curve.y_thresholds_)


def _forest(seed: int, trees: int) -> ExtraTreesClassifier:
    return ExtraTreesClassifier(trees, min_samples_leaf=5, random_state=seed, n_jobs=1)


def _arrays(
    given: Sequence[Sample],
) -> tuple[Floats, npt.NDArray[np.str_], npt.NDArray[np.str_]]:
    return (
        np.array([s.values for s in given]),
        np.array([s.category for s in given]),
        np.array([s.capture for s in given]),
    )


def _model(forest: ExtraTreesClassifier, votes: Floats, right_share: Floats) -> Model:
    """The forest as arrays."""
    trees = [estimator.tree_ for estimator in forest.estimators_]
    starts = np.cumsum([0, *(tree.node_count for tree in trees)])
    leaves = [tree.value[:, 0, :] for tree in trees]
    return Model(
        categories=tuple(map(str, forest.classes_)),
        roots=starts[:-1].astype(np.int32),
        feature=np.concatenate([np.maximum(tree.feature, -1) for tree in trees]).astype(np.int32),
        threshold=np.concatenate([tree.threshold for tree in trees]),
        left=_shifted([tree.children_left for tree in trees], starts),
        right=_shifted([tree.children_right for tree in trees], starts),
        leaves=np.concatenate([leaf / leaf.sum(axis=1, keepdims=True) for leaf in leaves]),
        votes=np.asarray(votes, dtype=np.float64),
        right_share=np.asarray(right_share, dtype=np.float64),
    )


def _shifted(
    children: list[npt.NDArray[np.int64]], starts: npt.NDArray[np.int64]
) -> npt.NDArray[np.int32]:
    moved = [
        np.where(child < 0, -1, child + start)
        for child, start in zip(children, starts[:-1], strict=True)
    ]
    return np.concatenate(moved).astype(np.int32)


def _judge(model: Model, given: Sequence[Sample], answer_from: float) -> Report:
    votes = np.array([model.probabilities(s.values) for s in given])
    best = votes.argmax(axis=1)
    told = np.interp(votes.max(axis=1), model.votes, model.right_share)
    correct = np.array(
        [model.categories[b] == s.category for b, s in zip(best, given, strict=True)]
    )
    answered = told >= answer_from
    commonest = Counter(s.category for s in given).most_common(1)[0][1]
    bins = np.minimum((told * 10).astype(int), 9)
    error = sum(
        abs(told[bins == n].mean() - correct[bins == n].mean()) * (bins == n).mean()
        for n in range(10)
        if (bins == n).any()
    )
    return Report(
        captures=len({s.capture for s in given}),
        flows=len(given),
        answered=float(answered.mean()),
        right=float(correct[answered].mean()) if answered.any() else None,
        right_if_all=float(correct.mean()),
        right_of_commonest=commonest / len(given),
        calibration_error=float(error),
    )
