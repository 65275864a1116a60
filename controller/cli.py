"""`pleach`: the command line.

Settings come from `--config` or PLEACH_CONFIG; the server from `--url`, PLEACH_URL or the
settings; the token from PLEACH_TOKEN or the state directory of this machine. Exit codes are
told in `controller.commands.common`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from controller import __version__
from controller.commands import (
    admin,
    agent,
    alerts,
    bandwidth,
    behaviour,
    dpi,
    fabric,
    forecast,
    history,
    paths,
    queues,
    records,
    services,
    signatures,
    southbound,
    supervise,
    vm,
)
from controller.commands.common import PLACE, Failure, complain, settings
from controller.settings import Framework

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A controller for networks of virtual machines on OpenFlow fabrics.",
    epilog=(
        "Exit codes: 0 done; 1 refused; 2 wrong command, settings, store or file; "
        "3 server not reached; 4 not allowed; 5 not confirmed by the switches."
    ),
)
app.add_typer(vm.app, name="vm")
app.add_typer(records.tenant, name="tenant")
app.add_typer(records.subnet, name="subnet")
app.add_typer(records.host, name="host")
app.add_typer(records.access, name="access")
app.add_typer(fabric.topology, name="topology")
app.add_typer(paths.tunnel, name="tunnel")
app.add_typer(dpi.app, name="dpi")
app.add_typer(queues.app, name="queues")
app.add_typer(alerts.app, name="alerts")
app.add_typer(admin.token, name="token")
app.add_typer(admin.store, name="store")
app.add_typer(admin.config, name="settings")
app.command("agent")(agent.agent)
app.command("bandwidth")(bandwidth.bandwidth)
app.command("explain")(fabric.explain)
app.command("loops")(alerts.loops)
app.command("behaviour")(behaviour.behaviour)
app.command("roles")(behaviour.roles)
app.command("forecast")(forecast.forecast)
app.command("history")(history.history)
app.command("services")(services.services)
app.command("signatures")(signatures.signatures)
app.command("denials")(signatures.denials)
app.command("paths")(paths.paths)

Plain = Annotated[
    bool,
    typer.Option("--plain", help="Listen beyond this machine without TLS (behind a proxy)."),
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    config: Annotated[Path | None, typer.Option(help="Settings file, YAML.")] = None,
    url: Annotated[str | None, typer.Option(help="Server, such as https://pleach:8640.")] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="This client's certificate, PEM, where one is asked for.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="The key of --certificate, PEM.")] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Tell it.")
    ] = False,
) -> None:
    """What comes before the command."""
    if (certificate is None) != (key is None):
        raise Failure("--certificate and --key belong together", "Give both or none.")
    PLACE.config, PLACE.url = config, url
    PLACE.certificate = (certificate, key) if certificate and key else None


@app.command()
def run(plain: Plain = False) -> None:
    """Start southbound process and brain, and keep both running."""
    from controller import logs

    local = settings()  # told here, once, where they are wrong
    logs.configure(local.log.level, local.log.format)
    itself = [sys.executable, "-m", "controller.cli"]
    brain_command = [*itself, "brain", *(["--plain"] if plain else [])]
    southbound_command = southbound.command(local.southbound)
    _name_settings()
    raise typer.Exit(
        supervise.supervise({"southbound": southbound_command, "brain": brain_command})
    )


@app.command()
def brain(plain: Plain = False) -> None:
    """Run the brain: REST, and what watches, foresees and decides."""
    # Here, because it is slow to import and most commands need nothing of it.
    from controller.northbound.server import serve

    serve(settings(), plain=plain)


@app.command("southbound")
def run_southbound(
    framework: Annotated[
        Framework | None, typer.Option(help="What speaks OpenFlow; by default as set.")
    ] = None,
) -> None:
    """Run the southbound process: OpenFlow."""
    if framework is not None:
        os.environ["PLEACH_SOUTHBOUND__FRAMEWORK"] = framework
    _become(southbound.command(settings().southbound))


@app.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
def ryu_manager(
    words: Annotated[list[str] | None, typer.Argument(metavar="[OPTION|APP]...")] = None,
) -> None:
    """Run Ryu apps, Pleach's or others', by file or module name; the options are Ryu's."""
    _become(southbound.manager(settings().southbound, words or []))


def _become(command: list[str]) -> None:
    """Go on as another process: it replaces parts of Python before anything is imported."""
    _name_settings()
    os.execv(command[0], command)  # noqa: S606


def _name_settings() -> None:
    """Let a child find the settings file that `--config` names."""
    if PLACE.config is not None:
        os.environ["PLEACH_CONFIG"] = str(PLACE.config.absolute())


def main() -> None:
    """Run the command line; expected errors are told without a traceback."""
    try:
        app()
    except Exception as error:
        code = complain(error)
        if code is None:
            raise
        raise SystemExit(int(code)) from None


if __name__ == "__main__":
    main()
