"""A fabric as an SVG picture: cores on top, edges below, hosts under their edges, sites side
by side, tunnels dashed. Text in, text out; no library, no randomness, so a drawing can be
kept under version control."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape

from topologies.model import Cable, CableKind, Fabric, Role, Switch

_BOX_W, _BOX_H = 92, 34
_GAP_X, _LAYER_H = 26, 118
_HOST_H, _HOST_W = 20, 84
_MARGIN, _SITE_PAD, _SITE_GAP = 24, 22, 150
_TITLE_H, _SITE_TITLE_H = 44, 30
#: Tunnels run above the sites, so many pixels apart.
_TUNNEL_H, _CORNER = 24, 9
#: More hosts below an edge than these are shown as a count.
_HOSTS_SHOWN = 4

_STYLE = """
  .page { fill: #fbfaf6 }
  text { font-family: "DejaVu Sans", "Segoe UI", Helvetica, sans-serif; fill: #22312b }
  .title { font-size: 18px; font-weight: bold }
  .note { font-size: 11px; fill: #5a6b63 }
  .site { fill: #f1efe6; stroke: #d6d2c2; rx: 14px }
  .site-name { font-size: 13px; fill: #5a6b63; font-weight: bold }
  .core { fill: #2f6b55; stroke: #214d3d }
  .edge { fill: #d8ebdf; stroke: #2f6b55 }
  .host { fill: #ffffff; stroke: #b9c4be }
  .name { font-size: 12px; text-anchor: middle }
  .core-name { fill: #ffffff }
  .host-name { font-size: 10px; text-anchor: middle }
  .cable { stroke: #7f9a8d; fill: none; stroke-width: 1.4 }
  .tunnel { stroke: #b4622a; fill: none; stroke-width: 2; stroke-dasharray: 7 5 }
  .drop { stroke: #b9c4be; stroke-width: 1 }
  .label { font-size: 10px; text-anchor: middle; fill: #8a4619; paint-order: stroke;
           stroke: #fbfaf6; stroke-width: 3px }
"""


@dataclass(frozen=True, slots=True)
class _Place:
    """The middle of a switch's box, in pixels."""

    x: float
    y: float


@dataclass(slots=True)
class _SiteBox:
    name: str
    layers: list[list[Switch]]
    x: float = 0.0
    width: float = 0.0
    places: dict[str, _Place] = field(default_factory=dict)


def draw_svg(fabric: Fabric) -> str:
    """`fabric` as an SVG document."""
    sites = [_SiteBox(name, _layers(fabric, name)) for name in fabric.sites]
    depth = max(len(site.layers) for site in sites)
    tunnels = sum(cable.kind is CableKind.TUNNEL for cable in fabric.cables)
    top = _MARGIN + _TITLE_H + (tunnels * _TUNNEL_H + 8 if tunnels else 0) + _SITE_TITLE_H
    x: float = _MARGIN
    for site in sites:
        _arrange(site, x, top, depth)
        x += site.width + _SITE_GAP
    most = max((len(fabric.hosts_on(switch.name)) for switch in fabric.switches), default=0)
    rows = min(most, _HOSTS_SHOWN + 1)
    width = x - _SITE_GAP + _MARGIN
    bottom = top + (depth - 1) * _LAYER_H + _BOX_H + 22 + rows * (_HOST_H + 5) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" '
        f'height="{bottom + _MARGIN:.0f}" '
        f'viewBox="0 0 {width:.0f} {bottom + _MARGIN:.0f}" role="img">',
        f"<title>{escape(fabric.name)}</title>",
        f"<style>{_STYLE}</style>",
        '<rect class="page" width="100%" height="100%"/>',
        _text(_MARGIN, _MARGIN + 14, "title", fabric.name),
        _text(_MARGIN, _MARGIN + 32, "note", _summary(fabric)),
    ]
    for site in sites:
        parts += _frame(site, top, bottom, several=len(sites) > 1)
    parts += _cables(fabric, sites, top - _SITE_TITLE_H - 10)
    places = {name: place for site in sites for name, place in site.places.items()}
    for switch in fabric.switches:
        parts += _switch(switch, places[switch.name])
        parts += _hosts(fabric, switch.name, places[switch.name])
    return "\n".join([*parts, "</svg>", ""])


def _layers(fabric: Fabric, site: str) -> list[list[Switch]]:
    """A site's switches from top to bottom: edges last, every core as many layers above them
    as it is cables away from the nearest edge of the site."""
    inside = {switch.name: switch for switch in fabric.switches if switch.site == site}
    height = {name: 0 for name, switch in inside.items() if switch.role is Role.EDGE}
    frontier, level = set(height), 0
    while frontier:
        level += 1
        near = {
            peer
            for cable in fabric.cables
            for end, peer in ((cable.a, cable.b), (cable.b, cable.a))
            if end in frontier and peer in inside and peer not in height
        }
        height.update(dict.fromkeys(near, level))
        frontier = near
    top = max(height.values(), default=0) + (len(height) == 0)
    layers: list[list[Switch]] = [[] for _ in range(top + 1)]
    for name, switch in inside.items():
        layers[top - height.get(name, top)].append(switch)
    return layers


def _arrange(site: _SiteBox, x: float, top: float, depth: int) -> None:
    pitch = _BOX_W + _GAP_X
    site.x = x
    site.width = max(len(layer) for layer in site.layers) * pitch - _GAP_X + 2 * _SITE_PAD
    site.width = max(site.width, 2 * pitch)
    for row, layer in enumerate(site.layers, depth - len(site.layers)):
        # Short layers are spread, so that cables fan out evenly.
        step = max(pitch, (site.width - 2 * _SITE_PAD) / max(len(layer), 1))
        first = site.x + site.width / 2 - (len(layer) - 1) * step / 2
        for column, switch in enumerate(layer):
            site.places[switch.name] = _Place(
                first + column * step, top + _BOX_H / 2 + row * _LAYER_H
            )


def _summary(fabric: Fabric) -> str:
    edges, cores = len(fabric.of_role(Role.EDGE)), len(fabric.of_role(Role.CORE))
    tunnels = sum(cable.kind is CableKind.TUNNEL for cable in fabric.cables)
    cables = [c for c in fabric.cables if c.kind is CableKind.CABLE]
    speeds = sorted({cable.capacity_bps for cable in cables})
    shown = " / ".join(map(capacity, speeds[:3])) + (" / ..." if len(speeds) > 3 else "")
    parts = [_count(edges, "edge"), _count(cores, "core")]
    parts.append(_count(len(cables), "cable") + (f" of {shown}" if cables else ""))
    parts += [_count(tunnels, "tunnel")] if tunnels else []
    return ", ".join([*parts, _count(len(fabric.hosts), "host")])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")


def capacity(bits: int) -> str:
    """A capacity in bit/s as people write it: 40 Gbit/s, 200 Mbit/s."""
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if bits >= size:
            return f"{bits / size:g} {unit}bit/s"
    return f"{bits} bit/s"


def _frame(site: _SiteBox, top: float, bottom: float, *, several: bool) -> list[str]:
    if not several:
        return []
    y = top - _SITE_TITLE_H
    return [
        f'<rect class="site" x="{site.x:.1f}" y="{y:.1f}" width="{site.width:.1f}" '
        f'height="{bottom - y:.1f}" rx="14"/>',
        _text(site.x + 14, y + 19, "site-name", site.name),
    ]


def _cables(fabric: Fabric, sites: list[_SiteBox], above: float) -> list[str]:
    """The lines of all cables and then their labels; tunnels run from height `above` upwards."""
    home = {name: site for site in sites for name in site.places}
    places = {name: site.places[name] for name, site in home.items()}
    uniform = len({c.capacity_bps for c in fabric.cables if c.kind is CableKind.CABLE}) < 2
    parallel: dict[frozenset[str], int] = {}
    lines, labels = [], []
    tunnels = 0
    for cable in fabric.cables:
        ends = frozenset((cable.a, cable.b))
        nth = parallel[ends] = parallel.get(ends, -1) + 1
        a, b = places[cable.a], places[cable.b]
        if cable.kind is CableKind.TUNNEL:
            left, right = sorted((home[cable.a], home[cable.b]), key=lambda site: site.x)
            apart = left is not right
            middle = (left.x + left.width + right.x) / 2 if apart else (a.x + b.x) / 2
            y = above - tunnels * _TUNNEL_H
            line = _tunnel(*((a, b) if a.x < b.x else (b, a)), y)
            tunnels += 1
            labels.append(_text(middle, y - 4, "label", _tunnel_label(cable)))
        else:
            line, x, y = _cable(a, b, nth)
            if not uniform:
                labels.append(_text(x, y, "label", capacity(cable.capacity_bps)))
        lines.append(f"<g><title>{escape(_describe(cable))}</title>{line}</g>")
    return lines + labels


def _cable(a: _Place, b: _Place, nth: int) -> tuple[str, float, float]:
    """A straight line, or a bow where both ends share a layer or the pair has a cable already;
    and where its label goes."""
    x, y = (a.x + b.x) / 2, (a.y + b.y) / 2
    if a.y == b.y:
        y -= _BOX_H / 2 + 22 + nth * 14
    x += nth * 18
    if a.y != b.y and nth == 0:
        line = f'<line class="cable" x1="{a.x:.1f}" y1="{a.y:.1f}" x2="{b.x:.1f}" y2="{b.y:.1f}"/>'
        # Nearer to the lower end, where fewer cables meet.
        low, high = (a, b) if a.y > b.y else (b, a)
        return line, low.x + (high.x - low.x) * 0.35, low.y + (high.y - low.y) * 0.35
    line = f'<path class="cable" d="M{a.x:.1f} {a.y:.1f} Q{x:.1f} {y:.1f} {b.x:.1f} {b.y:.1f}"/>'
    return line, (a.x + 2 * x + b.x) / 4, (a.y + 2 * y + b.y) / 4


def _tunnel(a: _Place, b: _Place, y: float) -> str:
    """A dashed line up from `a`, across at height `y`, and down to `b` on its right."""
    r = _CORNER
    return (
        f'<path class="tunnel" d="M{a.x:.1f} {a.y:.1f} V{y + r:.1f} q0 {-r} {r} {-r} '
        f'H{b.x - r:.1f} q{r} 0 {r} {r} V{b.y:.1f}"/>'
    )


def _tunnel_label(cable: Cable) -> str:
    latency = f", {cable.latency_s * 1e3:g} ms" if cable.latency_s else ""
    return capacity(cable.capacity_bps) + latency


def _describe(cable: Cable) -> str:
    return f"{cable.kind} {cable.a} - {cable.b}: {_tunnel_label(cable)}"


def _switch(switch: Switch, place: _Place) -> list[str]:
    return [
        f"<g><title>{escape(switch.name)}: {switch.role}, datapath {switch.dpid:016x}</title>",
        f'<rect class="{switch.role}" x="{place.x - _BOX_W / 2:.1f}" '
        f'y="{place.y - _BOX_H / 2:.1f}" width="{_BOX_W}" height="{_BOX_H}" rx="6"/>',
        _text(place.x, place.y + 4, f"name {switch.role}-name", switch.name) + "</g>",
    ]


def _hosts(fabric: Fabric, edge: str, place: _Place) -> list[str]:
    names = [host.name for host in fabric.hosts_on(edge)]
    if len(names) > _HOSTS_SHOWN + 1:
        names = [*names[:_HOSTS_SHOWN], f"+ {len(names) - _HOSTS_SHOWN} more"]
    parts: list[str] = []
    y = place.y + _BOX_H / 2
    for number, name in enumerate(names):
        row = y + 22 + number * (_HOST_H + 5)
        if number == 0:
            parts.append(
                f'<line class="drop" x1="{place.x:.1f}" y1="{y:.1f}" x2="{place.x:.1f}" '
                f'y2="{row:.1f}"/>'
            )
        parts.append(
            f'<rect class="host" x="{place.x - _HOST_W / 2:.1f}" y="{row:.1f}" '
            f'width="{_HOST_W}" height="{_HOST_H}" rx="4"/>'
        )
        parts.append(_text(place.x, row + _HOST_H / 2 + 3.5, "host-name", name))
    return parts


def _text(x: float, y: float, classes: str, text: str) -> str:
    return f'<text class="{classes}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
