"""What the agent tells a real controller: all of it, once, as slowly as that asks for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from northbound_server import Running, define, running

from controller.agent.auditing import Auditor
from controller.agent.outbox import Outbox
from controller.agent.records import Fact, Machine, Row, Told, batch_of
from controller.agent.sending import FIRST_PAUSE_S, Sender
from controller.api import NewToken, ProblemBody, Role
from controller.client import Client, Problem
from controller.model.nouns import Vm
from controller.observe.cloudevents import EventType

ROOM = {"flush_s": 0.05, "settle_s": 0, "min_free_bytes": 0}


@dataclass
class World:
    """An agent's outbox and sender, beside a controller that can be restarted."""

    directory: Path
    outbox: Outbox
    token: str = ""
    served: Running | None = None
    sender: Sender = field(init=False)

    def __post_init__(self) -> None:
        self.sender = Sender(self.outbox, self.connect, 1_000)

    def connect(self) -> Client:
        url = self.served.url if self.served else "http://127.0.0.1:9"
        return Client(url, self.token, attempts=1)

    @contextmanager
    def controller(self, **history: Any) -> Iterator[Running]:
        with running(self.directory / "brain", history={**ROOM, **history}) as served:
            self.served = served
            if not self.token:
                define(served, 4)
                with served.client() as client:
                    made = NewToken(name="agent-h1", role=Role.HYPERVISOR, host="h1")
                    self.token = client.create_token(made).secret
            yield served
        self.served = None
        self.sender._close()

    def tell(
        self, vm: str, kind: EventType = EventType.VM_PLACED, *ports: str, **more: Any
    ) -> Fact:
        fact = Fact(
            f"{vm}-{kind}-{time.time_ns()}", kind, time.time(), vm, "h1", ports or ("p1",), **more
        )
        self.outbox.tell([fact], {vm: Told(fact.ports)})
        return fact

    def measure(self, at: float, value: float, vm: str = "vm0") -> None:
        self.outbox.add(batch_of([Row(vm, at, {"memory": value})]))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with closing(Outbox(tmp_path / "agent", 1 << 20)) as outbox:
        yield World(tmp_path, outbox)


def memory(served: Running, vm: str, start: float) -> list[float | None]:
    with served.client() as client:
        return list(client.history(vm, ["memory"], start, start + 3_600).metrics["memory"])


