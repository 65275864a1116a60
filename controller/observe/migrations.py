"""What each step of a migration means for the state of record. Pure: time comes in.

    started ──▶ activated ──▶ settling ──▶ finished
       │            │
       └────────────┴──▶ failed

The placement moves to the target at activation and back to the source at failure, so
"where is the VM" has one answer at every instant.
"""

from __future__ import annotations

from typing import Literal

from controller.model.nouns import Migration, Phase, Placement

#: What the phases of an open migration are, in words.
WORDS = {
    Phase.STARTED: "packets for the VM go to both places",
    Phase.ACTIVATED: "the VM runs there, and its old place drains",
    Phase.SETTLING: "the VM runs there, and its connections are given grace",
}


def activate(
    migration: Migration, at: float, by: Literal["packet", "event"]
) -> tuple[Migration, Placement]:
    """The VM runs at the target now. ValueError where the migration is past that."""
    if migration.phase is not Phase.STARTED:
        raise ValueError(f"migration {migration.id} is {migration.phase}, not started")
    moved = migration.model_copy(
        update={"phase": Phase.ACTIVATED, "activated_by": by, "activated_at": at}
    )
    return moved, Placement(vm=migration.vm, host=migration.target, ports=migration.ports)


def fail(migration: Migration, at: float) -> tuple[Migration, Placement]:
    """The VM stays at, or falls back to, the source. ValueError where it is too late."""
    if migration.phase not in (Phase.STARTED, Phase.ACTIVATED):
        raise ValueError(f"migration {migration.id} is {migration.phase}: its source is gone")
    failed = migration.model_copy(update={"phase": Phase.FAILED, "ended_at": at})
    return failed, Placement(vm=migration.vm, host=migration.source, ports=migration.source_ports)


def advance(migration: Migration, now: float, drain_s: float, grace_s: float) -> Migration:
    """What time alone makes of a migration: the source is drained `drain_s` seconds after
    the activation, and grace ends `grace_s` seconds after it."""
    if migration.activated_at is None:
        return migration
    age = now - migration.activated_at
    phase = migration.phase
    if phase is Phase.ACTIVATED and age >= drain_s:
        phase = Phase.SETTLING
    if phase is Phase.SETTLING and age >= max(drain_s, grace_s):
        phase = Phase.FINISHED
    if phase is migration.phase:
        return migration
    update: dict[str, object] = {"phase": phase}
    if phase is Phase.FINISHED:
        update["ended_at"] = now
    return migration.model_copy(update=update)
