from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from northbound_server import (
    EDGES,
    Running,
    confirm,
    connect,
    define,
    other_store,
    running,
    vm,
    wipe,
)

from controller.client import Client, Problem
from controller.model.nouns import Tenant, Vm
from controller.northbound.server import listen
from controller.settings import SettingsError, load

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("brain") / "state") as found:
        yield found


@pytest.fixture
def served(shared: Running) -> Iterator[Running]:
    define(shared)
    yield shared
    wipe(shared)


@pytest.fixture
def pleach(served: Running, monkeypatch: pytest.MonkeyPatch, command: Run) -> Run:
    """Runs a command as a user beside the server would: code, stdout, stderr."""
    monkeypatch.setenv("PLEACH_STATE_DIR", str(served.settings.state_dir))
    monkeypatch.setenv("PLEACH_NORTHBOUND__PORT", str(served.port))
    return command


# The client against a server that has its moments


class Flaky(BaseHTTPRequestHandler):
    """Answers as the list of the server says: a status, or None to hang up."""

    def do_GET(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        server = self.server
        assert isinstance(server, FlakyServer)
        server.seen.append(self.command)
        status = server.script.pop(0)
        if status is None:
            self.close_connection = True
            return
        body = b'{"status": "ok", "version": "1"}'
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


class FlakyServer(ThreadingHTTPServer):
    script: list[int | None]
    seen: list[str]


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyServer]:
    monkeypatch.setattr("controller.client.time.sleep", lambda _: None)
    server = FlakyServer(("127.0.0.1", 0), Flaky)
    server.script, server.seen = [], []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join(20)
    server.server_close()


def client_of(server: FlakyServer) -> Client:
    return Client(f"http://127.0.0.1:{server.server_address[1]}", "x", attempts=3)


@pytest.mark.parametrize("trouble", [None, 503, 429])
def test_what_may_be_repeated_is(flaky: FlakyServer, trouble: int | None) -> None:
    flaky.script = [trouble, trouble, 200]
    with client_of(flaky) as client:
        assert client.health().version == "1"


def test_not_for_ever(flaky: FlakyServer) -> None:
    flaky.script = [503] * 3
    with client_of(flaky) as client, pytest.raises(Problem) as problem:
        client.health()
    assert problem.value.status == 503
    assert len(flaky.seen) == 3


def test_a_creation_is_not_repeated_when_its_reply_is_lost(flaky: FlakyServer) -> None:
    flaky.script = [None]
    with client_of(flaky) as client, pytest.raises(Problem) as problem:
        client.create(Tenant(id="a"))
    assert problem.value.type == "unreachable"
    assert flaky.seen == ["POST"]


def test_a_deletion_whose_reply_was_lost_is_done(flaky: FlakyServer) -> None:
    flaky.script = [None, 404]
    with client_of(flaky) as client:
        client.delete(Tenant, "a")
    flaky.script = [404]
    with client_of(flaky) as client, pytest.raises(Problem):
        client.delete(Tenant, "a")


def test_another_server_is_told_apart(flaky: FlakyServer) -> None:
    flaky.script = [200]
    with client_of(flaky) as client, pytest.raises(Problem, match="of the same version"):
        client.topology()


# The client against Pleach


def test_records_come_back_as_they_were_put(served: Running) -> None:
    with served.client() as client:
        assert client.get(Vm, "vm0") == vm(0)
        assert [v.id for v in client.list(Vm, tenant="acme")] == ["vm0", "vm1"]
        client.update("vm0", groups=["web"], nics=vm(0).nics)
        assert client.get(Vm, "vm0").groups == ("web",)
        assert client.health().status == "ok"


def test_a_batch_has_a_result_for_each(served: Running) -> None:
    with served.client() as client:
        reply = client.send_batch(
            [
                client.event("host.draining", {"host": "h1"}),
                client.event("host.draining", {"host": "h9"}),
            ]
        )
    assert [type(result).__name__ for result in reply.results] == ["EventReply", "ProblemBody"]


