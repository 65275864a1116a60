"""Is the virtual environment the one that this tree asks for?

    .venv/bin/python -I scripts/check_environment.py [--shell]
    .venv-ryu/bin/python -I scripts/check_environment.py [--shell]

Prints what is wrong, a line each, and exits 1. With `--shell`, only what no installation into
it could mend is looked at: where it stands, and whose Python it is.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_PIN = re.compile(r"([A-Za-z0-9._-]+)==(\S+)")


@dataclass(frozen=True, slots=True)
class Environment:
    """What an environment is to have: the versions in `pins`, and modules that can be found."""

    pins: str
    modules: tuple[str, ...]


#: By the name of the folder.
ENVIRONMENTS = {
    ".venv": Environment("constraints.txt", ("os_ken", "ovs", "libvirt", "pytest")),
    ".venv-ryu": Environment("constraints-ryu.txt", ("ryu", "ovs", "apps")),
}


def pins(text: str) -> dict[str, str]:
    """Version by normalised name (PEP 503) of all `NAME==VERSION` lines of a constraints file.

    ValueError names the first line that is neither such a line, empty, nor a comment.
    """
    found = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split("#", 1)[0].strip()
        if not words:
            continue
        match = _PIN.fullmatch(words)
        if match is None:
            raise ValueError(f"line {number}: {words!r} is not NAME==VERSION")
        found[normal(match[1])] = match[2]
    return found


def normal(name: str) -> str:
    """The one spelling of a distribution's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def wrong_shell(home: Path) -> list[str]:
    """What is wrong with the environment itself: its place, its Python, what it sees."""
    faults = []
    if Path(sys.prefix) != home:
        faults.append(f"this Python belongs to {sys.prefix}, not to {home}")
    settings = (home / "pyvenv.cfg").read_text()
    for wanted in (r"home\s*=\s*/usr/bin", r"include-system-site-packages\s*=\s*false"):
        if not re.search(rf"^{wanted}$", settings, re.MULTILINE):
            faults.append(f"pyvenv.cfg lacks a line like {wanted}: not made by scripts/setup.sh")
    pip = home / "bin" / "pip"
    if not pip.exists() or f"{home}/bin/" not in pip.read_text():
        faults.append(f"{pip} is missing or made for another place: the environment was moved")
    return faults


def wrong_content(root: Path, wanted: Environment) -> list[str]:
    """What is missing from the environment or of another version than pinned."""
    faults = []
    for name, version in pins((root / wanted.pins).read_text()).items():
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            faults.append(f"{name} is missing")
            continue
        if installed.version != version:
            faults.append(f"{name} is {installed.version}, pinned is {version}")
        for file in installed.files or ():
            if file.suffix in (".py", ".so") and not os.path.exists(file.locate()):  # noqa: PTH110
                faults.append(f"{name} lacks {file}")
                break
    spec = importlib.util.find_spec("controller")
    if spec is None or spec.origin is None or root not in Path(spec.origin).parents:
        faults.append(f"`import controller` does not lead to {root}")
    for module in wanted.modules:
        if importlib.util.find_spec(module) is None:
            faults.append(f"`import {module}` fails")
    return faults


if __name__ == "__main__":
    name = Path(sys.prefix).name if Path(sys.prefix).name in ENVIRONMENTS else ".venv"
    found = wrong_shell(ROOT / name)
    if "--shell" not in sys.argv[1:]:
        found += wrong_content(ROOT, ENVIRONMENTS[name])
    print("".join(f"environment: {fault}\n" for fault in found), end="")
    sys.exit(1 if found else 0)
