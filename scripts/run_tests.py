"""Run the tests, and see to it that they leave nothing behind.

    .venv/bin/python scripts/run_tests.py [unit]

All tests: those without switches first, then those with the marker `fabric` in a sandbox with
an Open vSwitch of its own, and once more under Ryu those of them that have a southbound process.
With `unit`, only tests/unit. Exits 0 only if every run had tests, all of them passed, and nothing
was left behind. A run that is interrupted ends in the same order: its tests clean up, then it is
seen what they left.

As root the runs have a /tmp of their own that ends with them, and whatever stands in it in the
end was left behind; without root they have a temporary directory that is removed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from xml.etree import ElementTree

import leftovers

ROOT = Path(__file__).resolve().parent.parent
_OWN_TMP = "RUN_TESTS_OWN_TMP"
_TMP = Path("/tmp")
_PYTEST = (sys.executable, "-m", "pytest", "--durations=10", "-rsxX")
#: In a process a core: what needs no switch needs no machine of its own either.
_SPREAD = ("--numprocesses=logical", "--dist=worksteal")
_SANDBOX = (sys.executable, "-m", "mininet_labs.sandbox", "--")
_NO_TESTS = 5  # pytest's exit status


@dataclass(frozen=True)
class Run:
    """One run of pytest."""

    title: str
    command: tuple[str, ...]
    limit_s: int
    settings: Mapping[str, str] = field(default_factory=dict)


_UNIT = Run("unit tests", (*_PYTEST, *_SPREAD, "-m", "not fabric", "tests/unit"), 20 * 60)
_WITHOUT = Run("without switches", (*_PYTEST, *_SPREAD, "-m", "not fabric", "tests"), 20 * 60)
_FABRIC = Run("on Open vSwitch", (*_SANDBOX, *_PYTEST, "-m", "fabric", "tests"), 45 * 60)
_RYU = Run(
    "on Open vSwitch, under Ryu",
    (*_SANDBOX, *_PYTEST, "-m", "fabric and southbound", "tests/fabric"),
    45 * 60,
    {"PLEACH_SOUTHBOUND__FRAMEWORK": "ryu"},
)


class _Stop(Exception):  # noqa: N818 a signal, no error
    def __init__(self, number: int) -> None:
        self.number = number


def main(words: Sequence[str]) -> int:
    """Run what `words` say, report, and return the exit status."""
    if words not in ([], ["unit"]):
        print(f"usage: {sys.executable} scripts/run_tests.py [unit]", file=sys.stderr)
        return 2
    os.chdir(ROOT)
    if _OWN_TMP in os.environ:
        _mount_tmp()
    elif os.geteuid() == 0:
        if _may_mount():
            _again_with_own_mounts(words)
        print("no mounts of its own can be made here: files left in /tmp are not looked for")
    return _all([_UNIT] if words else [_WITHOUT, _FABRIC, _RYU])


def _may_mount() -> bool:
    return (
        subprocess.run(
            ["unshare", "--mount", "true"], stderr=subprocess.DEVNULL, check=False
        ).returncode
        == 0
    )


def _again_with_own_mounts(words: Sequence[str]) -> None:
    os.environ[_OWN_TMP] = "1"
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, __file__, *words]
    os.execvp(command[0], command)


def _mount_tmp() -> None:
    """Cover /tmp with an empty one; where the tree itself is in it, show it there again."""
    tree = os.open(ROOT, os.O_PATH)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=1777", "tests", _TMP], check=True)
    if ROOT.is_relative_to(_TMP):
        ROOT.mkdir(parents=True)
        # By descriptor, since the path leads to the new directory now.
        source = f"/proc/self/fd/{tree}"
        command = ["mount", "--no-canonicalize", "--bind", source, str(ROOT)]
        subprocess.run(command, check=True, pass_fds=[tree])
        os.chdir(ROOT)
    os.close(tree)


def _stop(number: int, frame: FrameType | None) -> None:
    _on_signals(signal.SIG_IGN)
    raise _Stop(number)


def _on_signals(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, handler)


def _all(runs: Sequence[Run]) -> int:
    temporary = Path(tempfile.mkdtemp(prefix="pleach-tests-", dir=_TMP))
    # As /tmp itself: servers that tests run as another user have their files in it.
    temporary.chmod(0o1777)
    mark = temporary.name
    before = leftovers.footprint(ROOT)
    environment = {**os.environ, "TMPDIR": str(temporary), leftovers.MARK: mark}
    environment.pop(_OWN_TMP, None)
    faults: list[str] = []
    failed: list[str] = []
    times: list[str] = []
    stopped = 0
    try:
        _on_signals(_stop)
        for run in runs:
            started = time.monotonic()
            print(f"\n---- {run.title} ----", flush=True)
            report = temporary / "report.xml"
            try:
                fault = _run(run, environment, report)
            finally:  # a run that is interrupted reports too
                failed += [f"{run.title}: {test}" for test in _failed(report)]
            times.append(f"{run.title} {time.monotonic() - started:.0f} s")
            if fault:
                faults.append(f"{run.title}: {fault}")
    except _Stop as stop:
        stopped = stop.number
        faults.append(f"interrupted by {signal.Signals(stopped).name}")
    _on_signals(signal.SIG_IGN)
    faults += [f"left behind: {what}" for what in leftovers.end_strays(mark)]
    faults += [f"left behind: {what}" for what in leftovers.left(before, leftovers.footprint(ROOT))]
    faults += [f"left behind: file {path}" for path in _left_in_tmp(temporary)]
    shutil.rmtree(temporary)
    print(f"\ntimes: {', '.join(times)}")
    print("".join(f"failed: {test}\n" for test in failed), end="")
    print("".join(f"FAILED: {fault}\n" for fault in faults) or "nothing was left behind\n", end="")
    if stopped:
        return 128 + stopped
    return 1 if faults else 0


def _run(run: Run, environment: dict[str, str], report: Path) -> str | None:
    """Why the run failed, or None; `report` (JUnit's XML) has what became of its tests.
    Raises _Stop after the run has ended, where one came."""
    # In a process group of its own: what a terminal sends it comes from here, and so once.
    child = subprocess.Popen(
        (*run.command, f"--junitxml={report}", "-o", "junit_family=xunit1"),
        env={**environment, **run.settings},
        stdin=subprocess.DEVNULL,
        process_group=0,
    )
    try:
        status = child.wait(run.limit_s)
    except subprocess.TimeoutExpired:
        _interrupt(child)
        return f"not done after {run.limit_s // 60} minutes"
    except _Stop:
        _interrupt(child)
        raise
    if status == _NO_TESTS:
        return "no test was collected"
    return f"exit status {status}" if status else None


def _failed(report: Path) -> list[str]:
    """The tests that failed and why, a line each, so that they can be told at the very end; the
    report is removed."""
    if not report.exists():  # a run that was killed
        return []
    tests = ElementTree.parse(report).iter("testcase")
    report.unlink()
    return [
        f"{test.get('classname')}.{test.get('name')}: {fault.tag}: "
        + " ".join(fault.get("message", "").split())[:300]
        for test in tests
        for fault in test
        if fault.tag in ("failure", "error")
    ]


def _interrupt(child: subprocess.Popen[bytes]) -> None:
    """Have pytest tear down its fixtures and end; kill it where it does not."""
    child.send_signal(signal.SIGINT)
    try:
        child.wait(60)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _left_in_tmp(temporary: Path) -> list[Path]:
    """What tests wrote beside pytest's own directories, which it keeps for a look at them."""
    left = [path for path in temporary.iterdir() if not path.name.startswith("pytest-of-")]
    if _OWN_TMP in os.environ:
        ours = {temporary, *(path for path in (ROOT, *ROOT.parents) if path.parent == _TMP)}
        left += [path for path in _TMP.iterdir() if path not in ours]
    return sorted(left)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
