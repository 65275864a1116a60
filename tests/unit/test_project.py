"""The project's own machinery: pins that are complete, and leftovers that are seen."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from check_environment import normal, pins
from leftovers import MARK, Footprint, end_strays, footprint, left, strays
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PINS = pins((ROOT / "constraints.txt").read_text())
#: Debian's python3-openvswitch is what meets os-ken's requirement of it.
FROM_DEBIAN = {"ovs"}


def installed_closure() -> dict[str, str]:
    """Version by name of all that pyproject.toml asks for, directly or through others."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    todo = [Requirement(line) for line in wanted]
    seen: set[tuple[str, tuple[str, ...]]] = set()
    found = {}
    while todo:
        requirement = todo.pop()
        name, extras = normal(requirement.name), tuple(sorted(requirement.extras))
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        distribution = metadata.distribution(name)
        found[name] = distribution.version
        for line in distribution.requires or []:
            needed = Requirement(line)
            marker = needed.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in extras or ("",)):
                todo.append(needed)
    return found


def test_whatever_is_installed_is_pinned_and_nothing_else_is() -> None:
    closure = installed_closure()
    for name in FROM_DEBIAN:
        del closure[name]
    assert closure == PINS


def test_a_constraint_that_is_no_pin_is_refused() -> None:
    assert pins("# why\n\nTyping_Extensions==4.1  # kept\n") == {"typing-extensions": "4.1"}
    for line in ("rich>=14", "rich", "rich @ file:///x", "rich==14 --hash=sha256:00"):
        with pytest.raises(ValueError, match="line 2"):
            pins(f"# pins\n{line}\n")


def test_every_command_of_the_makefile_is_in_its_help() -> None:
    shown = subprocess.run(
        ["make", "--no-print-directory", "-C", str(ROOT)],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for target in ("demo", "test", "unit", "lint", "bench", "setup", "ryu"):
        assert re.search(rf"^  make {target}\s+\w", shown, re.MULTILINE)


def test_new_interfaces_and_files_are_left_and_old_ones_are_not() -> None:
    before = Footprint(frozenset({"lo", "gone"}), frozenset({Path("/run/netns")}))
    after = Footprint(frozenset({"lo", "s1"}), frozenset({Path("/run/netns"), Path("/a/b")}))
    assert left(before, after) == ["interface s1", "file /a/b"]
    assert left(after, after) == []


def test_files_that_git_does_not_know_count(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text("cache/\n")
    (tmp_path / "cache").mkdir()
    before = footprint(tmp_path)
    (tmp_path / "cache" / "one").touch()
    assert footprint(tmp_path).files == before.files
    (tmp_path / "new").touch()
    assert footprint(tmp_path).files - before.files == {tmp_path / "new"}


def test_a_process_that_a_run_left_is_found_and_ended() -> None:
    mark = f"test-{os.getpid()}"
    command = [sys.executable, "-c", "import signal; print('up', flush=True); signal.pause()"]
    with subprocess.Popen(
        command, env={**os.environ, MARK: mark}, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            assert list(strays(mark)) == [process.pid]
            (line,) = end_strays(mark, patience_s=0)
            assert line.startswith(f"process {process.pid}: {sys.executable} -c")
            assert process.wait(10) == -9
        finally:
            process.kill()
    assert strays(mark) == {}
