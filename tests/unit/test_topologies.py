"""Fabrics: generated, read from YAML, checked, drawn."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topologies import TopologyError, validate
from topologies.draw import draw_svg
from topologies.generate import fat_tree, hybrid, leaf_spine
from topologies.model import Cable, CableKind, Fabric, Role, islands

SHIPPED = sorted((Path(__file__).parents[2] / "topologies").glob("*.yaml"))

GOOD = """\
name: rack
switches:
  - {name: leaf1, dpid: 0x1, role: edge}
  - {name: leaf2, dpid: "0000000000001001", role: edge, site: north}
  - {name: spine1, dpid: 3, role: core}
cables:
  - {a: leaf1, b: spine1, capacity_bps: 40G}
  - {a: leaf2, b: spine1, capacity_bps: 200M, latency_s: 0.02, kind: tunnel}
hosts:
  - {name: hv1, edge: leaf1}
"""


@pytest.fixture
def problems(tmp_path):
    """Gives the problems of a text as (line, field) pairs, and checks how each reads."""

    def read(text: str | bytes) -> list[tuple[int, str]]:
        path = tmp_path / "fabric.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(TopologyError) as caught:
            validate(path)
        for problem in caught.value.problems:
            assert problem.cause
            assert problem.mend
            where = f"{path}:{problem.line}" if problem.line else str(path)
            assert str(problem).startswith(f"{where}: {problem.field}: ")
        return [(p.line, p.field) for p in caught.value.problems]

    return read


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_file_is_a_whole_fabric(path):
    fabric = validate(path)
    assert fabric.name == path.stem
    assert len(islands(fabric)) == 1


def test_a_list_is_read_as_it_stands(tmp_path):
    path = tmp_path / "rack.yaml"
    path.write_text(GOOD)
    fabric = validate(path)
    assert [(s.name, s.dpid, s.role, s.site) for s in fabric.switches] == [
        ("leaf1", 1, "edge", "default"),
        ("leaf2", 0x1001, "edge", "north"),
        ("spine1", 3, "core", "default"),
    ]
    assert fabric.cables == (
        Cable("leaf1", "spine1", 40_000_000_000),
        Cable("leaf2", "spine1", 200_000_000, 0.02, CableKind.TUNNEL),
    )
    assert fabric.sites == ("default", "north")
    assert [host.name for host in fabric.hosts_on("leaf1")] == ["hv1"]


@pytest.mark.parametrize(
    ("old", "new", "line", "field"),
    [
        ("name: rack", "name: rack\ncolour: green", 2, "colour"),
        ("name: rack", "name: a b", 1, "name"),
        ("name: leaf2", "name: leaf1", 4, "switches[1].name"),
        ("dpid: 3", "dpid: 1", 5, "switches[2].dpid"),
        ("dpid: 3", "dpid: 0", 5, "switches[2].dpid"),
        ("dpid: 3", "dpid: 12zz", 5, "switches[2].dpid"),
        ("dpid: 3, ", "", 5, "switches[2].dpid"),
        ("role: core", "role: spine", 5, "switches[2].role"),
        ("role: core", "rule: core", 5, "switches[2].rule"),
        ("b: spine1, capacity_bps: 40G", "b: spine9, capacity_bps: 40G", 7, "cables[0].b"),
        ("a: leaf1, b: spine1", "a: leaf1, b: leaf1", 7, "cables[0].b"),
        ("40G", "0", 7, "cables[0].capacity_bps"),
        ("40G", "-40G", 7, "cables[0].capacity_bps"),
        ("40G", "fast", 7, "cables[0].capacity_bps"),
        ("0.02", "-1", 8, "cables[1].latency_s"),
        ("kind: tunnel", "kind: string", 8, "cables[1].kind"),
        ("edge: leaf1}", "edge: spine1}", 10, "hosts[0].edge"),
        ("edge: leaf1}", "edge: leaf7}", 10, "hosts[0].edge"),
        ("hosts:", "hosts:\n  - {name: hv1, edge: leaf2}", 11, "hosts[1].name"),
        ("hosts:", "hosts:\n  - hv0", 10, "hosts[0]"),
        ("name: rack", "name: rack\nname: rock", 2, "name"),
    ],
)
def test_each_mistake_names_its_line_and_field(problems, old, new, line, field):
    assert old in GOOD
    assert (line, field) in problems(GOOD.replace(old, new, 1))


def test_all_mistakes_are_told_at_once(problems):
    text = GOOD.replace("40G", "0").replace("role: core", "role: cone").replace("0.02", "soon")
    assert problems(text) == [
        (5, "switches[2].role"),
        (7, "cables[0].capacity_bps"),
        (8, "cables[1].latency_s"),
    ]


def test_a_switch_named_like_a_port_is_told(problems):
    assert problems(GOOD.replace("spine1", "leaf1-1")) == [(2, "switches")]


def test_islands_are_named(problems, tmp_path):
    text = GOOD.replace("  - {a: leaf1, b: spine1, capacity_bps: 40G}\n", "")
    assert problems(text) == [(6, "cables")]
    with pytest.raises(TopologyError, match=r"2 islands: leaf2, spine1 \| leaf1"):
        validate(tmp_path / "fabric.yaml")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"", 1),
        (b"name: [", 1),
        (b"name: x\n\tswitches: 1", 2),
        (b"name: \xff", 1),
        (b"a\nb\n\xff", 3),
        (b"- just\n- a list", 1),
        (b"\x00", 0),
        (b"[" * 20_000, 0),
        (b"x: " + b"y" * (5 << 20), 0),
    ],
    ids=["empty", "open", "tab", "latin1", "latin1-3", "list", "nul", "deep", "huge"],
)
def test_what_is_no_fabric_file_is_told(problems, text, line):
    assert problems(text) == [(line, "file")]


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(TopologyError, match="No such file"):
        validate(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("parameters", "line", "field"),
    [
        ("kind: leaf-spine\n  leafs: 3", 4, "generate.leafs"),
        ("kind: leaf-spine\n  leaves: 0", 4, "generate.leaves"),
        ("kind: leaf-spine\n  leaves: many", 4, "generate.leaves"),
        ("kind: fat-tree\n  k: 3", 4, "generate.k"),
        ("kind: fat-tree\n  k: 4\n  hosts_per_edge: 9", 5, "generate.hosts_per_edge"),
        ("kind: hybrid\n  tunnel_bps: 0", 4, "generate.tunnel_bps"),
        ("kind: torus", 3, "generate.kind"),
        ("leaves: 3", 3, "generate.kind"),
    ],
)
def test_a_generator_is_asked_strictly(problems, parameters, line, field):
    assert problems(f"name: x\ngenerate:\n  {parameters}\n") == [(line, field)]


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 3))
def test_leaf_spine_joins_every_leaf_to_every_spine(leaves, spines, hosts):
    fabric = leaf_spine(leaves, spines, hosts)
    assert len(fabric.cables) == leaves * spines
    assert len(fabric.hosts) == leaves * hosts
    _is_sound(fabric)


@pytest.mark.parametrize("k", [2, 4, 6, 8])
def test_fat_tree_uses_k_ports_of_every_switch(k):
    fabric = fat_tree(k, hosts_per_edge=k // 2)
    ports = dict.fromkeys((s.name for s in fabric.switches), 0)
    for cable in fabric.cables:
        ports[cable.a] += 1
        ports[cable.b] += 1
    for host in fabric.hosts:
        ports[host.edge] += 1
    assert set(ports.values()) == {k}
    assert len(fabric.switches) == 5 * k * k // 4
    assert len(fabric.hosts) == k**3 // 4
    _is_sound(fabric)


def test_hybrid_survives_the_loss_of_any_tunnel_or_gateway():
    fabric = hybrid()
    tunnels = [cable for cable in fabric.cables if cable.kind is CableKind.TUNNEL]
    assert len(tunnels) >= 2
    for tunnel in tunnels:
        rest = tuple(cable for cable in fabric.cables if cable is not tunnel)
        assert len(islands(Fabric("x", fabric.switches, rest, ()))) == 1
        for gateway in (tunnel.a, tunnel.b):
            switches = tuple(s for s in fabric.switches if s.name != gateway)
            assert len(islands(Fabric("x", switches, fabric.cables, ()))) == 1
    _is_sound(fabric)


@pytest.mark.parametrize("make", [lambda: fat_tree(5), lambda: leaf_spine(0), lambda: hybrid(99)])
def test_impossible_numbers_are_refused(make):
    with pytest.raises(ValueError, match=r"must|needs"):
        make()


def _is_sound(fabric: Fabric) -> None:
    names = {switch.name for switch in fabric.switches}
    assert len(names) == len({switch.dpid for switch in fabric.switches}) == len(fabric.switches)
    assert all(len(name) <= 12 for name in names)
    assert all(cable.a != cable.b and {cable.a, cable.b} <= names for cable in fabric.cables)
    assert all(fabric.switch(host.edge).role is Role.EDGE for host in fabric.hosts)
    assert len(islands(fabric)) == 1


@settings(max_examples=30)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 8), st.sampled_from(["leaf", "hybrid"]))
def test_a_drawing_shows_every_switch_once_and_apart(leaves, spines, hosts, kind):
    fabric = (
        leaf_spine(leaves, spines, hosts) if kind == "leaf" else hybrid(leaves, spines, 2, 1, hosts)
    )
    svg = ElementTree.fromstring(draw_svg(fabric))
    space = "{http://www.w3.org/2000/svg}"
    boxes = [
        (float(r.get("x")), float(r.get("y")), float(r.get("width")), float(r.get("height")))
        for r in svg.iter(f"{space}rect")
        if r.get("class") in ("edge", "core")
    ]
    shown = [t.text for t in svg.iter(f"{space}text") if t.get("class", "").startswith("name ")]
    assert sorted(shown) == sorted(switch.name for switch in fabric.switches)
    assert len(boxes) == len(fabric.switches)
    for number, (x, y, w, h) in enumerate(boxes):
        assert 0 <= x <= float(svg.get("width")) - w
        assert 0 <= y <= float(svg.get("height")) - h
        assert not any(
            x < x2 + w2 and x2 < x + w and y < y2 + h2 and y2 < y + h
            for x2, y2, w2, h2 in boxes[number + 1 :]
        )
    dashed = [path for path in svg.iter(f"{space}path") if path.get("class") == "tunnel"]
    assert len(dashed) == sum(cable.kind is CableKind.TUNNEL for cable in fabric.cables)


def test_a_drawing_is_the_same_each_time_and_labels_mixed_capacities(tmp_path):
    path = tmp_path / "rack.yaml"
    path.write_text(GOOD.replace("200M, latency_s: 0.02, kind: tunnel", "1G"))
    svg = draw_svg(validate(path))
    assert svg == draw_svg(validate(path))
    labels = [t.text for t in ElementTree.fromstring(svg).iter() if t.get("class") == "label"]
    assert sorted(labels) == ["1 Gbit/s", "40 Gbit/s"]


def test_names_cannot_break_out_of_a_drawing():
    fabric = leaf_spine(name="<script>&")
    assert "<script>" not in draw_svg(fabric)
