"""How does the controller get what waits? Events first, in their order, then samples; again and
again until it has them, as slowly as it asks for.

What cannot be told now waits: no connection, too much at once (429), the controller's trouble
(5xx), a token that it does not take (401, 403). What it will never take (any other 4xx) is set
aside, logged, and shown by `pleach agent --status`.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

import cramjam

from controller.agent.final import asks, final
from controller.agent.outbox import Outbox, Package, Waiting
from controller.agent.records import joined
from controller.api import EventReply, ProblemBody, SampleReply, VmStatus
from controller.client import Client, Problem
from controller.history.samples import to_msgpack_body

log = logging.getLogger(__name__)

#: Events of one request.
EVENTS_AT_ONCE = 100
#: Seconds before the next try: at first, and at most where the controller does not say more.
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 60.0
#: No controller is believed that wants to be left alone for longer.
MOST_OBEYED_S = 600.0
#: Seconds between two log lines about samples that are refused for the same reason.
TOLD_AGAIN_S = 600.0
_NOT_ALLOWED = (401, 403)
_TOO_LARGE = 413
_TOO_MANY = 429
_CONFLICT = 409


@dataclass(slots=True)
class Account:
    """What became of what was sent, since the start. Times are Unix seconds."""

    events: Counter[str] = field(default_factory=Counter)
    samples_taken: int = 0
    samples_refused: Counter[str] = field(default_factory=Counter)
    #: One of the samples that were refused for a reason.
    examples: dict[str, str] = field(default_factory=dict)
    reached_at: float | None = None
    #: Why nothing can be told now, what to do, and since when.
    trouble: str = ""
    mend: str = ""
    trouble_since: float | None = None
    clock_offset_s: float | None = None

    def told(self) -> dict[str, object]:
        """The same as a plain object."""
        counted = {"events": dict(self.events), "samples_refused": dict(self.samples_refused)}
        return {f.name: getattr(self, f.name) for f in fields(self)} | counted


class Sender:
    """The task that empties the outbox."""

    name = "sending"

    def __init__(self, outbox: Outbox, connect: Callable[[], Client], batch_values: int) -> None:
        self._outbox = outbox
        self._connect = connect
        self._values = batch_values
        self._client: Client | None = None
        self._pause_s = FIRST_PAUSE_S
        self._logged: dict[str, float] = {}
        #: Whether the log's last word is that nothing can be told.
        self._told_away = False
        self.account = Account()

    def run(self, stopping: threading.Event) -> None:
        """Send whenever something waits."""
        try:
            while not stopping.is_set():
                self._outbox.filled.clear()
                wait_s = self.once()
                if wait_s > 0:
                    stopping.wait(wait_s)
                elif not stopping.is_set():
                    self._outbox.filled.wait(1.0)
        finally:
            self._close()

    def once(self) -> float:
        """Send all that waits. Seconds to wait before the next try; 0 where all was sent."""
        try:
            if self._client is None:
                self._client = self._connect()
            while self._send_events(self._client) or self._send_samples(self._client):
                pass
        except Problem as problem:
            return self._put_off(problem)
        except OSError as error:  # of the files of certificates, or of the token
            mend = "See the files of agent.token_file, agent.ca, certificate and key."
            return self._failed(str(error), mend, 0)
        self._pause_s = FIRST_PAUSE_S
        self.account.trouble, self.account.mend = "", ""
        self.account.trouble_since = None
        return 0.0

    def _close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    # Events

    def _send_events(self, client: Client) -> bool:
        waiting = self._outbox.events(EVENTS_AT_ONCE)
        if not waiting:
            return False
        new = [one for one in waiting if one.body is None]
        if new:
            self._outbox.settle({one.number: final(one.fact, _asked(client, one)) for one in new})
            return True
        reply = client.send_batch([one.body for one in waiting if one.body is not None])
        self._reached()
        self._enter(waiting, reply.results)
        return True

    def _enter(
        self, waiting: Sequence[Waiting], results: Sequence[EventReply | ProblemBody]
    ) -> None:
        took, put_off = [], None
        for one, result in zip(waiting, results, strict=True):
            if isinstance(result, EventReply):
                took.append(one.number)
                self.account.events[result.outcome] += 1
            elif result.status == _TOO_MANY or result.status >= 500:
                put_off = put_off or result
            else:
                self._refuse(one, result)
        self._outbox.took(took)
        if put_off is not None:
            raise Problem(put_off)

    def _refuse(self, one: Waiting, problem: ProblemBody) -> None:
        cause = f"{problem.detail}: {problem.mend}"
        self.account.events["refused"] += 1
        if self._due(f"{one.fact.vm} {problem.type}"):
            log.error(
                "event refused",
                extra={"type": one.fact.type, "vm": one.fact.vm, "id": one.fact.id, "cause": cause},
            )
        self._outbox.refused(one, time.time(), cause)

    # Samples

    def _send_samples(self, client: Client) -> bool:
        package = self._outbox.package(self._values)
        if package is None:
            return False
        batch = joined(package.batches, package.sender, package.sequence, time.time())
        body = bytes(cramjam.zstd.compress(to_msgpack_body(batch), level=1))
        try:
            reply = client.send_packed_samples(body, "zstd")
        except Problem as problem:
            if problem.status == _TOO_MANY:
                self._outbox.split(package)  # it may be more than is ever taken at once
            if _passes(problem.status):
                raise
            self._refused(package, problem)
            return True
        self._reached()
        self._outbox.delivered(package)
        self._tell(reply)
        return True

    def _refused(self, package: Package, problem: Problem) -> None:
        """A whole batch that will not be taken as it is."""
        if problem.status == _TOO_LARGE and self._outbox.split(package):
            return
        if problem.status == _CONFLICT:
            log.warning("samples are numbered anew", extra={"cause": problem.detail})
            self._outbox.renumber()
            return
        log.error("samples dropped", extra={"cause": problem.detail, "mend": problem.mend})
        self.account.samples_refused[problem.type] += sum(
            int(batch.given.sum()) for batch in package.batches
        )
        self.account.examples[problem.type] = problem.detail
        self._outbox.delivered(package)

    def _tell(self, reply: SampleReply) -> None:
        account = self.account
        account.samples_taken += reply.accepted
        account.clock_offset_s = reply.clock_offset_s
        for refusal in reply.refused:
            account.samples_refused[refusal.reason] += refusal.count
            account.examples[refusal.reason] = refusal.detail
            if self._due(refusal.reason):
                log.warning(
                    "samples refused",
                    extra={"reason": refusal.reason, "count": refusal.count, "one": refusal.detail},
                )

    # How it goes

    def _reached(self) -> None:
        account = self.account
        account.reached_at = time.time()
        self._pause_s = FIRST_PAUSE_S
        if self._told_away:
            self._told_away = False
            away_s = account.reached_at - (account.trouble_since or account.reached_at)
            log.info("the controller can be told again", extra={"away_s": round(away_s, 1)})

    def _put_off(self, problem: Problem) -> float:
        if problem.status == 0:
            self._close()  # certificates may have been renewed meanwhile
        return self._failed(problem.detail, problem.mend, problem.retry_after_s)

    def _failed(self, cause: str, mend: str, asked_s: float) -> float:
        """Note why, and how long to wait: twice as long each time, or as the controller asks."""
        account = self.account
        if account.trouble != cause and self._due(f"trouble {cause}"):
            self._told_away = True
            log.warning("nothing can be told; it waits", extra={"cause": cause, "mend": mend})
        account.trouble, account.mend = cause, mend
        account.trouble_since = account.trouble_since or time.time()
        pause_s = self._pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - so that not all come at once
        self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)
        return max(pause_s, min(asked_s, MOST_OBEYED_S))

    def _due(self, what: str) -> bool:
        now = time.monotonic()
        if now - self._logged.get(what, -TOLD_AGAIN_S) < TOLD_AGAIN_S:
            return False
        self._logged = {k: at for k, at in self._logged.items() if now - at < TOLD_AGAIN_S}
        self._logged[what] = now
        return True


def _passes(status: int) -> bool:
    """Whether what was refused with this status may be taken later as it is."""
    return status in (0, 408, _TOO_MANY, *_NOT_ALLOWED) or status >= 500


def _asked(client: Client, waiting: Waiting) -> VmStatus | None:
    """What the controller has of the VM of an event."""
    if not asks(waiting.fact):
        return None
    try:
        return client.vm(waiting.fact.vm)
    except Problem as problem:
        if problem.status == 404:
            return None
        raise
