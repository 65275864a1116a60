"""Which events follow from what is seen here? Pure: what the controller was told and what is
come in, and what has to be told comes out.

Events of the hypervisor only say when to look. So one that was lost, while libvirt or this agent
was not there, is made up for by the next look.

| told | seen | event |
|---|---|---|
| nothing | here | placed |
| nothing | here, come from another host | migration started and completed: it was quick |
| nothing | arriving | migration started |
| arriving | here | migration completed |
| arriving | not at all | migration failed |
| here, at other ports | here | placed, with its ports |
| here | arriving | none: at the end of a migration away from here it is stopped, too |
| here | not at all | removed |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from controller.agent.records import Fact, Machine, Told
from controller.observe.cloudevents import EventType


@dataclass(frozen=True, slots=True)
class Changes:
    """Events, and what the controller will have been told of VMs by them (None: nothing)."""

    facts: tuple[Fact, ...]
    told: Mapping[str, Told | None]


def changes(
    host: str,
    told: Mapping[str, Told],
    seen: Iterable[Machine],
    at: float,
    new_id: Callable[[], str],
) -> Changes:
    """What has to be told of the VMs at `host`, seen at `at` (Unix seconds). A VM without a
    port is none of the fabric's."""
    facts: list[Fact] = []
    after: dict[str, Told | None] = {}
    here = {machine.vm: machine for machine in seen if machine.ports}
    for vm, machine in here.items():
        found, will_be_told = _of(told.get(vm), machine, host, at, new_id)
        if found:
            facts += found
            after[vm] = will_be_told
    for vm in told.keys() - here.keys():
        migration = told[vm].migration
        kind = EventType.VM_REMOVED if migration is None else EventType.MIGRATION_FAILED
        reason = "" if migration is None else f"it is at {host} no more, and never ran there"
        facts.append(Fact(new_id(), kind, at, vm, host, migration=migration, reason=reason))
        after[vm] = None
    return Changes(tuple(facts), after)


def _of(
    told: Told | None, machine: Machine, host: str, at: float, new_id: Callable[[], str]
) -> tuple[tuple[Fact, ...], Told]:
    vm, ports = machine.vm, machine.ports

    def fact(kind: EventType, migration: str | None) -> Fact:
        return Fact(new_id(), kind, at, vm, host, ports, machine.macs, migration)

    here = Told(ports)
    if told is None and (machine.arriving or machine.migrated):
        migration = f"agent-{new_id()}"
        started = fact(EventType.MIGRATION_STARTED, migration)
        if machine.arriving:
            return (started,), Told(ports, migration)
        return (started, fact(EventType.MIGRATION_COMPLETED, migration)), here
    if machine.arriving:
        return (), here
    if told is None or (told.migration is None and told.ports != ports):
        return (fact(EventType.VM_PLACED, None),), here
    if told.migration is not None:
        return (fact(EventType.MIGRATION_COMPLETED, told.migration),), here
    return (), here
