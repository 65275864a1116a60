"""`pleach topology` and `pleach explain`: the fabric and its rules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from controller.commands.common import Failure, Json, client, show_json, show_table
from controller.model.nouns import Watch
from topologies.draw import draw_svg
from topologies.load import TopologyError, validate
from topologies.model import Fabric

topology = typer.Typer(no_args_is_help=True, help="The fabric: as it is, and as planned in YAML.")

File = Annotated[Path, typer.Argument(help="A fabric in YAML.")]


@topology.command()
def show(as_json: Json = False) -> None:
    """Show the switches, links and hosts that were discovered, and how far each switch is."""
    with client() as pleach:
        found = pleach.topology()
    if as_json:
        show_json(found)
        return
    progress = {told.datapath: told for told in found.progress}
    edges = {host.datapath for host in found.hosts}
    ports = [port.datapath for port in found.ports]
    show_table(
        ("DATAPATH", "NAME", "ROLE", "CONNECTED", "PORTS", "CONFIRMED", "PENDING", "ERROR"),
        (
            (
                d.dpid,
                d.name,
                "edge" if d.dpid in edges else "core",
                d.connected,
                ports.count(d.dpid),
                f"{progress[d.dpid].revision}/{found.revision}" if d.dpid in progress else "-",
                progress[d.dpid].pending if d.dpid in progress else "-",
                progress[d.dpid].error if d.dpid in progress else None,
            )
            for d in found.datapaths
        ),
    )
    typer.echo()
    show_table(
        ("FROM", "PORT", "TO", "PORT", "STATE", "WATCHED BY", "LATENCY", "MBIT/S"),
        (
            (
                k.datapath,
                k.port,
                k.to_datapath,
                k.to_port,
                "up" if k.up else "damped" if k.damped else "down",
                "BFD" if k.watch is Watch.BFD else "port, LLDP",
                "-" if k.latency_s is None else f"{k.latency_s * 1000:.2f} ms",
                k.capacity // 10**6 or "-",
            )
            for k in found.links
        ),
    )
    typer.echo()
    show_table(
        ("HOST", "DATAPATH", "SITE", "STATE"),
        ((h.id, h.datapath, h.site, h.state) for h in found.hosts),
    )


@topology.command("forget")
def forget(dpid: Annotated[str, typer.Argument(help="Id of the switch.")]) -> None:
    """Forget a decommissioned switch."""
    with client() as pleach:
        pleach.forget_datapath(dpid)
    typer.echo(f"forgot datapath {dpid}")


@topology.command("validate")
def validate_file(file: File) -> None:
    """Tell whether a fabric's file is right, or all that is wrong with it."""
    fabric = _fabric(file)
    typer.echo(
        f"{file}: fabric {fabric.name}: {len(fabric.switches)} switches, "
        f"{len(fabric.cables)} cables, {len(fabric.hosts)} hosts"
    )


@topology.command()
def draw(
    file: File,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Else standard output.")
    ] = None,
) -> None:
    """Draw a fabric's file as SVG."""
    svg = draw_svg(_fabric(file))
    if output is None:
        typer.echo(svg)
        return
    try:
        output.write_text(svg, encoding="utf-8")
    except OSError as error:
        raise Failure(f"{output}: {error.strerror}", "Name a file that can be written.") from error
    typer.echo(f"wrote {output}")


def _fabric(file: Path) -> Fabric:
    try:
        return validate(file)
    except TopologyError as error:
        raise Failure(str(error), f"Correct {file}.") from error


def explain(
    vm: Annotated[str | None, typer.Option(help="The rules of one VM.")] = None,
    datapath: Annotated[str | None, typer.Option(help="The rules of one switch.")] = None,
    cookie: Annotated[str | None, typer.Option(help="As a switch shows it, 0x….")] = None,
    as_json: Json = False,
) -> None:
    """Tell which flow entries are wanted, for whom and why."""
    if vm is None and datapath is None and cookie is None:
        raise Failure("nothing is asked for", "Give --vm, --datapath or --cookie.")
    with client() as pleach:
        found = pleach.explain(vm=vm, datapath=datapath, cookie=cookie)
    if as_json:
        show_json(found)
        return
    at = ("", "")
    for rule in found.items:
        if (rule.datapath, rule.table) != at:
            at = (rule.datapath, rule.table)
            typer.echo(f"{rule.datapath}  table {rule.table}")
        typer.echo(f"  {rule.priority:>5}  {rule.match} -> {rule.actions}")
        typer.echo(f"         {rule.cookie}  {rule.owner}: {rule.reason}")
    typer.echo(f"{len(found.items)} of {found.total} flow entries, at revision {found.revision}")
