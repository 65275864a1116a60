"""One model for all VMs: what it learned from some holds for others.

On the rows of `features` two learners tell each target's quantiles, and their mean is used:
networks that choose among what was seen (`network`), and boosted trees (`boosted`), which cut
sharply. They err at different times, so that a mean with a little of the trees errs no more than
the networks, and less where there was little to learn from. Since rows have no unit and no name
of a VM, a VM that came yesterday is forecast by the same weights as all others.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import methodcaller
from typing import Any, Literal

import numpy as np

from controller.predict.demand import boosted, network
from controller.predict.demand.boosted import Growth
from controller.predict.demand.examples import examples
from controller.predict.demand.features import Design, design, summarise, together
from controller.predict.demand.network import Descent, Learner, Network
from controller.predict.demand.parts import cached, on_all_cores, side_by_side
from controller.predict.demand.series import Array, Panel
from controller.predict.demand.sources import in_words, sources
from controller.predict.demand.targets import QUANTILES, Target
from controller.predict.demand.trees import Trees

NAME = "global"

#: What a file of another form is refused by.
_FORM = 3
#: What the trees count in the mean with the networks. More costs more at 5 minutes than it gains
#: at hours.
_TREES = 0.1
#: Series that are told together: as many as make rows enough for the trees to be quick.
_PART = 1024


@dataclass(frozen=True, slots=True)
class Training:
    """How much to learn from, and how. `rows` is about the number of examples of a lesson, and
    `lessons` how many the networks have of 5 minutes, where there is more to learn; `networks`
    are so many that begin with other weights, and whose mean is told."""

    rows: int = 600_000
    lessons: int = 3
    networks: int = 2
    growth: Growth = field(default_factory=Growth)
    descent: Descent = field(default_factory=Descent)
    #: How networks go on that know most already.
    further: Descent = field(default_factory=lambda: Descent(epochs=2, rate=5e-4))
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Learned:
    """What was learned of one target, whose outputs are in the order of QUANTILES, and the
    columns that it sees."""

    columns: tuple[str, ...]
    trees: Trees
    networks: tuple[Network, ...]

    def __post_init__(self) -> None:
        """Raises ValueError for trees or networks of other columns or quantiles."""
        outputs = {len(self.trees.base), *(n.outputs for n in self.networks)}
        if outputs != {len(QUANTILES)}:
            raise ValueError(f"{sorted(outputs)} quantiles are told, not {len(QUANTILES)}")
        if self.trees.feature.max(initial=0) >= len(self.columns):
            raise ValueError("trees ask for columns that there are not")
        if any(len(n.middle) != len(self.columns) for n in self.networks):
            raise ValueError(f"a network of other columns than {len(self.columns)}")
        if len({n.seen for n in self.networks}) > 1:
            raise ValueError("networks that choose among different numbers of values")

    def __call__(
        self, rows: Array, sources: Array, only: Literal["trees", "networks"] | None
    ) -> tuple[Array, Array]:
        """Scaled quantiles [quantiles, rows] of `rows` [columns, rows], and how much `sources`
        [levels + 1, sources] count in the networks' medians [rows, sources]."""
        share = {None: _TREES, "trees": 1.0, "networks": 0.0}[only]
        if not self.networks:
            share = 1.0
        told = np.zeros((len(QUANTILES), rows.shape[1]))
        counted = np.zeros((rows.shape[1], sources.shape[1]))
        if share > 0:
            told += share * self.trees(rows)
        if share < 1:
            for each in self.networks:
                own, shares = each.explained(rows, sources)
                told += (1 - share) / len(self.networks) * own
                counted += shares / len(self.networks)
        return told, counted