def test_a_problem_tells_all(served: Running) -> None:
    with served.client() as client, pytest.raises(Problem) as problem:
        client.create(vm(5, nics=[{"mac": "02:00:00:00:00:66", "subnet": "nowhere"}]))
    found = problem.value
    assert (found.status, found.type) == (422, "missing-reference")
    assert found.faults[0].pointer == "/nics/0/subnet"
    assert "PUT /v1/subnets/nowhere" in found.mend


# The command line


def test_definitions_by_command(pleach: Run) -> None:
    assert pleach("tenant", "create", "zeta", "--name", "Zeta")[0] == 0
    assert pleach("tenant", "create", "zeta")[0] == 1
    assert pleach("tenant", "create", "zeta", "--replace")[0] == 0
    cidr = ("--tenant", "zeta", "--cidr", "10.7.0.0/24", "--dns", "10.7.0.2", "--no-dhcp")
    assert pleach("subnet", "create", "z", *cidr)[0] == 0
    nic = "mac=02:00:00:00:07:01,subnet=z,ipv4=10.7.0.9"
    code, out, _ = pleach("vm", "create", "z1", "--tenant", "zeta", "--nic", nic, "--group", "g")
    assert code == 0
    assert "ipv4=10.7.0.9" in out
    rule = ("--tenant", "zeta", "--to-group", "g", "--protocol", "tcp", "--port", "80-90")
    code, _, err = pleach("access", "create", "r", *rule)
    assert (code, err) == (0, "")
    mistyped = ("--tenant", "zeta", "--action", "deny", "--from-vm", "z1", "--to-vm", "z11")
    code, _, err = pleach("access", "create", "s", *mistyped, "--to-group", "h")
    assert code == 0
    told = [line.partition(" (yet)")[0] for line in err.splitlines()]
    assert told == [f"warning: tenant zeta has no {what}" for what in ("VM z11", "VM in group h")]
    assert pleach("access", "delete", "s")[0] == 0
    assert "80-90" in pleach("access", "list")[1]
    assert pleach("host", "create", "h8", "--datapath", "0x88", "--site", "east")[0] == 0
    shown = json.loads(pleach("host", "show", "h8", "--json")[1])
    assert shown["site"] == "east"
    assert pleach("host", "drain", "h8")[1].startswith("applied")
    for words in (("vm", "z1"), ("access", "r"), ("subnet", "z"), ("tenant", "zeta")):
        assert pleach(words[0], "delete", words[1])[0] == 0


def test_tables_are_aligned(pleach: Run) -> None:
    lines = pleach("vm", "list")[1].splitlines()
    assert [line.split()[0] for line in lines] == ["VM", "vm0", "vm1"]
    assert (
        len(
            {line.index(word) for line, word in zip(lines, ("TENANT", "acme", "acme"), strict=True)}
        )
        == 1
    )


def test_vms_are_listed_with_where_they_are_also_as_json(pleach: Run) -> None:
    assert pleach("vm", "place", "vm0", "h1", "p", "--no-wait")[0] == 0
    listed = json.loads(pleach("vm", "list", "--json")[1])
    assert [(vm["id"], vm["host"], vm["ports"]) for vm in listed] == [
        ("vm0", "h1", ["p"]),
        ("vm1", None, []),
    ]
    assert listed[0]["nics"][0]["mac"] == "02:00:00:00:00:01"


def test_a_vm_is_placed_moved_and_removed(served: Running, pleach: Run) -> None:
    assert pleach("vm", "place", "vm0", "h1", "p", "--no-wait")[1].startswith("applied")
    assert pleach("vm", "place", "vm1", "h1", "r", "--no-wait")[1].startswith("applied")
    code, out, _ = pleach("vm", "migrate", "vm0", "h2", "q", "--id", "m1", "--no-wait")
    assert (code, out.split(":")[0]) == (0, "applied")
    shown = pleach("vm", "show", "vm0")[1]
    assert "migrating" in shown
    assert "m1: started, to h2: packets for the VM go to both places" in shown
    assert pleach("vm", "fail", "vm0", "--no-wait")[0] == 0
    assert pleach("vm", "fail", "vm0", "--no-wait")[0] == 1
    assert pleach("vm", "migrate", "vm0", "h2", "q", "--complete", "--no-wait")[0] == 0
    assert pleach("vm", "migrate", "vm1", "h2", "s", "--id", "m2", "--no-wait")[0] == 0
    ended = pleach("vm", "complete", "vm1", "--no-wait")[1]
    assert "migration m2 is activated: the VM runs there, and its old place drains" in ended
    activated = "m2: activated, to h2: the VM runs there, and its old place drains"
    assert activated in pleach("vm", "show", "vm1")[1]
    status = json.loads(pleach("vm", "show", "vm0", "--json")[1])
    assert status["placement"] == {"vm": "vm0", "host": "h2", "ports": ["q"]}
    assert pleach("vm", "update", "vm0", "--no-groups", "--port", "r", "--no-wait")[0] == 0
    assert pleach("vm", "delete", "vm0")[0] == 1
    assert pleach("vm", "remove", "vm0", "--no-wait")[1].startswith("applied")
    code, _, err = pleach("vm", "remove", "vm0", "--no-wait")
    assert code == 1
    assert "placed nowhere" in err


