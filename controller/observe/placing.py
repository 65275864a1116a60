"""What do events about a VM's place, its definition, and hosts mean? Pure; the table of
contradictions is in `controller.observe.events`."""

from __future__ import annotations

from controller.model.nouns import HostState, Phase, Record, Vm
from controller.observe.case import (
    Case,
    Decision,
    Outcome,
    clock_of_groups,
    clock_of_host,
    clock_of_nics,
    clock_of_place,
    clock_of_removal,
)
from controller.observe.cloudevents import (
    EventType,
    HostEvent,
    Refused,
    VmPlaced,
    VmRemoved,
    VmUpdated,
    Why,
)


class Placing(Case):
    """Rules for `vm.placed`, `vm.updated`, `vm.removed` and `host.*`."""

    def placed(self, data: VmPlaced) -> Decision:
        vm = self.vm(data.vm)
        self.require_host(data.host)
        if self.older(clock_of_place(data.vm)):
            return self.late(f"where VM {data.vm} is")
        move = self.current
        if (
            move is not None
            and move.activated_by == "packet"
            and move.activated_at is not None
            and data.host != move.target
            and self.at < move.activated_at
        ):
            return Decision(
                Outcome.LATE,
                f"VM {data.vm} has sent from {move.target} since (migration {move.id})",
            )
        self.check_ports(vm, data.ports)
        return self.stand(data.host, data.ports)

    def removed(self, data: VmRemoved) -> Decision:
        self.require_host(data.host)
        removal = clock_of_removal(data.vm, data.host)
        if self.older(removal):
            return self.late(f"that VM {data.vm} left {data.host}")
        clocks = {removal: self.at}
        move = self.current
        if (
            move is not None
            and move.phase is Phase.STARTED
            and data.host in (move.source, move.target)
        ):
            return Decision(
                Outcome.IGNORED,
                f"migration {move.id} is open: its `completed` or `failed` decides where the VM is",
                clocks=clocks,
            )
        where = self.placement
        if where is None or where.host != data.host:
            place = f"is at {where.host}" if where is not None else "is placed nowhere"
            return Decision(Outcome.IGNORED, f"VM {data.vm} {place}", clocks=clocks)
        if self.older(clock_of_place(data.vm)):
            return self.late(f"where VM {data.vm} is", clocks)
        return self.nowhere(f"VM {data.vm} left {data.host}", clocks)

    def updated(self, data: VmUpdated) -> Decision:
        vm = self.vm(data.vm)
        late: list[str] = []
        clocks: dict[str, float] = {}

        def fresh(given: object, clock: str, what: str) -> bool:
            if given is None:
                return False
            if self.older(clock):
                late.append(what)
                return False
            clocks[clock] = self.at
            return True

        after = vm
        if fresh(data.nics, clock_of_nics(vm.id), "NICs"):
            after = after.model_copy(update={"nics": data.nics})
        if fresh(data.groups, clock_of_groups(vm.id), "groups"):
            after = after.model_copy(update={"groups": data.groups})
        ports = data.ports if fresh(data.ports, clock_of_place(vm.id), "ports") else None
        if not clocks:
            return self.late(f"the {' and '.join(late)} of VM {vm.id}")
        put: list[Record] = [after] if after != vm else []
        put += self._replugged(after, ports)
        told = f"VM {vm.id} is updated" if put else f"VM {vm.id} is so already"
        if late:
            told += f"; left out as older than what is known: {', '.join(late)}"
        return Decision(
            Outcome.APPLIED if put else Outcome.UNCHANGED, told, tuple(put), clocks=clocks
        )

    def _replugged(self, vm: Vm, ports: tuple[str, ...] | None) -> list[Record]:
        """The placement and migration of `vm`, as updated, at new `ports` if any."""
        where, move = self.placement, self.current
        if where is None:
            if ports is not None:
                raise Refused(
                    Why.CONFLICT,
                    f"VM {vm.id} is placed nowhere, so its ports cannot be updated",
                    "Send vm.placed with its host and ports.",
                )
            return []
        self.check_ports(vm, where.ports if ports is None else ports)
        started = move is not None and move.phase is Phase.STARTED
        if move is not None and started:
            self.check_ports(vm, move.ports)
        if ports is None or ports == where.ports:
            return []
        put: list[Record] = [where.model_copy(update={"ports": ports})]
        if move is not None:
            side = "source_ports" if started else "ports"
            put.insert(0, move.model_copy(update={side: ports}))
        return put

    def host(self, data: HostEvent) -> Decision:
        self.require_host(data.host)
        host = self.known.hosts[data.host]
        clock = clock_of_host(data.host)
        if self.older(clock):
            return self.late(f"the state of host {data.host}")
        state = {
            EventType.HOST_UP: HostState.UP,
            EventType.HOST_DOWN: HostState.DOWN,
            EventType.HOST_DRAINING: HostState.DRAINING,
        }[self.event.type]
        clocks = {clock: self.at}
        if host.state is state:
            return Decision(Outcome.UNCHANGED, f"host {host.id} is {state}", clocks=clocks)
        after = host.model_copy(update={"state": state})
        return Decision(Outcome.APPLIED, f"host {host.id} is {state}", (after,), clocks=clocks)
