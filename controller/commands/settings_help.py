"""What do settings mean? Told by the comments beside them in `controller/settings.py`, so that
there is one place to write it."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from controller.settings import section_at

_MARK = "#:"
_WIDTH = 96


def explained(values: Mapping[str, Any], prefix: str = "") -> str:
    """`values`, as dumped settings, as YAML with a comment above each that has one: of all, or
    of the key or section `prefix`. ValueError where there is no such setting."""
    *above, key = prefix.split(".")
    model = section_at(tuple(above))
    if model is None or (key and key not in model.model_fields):
        raise ValueError(f"there is no setting {prefix}")
    for part in above:
        values = values[part]
    return "\n".join(_lines(model, values, 0, key or None))


def _lines(
    model: type[BaseModel], values: Mapping[str, Any], depth: int, only: str | None
) -> Iterator[str]:
    comments = _comments(model)
    indent, told = "  " * depth, ""
    for name in model.model_fields:
        if only not in (None, name):
            continue
        section, value = section_at((name,), model), values[name]
        words = comments[name] or (inspect.getdoc(section) if section else "") or ""
        if words != told:  # else it stands above this one too
            for line in textwrap.wrap(" ".join(words.split()), _WIDTH - len(indent)):
                yield f"{indent}# {line}"
        told = words
        if section is not None:
            yield f"{indent}{name}:"
            yield from _lines(section, value, depth + 1, None)
        else:
            dumped = yaml.safe_dump({name: value}, sort_keys=False).rstrip()
            yield textwrap.indent(dumped, indent)


def _comments(model: type[BaseModel]) -> dict[str, str]:
    """The comment above each field of `model`, which also holds for those right below it."""
    lines, _ = inspect.getsourcelines(model)
    body = ast.parse(textwrap.dedent("".join(lines))).body[0]
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    words = ""
    below = -1  # the line after the last field
    for node in body.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        above = []
        at = node.lineno - 2
        while at >= 0 and lines[at].strip().startswith(_MARK):
            above.append(lines[at].strip().removeprefix(_MARK).strip())
            at -= 1
        if above:
            words = " ".join(reversed(above))
        elif node.lineno - 1 != below or section_at((node.target.id,), model):
            words = ""
        below = node.end_lineno or node.lineno
        found[node.target.id] = words
    return found
