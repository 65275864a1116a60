"""`pleach paths` and `pleach tunnel`: by which ways traffic goes and why; bandwidth of tunnels."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from controller.api import NewReservation, PathRoute, PathsBetween
from controller.commands.common import (
    Failure,
    Json,
    client,
    made,
    show_fields,
    show_json,
    show_table,
)
from controller.model.nouns import Reservation, Tunnel

tunnel = typer.Typer(no_args_is_help=True, help="Links to other sites, and what is reserved there.")

_NOTHING_YET = (
    "nothing was decided yet: paths are first chosen when two edges or more are there and traffic "
    "between them was measured (paths.measure_s); see `pleach loops` for trouble"
)

_RESERVATION = ("RESERVATION", "TUNNEL", "RATE", "DIRECTION", "UNTIL", "FOR")

_End = Annotated[str | None, typer.Argument(help="A datapath, host or VM.")]
_Id = Annotated[str, typer.Argument(help="Its id.")]
_Mbps = Annotated[float, typer.Argument(min=0.001, help="Mbit/s in each direction.")]


def paths(
    source: _End = None,
    to: _End = None,
    history: Annotated[int, typer.Option(min=0, max=20, help="Earlier decisions to tell.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="Decisions in the list.")] = 20,
    as_json: Json = False,
) -> None:
    """Tell by which paths traffic goes from one edge to another, how full they are, and why;
    without two ends, what was decided when."""
    if (source is None) != (to is None):
        raise Failure("one end alone has no paths", "Name two, or none for all decisions.")
    with client() as pleach:
        if source is None or to is None:
            decisions = pleach.path_decisions(limit)
            if as_json:
                show_json(decisions)
                return
            if decisions.unchosen or not decisions.items:
                typer.echo(decisions.unchosen or _NOTHING_YET, err=True)
            show_table(
                ("ID", "WHEN", "BECAUSE OF", "WORST LINK", "EVENLY", "BEST", "ROUTES CHANGED"),
                (
                    (
                        d.id,
                        _when(d.at),
                        d.trigger,
                        f"{d.worst:.1%}",
                        f"{d.even_worst:.1%}",
                        "-" if d.optimum is None else f"{d.optimum:.1%}",
                        d.changed,
                    )
                    for d in decisions.items
                ),
            )
            return
        found = pleach.paths(source, to, history=history)
    if as_json:
        show_json(found)
    else:
        _show(found)


def _show(found: PathsBetween) -> None:
    typer.echo(f"{found.ingress} -> {found.egress}")
    if found.decision is not None:
        told = found.decision
        typer.echo(f"decision {told.id}, {_when(told.at)}: {told.trigger}")
    for route in found.routes:
        _show_route(route)
    if found.links:
        typer.echo()
        show_table(
            ("LINK", "CAPACITY", "EXPECTED", "HIGH", "USED"),
            (
                (
                    f"{link.source}->{link.target}",
                    _rate(link.capacity),
                    _rate(link.expected),
                    _rate(link.high),
                    f"{link.expected / link.capacity:.1%}",
                )
                for link in found.links
            ),
        )


def _show_route(route: PathRoute) -> None:
    typer.echo()
    how = "chosen for the traffic" if route.chosen else "planned trees"
    foreseen = "" if route.expected is None else f", {_rate(route.expected)} expected"
    typer.echo(f"{route.traffic_class.value}: {how}{foreseen}")
    show_table(
        ("SHARE", "BUCKETS", "TREE", "LATENCY", "BY"),
        (
            (
                f"{way.share:.1%}",
                way.buckets,
                way.tree,
                "-" if way.latency_s is None else f"{way.latency_s * 1000:.2f} ms",
                " ".join(way.nodes),
            )
            for way in route.ways
        ),
    )
    for reason in route.reasons:
        typer.echo(f"  {reason}")
    for opinion in route.earlier:
        typer.echo(f"  decision {opinion.decision}, {_when(opinion.at)}:")
        for reason in opinion.reasons:
            typer.echo(f"    {reason}")


def _when(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(sep=" ", timespec="seconds")


def _rate(bps: float) -> str:
    return f"{bps / 1e6:,.3f} Mbit/s"


@tunnel.command("add")
def add(
    key: _Id,
    link: Annotated[str, typer.Argument(help="The port that it leaves by: DPID:NUMBER.")],
    mbps: _Mbps,
    reservable: Annotated[
        float, typer.Option(min=0, max=1, help="Share that may be reserved.")
    ] = 0.9,
    as_json: Json = False,
) -> None:
    """Declare a link a tunnel, or change what is known of it."""
    fields = {"id": key, "link": link, "capacity": _bps(mbps), "reservable": reservable}
    record = made(lambda: Tunnel.model_validate(fields))
    with client() as pleach:
        kept = pleach.put(record)
    if as_json:
        show_json(kept)
        return
    show_fields(
        [
            ("tunnel", kept.id),
            ("leaves by", kept.link),
            ("capacity", _rate(kept.capacity)),
            ("reservable", f"{kept.reservable:.1%}"),
        ]
    )


@tunnel.command("list")
def list_tunnels(as_json: Json = False) -> None:
    """List tunnels with what of them is free."""
    with client() as pleach:
        found = [(known, pleach.tunnel_bandwidth(known.id)) for known in pleach.list(Tunnel)]
    if as_json:
        show_json([bandwidth for _, bandwidth in found])
        return
    show_table(
        ("TUNNEL", "LEAVES BY", "CAPACITY", "FREE OUT", "FREE IN"),
        (
            (
                known.id,
                known.link,
                _rate(known.capacity),
                _rate(bandwidth.forward.free),
                _rate(bandwidth.backward.free),
            )
            for known, bandwidth in found
        ),
    )


@tunnel.command("delete")
def delete(key: _Id) -> None:
    """Forget a tunnel of which nothing is reserved."""
    with client() as pleach:
        pleach.delete(Tunnel, key)
    typer.echo(f"deleted tunnel {key}")


@tunnel.command("reserve")
def reserve(
    key: _Id,
    mbps: Annotated[float, typer.Argument(min=0.001, help="Mbit/s.")],
    lifetime_s: Annotated[float, typer.Option(min=1, help="Seconds until it ends.")] = 3_600.0,
    into: Annotated[bool, typer.Option("--in", help="Into the tunnel's port, not out.")] = False,
    purpose: Annotated[str, typer.Option(help="What for.")] = "",
    reservation: Annotated[str | None, typer.Option("--id", help="Else made up.")] = None,
    as_json: Json = False,
) -> None:
    """Reserve a part of a tunnel, all of it or nothing."""
    fields = {
        "id": reservation,
        "rate": _bps(mbps),
        "forward": not into,
        "purpose": purpose,
        "lifetime_s": lifetime_s,
    }
    asked = made(lambda: NewReservation.model_validate(fields))
    with client() as pleach:
        granted = pleach.reserve(key, asked)
    if as_json:
        show_json(granted)
    else:
        names = (name.lower() for name in _RESERVATION)
        show_fields(zip(names, _row(granted), strict=True))


@tunnel.command("reservations")
def reservations(as_json: Json = False) -> None:
    """List what is reserved."""
    with client() as pleach:
        found = list(pleach.list(Reservation))
    if as_json:
        show_json(found)
        return
    show_table(_RESERVATION, map(_row, found))


def _row(r: Reservation) -> tuple[str, ...]:
    way = "out" if r.forward else "in"
    return (r.id, r.tunnel, _rate(r.rate), way, _when(r.expires_at), r.purpose)


@tunnel.command("release")
def release(key: Annotated[str, typer.Argument(help="Id of the reservation.")]) -> None:
    """Give back what was reserved."""
    with client() as pleach:
        pleach.release(key)
    typer.echo(f"released {key}")


def _bps(mbps: float) -> int:
    return max(1, round(mbps * 1e6))
