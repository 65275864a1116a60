"""`pleach agent` as an operator runs it: a process beside a real `pleach brain` that speaks TLS."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from northbound_server import EDGES

from controller.agent.agent import DIRECTORY, STATUS, notify
from controller.api import NewToken, Role
from controller.client import Client
from controller.model.nouns import Host, Subnet, Tenant, Vm
from mininet_labs.deployment import Deployment, wait_until
from tests.certificates import Authority, Certificate

#: What libvirt's test driver has from the start.
DOMAIN, MAC = "test", "aa:bb:cc:dd:ee:ff"


class Place:
    """A brain that wants certificates, and an agent's environment."""

    def __init__(self, directory: Path) -> None:
        self.authority = Authority(directory / "ca", "ours")
        self.own = self.authority.issue("DNS:h1")
        served = self.authority.issue("IP:127.0.0.1")
        tls = {
            "CERTIFICATE": str(served.certificate),
            "KEY": str(served.key),
            "CLIENT_CA": str(self.authority.file),
            "REQUIRE_CLIENT_CERTIFICATE": "true",
        }
        named = {f"PLEACH_NORTHBOUND__TLS__{name}": value for name, value in tls.items()}
        self.deployment = Deployment(directory / "brain", named)
        self.url = self.deployment.url.replace("http:", "https:")
        self.state_dir = directory / "agent"
        self.environment = {
            **{name: value for name, value in os.environ.items() if "PLEACH_" not in name},
            "PLEACH_STATE_DIR": str(self.state_dir),
            "PLEACH_AGENT__HOST": "h1",
            "PLEACH_AGENT__URL": self.url,
            "PLEACH_AGENT__CA": str(self.authority.file),
            "PLEACH_AGENT__LIBVIRT": "test:///default",
            "PLEACH_AGENT__INTERVAL_S": "1",
            "PLEACH_LOG__FORMAT": "text",
        }

    def shown(self, certificate: Certificate) -> dict[str, str]:
        """The environment of an agent with that certificate."""
        return {
            **self.environment,
            "PLEACH_AGENT__CERTIFICATE": str(certificate.certificate),
            "PLEACH_AGENT__KEY": str(certificate.key),
        }

    def define(self) -> str:
        """One VM and the host in the brain; the token of the host."""
        token = (self.deployment.state_dir / "operator.token").read_text().strip()
        with self.client(token) as client:
            client.put(Tenant(id="acme"))
            cidr = {"id": "web", "tenant": "acme", "cidr": "10.1.0.0/24"}
            client.put(Subnet.model_validate(cidr))
            client.put(Host(id="h1", datapath=EDGES["h1"]))
            nics = [{"mac": MAC, "subnet": "web"}]
            client.put(Vm.model_validate({"id": DOMAIN, "tenant": "acme", "nics": nics}))
            made = NewToken(name="agent-h1", role=Role.HYPERVISOR, host="h1")
            return client.create_token(made).secret

    def client(self, token: str) -> Client:
        return Client(self.url, token, ca=self.authority.file, certificate=self.own)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    found = Place(tmp_path_factory.mktemp("place"))
    with found.deployment:
        found.deployment.launch("brain")
        token = found.define()
        found.state_dir.mkdir(mode=0o700)
        (found.state_dir / "agent.token").write_text(f"{token}\n")
        yield found


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, command: Callable[..., tuple[int, str, str]]) -> Run:
    """Runs `pleach agent WORDS` here: exit code, stdout, stderr."""

    def running(environment: dict[str, str], *words: str) -> tuple[int, str, str]:
        for name in environment:
            if name.startswith("PLEACH_"):
                monkeypatch.setenv(name, environment[name])
        return command("agent", *words)

    return running


def told(done: tuple[int, str, str]) -> Any:
    code, out, err = done
    assert code == 0, err
    return json.loads(out)


