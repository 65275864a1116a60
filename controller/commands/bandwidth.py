"""`pleach bandwidth`: what VMs may send and receive, and why; an operator's limits."""

from __future__ import annotations

from typing import Annotated

import typer

from controller.api import VmBandwidth
from controller.client import Client
from controller.commands.common import (
    Failure,
    Json,
    client,
    made,
    show_fields,
    show_json,
    show_table,
)
from controller.model.nouns import RateLimit

_Mbps = Annotated[float | None, typer.Option(min=0.001, help="Limit, Mbit/s.")]


def bandwidth(
    vm: Annotated[str | None, typer.Argument(help="One VM; by default all that have any.")] = None,
    out: _Mbps = None,
    into: Annotated[float | None, typer.Option("--in", min=0.001, help="Limit, Mbit/s.")] = None,
    burst_ms: Annotated[
        int | None, typer.Option(min=10, max=60_000, help="How long a limit may be exceeded.")
    ] = None,
    unlimit: Annotated[bool, typer.Option("--unlimit", help="Take the limit off.")] = False,
    as_json: Json = False,
) -> None:
    """Tell what a VM may send and receive, and why; with --out and --in, limit it."""
    changing = unlimit or out is not None or into is not None
    if vm is None and changing:
        raise Failure("no VM is named", "Name the VM to be limited.")
    if unlimit and (out is not None or into is not None):
        raise Failure("--unlimit comes with a limit", "Give one or the other.")
    with client() as pleach:
        if vm is None:
            _show_all(pleach, as_json)
            return
        if unlimit:
            pleach.unlimit(vm)
        elif changing:
            fields = {"vm": vm, "out_kbit": _kbit(out), "in_kbit": _kbit(into)}
            fields |= {} if burst_ms is None else {"burst_ms": burst_ms}
            pleach.limit(made(lambda: RateLimit.model_validate(fields)))
        _show(pleach.bandwidth(vm), as_json)


def _kbit(mbps: float | None) -> int | None:
    return None if mbps is None else max(1, round(mbps * 1_000))


def _show_all(pleach: Client, as_json: bool) -> None:
    found = pleach.bandwidths()
    if as_json:
        show_json(found)
        return
    show_table(
        ("VM", "OUT Mbit/s", "IN Mbit/s", "WHY OUT", "WHY IN"),
        (
            (b.vm, _mbps(b.out_kbit), _mbps(b.in_kbit), b.out_reason, b.in_reason)
            for b in found.items
        ),
    )
    if found.trouble:
        typer.echo(f"warning: {found.trouble}", err=True)


def _show(told: VmBandwidth, as_json: bool) -> None:
    if as_json:
        show_json(told)
        return
    marking = told.marking
    show_fields(
        [
            ("vm", told.vm),
            ("out", f"{_mbps(told.out_kbit)}, {told.out_reason}"),
            ("in", f"{_mbps(told.in_kbit)}, {told.in_reason}"),
            ("out passed", _passed(told.out_passed_kbit)),
            ("in passed", _passed(told.in_passed_kbit)),
            ("class", marking.default.name if marking and marking.default else ""),
            *(
                (f"{service.protocol} {service.port}", service.mark.name)
                for service in (marking.services if marking else ())
            ),
        ]
    )


def _mbps(kbit: int | None) -> str:
    return "unlimited" if kbit is None else f"{kbit / 1_000:g} Mbit/s"


def _passed(kbit: float | None) -> str:
    return "" if kbit is None else f"{kbit / 1_000:.3g} Mbit/s"
