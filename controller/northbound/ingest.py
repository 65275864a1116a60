"""How does an event get into the store? Looked up, decided on, and written in one transaction."""

from __future__ import annotations

from dataclasses import dataclass

from controller.api import EventReply, Role
from controller.model.nouns import Host, Migration, Placement, Vm
from controller.northbound.auth import Principal
from controller.northbound.checks import check_ports, check_vm
from controller.northbound.problems import EVENT_ID_REUSED, FORBIDDEN, Problem, of_any
from controller.observe import events
from controller.observe.case import Known, Outcome
from controller.observe.cloudevents import Event, Refused, VmUpdated
from controller.store import EventReceipt, StoreError, Transaction


@dataclass(frozen=True, slots=True)
class Ingest:
    """One event on its way: work for the writer. `now` is Unix seconds, UTC."""

    event: Event
    principal: Principal
    now: float
    skew_s: float

    def __call__(self, transaction: Transaction) -> EventReply | Problem:
        """Take the event. A problem is returned where nothing was written, so that others in
        the same transaction go on; an error after a write is raised, to take that back."""
        before = transaction.revision
        try:
            return self._take(transaction)
        except (Problem, Refused, StoreError) as error:
            if transaction.revision != before:
                raise
            return of_any(error)

    def _take(self, transaction: Transaction) -> EventReply:
        known = self._known(transaction)
        self._authorise(known)
        replayed = self._replayed(transaction)
        if replayed is not None:
            return replayed
        decision = events.decide(self.event, known, self.now, self.skew_s)
        for record in decision.delete:
            transaction.delete(type(record), record.key)
        for record in decision.put:
            if isinstance(record, Vm):
                _check_updated(transaction, record, decision.put)
            if isinstance(record, Placement):
                check_ports(transaction, record.vm, record.host, record.ports)
            elif isinstance(record, Migration) and record.open:
                check_ports(transaction, record.vm, record.target, record.ports)
            transaction.put(record)
        for clock, at in decision.clocks.items():
            transaction.note_event(clock, at)
        revision = transaction.revision
        transaction.remember(
            EventReceipt(
                self._scope,
                self.event.id,
                self.event.fingerprint,
                decision.outcome.value,
                revision,
                self.now,
            )
        )
        return self._reply(decision.outcome, revision, decision.reason)

    @property
    def _scope(self) -> str:
        """Whose event ids these are. A hypervisor's are its own, so that none can use up the
        ids of another by naming its source."""
        return f"{self.principal.host or ''}|{self.event.source}"

    def _known(self, transaction: Transaction) -> Known:
        migration = getattr(self.event.data, "migration", None)
        named = transaction.get(Migration, migration) if migration is not None else None
        wanted = events.needs(self.event, named)
        moves: dict[str, Migration] = {}
        vm = placement = None
        if wanted.vm is not None:
            vm = transaction.get(Vm, wanted.vm)
            placement = transaction.get(Placement, wanted.vm)
            moves = {move.id: move for move in transaction.where(Migration, vm=wanted.vm)}
        if named is not None:
            moves[named.id] = named
        hosts = {key: transaction.get(Host, key) for key in wanted.hosts}
        return Known(
            vm=vm,
            placement=placement,
            migrations=moves,
            hosts={key: host for key, host in hosts.items() if host is not None},
            clocks=transaction.last_events(wanted.clocks),
        )

    def _authorise(self, known: Known) -> None:
        if self.principal.role is not Role.HYPERVISOR:
            return
        if self.principal.host not in events.hosts_concerned(self.event, known):
            raise Problem(
                FORBIDDEN,
                f"token {self.principal.name} speaks for host {self.principal.host}, which this "
                f"{self.event.type} of {self.event.about} does not concern",
                "Send the event from the host that it is about, or with an operator's token.",
            )
        data = self.event.data
        if isinstance(data, VmUpdated) and (data.nics is not None or data.groups is not None):
            raise Problem(
                FORBIDDEN,
                "a hypervisor's token may update ports, but neither NICs nor groups, because "
                "access is decided by these",
                "Send NICs and groups with an operator's token.",
            )

    def _replayed(self, transaction: Transaction) -> EventReply | None:
        receipt = transaction.seen(self._scope, self.event.id)
        if receipt is None:
            return None
        if receipt.fingerprint != self.event.fingerprint:
            raise Problem(
                EVENT_ID_REUSED,
                f"event {self.event.id} of {self.event.source} was received before with other "
                "content",
                "Give every event of a source an id of its own.",
            )
        return self._reply(
            Outcome.REPLAYED,
            receipt.revision,
            f"the event was received before; its outcome was: {receipt.outcome}",
        )

    def _reply(self, outcome: Outcome, revision: int, reason: str) -> EventReply:
        return EventReply(
            source=self.event.source,
            id=self.event.id,
            outcome=outcome.value,
            revision=revision,
            reason=reason,
        )


def _check_updated(transaction: Transaction, vm: Vm, put: tuple[object, ...]) -> None:
    """Check NICs as a PUT would; where the ports come along, their number was checked."""
    check_vm(transaction, vm, with_ports=not any(isinstance(r, Placement) for r in put))