def test_once_looks_measures_sends_and_says_so(place: Place, run: Run) -> None:
    status = told(run(place.shown(place.own), "--once", "--json"))
    assert [vm["vm"] for vm in status["vms"]] == [DOMAIN]
    assert status["sent"]["events"] == {"applied": 1}
    assert status["sent"]["samples_taken"] == status["values"] > 10
    assert status["troubles"] == {}


def test_a_bridge_says_nothing_beside_its_lines(place: Place, tmp_path: Path) -> None:
    """With it comes eventlet, which warns of itself."""
    nowhere = {"BRIDGE": "br-int", "OVSDB": f"unix:{tmp_path}/db.sock", "LIBVIRT": ""}
    done = subprocess.run(
        [sys.executable, "-m", "controller.cli", "agent", "--once"],
        env=place.shown(place.own) | {f"PLEACH_AGENT__{k}": v for k, v in nowhere.items()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "bridge br-int at unix:" in done.stdout


def test_hints_are_shown(place: Place, run: Run) -> None:
    status = told(run(place.shown(place.own), "--once", "--json"))
    assert status["hints"] == {}
    hint = {"VMs": {"cause": "no port names a VM", "mend": "set iface-id"}}
    (place.state_dir / DIRECTORY / STATUS).write_text(json.dumps({**status, "hints": hint}))
    out = run(place.environment, "--status")[1]
    assert "VMs: no port names a VM\n  mend: set iface-id" in out


def test_without_a_certificate_nothing_is_told_and_why_is(place: Place, run: Run) -> None:
    code, out, _ = run(place.environment, "--once")
    assert code == 3
    assert "controller: https://127.0.0.1" in out
    assert "whether it asks for a client's certificate" in out
    assert "samples waiting" in out
    # What waited goes out later.
    assert told(run(place.shown(place.own), "--once", "--json"))["waiting"]["values"] == 0


def test_without_a_token_it_says_how_to_get_one(place: Place, run: Run, tmp_path: Path) -> None:
    elsewhere = {**place.shown(place.own), "PLEACH_STATE_DIR": str(tmp_path / "other")}
    code, _, err = run(elsewhere, "--once")
    assert code == 4
    assert "pleach token create NAME --role hypervisor --host HOST" in err


def test_the_status_of_an_agent_that_never_ran(place: Place, run: Run, tmp_path: Path) -> None:
    elsewhere = {**place.environment, "PLEACH_STATE_DIR": str(tmp_path / "other")}
    code, _, err = run(elsewhere, "--status")
    assert code == 2
    assert "no agent has run" in err


def test_a_service_says_that_it_is_ready_and_ends_when_told(
    place: Place, run: Run, tmp_path: Path
) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address)
        listening.settimeout(60)
        log = (tmp_path / "log").open("w")
        with log:
            agent = subprocess.Popen(
                [sys.executable, "-m", "controller.cli", "agent"],
                env={**place.shown(place.own), "NOTIFY_SOCKET": address},
                stderr=log,
            )
        try:
            assert listening.recv(100) == b"READY=1"
            assert listening.recv(100) == b"WATCHDOG=1"
            status = told(run(place.environment, "--status", "--json"))
            assert status["pid"] == agent.pid
            assert "VMs" in run(place.environment, "--status")[1]
            code, _, err = run(place.shown(place.own), "--once")
            assert code == 2
            assert "another agent works" in err
            agent.send_signal(signal.SIGTERM)
            assert agent.wait(30) == 0
        finally:
            agent.kill()
            agent.wait()
    assert "Traceback" not in (tmp_path / "log").read_text()
    token = (place.deployment.state_dir / "operator.token").read_text().strip()
    with place.client(token) as client:
        wait_until(
            lambda: client.history(DOMAIN, ["cpu"], time.time() - 600, time.time()).times,
            "the history has its samples",
        )


def test_nobody_is_told_where_nobody_listens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    notify("READY=1")
    assert "systemd cannot be told" in caplog.text
