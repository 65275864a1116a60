"""What do settings mean? Told by the comments beside them in `controller/settings.py`, so that
there is one place to write it."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import yaml
from pydantic import BaseModel

from controller import settings

_MARK = "#:"
_WIDTH = 96


def explained(values: Mapping[str, Any], prefix: str = "") -> str:
    """`values`, as dumped settings, as YAML with a comment above each that has one: of all, or
    of the key or section `prefix`. ValueError where there is no such setting."""
    path = prefix.split(".") if prefix else []
    model: type[BaseModel] = settings.Settings
    for part in path[:-1]:
        model, values = _section(model, part, prefix), values[part]
    lines = list(_lines(model, values, 0, path[-1] if path else None))
    if not lines:
        raise ValueError(f"there is no setting {prefix}")
    return "\n".join(lines)


def _section(model: type[BaseModel], name: str, prefix: str) -> type[BaseModel]:
    field = model.model_fields.get(name)
    section = None if field is None else _model_of(field.annotation)
    if section is None:
        raise ValueError(f"there is no setting {prefix}")
    return section


def _model_of(annotation: Any) -> type[BaseModel] | None:
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _lines(
    model: type[BaseModel], values: Mapping[str, Any], depth: int, only: str | None
) -> Iterator[str]:
    comments = _comments(model)
    indent, told = "  " * depth, ""
    for name, field in model.model_fields.items():
        if only not in (None, name):
            continue
        section, value = _model_of(field.annotation), values[name]
        nested = section is not None and isinstance(value, dict)
        words = comments[name] or (inspect.getdoc(section) if nested else "") or ""
        if words != told:  # else it stands above this one too
            for line in textwrap.wrap(" ".join(words.split()), _WIDTH - len(indent)):
                yield f"{indent}# {line}"
        told = words
        if section is not None and isinstance(value, dict):
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
        elif node.lineno - 1 != below or _model_of(model.model_fields[node.target.id].annotation):
            words = ""
        below = node.end_lineno or node.lineno
        found[node.target.id] = words
    return found
