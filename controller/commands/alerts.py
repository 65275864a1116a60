"""`pleach alerts`: what is out of the ordinary, why, and who sees to it. `pleach loops`."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated

import typer

from controller.api import AlertInfo, AlertStatus, Investigation
from controller.commands.common import Failure, Json, client, show_fields, show_json, show_table

app = typer.Typer(invoke_without_command=True, help="What is out of the ordinary.")

Number = Annotated[int, typer.Argument(help="The alert's id.", min=1)]
Note = Annotated[str, typer.Option(help="What is to be remembered of it.")]
State = Annotated[
    str | None, typer.Option(help="open, acknowledged or closed; else what is not closed.")
]
Kind = Annotated[str | None, typer.Option(help="own_pattern, role, new_peer, scan, ...")]
Severity = Annotated[str | None, typer.Option(help="warning or critical.")]
Vm = Annotated[str | None, typer.Option(help="About this VM only.")]
Limit = Annotated[int, typer.Option(min=1, max=1_000, help="How many at most.")]


@app.callback()
def alerts(context: typer.Context) -> None:
    """Without a command: those that stand."""
    if context.invoked_subcommand is None:
        list_alerts()


@app.command("list")
def list_alerts(
    state: State = None,
    kind: Kind = None,
    severity: Severity = None,
    vm: Vm = None,
    limit: Limit = 50,
    everything: Annotated[bool, typer.Option("--all", help="The closed ones too.")] = False,
    as_json: Json = False,
) -> None:
    """Alerts, the newest first."""
    given = {"state": state, "kind": kind, "severity": severity, "vm": vm}
    filters = {name: value for name, value in given.items() if value is not None}
    with client() as pleach:
        if state is None and not everything:
            items = [
                alert
                for one in ("open", "acknowledged")
                for alert in pleach.alerts({**filters, "state": one}, limit=limit).items
            ]
            items = sorted(items, key=lambda alert: -alert.id)[:limit]
        else:
            items = list(pleach.alerts(filters, limit=limit).items)
    if as_json:
        show_json(items)
        return
    headers = ("ID", "STATE", "SEVERITY", "VM", "KIND", "SINCE", "LAST", "COUNT", "WHY")
    show_table(headers, map(_row, items))


@app.command()
def show(number: Number, as_json: Json = False) -> None:
    """One alert, what is not yet told of it, and the evidence, in words."""
    with client() as pleach:
        status = pleach.alert(number)
        found = pleach.investigation(number)
    if as_json:
        show_json({**status.model_dump(mode="json"), "investigation": found})
        return
    _show(status, found)


@app.command()
def packets(
    number: Number, file: Annotated[Path, typer.Argument(help="Written, as pcap.")]
) -> None:
    """Some packets of the VM, copied when the alert opened."""
    with client() as pleach:
        found = pleach.packets(number)
    try:
        file.write_bytes(found)
    except OSError as error:
        raise Failure(f"{file}: {error.strerror}", "Name a file that can be written.") from error
    typer.echo(f"wrote {file}")


@app.command()
def ack(number: Number, note: Note = "", as_json: Json = False) -> None:
    """Say that you see to it."""
    with client() as pleach:
        _moved(pleach.acknowledge_alert(number, note), as_json)


@app.command()
def close(number: Number, note: Note = "", as_json: Json = False) -> None:
    """Say that it is over."""
    with client() as pleach:
        _moved(pleach.close_alert(number, note), as_json)


def loops(as_json: Json = False) -> None:
    """How each loop of the brain fares."""
    with client() as pleach:
        found = pleach.loops()
    if as_json:
        show_json(found)
        return
    rows = [
        (
            loop.name,
            f"{loop.every_s:g}",
            loop.turns,
            loop.failures,
            _instant(loop.last_at),
            "" if loop.last_s is None else _plain(loop.last_s),
            loop.trouble,
        )
        for loop in found
    ]
    headers = ("LOOP", "EVERY (s)", "TURNS", "FAILED", "LAST", "TOOK (s)", "TROUBLE")
    show_table(headers, rows)


def _plain(seconds: float) -> str:
    """At most 3 significant digits, and no exponent."""
    return f"{Decimal(f'{seconds:.3g}'):f}"


def _row(alert: AlertInfo) -> tuple[object, ...]:
    return (
        alert.id,
        alert.state,
        alert.severity,
        alert.vm,
        alert.kind,
        _instant(alert.first_at),
        _instant(alert.last_at),
        alert.count,
        alert.why,
    )


def _show(status: AlertStatus, found: Investigation) -> None:
    alert = status.alert
    show_fields(
        (
            ("alert", alert.id),
            ("about", alert.vm),
            ("what", alert.kind.replace("_", " ")),
            ("metric", alert.metric),
            ("why", alert.why),
            ("score", f"{alert.score:.3g} times the bound of what is usual"),
            ("severity", alert.severity),
            ("first", _instant(alert.first_at)),
            ("last", _instant(alert.last_at)),
            ("signals", alert.count),
            ("state", f"{alert.state} since {_instant(alert.changed_at)}"),
            ("by", alert.by),
        )
    )
    for delivery in status.deliveries:
        when = (
            f"given up at {_instant(delivery.gave_up_at)}"
            if delivery.gave_up_at is not None
            else f"{delivery.attempts} attempts, again at {_instant(delivery.due_at)}"
        )
        where = delivery.target or "an address that the settings name no more"
        typer.echo(f"not told: {where}: {when}{f' ({delivery.error})' if delivery.error else ''}")
    if found.gathered_at is None:
        typer.echo("evidence: still to be gathered")
        return
    more = "" if found.complete else "; more will come"
    typer.echo(f"evidence, gathered at {_instant(found.gathered_at)}{more}:")
    for line in found.words:
        typer.echo(f"  - {line}")


def _moved(alert: AlertInfo, as_json: bool) -> None:
    if as_json:
        show_json(alert)
    else:
        typer.echo(f"alert {alert.id} is {alert.state}")


def _instant(at: float | None) -> str:
    if at is None or at <= 0:
        return ""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
