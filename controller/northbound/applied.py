"""Have the switches confirmed what was asked for a VM, and what hinders them? Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from controller.api import VmStatus
from controller.model.nouns import Migration, Phase, Vm
from controller.model.state import State
from controller.store.records import Progress


@dataclass(frozen=True, slots=True)
class Hindrance:
    """Why a VM is not applied. `blocked`: waiting alone will not mend it."""

    detail: str
    mend: str
    blocked: bool


#: The number of the port of that name at a datapath, or None.
PortNumber = Callable[[str, str], int | None]


def status(
    state: State,
    progress: Mapping[str, Progress],
    port_number: PortNumber,
    vm: Vm,
    revision: int,
) -> tuple[VmStatus, list[Hindrance]]:
    """The VM as it is told, and what hinders that every connected datapath (the VM's own
    edges above all) has confirmed `revision` without an error."""
    placement = state.placements.get(vm.id)
    move = _open_move(state, vm.id)
    own = _plugs(state, vm.id, move)
    hindrances: list[Hindrance] = []
    unreachable: list[str] = []
    confirmed: list[float] = []
    for dpid in sorted({*state.datapaths, *own}):
        told = progress.get(dpid)
        if dpid not in own and (told is None or not told.connected):
            unreachable.append(dpid)
            continue
        found = list(_hindrances(state, told, port_number, dpid, own.get(dpid, ()), revision))
        hindrances += found
        if not found and told is not None:
            confirmed.append(told.confirmed_at)
    applied = not hindrances
    place: Literal["defined", "placed", "applied", "migrating"] = "defined"
    if move is not None and move.phase in (Phase.STARTED, Phase.ACTIVATED):
        place = "migrating"
    elif placement is not None:
        place = "applied" if applied else "placed"
    return VmStatus.model_construct(
        vm=vm,
        placement=placement,
        migration=move,
        status=place,
        revision=revision,
        applied=applied,
        confirmed_at=max(confirmed, default=None) if applied else None,
        waiting_for=tuple(h.detail for h in hindrances),
        unreachable=tuple(unreachable),
    ), hindrances


def named(state: State, dpid: str) -> str:
    """A datapath as an operator knows it."""
    datapath = state.datapaths.get(dpid)
    return f"{dpid} ({datapath.name})" if datapath and datapath.name else dpid


def _open_move(state: State, vm: str) -> Migration | None:
    return next((m for m in state.migrations.values() if m.vm == vm and m.open), None)


def _plugs(state: State, vm: str, move: Migration | None) -> dict[str, tuple[tuple[str, str], ...]]:
    """The VM's own edges, each with its (host, port) pairs there."""
    pairs: set[tuple[str, str]] = set()
    placement = state.placements.get(vm)
    if placement is not None:
        pairs |= {(placement.host, port) for port in placement.ports}
    if move is not None and move.phase is Phase.STARTED:
        pairs |= {(move.target, port) for port in move.ports}
    plugs: dict[str, tuple[tuple[str, str], ...]] = {}
    for host, port in sorted(pairs):
        if host in state.hosts:
            dpid = state.hosts[host].datapath
            plugs[dpid] = (*plugs.get(dpid, ()), (host, port))
    return plugs


def _hindrances(
    state: State,
    told: Progress | None,
    port_number: PortNumber,
    dpid: str,
    plugs: tuple[tuple[str, str], ...],
    revision: int,
) -> Iterator[Hindrance]:
    name = named(state, dpid)
    if told is None or not told.connected:
        hosts = ", ".join(sorted({host for host, _ in plugs}))
        yield Hindrance(
            f"datapath {name} of host {hosts} is not connected",
            "Point the switch at the controller, see that the southbound process runs, and "
            "that the host names the right datapath id.",
            blocked=True,
        )
        return
    for host, port in plugs:
        if port_number(dpid, port) is None:
            yield Hindrance(
                f"port {port} of host {host} is not on datapath {name}",
                f"Plug the VM's interface {port} into the switch, or send the event with the "
                "port's right name.",
                blocked=True,
            )
    if told.error is not None:
        yield Hindrance(
            f"datapath {name} reports: {told.error}",
            "See what the switch refused (`pleach explain --datapath`), and mend it there.",
            blocked=True,
        )
    elif told.revision < revision:
        yield Hindrance(
            f"datapath {name} has confirmed revision {told.revision} of {revision}, "
            f"{told.pending} message(s) pending",
            "Wait on, or see that the southbound process runs and the switch answers.",
            blocked=False,
        )
