"""What did a run leave behind on the machine: interfaces, namespaces, files, processes?

Compared by name, before and after. Processes are told from those of others by a mark in
their environment, which whatever a run starts inherits.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

#: The variable of the mark; not `PLEACH_...`, which would be a setting.
MARK = "LEFTOVERS_OF_RUN"

#: Where labs, switches and an installed Pleach keep things.
_PLACES = (
    "/run/netns",
    "/run/openvswitch",
    "/run/pleach",
    "/etc/openvswitch",
    "/etc/pleach",
    "/var/lib/openvswitch",
    "/var/lib/pleach",
    "/var/log/openvswitch",
    "/var/log/pleach",
)


@dataclass(frozen=True)
class Footprint:
    """What stands on the machine at one moment."""

    interfaces: frozenset[str]
    files: frozenset[Path]


def footprint(tree: Path) -> Footprint:
    """Interfaces of this network, entries of the places of labs, files that git does not know.

    Bridges of the system's Open vSwitch show as interfaces, named network namespaces as files.
    A `tree` that is no git clone adds no files.
    """
    files = set(_unknown_to_git(tree))
    for place in map(Path, _PLACES):
        if place.is_dir():
            files |= {place, *place.iterdir()}
    names = frozenset(path.name for path in Path("/sys/class/net").iterdir())
    return Footprint(names, frozenset(files))


def _unknown_to_git(tree: Path) -> Iterable[Path]:
    if not (tree / ".git").exists():
        return []
    # The owner of a clone may be another than root, whom git would then refuse.
    command = ["git", "-c", f"safe.directory={tree}", "-C", str(tree)]
    command += ["ls-files", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True)
    except FileNotFoundError:
        return []
    return [tree / os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]


def left(before: Footprint, after: Footprint) -> list[str]:
    """What `after` has that `before` had not, a line each."""
    return [
        *(f"interface {name}" for name in sorted(after.interfaces - before.interfaces)),
        *(f"file {path}" for path in sorted(after.files - before.files)),
    ]


def strays(mark: str) -> dict[int, str]:
    """Command line by process id of what still runs with `mark` in its environment, but us."""
    wanted = f"{MARK}={mark}".encode()
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        if int(path.name) == os.getpid():
            continue
        try:
            if wanted in (path / "environ").read_bytes().split(b"\0"):
                words = (path / "cmdline").read_bytes().split(b"\0")
                found[int(path.name)] = os.fsdecode(b" ".join(words)).strip()
        except OSError:
            continue  # it has just ended, or is another user's and so none of ours
    return found


def end_strays(mark: str, patience_s: float = 5.0) -> list[str]:
    """Kill what still runs with `mark` after `patience_s` seconds; return a line for each."""
    deadline = time.monotonic() + patience_s
    while (found := strays(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in found:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return [f"process {pid}: {words[:200]}" for pid, words in sorted(found.items())]
