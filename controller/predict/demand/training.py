"""Learning anew: what the last days were held out for says whether the new model is good enough,
and how wide its intervals have to be.

A model that is worse than the one in use is not taken, nor one whose training failed: the last
good one goes on. One that is good enough is learned once more with the held-out days, because
the newest days say most about the next.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from controller.predict.demand import global_model
from controller.predict.demand.conformal import Misses, misses, together
from controller.predict.demand.features import scales
from controller.predict.demand.forecast import sane
from controller.predict.demand.global_model import GlobalModel, Training
from controller.predict.demand.keep import About, Kept, ModelStore
from controller.predict.demand.ledger import Told
from controller.predict.demand.models import Model, ask
from controller.predict.demand.parts import CACHED, on_all_cores
from controller.predict.demand.seasonal import SeasonalNaive
from controller.predict.demand.selection import loss
from controller.predict.demand.series import DAY_BINS, HOUR_BINS, STEP, Array, Metric, Panel
from controller.predict.demand.targets import Target, seasonal_error

log = logging.getLogger(__name__)

#: Days that are held out, and bins between two forecasts in them: not a whole number of hours,
#: so that all minutes of an hour are met.
HELD_OUT = 3
_EVERY = 3 * HOUR_BINS + 1
#: How much worse than the model in use a new one may be on the same days. The one in use may
#: have learned from some of these, so it has an advantage, until it is three days old.
_WORSE = 1.1
#: Series of a metric that models are tried on, at most.
_TRIED = 500
#: Least past, in bins, for learning: a week, the held-out days included.
LEAST = 7 * DAY_BINS


@dataclass(frozen=True, slots=True)
class Trial:
    """A model on held-out days: the mean loss over all targets, and what it told with what
    came [series, steps]."""

    loss: float
    outcomes: tuple[tuple[Told, Array], ...]

    def misses(self, metric: Metric, target: Target) -> Misses:
        """What its forecasts missed by."""
        return together(
            [
                misses(came, told.quantiles, told.scale)
                for told, came in self.outcomes
                if told.target is target and told.metric is metric
            ]
        )


@dataclass(frozen=True, slots=True)
class Retrained:
    """How a training ended: `kept` is the model to use from now on, None where there is none at
    all; `taken` whether it is the new one, `reason` why or why not."""

    kept: Kept | None
    taken: bool
    reason: str
    #: Of the new model and of the seasonal naive one, if it was taken.
    trials: tuple[Trial, ...] = ()


def horizon(target: Target) -> int:
    """Steps that are told of each target by default: an hour of 5 minutes, 24 hours of others."""
    return HOUR_BINS if target is Target.FIVE_MINUTES else target.steps


def target_scales(panel: Panel, targets: Sequence[Target]) -> dict[Target, Array]:
    """For each target the scale [series] of losses, as of the panel's end."""

    def of(part: Panel) -> list[Array]:
        window = part.window()
        error = seasonal_error(window, DAY_BINS)
        return [scales(part, target.series(window), target, error) for target in targets]

    told = on_all_cores(of, panel, CACHED)
    return {target: np.concatenate([part[n] for part in told]) for n, target in enumerate(targets)}


def retrain(
    store: ModelStore, panels: Sequence[Panel], now: int, training: Training | None = None
) -> Retrained:
    """Learn one family of metrics anew from `panels`, and keep it if it is good enough."""
    family = panels[0].metric.family
    current = store.newest(family)
    if min(_reach(panel) for panel in panels) < LEAST:
        return _not_taken(current, family, f"less than {LEAST // DAY_BINS} days of past")
    held = HELD_OUT * DAY_BINS
    try:
        candidate = global_model.train([p.until(p.bins - held) for p in panels], training=training)
        new = trial(candidate, panels, held)
        naive = trial(SeasonalNaive(), panels, held)
        old = trial(current.model, panels, held) if current else None
        bad = _bad(new, old)
        model = None if bad else global_model.train(panels, training=training, begin=candidate)
    # Whatever goes wrong in learning, from memory to a value that nobody thought of: forecasts
    # go on with the model that there is, and the cause is in the log.
    except Exception as error:
        log.exception("training failed", extra={"family": family})
        return _not_taken(current, family, f"training failed: {error}")
    if model is None:
        return _not_taken(current, family, bad)
    about = store.put(model, _about(family, panels, now, new.loss, naive.loss))
    log.info("a new model is in use", extra={"family": family, "loss": round(new.loss, 4)})
    reason = f"loss {new.loss:.3f} on {HELD_OUT} held-out days, seasonal naive {naive.loss:.3f}"
    return Retrained(Kept(model, about), True, reason, (new, naive))


def _reach(panel: Panel) -> int:
    """Bins from the first that is known of any series to the end."""
    known = np.isfinite(panel.values).any(axis=0)
    return panel.bins - int(known.argmax()) if known.any() else 0


def trial(
    model: Model, panels: Sequence[Panel], held: int, targets: Sequence[Target] = tuple(Target)
) -> Trial:
    """Forecasts by `model` in the last `held` bins, each from what was known before it."""
    losses: list[float] = []
    outcomes: list[tuple[Told, Array]] = []
    for whole in panels:
        every = -(-len(whole) // _TRIED)
        panel = whole.rows(range(0, len(whole), every))
        for at in range(panel.bins - held, panel.bins - DAY_BINS + 1, _EVERY):
            past = panel.until(at)
            units = target_scales(past, targets)
            words = ask(model, past, {target: horizon(target) for target in targets})
            for target, word in words.items():
                silent = ~np.isfinite(word).any(axis=(1, 2))
                word = sane(word, np.full(len(past), np.nan))
                word[silent] = np.nan  # nothing was said, which is no forecast of nothing
                came = target.series(panel.values[:, at : at + word.shape[1] * target.bins])
                each = loss(came, word, units[target])
                losses += each[np.isfinite(each)].tolist()
                told = Told(
                    panel.metric, target, model.name, past.end, past.names, word, units[target]
                )
                outcomes.append((told, came))
    return Trial(float(np.mean(losses)) if losses else float("nan"), tuple(outcomes))


def _bad(new: Trial, old: Trial | None) -> str:
    """Why a model is not to be taken; nothing where it is good enough."""
    if not np.isfinite(new.loss):
        return "it could not be judged: nothing known was held out"
    if old is not None and new.loss > _WORSE * old.loss:
        return f"loss {new.loss:.3f}, and {old.loss:.3f} of the one in use"
    return ""


def _about(family: str, panels: Sequence[Panel], now: int, new: float, naive: float) -> About:
    first = min(panel.end - panel.bins * STEP for panel in panels)
    last = max(panel.end for panel in panels)
    return About(family, now, first, last, sum(map(len, panels)), new, naive)


def _not_taken(current: Kept | None, family: str, why: str) -> Retrained:
    log.warning(
        "no new model is taken",
        extra={"family": family, "cause": why, "goes_on": current is not None},
    )
    return Retrained(current, False, why)


def load_all(store: ModelStore, families: Sequence[str]) -> dict[str, GlobalModel]:
    """The newest whole model of each family that has one."""
    found = {family: store.newest(family) for family in families}
    return {family: kept.model for family, kept in found.items() if kept is not None}