def test_events_and_samples_outlast_a_controller_that_is_away(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """That it is away is told once, and that it is there again."""
    caplog.set_level(logging.INFO, "controller.agent")
    start = float(round(time.time())) - 600
    with world.controller():
        world.tell("vm0")
        world.measure(start, 0.0)
        assert world.sender.once() == 0
        assert world.sender.account.events == {"applied": 1}
    world.tell("vm1", EventType.VM_PLACED, "p2")
    for n in range(1, 5):
        world.measure(start + n, float(n))
    assert world.sender.once() > 0
    assert world.sender.once() > 0
    assert "127.0.0.1:9" in world.sender.account.trouble
    assert "pleach brain" in world.sender.account.mend
    assert world.outbox.depth().ticks == 4
    with world.controller() as served:
        assert world.sender.once() == 0
        assert world.sender.account.trouble == ""
        with served.client() as client:
            assert client.vm("vm0").placement is not None
            assert client.vm("vm1").placement is not None
        assert memory(served, "vm0", start) == [0, 1, 2, 3, 4]
    assert world.outbox.depth().events == world.outbox.depth().ticks == 0
    told = [r.getMessage() for r in caplog.records if r.name == "controller.agent.sending"]
    assert told == ["nothing can be told; it waits", "the controller can be told again"]


def test_what_was_taken_before_a_crash_is_not_taken_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reply is lost: the controller knows what it is sent again by numbers and ids."""
    start = float(round(time.time())) - 600
    with world.controller() as served:
        world.tell("vm0")
        world.measure(start, 1.0)

        def lost(*_: object) -> None:
            raise Problem(_body(503))

        with monkeypatch.context() as patched:
            patched.setattr(world.outbox, "took", lost)
            assert world.sender.once() > 0
        with monkeypatch.context() as patched:
            patched.setattr(world.outbox, "delivered", lost)
            assert world.sender.once() > 0
        world.measure(start + 1, 2.0)  # not part of what was under way
        assert world.sender.once() == 0
        assert world.sender.account.events == {"applied": 1, "replayed": 1}
        assert world.sender.account.samples_taken == 1
        assert memory(served, "vm0", start) == [1.0, 2.0]
        status = served.call("GET", "/v1/history").body
        assert status["batches"] == {"taken": 2, "duplicate": 1}


def _body(status: int) -> Any:
    return ProblemBody(type="x", title="x", status=status, detail="the reply was lost")


def test_what_is_refused_is_set_aside_and_the_rest_goes_on(world: World) -> None:
    now = float(round(time.time()))
    with world.controller() as served:
        world.tell("nobody")
        world.tell("vm0", EventType.VM_PLACED, "p1", "p2")  # two ports of a VM with one NIC
        world.tell("vm1")
        world.measure(now, 1.0, "nobody")
        world.measure(now, 1.0, "vm1")
        world.measure(now + 3_600, 1.0, "vm1")
        assert world.sender.once() == 0
        account = world.sender.account
        assert account.events == {"applied": 1, "refused": 2}
        causes = {fact.vm: cause for _, fact, cause in world.outbox.refusals()}
        assert "nobody" in causes["nobody"]
        assert "NIC" in causes["vm0"]
        assert account.samples_refused == {"unknown-subject": 1, "in-the-future": 1}
        assert account.samples_taken == 1
        assert world.outbox.told().keys() == {"vm1"}
        with served.client() as client:
            assert client.vm("vm1").placement is not None


def test_an_agent_tells_of_its_own_host_alone(world: World) -> None:
    now = float(round(time.time()))
    with world.controller() as served:
        with served.client() as client:
            client.place("vm2", "h2", ["p9"])
        fact = Fact("e1", EventType.VM_REMOVED, now, "vm2", "h2", ("p9",))
        world.outbox.tell([fact])
        world.measure(now, 1.0, "vm2")
        world.outbox.add(batch_of([Row("h2", now, {"host_memory": 1.0})]))
        assert world.sender.once() == 0
        assert "speaks for host h1" in world.outbox.refusals()[0][2]
        assert world.sender.account.samples_refused == {"not-yours": 2}
        with served.client() as client:
            assert client.vm("vm2").placement is not None


def test_a_controller_that_wants_less_gets_it_later(world: World) -> None:
    """Ten times what is agreed: turned away, with the time to wait, and nothing is lost."""
    start = float(round(time.time())) - 600
    with world.controller(values_per_s=50, burst_values=10) as served:
        world.tell("vm0")  # of others' VMs it may not tell
        for n in range(16):
            world.measure(start + n, float(n))
        waits = []
        deadline = time.monotonic() + 60
        while (wait := world.sender.once()) > 0:
            assert time.monotonic() < deadline
            waits.append(wait)
            assert "values" in world.sender.account.trouble
            time.sleep(min(wait, 1.5))
        assert waits
        assert max(waits) >= 1  # as Retry-After said, not as it would by itself
        assert FIRST_PAUSE_S < 1
        assert memory(served, "vm0", start) == [float(n) for n in range(16)]


def test_a_token_that_is_not_taken_is_waited_for(world: World) -> None:
    with world.controller() as served:
        good, world.token = world.token, "pleach_wrong"
        world.tell("vm0")
        world.measure(time.time(), 1.0)
        assert world.sender.once() > 0
        assert "token" in world.sender.account.trouble
        assert world.outbox.depth().events == world.outbox.depth().ticks == 1
        world.sender._close()
        world.token = good
        assert world.sender.once() == 0
        assert served.url


def test_ports_are_told_in_the_order_of_the_nics(world: World) -> None:
    with world.controller() as served:
        nics = [{"mac": f"02:00:00:00:01:0{n}", "subnet": "web"} for n in range(2)]
        with served.client() as client:
            client.put(Vm.model_validate({"id": "two", "tenant": "acme", "nics": nics}))
        macs = ("02:00:00:00:01:01", "02:00:00:00:01:00")
        world.tell("two", EventType.VM_PLACED, "p1", "p2", macs=macs)
        assert world.sender.once() == 0
        with served.client() as client:
            placement = client.vm("two").placement
            assert placement is not None
            assert placement.ports == ("p2", "p1")


def test_a_migration_is_told_by_the_target(world: World) -> None:
    with world.controller() as served:
        with served.client() as client:
            client.place("vm0", "h2", ["p9"])
        world.tell("vm0", EventType.MIGRATION_STARTED, migration="m1")
        assert world.sender.once() == 0
        with served.client() as client:
            move = client.vm("vm0").migration
            assert move is not None
            assert (move.source, move.target, move.ports) == ("h2", "h1", ("p1",))
            world.tell("vm0", EventType.MIGRATION_COMPLETED, migration="m1")
            assert world.sender.once() == 0
            placement = client.vm("vm0").placement
            assert placement is not None
            assert placement.host == "h1"


def test_a_vm_that_the_controller_forgot_is_told_of_again(world: World) -> None:
    woken: list[bool] = []
    machines = tuple(Machine(f"vm{n}", ("p1",)) for n in range(3))
    with world.controller() as served:
        for machine in machines:
            world.tell(machine.vm, EventType.VM_PLACED, f"p-{machine.vm}")
        auditor = Auditor(
            "h1", world.outbox, world.connect, lambda: machines, lambda: woken.append(True)
        )
        auditor.once()  # while events wait, there is nothing to compare
        assert not woken
        assert world.sender.once() == 0
        auditor.once()
        assert world.outbox.told().keys() == {"vm0", "vm1", "vm2"}
        with served.client() as client:
            client.remove("vm0", "h1")
            client.place("vm1", "h2", ["p9"])
        auditor.once()
        assert world.outbox.told().keys() == {"vm1", "vm2"}
        assert auditor.elsewhere == {"vm1": "h2"}
        assert woken


class _Refusing(BaseHTTPRequestHandler):
    """A controller that answers with one status after the other."""

    answers: list[tuple[int, dict[str, str]]]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        status, headers = self.answers.pop(0)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def refusing(answers: list[tuple[int, dict[str, str]]]) -> Iterator[str]:
    handler = type("Handler", (_Refusing,), {"answers": answers})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_pauses_grow_and_retry_after_counts(tmp_path: Path) -> None:
    answers = [(503, {}), (503, {}), (500, {}), (503, {"retry-after": "77"}), (502, {})]
    with refusing(answers) as url, closing(Outbox(tmp_path / "agent", 1 << 20)) as outbox:
        sender = Sender(outbox, lambda: Client(url, "t", attempts=1), 1_000)
        outbox.add(batch_of([Row("vm0", 1e9, {"memory": 1.0})]))
        waits = [sender.once() for _ in range(4)]
        assert waits[0] <= FIRST_PAUSE_S < waits[2] <= 4 * FIRST_PAUSE_S
        assert waits[3] == 77
        assert outbox.depth().ticks == 1
        sender._close()


def test_a_batch_that_will_never_be_taken_is_dropped_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answers: list[tuple[int, dict[str, str]]] = [(413, {}), (413, {}), (422, {})]
    with refusing(answers) as url, closing(Outbox(tmp_path / "agent", 1 << 20)) as outbox:
        sender = Sender(outbox, lambda: Client(url, "t", attempts=1), 1_000)
        for n in range(2):
            outbox.add(batch_of([Row("vm0", 1e9 + n, {"memory": 1.0})]))
        sender.once()
        # Both at once, then one alone, which cannot be less, then the other.
        assert sum(sender.account.samples_refused.values()) == 2
        assert outbox.depth().ticks == 0
        assert "samples dropped" in caplog.text
        sender._close()
