"""What does the store come to know of services, from verdicts on single flows?

Whoever gets verdicts has a `Ledger` of its own: the southbound process for what switches send up,
the brain for what agents tell. What is settled lies in the store, and the fabric no longer copies
the packets of that service; the ledger keeps only what is not settled yet.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

from pydantic import ValidationError

from controller.model import nouns
from controller.model.nouns import MAX_SERVICES, Vm
from controller.store.transaction import Transaction

from .records import Application, Direction, Kind, Service, Verdict
from .services import Progress, Rules, Services

log = logging.getLogger(__name__)

#: Characters and names that a record has room for.
_LONGEST, _MOST_RISKS, _MOST_CONFLICTS = 100, 64, 16
_NO_SERVICE = frozenset({"icmp", "icmpv6"})


class Ledger:
    """The services that are being looked at. `jitter` gives a number in -1 to 1 each time."""

    def __init__(self, rules: Rules, jitter: Callable[[], float]) -> None:
        self.rules = rules
        self._services = Services(rules, jitter)

    def judge(
        self,
        known: Mapping[str, nouns.Service],
        verdicts: Iterable[tuple[Service, Verdict]],
        now: float,
    ) -> list[nouns.Service]:
        """What is to be stored after verdicts on flows to services, of which `known` are stored.

        A flow that was not answered tells of no service, and one to a service that is known and
        not looked at again, of nothing new; so does one beside that which settled its service.
        """
        settled: dict[Service, Progress] = {}
        for service, verdict in verdicts:
            stored = known.get(f"{service.vm}:{service.protocol}:{service.port}")
            if not answered(verdict) or (stored is not None and not stored.tapped):
                continue
            if service in settled:
                continue
            progress = self._services.judge(service, verdict, now)
            if progress is not None:
                settled[service] = progress
        ended = [*settled.values(), *self._services.tick(now)]
        return [record for progress in ended if (record := _record(progress)) is not None]


def answered(verdict: Verdict) -> bool:
    """Whether a flow tells of a service: something answered, and it is known who began."""
    if verdict.protocol in _NO_SERVICE:
        return False
    if verdict.protocol == "tcp" and verdict.direction is Direction.FIRST:
        return False
    return verdict.handshake_s is not None or verdict.response_s is not None


def keep(tx: Transaction, services: Iterable[nouns.Service]) -> None:
    """Store what was settled; of a VM that is gone, or that offers too much already, nothing."""
    for service in services:
        if tx.get(nouns.Service, service.key) is None:
            if tx.get(Vm, service.vm) is None:
                continue
            if len(tx.where(nouns.Service, vm=service.vm)) >= MAX_SERVICES:
                continue
        tx.put(service)


def renewed(
    service: nouns.Service, now: float, jitter: float, rules: Rules
) -> nouns.Service | None:
    """The service after time has gone by: it is looked at again now and then, and let be where
    nobody talks to it meanwhile. None where it was never recognised, and nobody talks to it: such
    as a port that was open once for one transfer. `jitter` is in -1 to 1."""
    if now < service.due:
        return service
    if not service.tapped:
        return service.model_copy(update={"tapped": True, "due": now + rules.patience_s})
    if service.how not in (Kind.CONFIRMED, Kind.BEHAVIOURAL):
        return None
    wait = rules.every_s * (1 + rules.jitter * jitter)
    return service.model_copy(update={"tapped": False, "due": now + wait})


def _record(progress: Progress) -> nouns.Service | None:
    """What is stored of a service that is settled; None where that makes no sense."""
    told = progress.application
    if told is None:
        return None
    try:
        return _stored(told, progress.due)
    except ValidationError as error:
        # The words are those of a process that reads what strangers send.
        log.warning(
            "a verdict on a service is dropped: %s",
            error.errors()[0]["msg"],
            extra={"service": str(told.service)},
        )
        return None


def _stored(told: Application, due: float) -> nouns.Service:
    return nouns.Service(
        vm=told.service.vm,
        protocol=told.service.protocol,
        port=told.service.port,
        application=told.application[:_LONGEST],
        how=told.kind.value,
        category=told.category[:_LONGEST],
        category_how=told.category_kind.value,
        confidence=told.confidence,
        risks=tuple(risk[:_LONGEST] for risk in told.risks[:_MOST_RISKS]),
        conflicts=tuple(name[:_LONGEST] for name, _ in told.conflicts[:_MOST_CONFLICTS]),
        concluded_at=told.at,
        flows=told.flows,
        packets=told.packets,
        handshake_s=told.times.handshake_s,
        response_s=told.times.response_s,
        due=due,
    )
