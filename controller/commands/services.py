"""`pleach services`: what answers at the ports of VMs."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from controller.commands.common import Json, client, refuse_unknown, show_json, show_table
from controller.model.nouns import Service


def services(
    vm: Annotated[str | None, typer.Argument(help="One VM; by default all.")] = None,
    application: Annotated[str | None, typer.Option(help="Such as TLS.")] = None,
    category: Annotated[str | None, typer.Option(help='Such as "web server".')] = None,
    as_json: Json = False,
) -> None:
    """Tell what answers at the ports of VMs, how that is known, and how fast it answers."""
    given = {"vm": vm, "application": application, "category": category}
    with client() as pleach:
        filters = {name: value for name, value in given.items() if value is not None}
        found = list(pleach.list(Service, **filters))
        refuse_unknown(pleach, vm, found)
    if as_json:
        show_json(found)
        return
    headers = ("VM", "SERVICE", "APPLICATION", "HOW", "CATEGORY", "HANDSHAKE", "RESPONSE", "AGO")
    now = time.time()
    show_table((*headers, "RISKS"), (_row(service, now) for service in found))


def _row(service: Service, now: float) -> tuple[object, ...]:
    also = "".join(f" (also {name})" for name in service.conflicts)
    return (
        service.vm,
        f"{service.protocol}/{service.port}",
        service.application + also,
        service.how,
        _category(service),
        _milliseconds(service.handshake_s),
        _milliseconds(service.response_s),
        _ago(now - service.concluded_at),
        service.risks,
    )


def _category(service: Service) -> str:
    if service.category_how != "behavioural":
        return service.category
    return f"{service.category} ({service.confidence:.0%})"


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1000:.2f} ms"


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
