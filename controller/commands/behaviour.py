"""`pleach behaviour`: the rhythms of a VM, drawn, and who behaves alike; `pleach roles`."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

import typer

from controller.api import BehaviourInfo, MetricBehaviour
from controller.client import Client
from controller.commands.common import Json, client, show_fields, show_json, show_table

#: Columns of a drawn period, and the signs for low to high.
_COLUMNS = 48
_SIGNS = "▁▂▃▄▅▆▇█"
_STEP_S = 300.0
#: Periods that are drawn are averaged over so much of the past, at most.
_PAST_S = 14 * 86_400.0


def behaviour(
    vm: Annotated[str, typer.Argument(help="A VM.")],
    draw: Annotated[bool, typer.Option(help="Draw one mean period of each metric.")] = True,
    as_json: Json = False,
) -> None:
    """How a VM behaves: its rhythms, how it varies, and who behaves or behaved like it."""
    with client() as pleach:
        found = pleach.behaviour(vm)
        if as_json:
            show_json(found)
            return
        drawn = _drawn(pleach, found) if draw else {}
    if found.at is None:
        # Here, because it brings what is slow to import.
        from controller.loops.behaviour import AGAIN_S

        typer.echo(
            f"of {vm} nothing is told yet: it takes some 6 hours of samples, and then its next "
            f"turn, as a rule within {_span(AGAIN_S)}, with many VMs within behaviour.round_s "
            "(`pleach loops` tells of trouble)"
        )
        return
    show_fields((("vm", vm), ("as of", _instant(found.at)), ("role", found.role)))
    headers = ("METRIC", "MEAN", "PERIODS", "TREND", "BURSTS", "VARIES", "DAYS")
    show_table(headers, (_row(name, metric) for name, metric in found.metrics.items()))
    for name, line in drawn.items():
        length = found.metrics[name].rhythms[0].length_s
        typer.echo(f"{name.ljust(16)} {line} {_span(length)}")
    for one in found.near:
        when = _instant(one.week_from)[:10]
        typer.echo(f"alike: {one.vm} in the week of {when} (distance {one.distance:.2f})")


def roles(as_json: Json = False) -> None:
    """Groups of VMs that behave and communicate alike."""
    with client() as pleach:
        found = pleach.roles()
    if as_json:
        show_json(found)
        return
    rows = [
        (
            role.id,
            len(role.members),
            _instant(role.since),
            f"{role.stayed:.0%}",
            role.groups,
            (*role.members[:5], *(("...",) if len(role.members) > 5 else ())),
        )
        for role in found
    ]
    show_table(("ROLE", "VMS", "SINCE", "STAYED", "GROUPS", "MEMBERS"), rows)


def _drawn(pleach: Client, found: BehaviourInfo) -> dict[str, str]:
    """The mean course of the strongest period of each metric that has one."""
    rhythmic = [name for name, metric in found.metrics.items() if metric.rhythms]
    if not rhythmic or found.at is None:
        return {}
    end = time.time() // _STEP_S * _STEP_S
    told = pleach.history(found.vm, rhythmic, end - _PAST_S, end, step=_STEP_S)
    lines = {}
    for name in rhythmic:
        length = found.metrics[name].rhythms[0].length_s
        columns = max(4, min(_COLUMNS, int(length / _STEP_S)))
        lines[name] = _line(_folded(told.times, told.metrics[name], length, columns))
    return lines


def _folded(
    times: Sequence[float], values: Sequence[float | None], length_s: float, columns: int
) -> list[float | None]:
    """The mean of each part of a period, from midnight UTC on."""
    sums, counts = [0.0] * columns, [0] * columns
    for at, value in zip(times, values, strict=True):
        if value is not None:
            place = min(columns - 1, int(at % length_s / length_s * columns))
            sums[place] += value
            counts[place] += 1
    return [total / many if many else None for total, many in zip(sums, counts, strict=True)]


def _line(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    width = high - low or math.inf
    return "".join(
        " " if value is None else _SIGNS[min(7, int((value - low) / width * 8))] for value in values
    )


def _row(name: str, metric: MetricBehaviour) -> tuple[object, ...]:
    periods = [f"{_span(one.length_s)} ({one.strength:.0%})" for one in metric.rhythms]
    return (
        name,
        f"{metric.mean:.4g}",
        periods or "none",
        f"{metric.trend:+.2f}",
        f"{metric.burstiness:+.2f}",
        f"{metric.variation:.2f}",
        f"{metric.days:.1f}",
    )


def _span(seconds: float) -> str:
    for unit, name in ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.3g} s"


def _instant(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
