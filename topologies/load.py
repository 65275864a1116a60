"""A fabric from a YAML file, or everything that is wrong with the file.

A file either names a generator:                 or lists what there is:

    name: pod-1                                  name: rack-3
    generate:                                    switches:
      kind: leaf-spine                             - {name: leaf1, dpid: 0x1, role: edge}
      leaves: 4                                    - {name: spine1, dpid: 0x2, role: core}
      spines: 2                                  cables:
                                                   - {a: leaf1, b: spine1, capacity_bps: 40G}
                                                 hosts:
                                                   - {name: hv1, edge: leaf1}
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import yaml

from controller.model.addresses import parse_dpid
from topologies.generate import fat_tree, hybrid, leaf_spine
from topologies.model import Cable, CableKind, Fabric, Hypervisor, Role, Switch, islands
from topologies.reader import Entry, Problem, Reader, TopologyError

__all__ = ["Problem", "TopologyError", "validate"]

_GENERATORS: dict[str, Callable[..., Fabric]] = {
    "leaf-spine": leaf_spine,
    "fat-tree": fat_tree,
    "hybrid": hybrid,
}
_T = TypeVar("_T")

_MAX_BYTES = 4 << 20
_MAX_SWITCHES = 4_094  # as many as there are datapath numbers
_MAX_PORT_NAME = 15  # bytes of a Linux interface name
_SWITCH_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,11}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def validate(path: Path | str) -> Fabric:
    """The fabric that the file at `path` describes; TopologyError with all of its problems."""
    reader = Reader(Path(path))
    root = _parse(reader)
    if root is None:
        raise TopologyError(tuple(reader.problems))
    fabric = _generated(root) if root.node("generate") is not None else _listed(root)
    if reader.problems or fabric is None:
        raise TopologyError(tuple(sorted(reader.problems, key=lambda problem: problem.line)))
    return fabric


def _parse(reader: Reader) -> Entry | None:
    try:
        raw = reader.path.read_bytes()
    except OSError as error:
        reader.report(0, "file", f"cannot be read: {error.strerror}", "name a file that exists")
        return None
    if len(raw) > _MAX_BYTES:
        reader.report(0, "file", f"has {len(raw)} bytes", f"at most {_MAX_BYTES} are read")
        return None
    try:
        node = yaml.compose(raw.decode(), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        reader.report(line, "file", "is not UTF-8", "save it as UTF-8 text")
        return None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        reader.report(line, "file", f"is no YAML: {error.problem}", "mend the syntax there")
        return None
    except (yaml.YAMLError, RecursionError) as error:
        cause = (
            "is nested too deeply" if isinstance(error, RecursionError) else f"is no YAML: {error}"
        )
        reader.report(0, "file", cause, "describe a fabric as topologies/leaf-spine.yaml does")
        return None
    if node is None:
        reader.report(1, "file", "is empty", "describe a fabric as topologies/leaf-spine.yaml does")
        return None
    return Entry.of(reader, node, "")


def _name(entry: Entry, pattern: re.Pattern[str] = _NAME, key: str = "name") -> str | None:
    text = entry.text(key)
    if text is not None and not pattern.fullmatch(text):
        longest = 12 if pattern is _SWITCH_NAME else 63
        entry.wrong(key, f"{text!r} is no name", f"use up to {longest} letters, digits and '-'")
        return None
    return text


def _generated(root: Entry) -> Fabric | None:
    root.only("name", "generate")
    name = _name(root)
    part = root.entry("generate")
    if part is None:
        return None
    kind = part.choice("kind", tuple(_GENERATORS))
    if kind is None:
        return None
    make = _GENERATORS[kind]
    known = [p for p in inspect.signature(make).parameters if p != "name"]
    part.only("kind", *known)
    arguments: dict[str, int | float] = {}
    for key in known:
        if part.node(key) is not None:
            read = _seconds if key.endswith("_s") else _bits if key.endswith("_bps") else _count
            number = read(part, key)
            if number is not None:
                arguments[key] = number
    if part.reader.problems:
        return None
    try:
        return make(**arguments, name=name)
    except ValueError as error:
        named = re.match(r"\w+", str(error))
        key = named.group() if named and part.node(named.group()) is not None else "kind"
        part.wrong(key, str(error), "choose other numbers")
        return None


def _listed(root: Entry) -> Fabric | None:
    root.only("name", "switches", "cables", "hosts")
    name = _name(root)
    switches = _switches(root)
    # Where a switch could not be read, complaints of missing ones would only mislead.
    known = {s.name: s for s in switches} if not root.reader.problems else None
    cables = [c for e in root.entries("cables") if (c := _cable(e, known)) is not None]
    hosts = _hosts(root, known)
    if name is None or root.reader.problems:
        return None
    fabric = Fabric(name, tuple(switches), tuple(cables), tuple(hosts))
    _whole(root, fabric)
    _port_names(root, fabric)
    return fabric


def _switches(root: Entry) -> list[Switch]:
    switches: list[Switch] = []
    names: dict[str, int] = {}
    dpids: dict[int, int] = {}
    for entry in root.entries("switches"):
        entry.only("name", "dpid", "role", "site")
        name, dpid = _name(entry, _SWITCH_NAME), _dpid(entry)
        role = entry.choice("role", tuple(Role))
        site = _name(entry, key="site") if entry.node("site") is not None else "default"
        _once(entry, "name", name, names)
        _once(entry, "dpid", dpid, dpids)
        if name is not None and dpid is not None and role is not None and site is not None:
            switches.append(Switch(name, dpid, Role(role), site))
    if root.node("switches") is not None and not root.reader.problems:
        if not any(switch.role is Role.EDGE for switch in switches):
            root.wrong("switches", "none is an edge", "VMs attach to edges: give one role: edge")
        if len(switches) > _MAX_SWITCHES:
            root.wrong("switches", f"there are {len(switches)}", f"at most {_MAX_SWITCHES} fit")
    return switches


def _cable(entry: Entry, known: dict[str, Switch] | None) -> Cable | None:
    entry.only("a", "b", "capacity_bps", "latency_s", "kind")
    a, b = _name(entry, _SWITCH_NAME, "a"), _name(entry, _SWITCH_NAME, "b")
    _is_known(entry, "a", a, known)
    _is_known(entry, "b", b, known)
    if a is not None and a == b:
        entry.wrong("b", f"joins {a} to itself", "name another switch")
    capacity = _bits(entry, "capacity_bps")
    latency = _seconds(entry, "latency_s") if entry.node("latency_s") is not None else 0.0
    kind = entry.choice("kind", tuple(CableKind)) if entry.node("kind") is not None else "cable"
    if a is None or b is None or capacity is None or latency is None or kind is None:
        return None
    return Cable(a, b, capacity, latency, CableKind(kind))


def _hosts(root: Entry, known: dict[str, Switch] | None) -> list[Hypervisor]:
    hosts: list[Hypervisor] = []
    names: dict[str, int] = {}
    for entry in root.entries("hosts"):
        entry.only("name", "edge")
        name, edge = _name(entry), _name(entry, _SWITCH_NAME, "edge")
        _once(entry, "name", name, names)
        _is_known(entry, "edge", edge, known)
        if known and edge in known and known[edge].role is not Role.EDGE:
            entry.wrong("edge", f"{edge} is a core switch", "attach hosts to an edge")
        if name is not None and edge is not None:
            hosts.append(Hypervisor(name, edge))
    return hosts


def _once(entry: Entry, key: str, value: _T | None, seen: dict[_T, int]) -> None:
    if value is None:
        return
    if value in seen:
        shown = f"{value:#x}" if isinstance(value, int) else repr(value)
        entry.wrong(key, f"{shown} stands in line {seen[value]} already", "give each its own")
    seen.setdefault(value, entry.line(key))


def _is_known(entry: Entry, key: str, name: str | None, known: dict[str, Switch] | None) -> None:
    if known is not None and name is not None and name not in known:
        entry.wrong(key, f"there is no switch {name!r}", entry.nearest(name, known, "a switch"))


def _whole(root: Entry, fabric: Fabric) -> None:
    """Report a fabric of several islands."""
    found = islands(fabric)
    if len(found) > 1:
        shown = " | ".join(", ".join(i[:8]) + (", ..." if len(i) > 8 else "") for i in found)
        gap = "; ".join(f"{a[0]} and {b[0]}" for a, b in list(pairwise(found))[:4])
        root.wrong(
            "cables" if root.node("cables") is not None else "switches",
            f"the fabric falls into {len(found)} islands: {shown}",
            f"join them with cables, for example between {gap}",
        )


def _port_names(root: Entry, fabric: Fabric) -> None:
    """Report switches whose port names, `switch-number`, Linux or another switch would not take."""
    ports = dict.fromkeys((switch.name for switch in fabric.switches), 0)
    for cable in fabric.cables:
        for end in (cable.a, cable.b):
            ports[end] += 1
            port = f"{end}-{ports[end]}"
            if port in ports:
                root.wrong("switches", f"{port} is also a port of {end}", "rename that switch")
            if len(port) == _MAX_PORT_NAME + 1:
                cause = f"{end} has so many cables that port {port} is over {_MAX_PORT_NAME} bytes"
                root.wrong("switches", cause, "shorten the switch's name")


def _dpid(entry: Entry) -> int | None:
    text = entry.text("dpid")
    if text is None:
        return None
    try:
        # The text itself: YAML would read 16 digits that begin with 0 as an octal number.
        short = text.isascii() and text.isdigit() and len(text) < 16
        return parse_dpid(int(text) if short else text)
    except ValueError as error:
        entry.wrong("dpid", str(error), "for example 0x1001, and another for each switch")
        return None


def _bits(entry: Entry, key: str) -> int | None:
    text = entry.text(key)
    if text is None:
        return None
    match = re.fullmatch(r"(-?[0-9][0-9_]*(?:\.[0-9]+)?)\s*([kMGT]?)", text)
    bits = float(match[1].replace("_", "")) * _UNITS[match[2]] if match else 0.0
    if match is None or not 1 <= bits <= 1e15:
        entry.wrong(key, f"{text!r} is no capacity in bit/s", "write 40G, 200M or 1000000")
        return None
    return round(bits)


def _seconds(entry: Entry, key: str) -> float | None:
    text = entry.text(key)
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) or float(text) > 10:
        entry.wrong(key, f"{text!r} is no latency", "write seconds from 0 to 10, such as 0.02")
        return None
    return float(text)


def _count(entry: Entry, key: str) -> int | None:
    text = entry.text(key)
    if text is None:
        return None
    if not re.fullmatch(r"-?[0-9]{1,6}", text):
        entry.wrong(key, f"{text!r} is no count", "write a whole number")
        return None
    return int(text)
