"""Which VMs have changed edges of late? What was measured before tells of their old places."""

from __future__ import annotations

from dataclasses import dataclass

from controller.model.state import State


@dataclass(frozen=True, slots=True)
class Move:
    """A VM's change of edges at a time (Unix seconds): its `share` of what the edge that it left
    exchanges with others, as one of the VMs there."""

    vm: str
    source: str
    target: str
    at: float
    share: float


def moves_of(state: State, after: float) -> tuple[Move, ...]:
    """The migrations between edges that were activated after `after`, the earliest first."""
    population: dict[str, int] = {}
    for placement in state.placements.values():
        host = state.hosts.get(placement.host)
        if host is not None:
            population[host.datapath] = population.get(host.datapath, 0) + 1
    found = []
    for migration in state.migrations.values():
        source, target = state.hosts.get(migration.source), state.hosts.get(migration.target)
        at = migration.activated_at
        if source is None or target is None or at is None or at <= after:
            continue
        if source.datapath != target.datapath:
            share = 1.0 / (1 + population.get(source.datapath, 0))
            found.append(Move(migration.vm, source.datapath, target.datapath, at, share))
    return tuple(sorted(found, key=lambda move: move.at))
