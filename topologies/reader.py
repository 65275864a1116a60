"""Reading a YAML tree strictly: every complaint knows its line, its field and a way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import yaml


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: where it is (`line` from 1, or 0 for the file as a whole), what is wrong
    with which field, and what would be right."""

    file: str
    line: int
    field: str
    cause: str
    mend: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.field}: {self.cause}; {self.mend}"


class TopologyError(ValueError):
    """A file that describes no fabric; `problems` has at least one entry."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


@dataclass(slots=True)
class Reader:
    """One file being read, and what was found wrong with it so far."""

    path: Path
    problems: list[Problem] = field(default_factory=list)

    def report(self, line: int, field_name: str, cause: str, mend: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(str(self.path), line, field_name, cause, mend))


@dataclass(slots=True)
class Entry:
    """One mapping of the file. `place` is its path from the top, such as `switches[2].`"""

    reader: Reader
    mark: int
    place: str
    _keys: dict[str, yaml.Node]
    _values: dict[str, yaml.Node]

    @classmethod
    def of(cls, reader: Reader, node: yaml.Node, place: str) -> Self | None:
        """The mapping at `node`; None, and a problem, where there is none."""
        line = node.start_mark.line + 1
        name = place.rstrip(".") or "file"
        if not isinstance(node, yaml.MappingNode):
            reader.report(line, name, "is no mapping", "write `field: value` lines")
            return None
        keys: dict[str, yaml.Node] = {}
        values: dict[str, yaml.Node] = {}
        for key, value in node.value:
            text = key.value if isinstance(key, yaml.ScalarNode) else "?"
            if text in keys:
                before = keys[text].start_mark.line + 1
                reader.report(
                    key.start_mark.line + 1,
                    f"{place}{text}",
                    f"is given in line {before} already",
                    "give it once",
                )
            keys[text], values[text] = key, value
        return cls(reader, line, place, keys, values)

    def node(self, key: str) -> yaml.Node | None:
        """What stands under `key`, if anything."""
        return self._values.get(key)

    def line(self, key: str) -> int:
        """The line of `key`, or of the whole entry."""
        node = self._keys.get(key)
        return node.start_mark.line + 1 if node is not None else self.mark

    def wrong(self, key: str, cause: str, mend: str) -> None:
        """Note a problem of the field `key`."""
        self.reader.report(self.line(key), f"{self.place}{key}", cause, mend)

    def only(self, *known: str) -> None:
        """Report every field that is not one of `known`."""
        for key in self._keys:
            if key not in known:
                self.wrong(key, "is no field here", self.nearest(key, known, "a field"))

    @staticmethod
    def nearest(word: str, known: Iterable[str], what: str) -> str:
        """A suggestion of what `word` was meant to be."""
        words = list(known)
        close = difflib.get_close_matches(word, words, 1)
        if close:
            return f"did you mean {close[0]}?"
        shown = ", ".join(words[:12]) + (", ..." if len(words) > 12 else "")
        return f"{what} is one of {shown}" if words else f"there is none that could be {what}"

    def text(self, key: str) -> str | None:
        """The text under `key`; None, and a problem, where it is missing, empty or no scalar."""
        node = self._values.get(key)
        if node is None:
            self.wrong(key, "is missing", f"add `{key}: ...`")
            return None
        if not isinstance(node, yaml.ScalarNode) or not node.value:
            self.wrong(key, "has no single value", f"write `{key}: VALUE`")
            return None
        return str(node.value).strip()

    def choice(self, key: str, words: Sequence[str]) -> str | None:
        """One of `words` under `key`; None, and a problem, otherwise."""
        text = self.text(key)
        if text is not None and text not in words:
            self.wrong(key, f"{text!r} is unknown", self.nearest(text, words, "it"))
            return None
        return text

    def entry(self, key: str) -> Entry | None:
        """The mapping under `key`; None, and a problem, where there is none."""
        node = self._values.get(key)
        return None if node is None else Entry.of(self.reader, node, f"{self.place}{key}.")

    def entries(self, key: str) -> list[Entry]:
        """The mappings listed under `key`; a problem where it is missing or no list."""
        node = self._values.get(key)
        if not isinstance(node, yaml.SequenceNode):
            cause = "is missing" if node is None else "is no list"
            self.wrong(key, cause, f"list them below `{key}:`, or write `{key}: []`")
            return []
        made = (
            Entry.of(self.reader, item, f"{self.place}{key}[{number}].")
            for number, item in enumerate(node.value)
        )
        return [entry for entry in made if entry is not None]