@dataclass(frozen=True, slots=True)
class GlobalModel:
    """The model of one family of metrics. `only` tells what one of the two learners says."""

    family: str
    learned: Mapping[Target, Learned]
    only: Literal["trees", "networks"] | None = None
    name: str = NAME

    def alone(self, only: Literal["trees", "networks"]) -> GlobalModel:
        """One of its learners, under its own name."""
        return replace(self, only=only, name={"trees": "boosted", "networks": "network"}[only])

    def quantiles(self, past: Panel, target: Target, steps: int) -> Array:
        """See Model; series without any known value are NaN."""
        return self.many(past, {target: steps})[target]

    def many(self, past: Panel, steps: Mapping[Target, int]) -> dict[Target, Array]:
        """Several targets at once, which spares looking at the past several times."""
        return {target: told for target, (told, _) in self._all(past, steps).items()}

    def explained(
        self, past: Panel, steps: Mapping[Target, int]
    ) -> tuple[dict[Target, Array], dict[Target, list[str]]]:
        """See Explaining."""
        told = self._all(past, steps)
        return (
            {target: values for target, (values, _) in told.items()},
            {t: [in_words(row, t) for row in shares] for t, (_, shares) in told.items()},
        )

    def _all(self, past: Panel, steps: Mapping[Target, int]) -> dict[Target, tuple[Array, Array]]:
        """Quantiles, and the share of each of SOURCES in the median [series, SOURCES]."""
        told = on_all_cores(lambda part: self._part(part, steps), past, _PART)
        return {
            target: (
                np.concatenate([part[target][0] for part in told]),
                np.concatenate([part[target][1] for part in told]),
            )
            for target in steps
        }

    def _part(self, past: Panel, steps: Mapping[Target, int]) -> dict[Target, tuple[Array, Array]]:
        seen: dict[Target, list[Design]] = {target: [] for target in steps}
        for few in cached(past):
            summary = summarise(few)
            for target, count in steps.items():
                seen[target].append(design(summary, target, range(1, count + 1)))
        unknown = ~np.isfinite(past.window()).any(axis=1)
        out: dict[Target, tuple[Array, Array]] = {}
        for target in steps:
            made = together(seen.pop(target))
            learned = self.learned[target]
            if made.columns != learned.columns:
                raise ValueError(
                    f"the {self.family} model of {target} was trained on other columns than "
                    "this version makes: train it again"
                )
            names = sources(made.columns[: made.levels], target)
            told, counted = learned(made.values, names, self.only)
            scaled = np.moveaxis(told.reshape(-1, *made.base.shape), 0, -1)
            values = made.base[..., None] + made.scale[:, None, None] * scaled
            values[unknown] = np.nan
            shares = counted.reshape(*made.base.shape, -1).mean(axis=1)
            out[target] = values, shares
        return out

    def dump(self) -> bytes:
        """The model as a file of arrays: loading executes nothing of it, and needs no version of
        what it was trained with."""
        about = {
            "form": _FORM,
            "family": self.family,
            "columns": {str(target): list(one.columns) for target, one in self.learned.items()},
            "networks": {str(target): len(one.networks) for target, one in self.learned.items()},
        }
        content: dict[str, Any] = {}
        for target, one in self.learned.items():
            parts: tuple[Trees | Network, ...] = (one.trees, *one.networks)
            for number, part in enumerate(parts):
                content |= {f"{target}.{number}.{k}": a for k, a in part.arrays().items()}
        content["about"] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
        file = io.BytesIO()
        np.savez_compressed(file, **content)
        return file.getvalue()


def load(data: bytes) -> GlobalModel:
    """A model that `dump` wrote. Raises ValueError for anything else."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as content:
            about = json.loads(content["about"].tobytes())
            if about["form"] != _FORM:
                raise ValueError(f"it has form {about['form']}, and {_FORM} is known here")

            def part(target: str, number: int) -> dict[str, Any]:
                start = f"{target}.{number}."
                return {
                    name.removeprefix(start): content[name]
                    for name in content.files
                    if name.startswith(start)
                }

            learned = {
                Target(target): Learned(
                    tuple(names),
                    Trees.of(part(target, 0)),
                    tuple(
                        Network.of(part(target, number + 1))
                        for number in range(int(about["networks"][target]))
                    ),
                )
                for target, names in about["columns"].items()
            }
            return GlobalModel(about["family"], learned)
    # A damaged or foreign file may fail in any place of the reading.
    except Exception as error:
        raise ValueError(f"is no model of demand that can be read: {error}") from error


def train(
    panels: Sequence[Panel],
    targets: Sequence[Target] = tuple(Target),
    training: Training | None = None,
    begin: GlobalModel | None = None,
) -> GlobalModel:
    """Learn from all of `panels`, which are of one family; networks go on from those of `begin`.
    Raises ValueError where they hold less than two days, or nothing that is known."""
    how = training or Training()
    families = {panel.metric.family for panel in panels}
    if len(families) != 1:
        raise ValueError(f"metrics of one family are learned together, not {sorted(families)}")
    rng = np.random.default_rng(how.seed)
    learned = {
        target: _learned(panels, target, how, rng, begin.learned[target].networks if begin else ())
        for target in targets
    }
    return GlobalModel(families.pop(), learned)


def _learned(
    panels: Sequence[Panel],
    target: Target,
    how: Training,
    rng: np.random.Generator,
    begin: Sequence[Network],
) -> Learned:
    shown = examples(panels, target, how.rows, rng)
    trees = boosted.grow(shown, how.growth, rng)
    known = [*begin, *[None] * how.networks][: how.networks]
    learners = [
        Learner(how.further if one else how.descent, own, one)
        for own, one in zip(rng.spawn(how.networks), known, strict=True)
    ]
    lessons = how.lessons if target is Target.FIVE_MINUTES and not begin else 1
    given = network.lesson(shown, begin[0] if begin else None)
    for number in range(lessons):
        if number:
            shown = examples(panels, target, how.rows, rng)
            given = network.lesson(shown, given)
        side_by_side(methodcaller("study", given, 1 / lessons), learners)
    networks = tuple(learner.network() for learner in learners)
    return Learned(shown.columns, trees, networks)
