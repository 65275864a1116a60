"""`pleach vm`: definitions of VMs, where they are, and their moves."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

import typer

from controller.api import EventReply, VmStatus
from controller.client import Client
from controller.commands.common import (
    Exit,
    Failure,
    Json,
    Timeout,
    Wait,
    client,
    made,
    show_event,
    show_fields,
    show_json,
    show_record,
    show_table,
)
from controller.model.nouns import Migration, Nic, Phase, Placement, Vm
from controller.observe.migrations import WORDS

app = typer.Typer(no_args_is_help=True, help="Virtual machines.")

Key = Annotated[str, typer.Argument(help="The VM's id.")]
Nics = Annotated[
    list[str] | None,
    typer.Option("--nic", help="mac=…,subnet=…[,ipv4=…][,ipv6=…]; once for each NIC, in order."),
]
Groups = Annotated[list[str] | None, typer.Option("--group", help="May be repeated.")]
Ports = Annotated[list[str], typer.Argument(help="A port for each NIC, in order.")]


def nic(text: str) -> Nic:
    """A NIC from `mac=…,subnet=…`. Raises Failure."""
    fields: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals or name in fields:
            raise Failure(
                f"--nic {text}: {part!r} is no name=value, or comes twice",
                "Write mac=02:00:00:00:00:01,subnet=web,ipv4=10.1.0.11.",
            )
        fields[name] = value
    found = made(lambda: Nic.model_validate(fields))
    assert isinstance(found, Nic)
    return found


@app.command()
def create(
    key: Key,
    tenant: Annotated[str, typer.Option(help="Whose it is.")],
    nics: Nics = None,
    group: Groups = None,
    name: Annotated[str, typer.Option(help="For people.")] = "",
    replace: Annotated[bool, typer.Option("--replace", help="Replace it.")] = False,
    as_json: Json = False,
) -> None:
    """Define a VM."""
    fields = {
        "id": key,
        "tenant": tenant,
        "name": name,
        "nics": [nic(text) for text in nics or ()],
        "groups": group or (),
    }
    record = made(lambda: Vm.model_validate(fields))
    with client() as pleach:
        show_record(pleach.put(record) if replace else pleach.create(record), as_json)


@app.command("list")
def list_vms(
    tenant: Annotated[str | None, typer.Option(help="Of one tenant only.")] = None,
    subnet: Annotated[str | None, typer.Option(help="On one subnet only.")] = None,
    host: Annotated[str | None, typer.Option(help="At one host only.")] = None,
    as_json: Json = False,
) -> None:
    """List VMs and where they are."""
    given = {"tenant": tenant, "subnet": subnet, "host": host}
    with client() as pleach:
        filters = {name: value for name, value in given.items() if value is not None}
        vms = list(pleach.list(Vm, **filters))
        places = {p.vm: p for p in pleach.list(Placement)}
    if as_json:
        show_json([{**vm.model_dump(), **_place(places.get(vm.id))} for vm in vms])
        return
    show_table(
        ("VM", "TENANT", "HOST", "PORTS", "MAC", "IPV4", "GROUPS"),
        (
            (
                vm.id,
                vm.tenant,
                places[vm.id].host if vm.id in places else "-",
                places[vm.id].ports if vm.id in places else (),
                [n.mac for n in vm.nics],
                [n.ipv4 for n in vm.nics if n.ipv4],
                vm.groups,
            )
            for vm in vms
        ),
    )


def _place(place: Placement | None) -> dict[str, object]:
    if place is None:
        return {"host": None, "ports": ()}
    return {"host": place.host, "ports": place.ports}


@app.command()
def show(key: Key, wait: Wait = False, timeout: Timeout = None, as_json: Json = False) -> None:
    """Show a VM, where it is, and whether the switches have confirmed that."""
    with client() as pleach:
        told = pleach.vm(key, wait=wait, timeout_s=timeout)
    _show_status(told, as_json)


def _show_status(told: VmStatus, as_json: bool) -> None:
    if as_json:
        show_json(told)
        return
    place, move, at = told.placement, told.migration, told.confirmed_at
    show_fields(
        [
            ("vm", told.vm.id),
            ("tenant", told.vm.tenant),
            ("name", told.vm.name),
            ("groups", told.vm.groups),
            *(
                (f"nic {index}", [n.mac, n.subnet, *(a for a in (n.ipv4, n.ipv6) if a)])
                for index, n in enumerate(told.vm.nics)
            ),
            ("status", told.status),
            ("host", place.host if place else None),
            ("ports", place.ports if place else None),
            ("migration", _move(move) if move else None),
            ("revision", told.revision),
            ("confirmed", datetime.fromtimestamp(at, UTC).isoformat() if at else None),
            *(("waiting for", what) for what in told.waiting_for),
            ("unreachable", told.unreachable),
        ]
    )


def _move(move: Migration) -> str:
    return f"{move.id}: {move.phase}, to {move.target}: {WORDS[move.phase]}"


def _settle(
    pleach: Client, key: str, told: EventReply, wait: bool, timeout: float | None, as_json: bool
) -> None:
    """Show what became of an event, and wait for the switches where that is wanted."""
    if not wait:
        show_event(told, as_json)
        return
    if not as_json:
        show_event(told, as_json)
    status = pleach.vm(key, wait=True, revision=told.revision, timeout_s=timeout)
    if as_json:
        show_json({"event": told, "vm": status})
    else:
        typer.echo("confirmed by every connected switch")


@app.command()
def place(
    key: Key,
    host: Annotated[str, typer.Argument(help="The host that it runs at.")],
    ports: Ports,
    wait: Wait = True,
    timeout: Timeout = None,
    as_json: Json = False,
) -> None:
    """Tell that a VM runs at a host, its NICs plugged into these ports."""
    with client() as pleach:
        _settle(pleach, key, pleach.place(key, host, ports), wait, timeout, as_json)


@app.command()
def update(
    key: Key,
    nics: Nics = None,
    group: Groups = None,
    no_groups: Annotated[bool, typer.Option("--no-groups", help="Be in no group.")] = False,
    port: Annotated[list[str] | None, typer.Option(help="A port for each NIC, in order.")] = None,
    wait: Wait = True,
    timeout: Timeout = None,
    as_json: Json = False,
) -> None:
    """Tell new NICs, groups or ports of a VM; each given kind replaces what was."""
    groups: Sequence[str] | None = () if no_groups else group
    with client() as pleach:
        told = pleach.update(
            key, nics=[nic(text) for text in nics] if nics else None, groups=groups, ports=port
        )
        _settle(pleach, key, told, wait, timeout, as_json)


@app.command()
def remove(
    key: Key,
    host: Annotated[str | None, typer.Option(help="From where; else where it is.")] = None,
    wait: Wait = True,
    timeout: Timeout = None,
    as_json: Json = False,
) -> None:
    """Tell that a VM runs no more; its definition stays."""
    with client() as pleach:
        told = pleach.remove(key, host or _where(pleach, key).host)
        _settle(pleach, key, told, wait, timeout, as_json)


@app.command()
def delete(
    key: Key,
    force: Annotated[bool, typer.Option("--force", help="Also where it is placed.")] = False,
) -> None:
    """Delete a VM's definition."""
    with client() as pleach:
        pleach.delete(Vm, key, force=force)
    typer.echo(f"deleted vm {key}")


