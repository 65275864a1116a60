"""What is known to come: batch runs, campaigns and maintenance, from a calendar.

The past is told to models as if events had not been (divided by their factors, maintenance a
gap), and forecasts are multiplied by the factors of what is to come. A factor in the calendar
is an expectation: each time that an event has been seen moves it towards what was observed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from controller.model.calendar import MOST, Occurrence
from controller.model.nouns import CalendarEvent
from controller.predict.demand.series import DAY_BINS, STEP, Array, Metric, Panel, gaps_allowed
from controller.predict.demand.targets import Target

#: An observed factor is believed within this ratio of the expected one.
_SURPRISE = 4.0


class CalendarError(Exception):
    """A calendar that cannot be used: each line has file:line, field and cause."""


class Event(Occurrence):
    """An occurrence by its name in a calendar."""

    name: Annotated[str, Field(min_length=1, max_length=127)]

    def concerns(self, vm: str, group: str | None, metric: Metric) -> bool:
        """Whether it changes `metric` of `vm`, which is of `group`."""
        if self.metrics and metric not in self.metrics:
            return False
        return not (self.vms or self.groups) or vm in self.vms or group in self.groups

    def covers(self, times: NDArray[np.int64]) -> NDArray[np.bool_]:
        """For bins of 5 minutes that begin at `times` (Unix s), whether it is on in them."""
        begins, lasts = self.starts.timestamp(), self.lasts.total_seconds()
        passed = times - begins
        if self.repeats is not None:
            seconds = self.repeats.seconds
            turn = np.mod(passed, seconds)
            on = (passed > -STEP) & ((turn < lasts) | (turn > seconds - STEP))
        else:
            on = (passed > -STEP) & (passed < lasts)
        if self.until is not None:
            on &= times < self.until.timestamp()
        return np.asarray(on)


@dataclass(frozen=True, slots=True)
class Calendar:
    """All known events."""

    events: tuple[Event, ...] = ()

    def of(self, vm: str, group: str | None, metric: Metric) -> Calendar:
        """Those that concern one series."""
        return Calendar(tuple(e for e in self.events if e.concerns(vm, group, metric)))

    def factors(self, start: int, bins: int) -> Array:
        """What demand is multiplied by in each of `bins` bins of 5 minutes from `start` (Unix
        s): the product of all events that are on, at most MOST."""
        times = start + STEP * np.arange(bins)
        out = np.ones(bins)
        for event in self.events:
            out[event.covers(times)] *= event.factor
        return np.minimum(out, MOST)

    def names(self, start: int, bins: int) -> tuple[str, ...]:
        """The events that are on in any of these bins."""
        times = start + STEP * np.arange(bins)
        return tuple(e.name for e in self.events if e.covers(times).any())

    def learned(self, values: Array, start: int) -> Calendar:
        """With each factor moved by what `values` (bins from `start`) show of it."""
        return Calendar(tuple(self._seen(event, values, start) for event in self.events))

    def _seen(self, event: Event, values: Array, start: int) -> Event:
        times = start + STEP * np.arange(len(values))
        on = event.covers(times)
        seen = len(np.unique((times[on] - start) // 86_400))
        if event.factor == 0 or not seen:
            return event
        others = Calendar(tuple(e for e in self.events if e is not event))
        plain = np.where(others.factors(start, len(values)) == 1, values, np.nan)
        slot = np.arange(len(values)) % DAY_BINS
        usual, during = plain[~on & np.isin(slot, slot[on])], plain[on]
        with gaps_allowed():
            ratio = float(np.nanmean(during) / np.nanmean(usual)) if len(usual) else np.nan
        if not np.isfinite(ratio):
            return event
        bounded = float(np.clip(ratio, event.factor / _SURPRISE, event.factor * _SURPRISE))
        factor = float(np.exp((np.log(event.factor) + seen * np.log(bounded)) / (seen + 1)))
        return event.model_copy(update={"factor": min(factor, MOST)})


def without(panel: Panel, calendars: Sequence[Calendar]) -> Panel:
    """`panel` as it would have been without the events of each series' calendar."""
    if not any(calendar.events for calendar in calendars):
        return panel
    start = panel.end - panel.bins * STEP
    factors = np.stack([calendar.factors(start, panel.bins) for calendar in calendars])
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.where(factors > 0, panel.values / factors, np.nan)
    return Panel(panel.metric, panel.names, values.astype(np.float32), panel.end, panel.capacity)


def step_factors(calendar: Calendar, target: Target, origin: int, steps: int) -> Array:
    """What each step of a forecast is multiplied by: the mean over its bins, of peaks the
    largest."""
    bins = calendar.factors(origin, steps * target.bins).reshape(steps, target.bins)
    return np.asarray(bins.max(axis=1) if target.peak else bins.mean(axis=1))


def recorded(records: Iterable[CalendarEvent]) -> Calendar:
    """The calendar of what operators told the store."""
    return Calendar(
        tuple(
            Event.model_validate({"name": record.id, **record.model_dump(exclude={"id"})})
            for record in sorted(records, key=lambda record: record.id)
        )
    )


def load(path: Path) -> Calendar:
    """The calendar of a YAML file: a mapping with `events`. Raises CalendarError, which tells
    all that is wrong with it."""
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise CalendarError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise CalendarError(f"{path}: is no YAML: {error}") from error
    if content is None:
        return Calendar()
    if not isinstance(content, dict) or set(content) != {"events"}:
        raise CalendarError(f"{path}:1: a mapping with the one key `events` is wanted here")
    if not isinstance(content["events"], list):
        raise CalendarError(f"{path}:1: events: a list is wanted here")
    assert isinstance(node, yaml.MappingNode)
    lines = [entry.start_mark.line + 1 for entry in node.value[0][1].value]
    return Calendar(tuple(_events(content["events"], lines, path)))


def _events(entries: Iterable[object], lines: Sequence[int], path: Path) -> list[Event]:
    found: list[Event] = []
    wrong: list[str] = []
    for entry, line in zip(entries, lines, strict=True):
        try:
            found.append(Event.model_validate(_aware(entry)))
        except ValidationError as error:
            wrong += [
                f"{path}:{line}: {'.'.join(map(str, e['loc'])) or 'event'}: {e['msg']}"
                for e in error.errors()
            ]
    if wrong:
        raise CalendarError("\n".join(wrong))
    return found


def _aware(entry: object) -> object:
    """YAML gives times with an offset as UTC without saying so in every version; those that
    had none are refused by the record, since whose midnight is meant would be a guess."""
    if not isinstance(entry, dict):
        return entry
    return {
        key: value.astimezone(UTC) if isinstance(value, datetime) and value.tzinfo else value
        for key, value in entry.items()
    }
