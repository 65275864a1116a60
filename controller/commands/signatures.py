"""`pleach signatures` and `pleach denials`: who talks to whom, and who tried in vain."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from controller.api import SignatureInfo
from controller.commands.common import Failure, Json, client, refuse_unknown, show_json, show_table

Vm = Annotated[str | None, typer.Option(help="Who begins; by default all.")]
Peer = Annotated[str | None, typer.Option(help='A VM, a prefix, or "*".')]
Port = Annotated[int | None, typer.Option(help="Destination port.")]
Protocol = Annotated[str | None, typer.Option(help="tcp, udp, sctp, icmp, or a number.")]
Tenant = Annotated[str | None, typer.Option(help="One tenant; by default all.")]
Hours = Annotated[
    float | None, typer.Option(help="The last hours; by default all that is kept.", min=0)
]


def signatures(
    vm: Vm = None,
    peer: Peer = None,
    port: Port = None,
    protocol: Protocol = None,
    tenant: Tenant = None,
    hours: Hours = None,
    graph: Annotated[
        Path | None,
        typer.Option(help="Write a graph there instead: .graphml, or a picture (.svg, .png)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Tell who talks to whom, and how much, as the switches count it."""
    filters = _filters(vm, peer, port, protocol, tenant, hours)
    with client() as pleach:
        found = list(pleach.signatures(**filters))
        refuse_unknown(pleach, vm, found)
    if graph is not None:
        _write(graph, found)
        typer.echo(f"wrote {len(found)} signatures to {graph}")
        return
    if as_json:
        show_json(found)
        return
    headers = ("VM", "PEER", "SERVICE", "APPLICATION", "CONNECTIONS", "SENT", "RECEIVED", "LAST")
    show_table(
        headers,
        (
            (
                s.vm,
                s.peer,
                _service(s.protocol, s.port),
                s.application,
                s.connections,
                _size(s.bytes_out),
                _size(s.bytes_in),
                _at(s.last_at),
            )
            for s in found
        ),
    )


def denials(
    vm: Vm = None,
    peer: Peer = None,
    port: Port = None,
    protocol: Protocol = None,
    tenant: Tenant = None,
    hours: Hours = None,
    as_json: Json = False,
) -> None:
    """Tell what access denied, to whom."""
    filters = _filters(vm, peer, port, protocol, tenant, hours)
    with client() as pleach:
        found = list(pleach.denials(**filters))
        refuse_unknown(pleach, vm, found)
    if as_json:
        show_json(found)
        return
    show_table(
        ("VM", "PEER", "SERVICE", "PACKETS", "FIRST", "LAST"),
        (
            (d.vm, d.peer, _service(d.protocol, d.port), d.packets, _at(d.first_at), _at(d.last_at))
            for d in found
        ),
    )


def _filters(
    vm: str | None,
    peer: str | None,
    port: int | None,
    protocol: str | None,
    tenant: str | None,
    hours: float | None,
) -> dict[str, str | float | None]:
    since = None if hours is None else time.time() - hours * 3_600
    return {
        "vm": vm, "peer": peer, "port": port, "protocol": protocol, "tenant": tenant,
        "since": since,
    }  # fmt: skip


def _service(protocol: str, port: int) -> str:
    return f"{protocol}/{port}" if port else protocol


def _size(octets: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if octets < 1_000:
            return f"{octets:.3g} {unit}"
        octets /= 1_000
    return f"{octets:.4g} TB"


def _at(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


# --- As a graph ------------------------------------------------------------------------------


def graph_of(found: Iterable[SignatureInfo]) -> Any:
    """A networkx MultiDiGraph: a node for each VM or prefix with its `kind` and `tenant`, an edge
    from who begins to whom for each protocol and port, with what was counted."""
    # Imported here, because it takes longer than most commands do.
    import networkx as nx

    graph = nx.MultiDiGraph(name="who talks to whom")
    for s in found:
        graph.add_node(s.vm, kind="vm", tenant=s.tenant)
        kind = "others" if s.peer == "*" else "prefix" if s.external else "vm"
        # What lies outside is not one for all tenants.
        peer = f"{s.tenant} {s.peer}" if s.external else s.peer
        graph.add_node(peer, kind=kind, tenant=s.tenant)
        told = s.model_dump(exclude={"vm", "peer", "tenant", "external", "hour"}, exclude_none=True)
        graph.add_edge(s.vm, peer, key=_service(s.protocol, s.port), **told)
    return graph


def _write(path: Path, found: list[SignatureInfo]) -> None:
    graph = graph_of(found)
    try:
        if path.suffix == ".graphml":
            import networkx as nx

            nx.write_graphml(graph, path)
        elif path.suffix in (".svg", ".png", ".pdf"):
            _draw(path, graph)
        else:
            raise Failure(
                f"{path}: no graph can be written in the format of that name",
                "Name it .graphml, .svg, .png or .pdf.",
            )
    except OSError as error:
        raise Failure(
            f"{path} cannot be written: {error.strerror}", "Name a file in a directory of yours."
        ) from error


def _draw(path: Path, graph: Any) -> None:
    import matplotlib as mpl
    import networkx as nx

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    colours = {"vm": "tab:blue", "prefix": "tab:orange", "others": "tab:red"}
    figure, axes = plt.subplots(figsize=(12, 9))
    nx.draw_networkx(
        graph,
        nx.spring_layout(graph, seed=1),
        ax=axes,
        node_color=[colours[kind] for _, kind in graph.nodes(data="kind")],
        node_size=200,
        font_size=7,
        edge_color="0.6",
    )
    axes.set_axis_off()
    figure.savefig(path)
    plt.close(figure)
