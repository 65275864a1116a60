"""Who is told of alerts? Webhooks, of each change in its order; an Alertmanager, of what stands.

What a webhook is to be told lies in the store until it was taken or is given up, so a restart
loses nothing; what was sent and not confirmed is sent again under the same id (CloudEvents
1.0.2, 3.1.1). Next is always the oldest of each alert and address: changes of an alert are told
in their order, and an alert that is not taken holds up no other. An address that does not answer
rests as a whole.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx
from pydantic_core import to_json

from controller.loops.base import Ground
from controller.observe.anomalies import book
from controller.observe.anomalies.alerts import Alert
from controller.observe.anomalies.book import Delivery
from controller.observe.anomalies.rendering import alertmanager
from controller.settings import AlertSettings, masked
from controller.store import Transaction

log = logging.getLogger(__name__)

#: Media type of a CloudEvent in JSON (CloudEvents 1.0.2, JSON format, 3).
CLOUDEVENT = "application/cloudevents+json; charset=utf-8"
#: Seconds that an address has to take something.
TIMEOUT_S = 10.0
#: Requests under way at the same time, and deliveries of one address at once.
AT_ONCE = 8
BATCH = 200
_FIRST_PAUSE_S = 1.0


class Webhooks:
    """The loop that tells webhooks."""

    name = "webhooks"
    every_s = 1.0

    def __init__(self, settings: AlertSettings) -> None:
        self._settings = settings
        self._addresses = {book.digest(url): url for url in settings.webhooks}
        #: Of addresses that do not answer: how often in a row, and until when they rest.
        self._failures: Counter[str] = Counter()
        self._rests: dict[str, float] = {}
        self._http: httpx.AsyncClient | None = None

    async def turn(self, ground: Ground) -> None:
        """Tell what is due, until nothing is."""
        while True:
            now = time.time()
            targets = await asyncio.to_thread(_targets, ground)
            strange = targets - self._addresses.keys()
            if strange:
                cause = "alerts.webhooks names this address no more"
                await ground.write(_GiveUp(frozenset(strange), now, now, cause))
            awake = [one for one in sorted(targets - strange) if self._rests.get(one, 0.0) <= now]
            due = await asyncio.to_thread(_due, ground, awake, now)
            if not due:
                return
            self._http = self._http or _client(self._settings)
            places = asyncio.Semaphore(AT_ONCE)
            outcomes = await asyncio.gather(*(self._tell(one, places) for one in due))
            await ground.write(_Outcome(tuple(zip(due, outcomes, strict=True)), self._settings))

    async def _tell(self, one: Delivery, places: asyncio.Semaphore) -> str:
        """What went wrong with a delivery, "" for nothing."""
        async with places:
            if self._rests.get(one.target, 0.0) > time.time():
                return RESTING
            trouble, answered = await self._send(one)
            if answered:
                self._failures.pop(one.target, None)
            else:
                self._failures[one.target] += 1
                wait = pause(self._failures[one.target], self._settings)
                self._rests[one.target] = time.time() + wait
            return trouble

    async def _send(self, one: Delivery) -> tuple[str, bool]:
        """What went wrong, and whether the address answers at all."""
        assert self._http is not None
        headers = {"content-type": CLOUDEVENT}
        try:
            answer = await self._http.post(
                self._addresses[one.target], content=one.body, headers=headers
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return f"{type(error).__name__}: {error}".rstrip(": "), False
        if answer.is_success:
            return "", True
        trouble = f"it answered {answer.status_code} {answer.reason_phrase}"
        return trouble, answer.status_code < 500 and answer.status_code not in _LATER


#: What is told of a delivery that was not tried, since its address just failed.
RESTING = "resting"
#: Answers that speak of the moment, not of what was sent (RFC 9110, 15.5.9; RFC 6585, 4).
_LATER = frozenset({408, 425, 429})


def pause(attempts: int, settings: AlertSettings) -> float:
    """Seconds until the next attempt after so many that failed: twice as long each time."""
    wanted = min(settings.longest_pause_s, _FIRST_PAUSE_S * 2.0 ** min(attempts - 1, 30))
    return float(wanted * random.uniform(0.8, 1.0))  # noqa: S311 - so that not all come at once


@dataclass(frozen=True, slots=True)
class _GiveUp:
    """Gives up what was to be told to some targets since before `made_before`."""

    targets: frozenset[str]
    made_before: float
    now: float
    cause: str

    def __call__(self, transaction: Transaction) -> None:
        for target in sorted(self.targets):
            for one in book.give_up(transaction, target, self.made_before, self.now, self.cause):
                fields = {"alert": one.alert, "attempts": one.attempts, "cause": self.cause}
                log.error("a webhook was not told of an alert", extra=fields)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Keeps what became of deliveries."""

    outcomes: tuple[tuple[Delivery, str], ...]
    settings: AlertSettings
    now: float = field(default_factory=time.time)

    def __call__(self, transaction: Transaction) -> None:
        troubles: dict[str, str] = {}
        for one, trouble in self.outcomes:
            if not trouble:
                book.delivered(transaction, one)
            elif trouble != RESTING:
                due = self.now + pause(one.attempts + 1, self.settings)
                book.put_off(transaction, one, trouble, due)
                troubles[one.target] = trouble
        for target, trouble in troubles.items():
            before = self.now - self.settings.give_up_s
            _GiveUp(frozenset((target,)), before, self.now, trouble)(transaction)


class Alertmanager:
    """The loop that tells an Alertmanager what stands, again and again, as it is made for."""

    name = "alertmanager"

    def __init__(self, settings: AlertSettings, address: str) -> None:
        self.every_s = settings.resend_s
        self._settings = settings
        self._address = f"{address.rstrip('/')}/api/v2/alerts"
        self._http: httpx.AsyncClient | None = None

    async def turn(self, ground: Ground) -> None:
        """Tell it. Raises RuntimeError where it did not take that."""
        now = time.time()
        self._http = self._http or _client(self._settings)

        def look() -> Sequence[Alert]:
            with ground.store.reading() as connection:
                return book.lately(connection, now - book.OVER * self.every_s)

        found = await asyncio.to_thread(look)
        if not found:
            return
        told = alertmanager(found, now, self.every_s, book.link(self._settings))
        headers = {"content-type": "application/json"}
        answer = await self._http.post(self._address, content=to_json(told), headers=headers)
        if not answer.is_success:
            raise RuntimeError(
                f"{masked(self._address)} answered {answer.status_code}: {answer.text[:200]}; "
                "see alerts.alertmanager"
            )


def _targets(ground: Ground) -> frozenset[str]:
    with ground.store.reading() as connection:
        return book.targets(connection)


def _due(ground: Ground, targets: Sequence[str], now: float) -> list[Delivery]:
    with ground.store.reading() as connection:
        return [one for target in targets for one in book.due(connection, target, now, BATCH)]


def _client(settings: AlertSettings) -> httpx.AsyncClient:
    context = ssl.create_default_context()
    if settings.ca is not None:
        context.load_verify_locations(settings.ca)
    return httpx.AsyncClient(timeout=TIMEOUT_S, verify=context, trust_env=False)