def test_waiting_for_the_switches(served: Running, pleach: Run) -> None:
    code, out, err = pleach("vm", "place", "vm0", "h1", "p", "--timeout", "0.05")
    assert code == 5
    assert "not connected" in err
    assert "mend: " in err
    with other_store(served) as south:
        connect(south, (EDGES["h1"], "p"))
        confirm(south, south.revision)
    code, out, _ = pleach("vm", "place", "vm0", "h1", "p")
    assert (code, out.splitlines()[-1]) == (0, "confirmed by every connected switch")
    assert "edge" in pleach("topology", "show")[1]
    code, out, _ = pleach("explain", "--vm", "vm0")
    assert code == 0
    assert "vm vm0" in out


def test_tokens_by_command(pleach: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    code, secret, _ = pleach("token", "create", "eye", "--role", "viewer")
    assert code == 0
    assert "eye" in pleach("token", "list")[1]
    monkeypatch.setenv("PLEACH_TOKEN", secret.strip())
    assert pleach("vm", "list")[0] == 0
    assert pleach("tenant", "create", "x")[0] == 4
    monkeypatch.delenv("PLEACH_TOKEN")
    assert pleach("token", "revoke", "eye")[0] == 0
    assert pleach("token", "create", "bad", "--role", "hypervisor")[0] == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("vm", "create", "x", "--tenant", "acme"), "nics"),
        (("vm", "create", "x", "--tenant", "acme", "--nic", "mac"), "name=value"),
        (("subnet", "create", "x", "--tenant", "acme", "--cidr", "1.2.3"), "cidr"),
        (("access", "create", "x", "--tenant", "acme", "--port", "http"), "--port http"),
        (("topology", "validate", "/nowhere.yaml"), "/nowhere.yaml"),
        (("explain",), "--vm"),
        (("--config", "/nowhere.yaml", "settings", "check"), "/nowhere.yaml"),
    ],
)
def test_wrong_words_are_told_without_a_traceback(
    pleach: Run, words: tuple[str, ...], said: str
) -> None:
    code, out, err = pleach(*words)
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err


def test_a_wrong_prefix_is_one_fault(served: Running, pleach: Run) -> None:
    words = ("--tenant", "acme", "--cidr", "10.0.0/24", "--cidr6", "fd00::/999")
    code, _, err = pleach("subnet", "create", "x", *words)
    assert code == 2
    assert err.splitlines()[0] == (
        "error: cidr: Input is not a valid IPv4 network; cidr6: Input is not a valid IPv6 network"
    )
    answer = served.call("PUT", "/v1/subnets/x", {"tenant": "acme", "cidr": "10.0.0/24"})
    assert [fault["pointer"] for fault in answer.body["faults"]] == ["/cidr"]
    assert "more" not in answer.body["detail"]


