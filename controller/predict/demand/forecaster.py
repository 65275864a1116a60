"""What will each VM need? The models, the choice among them, and what makes their word good.

    past ─▶ without events ─▶ each model ─▶ chosen per VM ─▶ calibrated ─▶ sane ─▶ with events
        ─▶ in agreement with each other

A `Forecaster` holds no clock and reads no history: whoever calls it gives it panels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from controller.predict.demand import global_model, newcomers
from controller.predict.demand.coherence import coherent
from controller.predict.demand.conformal import Calibration, Misses, calibrate, together
from controller.predict.demand.events import Calendar, step_factors, without
from controller.predict.demand.forecast import Forecast, Reason, sane
from controller.predict.demand.global_model import Training
from controller.predict.demand.keep import ModelStore
from controller.predict.demand.known import Known
from controller.predict.demand.ledger import Ledger, Told
from controller.predict.demand.models import Explaining, Model, ask
from controller.predict.demand.newcomers import ENOUGH, Kin, Peers
from controller.predict.demand.seasonal import SeasonalNaive
from controller.predict.demand.selection import Scores
from controller.predict.demand.series import DAY_BINS, STEP, Array, Metric, Panel
from controller.predict.demand.targets import Target
from controller.predict.demand.training import (
    HELD_OUT,
    Retrained,
    Trial,
    horizon,
    retrain,
    target_scales,
    trial,
)

#: Days of misses that intervals are calibrated by.
_MISS_DAYS = 7


#: What is calibrated by itself: the forecasts of one target of one metric by one model.
_Key = tuple[Metric, Target, str]


@dataclass(frozen=True, slots=True)
class Round:
    """One round of forecasts: what is used, and what every model told, for the ledger."""

    forecasts: tuple[Forecast, ...]
    told: tuple[Told, ...]


@dataclass(slots=True)
class Forecaster:
    """Forecasts demand. `others` are models beside the global one and the seasonal naive one;
    `group_of` gives the group of each VM that events may name, `kin` the kinds (role, flavour
    and such, the closest first) from which it is told while it has no past; its group, if none.

    What it learns by running is in the model store and in the ledger; intervals are calibrated
    by the misses of the last week, which a restart collects anew.
    """

    store: ModelStore
    ledger: Ledger
    calendar: Calendar = field(default_factory=Calendar)
    others: tuple[Model, ...] = ()
    group_of: Mapping[str, str] = field(default_factory=dict)
    kin: Kin = field(default_factory=dict)
    training: Training = field(default_factory=Training)
    _models: dict[str, Model] = field(default_factory=dict)
    _peers: dict[Metric, Peers] = field(default_factory=dict)
    _misses: dict[_Key, list[tuple[int, Misses]]] = field(default_factory=dict)

    def load(self, family: str, again: bool = True) -> bool:
        """Take the newest whole model of `family` into use, unless there is one in use and it
        is not `again` to be looked for; whether there is one."""
        if not again and family in self._models:
            return True
        kept = self.store.newest(family)
        if kept is not None:
            self._models[family] = kept.model
        return kept is not None

    def retrain(self, panels: Sequence[Panel], now: int) -> Retrained:
        """Learn one family anew from the past of all VMs, without known events; on failure the
        last good model goes on."""
        clean = [without(panel, self._calendars(panel)) for panel in panels]
        done = retrain(self.store, clean, now, self.training)
        if done.kept is not None:
            self._models[done.kept.model.family] = done.kept.model
        if done.taken:
            for panel in clean:
                self._peers[panel.metric] = newcomers.learn(panel, self._kin())
                self._begin(panel, done.trials)
        return done

    def _begin(self, panel: Panel, trials: Sequence[Trial]) -> None:
        """Take what was told of held-out days for a record, where there is none yet; and the
        misses of a new model, in any case, for those of the one before."""
        for tried in trials:
            model = tried.outcomes[0][0].model
            for target in {told.target for told, _ in tried.outcomes}:
                key = (panel.metric, target, model)
                if model == global_model.NAME or key not in self._misses:
                    self._misses[key] = [(panel.end, tried.misses(panel.metric, target))]
            if not self.ledger.knows(panel.metric, model):
                self.ledger.enter([o for o in tried.outcomes if o[0].metric is panel.metric])

    def rehearse(self, panel: Panel, targets: Sequence[Target], candidates: bool = True) -> None:
        """Try all models (`others` only if `candidates`) on the last days of `panel`, where no
        record of forecasts is at hand to choose and calibrate by."""
        past = without(panel, self._calendars(panel))
        models = self._candidates(past, candidates)
        held = min(HELD_OUT * DAY_BINS, past.bins)
        self._begin(
            past, [t for t in (trial(m, [past], held, targets) for m in models) if t.outcomes]
        )

    def settle(self, known: Panel) -> int:
        """Compare earlier forecasts with what came; how many were over."""
        clean = without(known, self._calendars(known))
        settled = self.ledger.settle(clean)
        oldest = known.end - _MISS_DAYS * 86_400
        for told, missed in settled:
            kept = self._misses.setdefault((told.metric, told.target, told.model), [])
            kept[:] = [entry for entry in kept if entry[0] >= oldest]
            kept.append((told.origin, missed))
        return len(settled)

    def round(
        self, panel: Panel, steps: Mapping[Target, int] | None = None, candidates: bool = True
    ) -> Round:
        """Forecast all series of `panel` from its end on. `steps` says how many of which target
        (by default the next hour at 5 minutes, and 24 hours of all others). Models in `others`
        are asked only if `candidates`: their word is slow, and chosen only where they have a
        record."""
        wanted = steps or {target: horizon(target) for target in Target}
        calendars = self._calendars(panel)
        past = without(panel, calendars)
        units = target_scales(past, tuple(wanted))
        forecasts: list[Forecast] = []
        told: list[Told] = []
        known = Known.of(past)
        every: dict[str, dict[Target, Array]] = {}
        why: dict[str, dict[Target, list[str]]] = {}
        for model in self._candidates(past, candidates):
            if isinstance(model, Explaining):
                every[model.name], why[model.name] = model.explained(past, wanted)
            else:
                every[model.name] = ask(model, past, wanted)
        short = np.flatnonzero(known.recent < ENOUGH)
        peers = self._peers_of(past) if len(short) or not _all_told(every.values()) else None
        if peers is not None:
            every[peers.name] = ask(peers, past, wanted)
        used: dict[Target, Array] = {}
        chosen: dict[Target, tuple[NDArray[np.intp], Scores]] = {}
        for target in wanted:
            words = {name: word[target] for name, word in every.items()}
            scores = self.ledger.scores(panel.metric, target, tuple(words), panel.names, panel.end)
            choice = _choose(words, short, scores)
            calibrated = [
                self._calibrated(past, target, n, w, units[target]) for n, w in words.items()
            ]
            values = np.stack(calibrated)[choice, np.arange(len(panel))]
            told += [
                Told(panel.metric, target, name, panel.end, panel.names, word, units[target])
                for name, word in words.items()
                if name != newcomers.NAME
            ]
            used[target] = _finished(past, target, values, calendars, known)
            chosen[target] = choice, scores
        # Many peaks were seen by who learned from all VMs; of one VM alone there are few.
        sure = {
            target: np.array(scores.models)[choice] == global_model.NAME
            for target, (choice, scores) in chosen.items()
        }
        for target, values in coherent(used, sure).items():
            choice, scores = chosen[target]
            kinds = {n: peers.kind(panel.names[n], target) for n in short.tolist()} if peers else {}
            notes = {name: said[target] for name, said in why.items()}
            forecasts += _told(
                panel, target, values, choice, scores, calendars, known, kinds, notes
            )
        return Round(tuple(forecasts), tuple(told))

    def _calendars(self, panel: Panel) -> list[Calendar]:
        """The events of each series, with what its past shows of their factors."""
        start = panel.end - panel.bins * STEP
        out = []
        for name, values in zip(panel.names, panel.values, strict=True):
            own = self.calendar.of(name, self.group_of.get(name), panel.metric)
            out.append(own.learned(values, start) if own.events else own)
        return out

    def _kin(self) -> Kin:
        return self.kin or {vm: (group,) for vm, group in self.group_of.items()}

    def _peers_of(self, past: Panel) -> Peers:
        """With the kinds of now: who came after the last training is of some, too."""
        peers = self._peers.get(past.metric)
        return replace(peers, kin=self._kin()) if peers else newcomers.learn(past, self._kin())

    def _candidates(self, past: Panel, candidates: bool) -> list[Model]:
        model = self._models.get(past.metric.family)
        first = [model] if model is not None else []
        return [*first, SeasonalNaive(), *(self.others if candidates else ())]

    def _calibrated(
        self, past: Panel, target: Target, model: str, told: Array, scale: Array
    ) -> Array:
        """What `model` told, moved by what its forecasts of the last days missed by."""
        calibration = self.calibration(past.metric, target, model)
        # Sorted first: widths, by which groups are told apart, are of quantiles in order.
        return calibration.apply(np.sort(told, axis=-1), scale) if calibration else told

    def calibrated(self, metric: Metric) -> bool:
        """Whether the misses of any forecast of `metric` are known."""
        return any(key[0] is metric for key in self._misses)

    def calibration(self, metric: Metric, target: Target, model: str) -> Calibration | None:
        """How quantiles are moved at present; None where no forecast has been settled."""
        entries = self._misses.get((metric, target, model))
        return calibrate(together([part for _, part in entries])) if entries else None


def _all_told(words: Iterable[Mapping[Target, Array]]) -> bool:
    """Whether of each series and target a model told something."""
    by_target = zip(*(word.values() for word in words), strict=True)
    return all(_speaks(told).any(axis=0).all() for told in by_target)


def _speaks(words: Iterable[Array]) -> NDArray[np.bool_]:
    """Whether each of the models told something of each series, [models, series]."""
    return np.stack([np.isfinite(word).all(axis=(1, 2)) for word in words])


def _choose(
    words: Mapping[str, Array], short: NDArray[np.intp], scores: Scores
) -> NDArray[np.intp]:
    """The model of each series. Those that are hardly known, `short`, are forecast from others
    like them."""
    names = list(words)
    speaks = _speaks(words.values())
    for own, name in zip(speaks, names, strict=True):
        own[short] &= name == newcomers.NAME
    return scores.choose(names[0], speaks)


def _finished(
    past: Panel, target: Target, values: Array, calendars: Sequence[Calendar], known: Known
) -> Array:
    """Chosen quantiles made sane, and multiplied by what is known to come."""
    told = sane(values, known.level)
    if any(calendar.events for calendar in calendars):
        count = told.shape[1]
        factors = [step_factors(c, target, past.end, count) for c in calendars]
        told = told * np.stack(factors)[..., None]
    return told


def _told(
    panel: Panel,
    target: Target,
    values: Array,
    choice: NDArray[np.intp],
    scores: Scores,
    calendars: Sequence[Calendar],
    known: Known,
    kinds: Mapping[int, str | None],
    why: Mapping[str, Sequence[str]],
) -> list[Forecast]:
    """A record for each series, with its reasons; `why` has those of models that give any."""
    out = []
    means = scores.means.T.tolist()
    capacities = panel.capacity.tolist()
    bins, first, last = known.bins.tolist(), known.first.tolist(), known.last.tolist()
    reach = values.shape[1] * target.bins
    for row, (vm, chosen) in enumerate(zip(panel.names, choice.tolist(), strict=True)):
        losses = {
            name: mean
            for name, mean in zip(scores.models, means[row], strict=True)
            if math.isfinite(mean)
        }
        events = calendars[row].names(panel.end, reach) if calendars[row].events else ()
        notes = [f"the calendar has {name} in this time" for name in events]
        model = scores.models[chosen]
        if model in why:
            notes.append(why[model][row])
        if row in kinds:
            notes.append(_hardly_known(int(known.recent[row]), kinds[row]))
        begun, ended = (first[row], last[row]) if bins[row] else (None, None)
        reason = Reason(model, bins[row], begun, ended, losses, tuple(notes))
        limit = capacities[row] if math.isfinite(capacities[row]) else None
        out.append(Forecast(vm, panel.metric, target, panel.end, values[row], limit, reason))
    return out


def _hardly_known(bins: int, kind: str | None) -> str:
    if kind is None:
        others = "too little is known of others, too, so this says nothing"
    else:
        others = f"others like it ({kind}) are told" if kind else "all other VMs are told"
    if bins == 0:
        return f"nothing is known of this VM: {others}"
    return f"known for {bins * STEP // 60} min only: {others}"
