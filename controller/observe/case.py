"""What do the rules for all events share? One event with what is known around it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from controller.model.nouns import Host, Migration, Phase, Placement, Record, Vm
from controller.observe import migrations
from controller.observe.cloudevents import Event, Refused, Why


class Outcome(StrEnum):
    """What became of an event."""

    APPLIED = "applied"
    UNCHANGED = "unchanged"
    LATE = "late"
    REPLAYED = "replayed"
    IGNORED = "ignored"


@dataclass(frozen=True, slots=True)
class Needs:
    """What has to be looked up to decide on an event."""

    vm: str | None
    hosts: tuple[str, ...]
    migration: str | None
    clocks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Known:
    """What is now, as far as one event is concerned.

    `migrations` holds every one of the VM's, and the one that the event names.
    `clocks` holds the Unix seconds of the newest applied statement for each clock that
    has one.
    """

    vm: Vm | None = None
    placement: Placement | None = None
    migrations: Mapping[str, Migration] = field(default_factory=dict)
    hosts: Mapping[str, Host] = field(default_factory=dict)
    clocks: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """What to write: records to delete, then records to put, and clocks to advance."""

    outcome: Outcome
    reason: str
    put: tuple[Record, ...] = ()
    delete: tuple[Record, ...] = ()
    clocks: Mapping[str, float] = field(default_factory=dict)


def clock_of_place(vm: str) -> str:
    """The clock of statements on where the VM is."""
    return f"vm/{vm}"


def clock_of_nics(vm: str) -> str:
    """The clock of statements on the VM's NICs."""
    return f"vm/{vm}/nics"


def clock_of_groups(vm: str) -> str:
    """The clock of statements on the VM's groups."""
    return f"vm/{vm}/groups"


def clock_of_removal(vm: str, host: str) -> str:
    """The clock of the VM's removals from one host."""
    return f"vm/{vm}@{host}"


def clock_of_migration(migration: str) -> str:
    """The clock of statements on one migration."""
    return f"migration/{migration}"


def clock_of_host(host: str) -> str:
    """The clock of statements on a host's state."""
    return f"host/{host}"


class Case:
    """One event being decided on: a place for what all rules need."""

    def __init__(self, event: Event, known: Known, now: float) -> None:
        self.event = event
        self.known = known
        self.now = now
        self.at = event.at
        self.placement = known.placement
        self.current = next(
            (m for m in known.migrations.values() if m.open and m.vm == event.about), None
        )

    # What is looked at by several rules

    def older(self, clock: str) -> bool:
        """Whether something newer was stated already."""
        return self.at < self.known.clocks.get(clock, self.at)

    def vm(self, vm: str) -> Vm:
        """The VM that the event is about; raises Refused where there is none."""
        if self.known.vm is None:
            raise Refused(
                Why.UNKNOWN,
                f"there is no VM {vm}",
                f"PUT /v1/vms/{vm} with its tenant and NICs first, then send the event again.",
            )
        return self.known.vm

    def require_host(self, host: str) -> None:
        """Raise Refused unless there is such a host."""
        if host not in self.known.hosts:
            raise Refused(
                Why.UNKNOWN,
                f"there is no host {host}",
                f"PUT /v1/hosts/{host} with its datapath first, then send the event again.",
            )

    def check_ports(self, vm: Vm, ports: tuple[str, ...]) -> None:
        """Raise Refused unless there is a port for each NIC of `vm`."""
        count = len(vm.nics)
        if len(ports) != count:
            raise Refused(
                Why.CONFLICT,
                f"VM {vm.id} has {count} NIC(s), and {len(ports)} port(s) are named: "
                f"{', '.join(ports)}",
                "Name one port for each NIC, in the order of the NICs; where the NICs changed, "
                "tell them first (vm.updated with nics and ports, or PUT the VM).",
            )

    def late(self, what: str, clocks: Mapping[str, float] | None = None) -> Decision:
        """No effect, because something newer was stated."""
        return Decision(Outcome.LATE, f"a newer event has told {what}", clocks=clocks or {})

    def require_same_vm(self, migration: Migration, vm: str) -> None:
        """Raise Refused where `migration` is of another VM."""
        if migration.vm != vm:
            raise Refused(
                Why.CONFLICT,
                f"migration {migration.id} is of VM {migration.vm}, not of {vm}",
                "Give every migration an id of its own.",
            )

    # Where the VM is

    def stand(
        self, host: str, ports: tuple[str, ...], also: Mapping[str, float] | None = None
    ) -> Decision:
        """The newest statement "the VM is at `host`", with what it does to an open migration."""
        vm = self.event.about
        clocks = {clock_of_place(vm): self.at, **(also or {})}
        if self.older(clock_of_removal(vm, host)):
            return self.nowhere(
                f"VM {vm} was at {host} and has been removed from there since", clocks
            )
        here = Placement(vm=vm, host=host, ports=ports)
        put: list[Record] = []
        reason = f"VM {vm} is at {host}"
        if self.current is not None:
            after, told = self._met(self.current, here)
            if after != self.current:
                put.append(after)
            reason += told
        if here != self.placement:
            put.append(here)
        outcome = Outcome.APPLIED if put else Outcome.UNCHANGED
        return Decision(outcome, reason, tuple(put), clocks=clocks)

    def _met(self, migration: Migration, here: Placement) -> tuple[Migration, str]:
        """`migration`, open, once the VM is known to be `here`; and how to tell it."""
        name = migration.id
        started = migration.phase is Phase.STARTED
        at_source = here.host == migration.source
        if migration.source == migration.target:
            at_source = here.ports == migration.source_ports
        if here.host == migration.target and not at_source:
            if not started:
                return migration, ""
            moved = migration.model_copy(update={"ports": here.ports})
            after, _ = migrations.activate(moved, self.now, "event")
            words = migrations.WORDS[after.phase]
            return after, f": migration {name} is {after.phase}: {words}"
        if at_source and started:
            same = migration.model_copy(update={"source_ports": here.ports})
            return same, f", while migration {name} goes on"
        if started or (at_source and migration.phase is Phase.ACTIVATED):
            return migrations.fail(migration, self.now)[0], f": migration {name} did not come about"
        return self.finished(migration), f": migration {name} is over"

    def finished(self, migration: Migration) -> Migration:
        """`migration` ended, its VM being at its target or farther on."""
        return migration.model_copy(update={"phase": Phase.FINISHED, "ended_at": self.now})

    def nowhere(self, reason: str, clocks: Mapping[str, float]) -> Decision:
        """The VM runs nowhere: its placement and its open migration end."""
        put: tuple[Record, ...] = ()
        if self.current is not None:
            over = self.current
            put = (
                migrations.fail(over, self.now)[0]
                if over.phase is Phase.STARTED
                else self.finished(over),
            )
        gone = (self.placement,) if self.placement is not None else ()
        outcome = Outcome.APPLIED if put or gone else Outcome.UNCHANGED
        return Decision(outcome, reason, put, gone, clocks)
