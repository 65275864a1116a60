"""From which files is a query answered? Days by days: from samples, or from means where
those are coarse enough to answer it, or where the samples are no longer kept."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from controller.history.series import Query
from controller.model.metrics import Scope

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
#: Hours that are over are joined into files of so many, four a day.
SPAN_MS = 6 * HOUR_MS
FIVE_MINUTES_MS = 300_000
#: Files of one span beyond which those of late samples are joined with the others.
_MOST_BESIDE = 3


class Kind(StrEnum):
    """What a file holds."""

    #: Samples of an hour, or of SPAN_MS.
    RAW = "raw"
    #: Means, maxima and counts over 5 minutes, of a day.
    FIVE = "five"
    #: The same over an hour, of a day.
    HOUR = "hour"


@dataclass(frozen=True, slots=True)
class Part:
    """A file of one scope, with what lies in [start, end), Unix milliseconds."""

    file: str
    kind: Kind
    scope: Scope
    start: int
    end: int
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Sources:
    """What a query is answered from: files, and hours that lie in the database still."""

    parts: tuple[Part, ...]
    hot: tuple[int, ...]


def sources(query: Query, parts: Iterable[Part], hot: Iterable[int]) -> Sources:
    """What `query` is answered from. `hot` are the beginnings of hours, Unix milliseconds;
    parts and hours are of the query's scope."""
    order = preference(query.step)
    by_day: dict[int, list[Part]] = {}
    for part in parts:
        by_day.setdefault(part.start // DAY_MS, []).append(part)
    hours = sorted(hot)
    hot_days = {hour // DAY_MS for hour in hours}
    chosen: list[Part] = []
    coarse: set[int] = set()
    for day, found in by_day.items():
        kinds = {part.kind for part in found}
        if day in hot_days:
            kinds.add(Kind.RAW)
        kind = next(kind for kind in order if kind in kinds)
        if kind is not Kind.RAW:
            coarse.add(day)
        chosen += [part for part in found if part.kind is kind]
    return Sources(
        tuple(sorted((part for part in chosen if _meets(part, query)), key=lambda p: p.start)),
        tuple(
            hour
            for hour in hours
            if hour // DAY_MS not in coarse and query.start < hour + HOUR_MS and hour < query.end
        ),
    )


def preference(step: int | None) -> Sequence[Kind]:
    """Kinds, the best first, for a grid of `step` milliseconds (None: the samples)."""
    if step is not None and step % HOUR_MS == 0:
        return (Kind.HOUR, Kind.FIVE, Kind.RAW)
    if step is not None and step % FIVE_MINUTES_MS == 0:
        return (Kind.FIVE, Kind.RAW, Kind.HOUR)
    return (Kind.RAW, Kind.FIVE, Kind.HOUR)


def to_join(parts: Iterable[Part], hot: Collection[tuple[Scope, int]], before: int) -> list[Part]:
    """The files of samples that should become one: those of a span that ended `before` and is
    wholly packed, where they were not joined yet or too many came late."""
    spans: dict[tuple[Scope, int], list[Part]] = {}
    for part in parts:
        if part.kind is Kind.RAW and part.end <= before:
            spans.setdefault((part.scope, part.start // SPAN_MS), []).append(part)
    still = {(scope, hour // SPAN_MS) for scope, hour in hot}
    for key, found in spans.items():
        joined = any(part.end - part.start == SPAN_MS for part in found)
        over = (key[1] + 1) * SPAN_MS <= before
        if over and key not in still and len(found) > (_MOST_BESIDE if joined else 1):
            return found
    return []


@dataclass(frozen=True, slots=True)
class Keep:
    """How long what is kept: milliseconds by kind, and bytes in all."""

    ages: dict[Kind, int]
    bytes: int


def expired(parts: Sequence[Part], keep: Keep, now_ms: int) -> list[Part]:
    """The parts that may go: too old, and then the oldest samples, 5-minute means and hourly
    means as far as all together take too much room. Samples go by whole days, and only once
    there are means of that day."""
    sampled = {(part.scope, part.start // DAY_MS) for part in parts if part.kind is Kind.FIVE}

    def may_go(part: Part) -> bool:
        return part.kind is not Kind.RAW or (part.scope, part.start // DAY_MS) in sampled

    gone = [
        part
        for part in parts
        if may_go(part) and (part.start // DAY_MS + 1) * DAY_MS < now_ms - keep.ages[part.kind]
    ]
    left = [part for part in parts if part not in gone]
    over = sum(part.bytes for part in left) - keep.bytes
    for kind in Kind:
        days = sorted({part.start // DAY_MS for part in left if part.kind is kind and may_go(part)})
        for day in days:
            if over <= 0:
                return gone
            goes = [
                part
                for part in left
                if part.kind is kind and part.start // DAY_MS == day and may_go(part)
            ]
            if kind is Kind.FIVE and any(
                part.kind is Kind.RAW and part.start // DAY_MS == day for part in left
            ):
                continue  # the means of samples that are kept: those would never go then
            gone += goes
            left = [part for part in left if part not in goes]
            over -= sum(part.bytes for part in goes)
    return gone


def _meets(part: Part, query: Query) -> bool:
    return query.start < part.end and part.start < query.end
