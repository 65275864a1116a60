"""`pleach queues`: queues a class of service on the ports of this machine's switch."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated, TypeVar

import typer

from controller.act.queues.plan import minor, plan
from controller.commands.common import Failure, Json, settings, show_json, show_table
from controller.decide.bandwidth import qos

T = TypeVar("T")

app = typer.Typer(
    no_args_is_help=True, help="Queues of classes of service on this machine's switch ports."
)

Bridge = Annotated[str, typer.Argument(help="A bridge of this machine's Open vSwitch.")]
Ports = Annotated[list[str] | None, typer.Option("--port", help="Only these ports of it.")]
Policy = Annotated[
    Path | None, typer.Option(help="The policy, YAML; by default as the settings say.")
]


@app.command()
def apply(
    bridge: Bridge,
    mbps: Annotated[
        float | None, typer.Option(min=0.01, help="What each port carries; by default as --host.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="The host of the policy whose uplink this is.")
    ] = None,
    port: Ports = None,
    policy: Policy = None,
) -> None:
    """Give each port a queue a class; what is so already is left as it is."""
    classes = qos.load(policy or settings().bandwidth.policy)
    rate_bps = _rate(classes, mbps, host)
    wanted = plan(classes.classes, classes.default, rate_bps)
    changed = [name for name in port or ports(bridge) if _tried(tc().apply, name, wanted)]
    typer.echo(f"{', '.join(changed) or 'nothing'} changed")


@app.command()
def show(bridge: Bridge, port: Ports = None, policy: Policy = None, as_json: Json = False) -> None:
    """Tell what the queues of each port have done."""
    classes = qos.load(policy or settings().bandwidth.policy).classes
    names = {minor(made.queue): name for name, made in classes.items()}
    found = {name: _tried(tc().show, name) for name in port or ports(bridge)}
    if as_json:
        show_json(found)
        return
    show_table(
        ("PORT", "CLASS", "Mbit/s", "AT MOST", "PACKETS", "BYTES", "DROPPED", "WAITING"),
        (
            (
                name, names.get(q.minor, q.minor), f"{q.rate * 8 / 1e6:g}", f"{q.ceil * 8 / 1e6:g}",
                q.packets, q.bytes, q.dropped, q.waiting,
            )
            for name, queues in found.items()
            for q in queues
        ),
    )  # fmt: skip


@app.command()
def clear(bridge: Bridge, port: Ports = None) -> None:
    """Take our queues off again; others' stay."""
    changed = [name for name in port or ports(bridge) if _tried(tc().clear, name)]
    typer.echo(f"{', '.join(changed) or 'nothing'} cleared")


def tc() -> ModuleType:
    """What makes queues: imported late, because it takes long and most commands need it not."""
    from controller.act.queues import tc as made

    return made


def ports(bridge: str) -> list[str]:
    """The ports of a bridge that are interfaces of this machine. Raises Failure."""
    try:
        told = subprocess.run(
            ["ovs-vsctl", "--timeout=10", "list-ifaces", bridge],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise Failure(f"ovs-vsctl cannot be run: {error.strerror}", "Install it.") from error
    if told.returncode:
        raise Failure(told.stderr.strip(), "Name a bridge that `ovs-vsctl list-br` shows.")
    here = {name for _, name in socket.if_nameindex()}
    return [name for name in told.stdout.split() if name in here]


def _rate(policy: qos.QosPolicy, mbps: float | None, host: str | None) -> float:
    if mbps is not None:
        return mbps * 1e6
    found = policy.uplink_bps(host or "")
    if found is None:
        raise Failure(
            "nobody says what the ports carry", "Give --mbps, or uplink_mbps in the policy."
        )
    return found


def _tried(act: Callable[..., T], *words: object) -> T:
    try:
        return act(*words)
    except tc().QueueError as error:
        raise Failure(str(error), error.mend) from error
