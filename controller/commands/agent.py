"""`pleach agent`: tell the controller what this hypervisor and its VMs do."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from controller.client import Client
from controller.commands.common import (
    PLACE,
    Exit,
    Failure,
    Json,
    settings,
    show_fields,
    show_json,
    show_table,
)
from controller.settings import Settings

#: The file in `state_dir` that has the token where agent.token_file does not name another.
TOKEN_FILE = "agent.token"  # noqa: S105 - the name of a file


def agent(
    once: Annotated[
        bool, typer.Option("--once", help="Look, measure and send a single time, and tell it.")
    ] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Tell how the agent of this machine is.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run the agent of a hypervisor, which tells the controller of its VMs."""
    # Here, because numpy is slow to import and most commands need nothing of it.
    from controller import logs
    from controller.agent.agent import Agent, read_status, stopped_by_signals
    from controller.agent.outbox import OutboxBusy

    local = settings()
    if status:
        try:
            found = read_status(local.state_dir)
        except (OSError, ValueError) as error:
            raise Failure(
                f"no agent has run with state_dir {local.state_dir}: {error}",
                "Start it by `pleach agent`, or name its settings by --config.",
            ) from error
        _show(found, as_json)
        return
    logs.configure("error" if once else local.log.level, local.log.format)
    host = local.agent.host or socket.gethostname()
    try:
        made = Agent(local, host, connector(local))
    except OutboxBusy as error:
        raise Failure(
            str(error), "It runs already: `pleach agent --status` tells how it is."
        ) from error
    with closing(made):
        if once:
            made.once()
            _show(made.status(), as_json)
            if made.sender.account.trouble:
                raise typer.Exit(int(Exit.UNREACHABLE))
            return
        with stopped_by_signals() as stopping:
            made.run(stopping)


def connector(local: Settings) -> Callable[[], Client]:
    """What makes clients of the controller. Failure where there is no token."""
    chosen = local.agent
    url = PLACE.url or os.environ.get("PLEACH_URL") or chosen.url or _local_url(local)
    ca = chosen.ca or (Path(found) if (found := os.environ.get("PLEACH_CA")) else None)
    certificate = PLACE.certificate
    if chosen.certificate is not None and chosen.key is not None:
        certificate = (chosen.certificate, chosen.key)
    file = chosen.token_file or local.state_dir / TOKEN_FILE

    def token() -> str:
        return os.environ.get("PLEACH_TOKEN") or file.read_text().strip()

    def connect() -> Client:
        # Files are read each time, since tokens and certificates are renewed.
        return Client(url, token(), ca=ca, certificate=certificate, attempts=1)

    try:
        token()
    except OSError as error:
        raise Failure(
            f"no token: PLEACH_TOKEN is not set, and {file}: {error.strerror}",
            "Have an operator run `pleach token create NAME --role hypervisor --host HOST`, and "
            f"put what it prints into {file} (mode 0600), or name another by agent.token_file.",
            Exit.NOT_ALLOWED,
        ) from error
    return connect


def _local_url(local: Settings) -> str:
    northbound = local.northbound
    return f"{'https' if northbound.tls.enabled else 'http'}://127.0.0.1:{northbound.port}"


def _show(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show_json(found)
        return
    sent, waiting, lost = found["sent"], found["waiting"], found["lost"]
    show_fields(
        [
            ("host", found["host"]),
            ("as of", _instant(found["at"])),
            ("VMs", len(found["vms"])),
            ("looked", _instant(found["looked_at"])),
            ("measured", _instant(found["measured_at"])),
            ("values each time", found["values"]),
            ("of Prometheus", found["prometheus_values"] or None),
            ("controller reached", _instant(sent["reached_at"]) or "never"),
            ("events told", sent["events"]),
            ("samples taken", sent["samples_taken"]),
            ("samples refused", sent["samples_refused"]),
            ("clock ahead by s", sent["clock_offset_s"]),
            ("events waiting", waiting["events"]),
            ("samples waiting", waiting["values"]),
            ("oldest waiting", _instant(waiting["oldest"])),
            ("samples lost", _lost(lost)),
        ]
    )
    # An agent of before there were hints may have written it.
    noted = found["troubles"] | found.get("hints", {})
    troubles = [(name, told["cause"], told["mend"]) for name, told in noted.items()]
    if sent["trouble"]:
        troubles.append(("controller", sent["trouble"], sent["mend"]))
    for name, cause, mend in troubles:
        typer.echo(f"\n{name}: {cause}\n  mend: {mend}")
    for reason, example in sent["examples"].items():
        typer.echo(f"\nsamples refused ({reason}), such as {example}")
    for vm, host in found["elsewhere"].items():
        typer.echo(f"\n{vm} runs here, but the controller has it at {host}")
    for event in found["refused_events"][-10:]:
        at = _instant(event["at"])
        typer.echo(f"\nevent refused at {at}: {event['type']} {event['vm']}: {event['cause']}")
    if found["vms"]:
        typer.echo("")
        show_table(
            ("VM", "PORTS", "MACS", "ARRIVING"),
            ((vm["vm"], vm["ports"], vm["macs"], vm["arriving"] or None) for vm in found["vms"]),
        )


def _lost(lost: dict[str, Any] | None) -> str:
    if lost is None:
        return ""
    return f"{lost['values']} of {_instant(lost['first'])} to {_instant(lost['last'])}"


def _instant(at: float | None) -> str:
    return "" if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
