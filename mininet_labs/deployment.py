"""The two processes of Pleach beside a lab: started, killed and started again as a supervisor
would, with a state directory of their own and free ports on loopback.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from controller.client import Client
from controller.commands.southbound import command
from controller.settings import SouthboundSettings
from controller.store import Store

Process = Literal["brain", "southbound"]

_ROOT = Path(__file__).resolve().parents[1]
_BRAIN = [sys.executable, "-m", "controller.cli", "brain"]
#: The variable by which tests and benchmarks choose a framework for all deployments.
FRAMEWORK = "PLEACH_SOUTHBOUND__FRAMEWORK"
_STOP_S = 15.0


def free_port() -> int:
    """A TCP port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 120.0) -> None:
    """Return once `condition` holds; TimeoutError that names `what` where it does not."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {timeout_s:g} s still not: {what}")
        time.sleep(0.01)


class Deployment:
    """Brain and southbound process, with logs in `directory`."""

    def __init__(self, directory: Path, settings: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self.state_dir = directory / "state"
        self.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.northbound = free_port()
        self.openflow = free_port()
        self.environment = {
            "PLEACH_STATE_DIR": str(self.state_dir),
            "PLEACH_NORTHBOUND__PORT": str(self.northbound),
            "PLEACH_SOUTHBOUND__PORT": str(self.openflow),
            "PLEACH_LOG__FORMAT": "text",
            "PYTHONPATH": str(_ROOT),
            **(settings or {}),
        }
        self._running: dict[Process, subprocess.Popen[bytes]] = {}
        self._stack = contextlib.ExitStack()
        self._client: Client | None = None
        self._store: Store | None = None

    @property
    def controller(self) -> tuple[str, int]:
        """Where switches connect."""
        return ("127.0.0.1", self.openflow)

    @property
    def url(self) -> str:
        """Where the REST interface is."""
        return f"http://127.0.0.1:{self.northbound}"

    @property
    def client(self) -> Client:
        """A client with the operator's token."""
        if self._client is None:
            token = (self.state_dir / "operator.token").read_text().strip()
            self._client = self._stack.enter_context(Client(self.url, token))
        return self._client

    @property
    def store(self) -> Store:
        """The store, opened once more, to look into and to hurry changes past REST."""
        if self._store is None:
            local = f"sqlite:///{self.state_dir}/pleach.db"
            self._store = Store.open(self.environment.get("PLEACH_STORE__URL", local))
            self._stack.callback(self._store.close)
        return self._store

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start both, and return once both listen."""
        self.launch("brain")
        self.launch("southbound")

    def launch(self, name: Process) -> None:
        """Start one process; return once it listens. RuntimeError where it ends instead."""
        environment = os.environ | self.environment
        south = SouthboundSettings.model_validate(
            {"framework": environment[FRAMEWORK]} if FRAMEWORK in environment else {}
        )
        log = (self.directory / f"{name}.log").open("ab")
        with log:
            self._running[name] = subprocess.Popen(
                _BRAIN if name == "brain" else command(south),
                env=environment,
                stdout=log,
                stderr=log,
                cwd=self.directory,
            )
        port = self.northbound if name == "brain" else self.openflow
        wait_until(lambda: self._listens(name, port), f"{name} listens")

    def _listens(self, name: Process, port: int) -> bool:
        status = self._running[name].poll()
        if status is not None:
            raise RuntimeError(f"{name} ended with {status}: {self.log(name)[-2000:]}")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def log(self, name: Process) -> str:
        """What a process has logged so far."""
        path = self.directory / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def kill(self, name: Process) -> None:
        """End a process at once, as a crash would (SIGKILL)."""
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def pid(self, name: Process) -> int:
        """The process id of a running process."""
        return self._running[name].pid

    def memory_mb(self, name: Process) -> float:
        """Resident memory of a running process, in MiB."""
        for line in Path(f"/proc/{self.pid(name)}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError(f"{name} has no memory")

    def stop(self) -> None:
        """End both in good order."""
        self._stack.close()
        self._client = self._store = None
        for process in self._running.values():
            process.send_signal(signal.SIGTERM)
        for process in self._running.values():
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()
