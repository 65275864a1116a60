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
    """After time has gone by: what has seen too little concludes from it."""
    if now < progress.due or not progress.verdicts:
        return progress
    concluded = conclude(progress.service, progress.verdicts, now)
    known = concluded.kind in (Kind.CONFIRMED, Kind.BEHAVIOURAL)
    state = State.IDENTIFIED if known else State.LEFT
    return _settled(progress, state, concluded, now, jitter, rules)


def _settled(
    progress: Progress,
    state: State,
    application: Application,
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
    """The services that are being looked at, by what the functions above decide.

    `jitter` gives a number in -1 to 1 each time. At most `bound` services are kept.
    """

    def __init__(self, rules: Rules, jitter: Callable[[], float], bound: int = 10_000) -> None:
        self.rules = rules
        self.jitter = jitter
        self._bound = bound
        self._known: dict[Service, Progress] = {}
        #: When something is due, soonest first; what was put off since is skipped.
        self._due: list[tuple[float, Service]] = []

    def progress(self, service: Service) -> Progress | None:
        """How far the identification of a service is; None where nobody looks at it."""
        return self._known.get(service)

    def judge(self, service: Service, verdict: Verdict, now: float) -> Progress | None:
        """A verdict on a flow of the service: where that ends the looking, what came of it."""
        before = self._known.get(service)
        if before is None:
            if len(self._known) >= self._bound:
                return None
            before = noticed(service, now, self.rules)
        return self._keep(judged(before, verdict, now, self.jitter(), self.rules))

    def tick(self, now: float) -> list[Progress]:
        """Let time go by: the services of which nothing more came, and what came of it."""
        settled = []
        while self._due and self._due[0][0] <= now:
            due, service = heapq.heappop(self._due)
            before = self._known.get(service)
            if before is None or before.due != due:
                continue
            after = self._keep(elapsed(before, now, self.jitter(), self.rules))
            if after is not None:
                settled.append(after)
        return settled

    def forget(self, service: Service) -> None:
        """Nobody looks at it any more."""
        self._known.pop(service, None)

    def _keep(self, progress: Progress) -> Progress | None:
        if progress.state is not State.TAPPED:
            self.forget(progress.service)
            return progress
        before = self._known.get(progress.service)
        if before is None or before.due != progress.due:
            heapq.heappush(self._due, (progress.due, progress.service))
        self._known[progress.service] = progress
        return None
