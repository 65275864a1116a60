"""Which services are to be looked at now, and what is known of each?

A service is tapped until its application is known, then left alone, and looked at again now and
then, because what answers at a port can change. All of it is decided by pure functions of a
`Progress`; the time and the jitter come in as arguments.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import fmean, median

from .naming import spoken
from .records import UNKNOWN, Application, Kind, ResponseTimes, Service, Verdict


class State(StrEnum):
    """Whether a service is looked at."""

    #: Its first packets are copied to the DPI.
    TAPPED = "tapped"
    #: Its application is known.
    IDENTIFIED = "identified"
    #: Nothing recognised it; it is let be for a while.
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class Rules:
    """When there is enough; times in seconds."""

    #: Flows in which nDPI recognises the same application that identify a service.
    flows: int = 1
    #: Flows after which what is not identified is concluded from what there is.
    attempts: int = 12
    #: After so long an identified service is looked at again, and one that was left.
    every_s: float = 86_400.0
    retry_s: float = 3_600.0
    #: Share by which these are made longer or shorter, so that not all are due at once.
    jitter: float = 0.2
    #: A tap that has seen no flow for so long is taken away.
    patience_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the identification of a service is."""

    service: Service
    state: State
    #: When the state changes by itself, in seconds since 1970.
    due: float
    #: What has been seen since it was tapped.
    verdicts: tuple[Verdict, ...] = ()
    #: What was concluded last.
    application: Application | None = None


def noticed(service: Service, now: float, rules: Rules) -> Progress:
    """A service that nothing is known of: it is tapped."""
    return Progress(service, State.TAPPED, now + rules.patience_s)


def judged(
    progress: Progress, verdict: Verdict, now: float, jitter: float, rules: Rules
) -> Progress:
    """After a verdict on a flow of the service. `jitter` is in -1 to 1.

    A verdict that comes when the service is no longer tapped was under way; it changes nothing.
    """
    if progress.state is not State.TAPPED:
        return progress
    verdicts = (*progress.verdicts, verdict._replace(trace=()))
    concluded = conclude(progress.service, verdicts, now)
    agreeing = sum(1 for v in verdicts if v.kind is Kind.CONFIRMED)
    agreeing -= sum(count for _, count in concluded.conflicts)
    if agreeing >= rules.flows:
        return _settled(progress, State.IDENTIFIED, concluded, now, jitter, rules)
    if len(verdicts) < rules.attempts:
        return replace(progress, verdicts=verdicts, due=now + rules.patience_s)
    known = concluded.kind in (Kind.CONFIRMED, Kind.BEHAVIOURAL)
    state = State.IDENTIFIED if known else State.LEFT
    return _settled(progress, state, concluded, now, jitter, rules)


def elapsed(progress: Progress, now: float, jitter: float, rules: Rules) -> Progress:
    """After time has gone by."""
    if now < progress.due:
        return progress
    if progress.state is not State.TAPPED:
        return replace(progress, state=State.TAPPED, due=now + rules.patience_s, verdicts=())
    if progress.verdicts:
        concluded = conclude(progress.service, progress.verdicts, now)
        known = concluded.kind in (Kind.CONFIRMED, Kind.BEHAVIOURAL)
        state = State.IDENTIFIED if known else State.LEFT
        return _settled(progress, state, concluded, now, jitter, rules)
    # Nobody talks to it. What was known of it stays.
    state = State.LEFT if progress.application is None else State.IDENTIFIED
    return _settled(progress, state, progress.application, now, jitter, rules)


def _settled(
    progress: Progress,
    state: State,
    application: Application | None,
    now: float,
    jitter: float,
    rules: Rules,
) -> Progress:
    if not -1 <= jitter <= 1:
        raise ValueError(f"jitter is {jitter}: give -1 to 1")
    wait = rules.every_s if state is State.IDENTIFIED else rules.retry_s
    due = now + wait * (1 + rules.jitter * jitter)
    return Progress(progress.service, state, due, (), application)