@app.command()
def migrate(
    key: Key,
    target: Annotated[str, typer.Argument(help="The host that it moves to.")],
    ports: Ports,
    migration: Annotated[str | None, typer.Option("--id", help="Of the migration.")] = None,
    complete: Annotated[
        bool, typer.Option("--complete", help="Tell at once that it has arrived.")
    ] = False,
    wait: Wait = True,
    timeout: Timeout = None,
    as_json: Json = False,
) -> None:
    """Tell that a VM begins to move; the target's rules stand when this returns.

    Its first packet from there, or `pleach vm complete`, ends the move; `pleach vm fail`
    takes it back."""
    name = migration or f"mig-{uuid.uuid4()}"
    with client() as pleach:
        source = _where(pleach, key).host
        told = pleach.start_migration(name, key, source, target, ports)
        if not complete:
            _settle(pleach, key, told, wait, timeout, as_json)
            return
        if wait:
            pleach.vm(key, wait=True, revision=told.revision, timeout_s=timeout)
        told = pleach.complete_migration(name, key, target, ports)
        _settle(pleach, key, told, wait, timeout, as_json)


@app.command()
def complete(
    key: Key,
    migration: Annotated[str | None, typer.Option("--id", help="Else the open one.")] = None,
    wait: Wait = True,
    timeout: Timeout = None,
    as_json: Json = False,
) -> None:
    """Tell that a VM that was moving runs at the target."""
    with client() as pleach:
        told = pleach.complete_migration(migration or _open(pleach, key), key)
        _settle(pleach, key, told, wait, timeout, as_json)


@app.command()
def fail(
    key: Key,
    migration: Annotated[str | None, typer.Option("--id", help="Else the open one.")] = None,
    reason: Annotated[str, typer.Option(help="For the log.")] = "",
    wait: Wait = True,
    timeout: Timeout = None,
    as_json: Json = False,
) -> None:
    """Tell that a VM that was to move stays where it was."""
    with client() as pleach:
        told = pleach.fail_migration(migration or _open(pleach, key), key, reason)
        _settle(pleach, key, told, wait, timeout, as_json)


def _where(pleach: Client, key: str) -> Placement:
    place = pleach.vm(key).placement
    if place is None:
        raise Failure(
            f"vm {key} is placed nowhere", f"pleach vm place {key} HOST PORT", Exit.REFUSED
        )
    return place


def _open(pleach: Client, key: str) -> str:
    moves = pleach.list(Migration, vm=key)
    found = [move for move in moves if move.phase in (Phase.STARTED, Phase.ACTIVATED)]
    if not found:
        raise Failure(
            f"no migration of vm {key} is open", f"pleach vm migrate {key} HOST PORT", Exit.REFUSED
        )
    return found[-1].id