def test_no_server_and_no_token(pleach: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.client.time.sleep", lambda _: None)
    monkeypatch.setenv("PLEACH_TOKEN", "wrong")
    assert pleach("vm", "list")[0] == 4
    code, _, err = pleach("--url", "http://127.0.0.1:1", "vm", "list")
    assert code == 3
    assert "pleach brain" in err
    monkeypatch.delenv("PLEACH_TOKEN")
    monkeypatch.setenv("PLEACH_STATE_DIR", "/nowhere")
    code, _, err = pleach("vm", "list")
    assert code == 4
    assert "PLEACH_TOKEN" in err


def test_fabrics_settings_and_store(pleach: Run, tmp_path: Path) -> None:
    file = Path(__file__).parents[2] / "topologies" / "leaf-spine.yaml"
    assert "switches" in pleach("topology", "validate", str(file))[1]
    drawing = tmp_path / "fabric.svg"
    assert pleach("topology", "draw", str(file), "-o", str(drawing))[0] == 0
    assert "<svg" in drawing.read_text()
    assert "northbound:" in pleach("settings", "show")[1]
    assert pleach("settings", "check")[0] == 0
    assert "sound" in pleach("store", "check")[1]
    copy = tmp_path / "copy.db"
    assert pleach("store", "backup", str(copy))[0] == 0
    assert copy.exists()
    code, _, err = pleach("store", "backup", str(copy))
    assert code == 2
    assert "already" in err


def test_a_wrong_setting_is_told(pleach: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLEACH_NORTHBOUND__PROT", "1")
    code, _, err = pleach("brain")
    assert code == 2
    assert "PLEACH_NORTHBOUND__PROT" in err


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_no_listening_beyond_this_machine_in_the_clear(host: str, tmp_path: Path) -> None:
    settings = load(
        None,
        {
            "PLEACH_STATE_DIR": str(tmp_path),
            "PLEACH_NORTHBOUND__HOST": host,
            "PLEACH_NORTHBOUND__PORT": "0",
        },
    )
    with pytest.raises(SettingsError, match="in the clear"):
        listen(settings, plain=False)


def test_a_port_in_use_is_told(served: Running) -> None:
    northbound = served.settings.northbound.model_copy(update={"port": served.port})
    settings = served.settings.model_copy(update={"northbound": northbound})
    with pytest.raises(SettingsError, match=f"127.0.0.1:{served.port}: .*cannot be listened at"):
        listen(settings, plain=False)


# Supervision

SUPERVISE = """
import sys
from controller.commands.supervise import supervise
sys.exit(supervise({"one": [sys.executable, "-c", sys.argv[1]], "two": ["sleep", "1000"]}))
"""
LIVES = "import os, time\nprint(os.getpid(), file=told, flush=True)\ntime.sleep(1000)"


@dataclass
class Supervised:
    process: subprocess.Popen[bytes]
    told: int

    def line(self) -> str:
        """What a child tells next."""
        assert select.select([self.told], [], [], 30)[0], "the child told nothing"
        return os.read(self.told, 100).decode().strip()


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[[str], Supervised]]:
    """Supervises a child that runs some Python and may tell things by `told`."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    told = os.open(fifo, os.O_RDWR)
    started: list[subprocess.Popen[bytes]] = []

    def start(child: str) -> Supervised:
        script = f"told = open({str(fifo)!r}, 'w')\n{child}"
        root = Path(__file__).parents[2]
        process = subprocess.Popen([sys.executable, "-c", SUPERVISE, script], cwd=root)
        started.append(process)
        return Supervised(process, told)

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.wait(30)
    os.close(told)


def test_what_dies_is_started_again_and_all_end_together(
    supervise: Callable[[str], Supervised], tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    dies_once = f"import pathlib, sys\nm = pathlib.Path({str(mark)!r})\n"
    dies_once += "if not m.exists():\n    m.touch()\n    sys.exit(1)\n"
    running_ = supervise(dies_once + LIVES)
    child = int(running_.line())
    running_.process.send_signal(signal.SIGTERM)
    assert running_.process.wait(30) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_what_can_never_start_ends_the_whole(supervise: Callable[[str], Supervised]) -> None:
    assert supervise("import sys; sys.exit(2)").process.wait(30) == 2


def test_no_child_outlives_a_killed_supervisor(supervise: Callable[[str], Supervised]) -> None:
    running_ = supervise(LIVES)
    descriptor = os.pidfd_open(int(running_.line()))
    running_.process.kill()
    assert select.select([descriptor], [], [], 30)[0], "the child lives on"
    os.close(descriptor)
