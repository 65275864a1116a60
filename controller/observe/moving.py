"""What do the events of a migration mean? Pure; the table of contradictions is in
`controller.observe.events`."""

from __future__ import annotations

from controller.model.nouns import Migration, Phase, Placement, Record
from controller.observe import migrations
from controller.observe.case import (
    Case,
    Decision,
    Outcome,
    clock_of_migration,
    clock_of_place,
    clock_of_removal,
)
from controller.observe.cloudevents import (
    MigrationCompleted,
    MigrationFailed,
    MigrationStarted,
    Refused,
    Why,
)

#: Ended migrations that are kept for each VM when a new one starts.
KEPT_MIGRATIONS = 8


class Moving(Case):
    """Rules for `vm.migration.started`, `completed` and `failed`."""

    def started(self, data: MigrationStarted) -> Decision:
        vm = self.vm(data.vm)
        self.require_host(data.source)
        self.require_host(data.target)
        clock = clock_of_migration(data.migration)
        told = self.known.migrations.get(data.migration)
        if told is not None:
            self.require_same_vm(told, data.vm)
            return self._started_again(told, data)
        if self.older(clock):
            return self.late(f"how migration {data.migration} ended")
        if self.older(clock_of_place(data.vm)):
            return self.late(f"where VM {data.vm} is")
        if self.older(clock_of_removal(data.vm, data.source)):
            return self.late(f"that VM {data.vm} left {data.source}")
        self.check_ports(vm, data.ports)
        where = self._check_start(data)
        put: list[Record] = []
        if self.current is not None:
            put.append(self.finished(self.current))
        put.append(
            Migration(
                id=data.migration,
                vm=data.vm,
                source=data.source,
                source_ports=where.ports,
                target=data.target,
                ports=data.ports,
                started_at=self.now,
            )
        )
        ended = sorted(
            (m for m in self.known.migrations.values() if not m.open),
            key=lambda m: (m.started_at, m.id),
        )
        return Decision(
            Outcome.APPLIED,
            f"VM {data.vm} moves from {data.source} to {data.target}",
            tuple(put),
            tuple(ended[: max(0, len(ended) - KEPT_MIGRATIONS)]),
            {clock_of_place(data.vm): self.at, clock: self.at},
        )

    def _started_again(self, told: Migration, data: MigrationStarted) -> Decision:
        if (told.source, told.target, told.ports) == (data.source, data.target, data.ports):
            return Decision(Outcome.UNCHANGED, f"migration {told.id} is known: {told.phase}")
        raise Refused(
            Why.CONFLICT,
            f"migration {told.id} is known with other hosts or ports "
            f"({told.source} to {told.target}, {', '.join(told.ports)})",
            "Give every migration an id of its own; to change one, send `failed` and start anew.",
        )

    def _check_start(self, data: MigrationStarted) -> Placement:
        where, move = self.placement, self.current
        if where is None or where.host != data.source:
            place = f"is at {where.host}" if where is not None else "is placed nowhere"
            raise Refused(
                Why.CONFLICT,
                f"VM {data.vm} {place}, not at {data.source}",
                f"Send vm.placed at {data.source} first if it does run there, or name the source.",
            )
        if where.host == data.target and where.ports == data.ports:
            raise Refused(
                Why.CONFLICT,
                f"VM {data.vm} is at {data.target} on these ports already",
                "Name the host and ports that it moves to.",
            )
        if move is not None and move.phase is Phase.STARTED:
            raise Refused(
                Why.CONFLICT,
                f"migration {move.id} of VM {data.vm} (to {move.target}) is still open",
                f"Send vm.migration.completed or vm.migration.failed for {move.id} first.",
            )
        return where

    def completed(self, data: MigrationCompleted) -> Decision:
        vm = self.vm(data.vm)
        if data.target is not None:
            self.require_host(data.target)
        clock = clock_of_migration(data.migration)
        told = self.known.migrations.get(data.migration)
        if told is not None:
            self.require_same_vm(told, data.vm)
        if self.older(clock):
            return self.late(f"how migration {data.migration} ended")
        target = data.target or (told.target if told else None)
        ports = data.ports or (told.ports if told and told.target == target else None)
        if target is None or ports is None:
            raise Refused(
                Why.UNKNOWN,
                f"there is no migration {data.migration} to this target, and the event does not "
                "tell both target and ports",
                "Send vm.migration.started first, or give target and ports.",
            )
        if self.older(clock_of_place(data.vm)):
            return self._ended_late(told, clock)
        self.check_ports(vm, ports)
        return self.stand(target, ports, {clock: self.at})

    def _ended_late(self, told: Migration | None, clock: str) -> Decision:
        """A migration that ended before the newest statement on where the VM is."""
        late = self.late(f"where VM {self.event.about} is", {clock: self.at})
        if told is None or told.phase is not Phase.STARTED:
            return late
        over = migrations.fail(told, self.now)[0]
        return Decision(
            Outcome.APPLIED,
            f"{late.reason}; migration {told.id} is over",
            (over,),
            clocks=late.clocks,
        )

    def failed(self, data: MigrationFailed) -> Decision:
        vm = data.vm
        self.vm(vm)
        clock = clock_of_migration(data.migration)
        told = self.known.migrations.get(data.migration)
        if told is not None:
            self.require_same_vm(told, vm)
        if self.older(clock):
            return self.late(f"how migration {data.migration} ended")
        clocks = {clock: self.at}
        if told is None:
            return Decision(
                Outcome.IGNORED, f"migration {data.migration} was never started here", clocks=clocks
            )
        if told.phase is Phase.FAILED:
            return Decision(Outcome.UNCHANGED, f"migration {told.id} is failed", clocks=clocks)
        if told.phase not in (Phase.STARTED, Phase.ACTIVATED):
            return Decision(
                Outcome.IGNORED,
                f"migration {told.id} is {told.phase} and its source is given up; if VM {vm} does "
                f"run at {told.source}, send vm.placed",
                clocks=clocks,
            )
        return self._taken_back(told, clocks)

    def _taken_back(self, told: Migration, clocks: dict[str, float]) -> Decision:
        over, back = migrations.fail(told, self.now)
        vm = told.vm
        # While a migration is only started, each "it is at the source" is newer than a removal
        # before it; once activated, the place clock tells of the target.
        clock = clock_of_place(vm) if told.phase is Phase.STARTED else clock_of_migration(told.id)
        stated = self.known.clocks.get(clock, self.at)
        gone = self.known.clocks.get(clock_of_removal(vm, told.source))
        if gone is not None and gone > stated:
            where = (self.placement,) if self.placement is not None else ()
            reason = f"migration {told.id} failed, and VM {vm} was removed from {told.source}"
            return Decision(Outcome.APPLIED, reason, (over,), where, clocks)
        put: list[Record] = [over]
        if told.phase is Phase.ACTIVATED and not self.older(clock_of_place(vm)):
            clocks[clock_of_place(vm)] = self.at
            if back != self.placement:
                put.append(back)
        return Decision(
            Outcome.APPLIED,
            f"migration {told.id} failed: VM {vm} stays at {told.source}",
            tuple(put),
            clocks=clocks,
        )