def conclude(service: Service, verdicts: Sequence[Verdict], at: float) -> Application:
    """What several flows of a service tell of it. At least one verdict is needed.

    What nDPI confirmed counts before what behaviour says, and that before guesses. Among the
    confirmed, the protocol of most flows is the service's; an application in it is named where
    more than half of these flows were confirmed as that. Other protocols are conflicts.
    """
    by_kind = {kind: [v for v in verdicts if v.kind is kind] for kind in Kind}
    kind = next(kind for kind in Kind if by_kind[kind])
    told = by_kind[kind]
    masters = Counter(v.master for v in told)
    master, _ = masters.most_common(1)[0]
    agreeing = [v for v in told if v.master == master]
    application, count = Counter(spoken(v.application) for v in agreeing).most_common(1)[0]
    if 2 * count <= len(agreeing):
        application = master
    # Behaviour may know more of the category than what nDPI confirmed.
    closer = [v for v in agreeing if v.category_kind is Kind.BEHAVIOURAL]
    category, category_kind = _most_common_category(closer or agreeing)
    confidence = 0.0 if kind is Kind.UNKNOWN else len(agreeing) / len(told)
    if category_kind is Kind.BEHAVIOURAL:
        confidence = fmean(v.confidence for v in closer if v.category == category)
    conflicts = [(name, n) for name, n in sorted(masters.items()) if name != master]
    return Application(
        service=service,
        application=application if kind is not Kind.UNKNOWN else UNKNOWN,
        kind=kind,
        category=category,
        category_kind=category_kind,
        confidence=confidence,
        risks=tuple(sorted({risk for v in verdicts for risk in v.risks})),
        conflicts=tuple(conflicts) if kind is Kind.CONFIRMED else (),
        at=at,
        flows=len(verdicts),
        packets=sum(v.packets for v in verdicts),
        times=response_times(verdicts),
    )


def _most_common_category(verdicts: Iterable[Verdict]) -> tuple[str, Kind]:
    return Counter((v.category, v.category_kind) for v in verdicts).most_common(1)[0][0]


def response_times(verdicts: Iterable[Verdict]) -> ResponseTimes:
    """Medians over flows."""
    several = list(verdicts)
    handshakes = [v.handshake_s for v in several if v.handshake_s is not None]
    responses = [v.response_s for v in several if v.response_s is not None]
    return ResponseTimes(
        median(handshakes) if handshakes else None,
        len(handshakes),
        median(responses) if responses else None,
        len(responses),
    )


class Services:
    """All services, by what the functions above decide.

    `jitter` gives a number in -1 to 1 each time. At most `bound` services are kept.
    """

    def __init__(self, rules: Rules, jitter: Callable[[], float], bound: int = 100_000) -> None:
        self._rules = rules
        self._jitter = jitter
        self._bound = bound
        self._known: dict[Service, Progress] = {}
        self._tapped: set[Service] = set()
        #: When something is due, soonest first; what was put off since is skipped.
        self._due: list[tuple[float, Service]] = []

    @property
    def tapped(self) -> frozenset[Service]:
        """The services whose first packets are to be copied."""
        return frozenset(self._tapped)

    def progress(self, service: Service) -> Progress | None:
        """What is known of a service."""
        return self._known.get(service)

    def applications(self) -> list[Application]:
        """What was concluded, of all services."""
        return [p.application for p in self._known.values() if p.application is not None]

    def notice(self, service: Service, now: float) -> bool:
        """There is a service; False where there are too many to keep one more."""
        if service not in self._known:
            if len(self._known) >= self._bound:
                return False
            self._keep(noticed(service, now, self._rules))
        return True

    def judge(self, service: Service, verdict: Verdict, now: float) -> Application | None:
        """A verdict on a flow of the service; what is concluded where that ended the looking."""
        if not self.notice(service, now):
            return None
        before = self._known[service]
        after = judged(before, verdict, now, self._jitter(), self._rules)
        self._keep(after)
        return after.application if after.state is not before.state else None

    def tick(self, now: float) -> list[Application]:
        """Let time go by; what was concluded because nothing more came."""
        concluded = []
        while self._due and self._due[0][0] <= now:
            due, service = heapq.heappop(self._due)
            before = self._known.get(service)
            if before is None or before.due != due:
                continue
            after = elapsed(before, now, self._jitter(), self._rules)
            self._keep(after)
            if after.application is not None and after.application is not before.application:
                concluded.append(after.application)
        return concluded

    def forget(self, vm: str) -> None:
        """The VM is gone."""
        for service in [service for service in self._known if service.vm == vm]:
            del self._known[service]
            self._tapped.discard(service)

    def _keep(self, progress: Progress) -> None:
        before = self._known.get(progress.service)
        if before is None or before.due != progress.due:
            heapq.heappush(self._due, (progress.due, progress.service))
        self._known[progress.service] = progress
        if progress.state is State.TAPPED:
            self._tapped.add(progress.service)
        else:
            self._tapped.discard(progress.service)
