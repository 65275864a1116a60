"""nDPI in its process: what it recognises, and that its crashes are survived."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from controller.observe.applications import policy
from controller.observe.applications.captures import Frame
from controller.observe.applications.records import Direction, Kind, Verdict
from controller.observe.applications.worker import Worker, WorkerError
from tests.unit import applications_traffic as traffic
from tests.unit import crashing_process

POLICY = policy.load()
LIMITS = replace(POLICY.limits(), idle_s=1e9)
TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(POLICY.naming(), LIMITS, time.monotonic) as made:
        yield made


@pytest.fixture
def fragile() -> Iterator[Worker]:
    module = "tests.unit.crashing_process"
    with Worker(POLICY.naming(), LIMITS, time.monotonic, hang_s=1.0, module=module) as made:
        yield made


def look(worker: Worker, *flows: list[Frame]) -> list[Verdict]:
    """The verdicts on frames that are fed one after the other, by port of the responder."""
    for frame in (frame for flow in flows for frame in flow):
        assert worker.feed(0, frame.time, frame.data)
    verdicts = worker.finish(TIMEOUT_S)
    return sorted(verdicts, key=lambda verdict: verdict.responder.port)


APPLICATIONS: dict[str, tuple[Callable[[], list[Frame]], str, str]] = {
    "http": (lambda: traffic.tcp(80, traffic.HTTP), "HTTP", "web server"),
    "http elsewhere": (lambda: traffic.tcp(7777, traffic.HTTP), "HTTP", "web server"),
    "http v6": (lambda: traffic.tcp(80, traffic.HTTP, version=6), "HTTP", "web server"),
    "ssh": (lambda: traffic.tcp(2222, traffic.SSH), "SSH", "remote administration"),
    "postgresql": (lambda: traffic.tcp(5999, traffic.POSTGRESQL), "PostgreSQL", "database"),
    "redis": (lambda: traffic.tcp(7001, traffic.REDIS), "RESP", "database"),
    "mqtt": (lambda: traffic.tcp(7002, traffic.MQTT), "MQTT", "messaging"),
    "smtp": (lambda: traffic.tcp(2525, traffic.SMTP), "SMTP", "mail"),
    "tls": (
        lambda: traffic.tcp(9443, [(True, traffic.hello("shop.example.org"))]),
        "TLS",
        "web server",
    ),
    "dns": (lambda: traffic.udp(53, traffic.dns("www.example.org")), "DNS", "name service"),
}


@pytest.mark.parametrize("name", APPLICATIONS)
def test_applications_are_recognised(worker: Worker, name: str) -> None:
    make, application, category = APPLICATIONS[name]
    frames = make()
    (verdict,) = look(worker, frames)
    assert (verdict.application, verdict.kind) == (application, Kind.CONFIRMED)
    assert verdict.category == category
    assert verdict.packets <= min(len(frames), 10)
    assert verdict.initiator.port == 40_000
    assert (verdict.initiator.mac, verdict.responder.mac) == (
        traffic.CLIENT_MAC,
        traffic.SERVER_MAC,
    )


def test_what_nobody_knows_stays_unknown(worker: Worker) -> None:
    chance = random.Random(5)
    said = [(n % 2 == 0, chance.randbytes(90)) for n in range(12)]
    (verdict,) = look(worker, traffic.tcp(7070, said))
    assert (verdict.application, verdict.kind) == ("unknown", Kind.UNKNOWN)
    assert (verdict.category, verdict.confidence) == ("unknown", 0.0)


def test_a_port_alone_is_a_guess(worker: Worker) -> None:
    (verdict,) = look(worker, traffic.tcp(9200, []))
    assert (verdict.application, verdict.kind) == ("Elasticsearch", Kind.GUESSED)


def test_the_server_is_named_and_risks_are_told(worker: Worker) -> None:
    http = [(True, b"GET /?q=1 HTTP/1.1\r\nHost: 192.0.2.7\r\nUser-Agent: x\r\n\r\n")]
    tls, plain = look(
        worker,
        traffic.tcp(443, [(True, traffic.hello("shop.example.org"))]),
        traffic.tcp(8090, http, sport=40_001),
    )
    assert tls.server_name == "shop.example.org"
    assert "numeric_ip_host" in plain.risks
    assert "non_standard_port" in plain.risks


def test_response_times(worker: Worker) -> None:
    (verdict,) = look(worker, traffic.tcp(80, traffic.HTTP, step=0.25))
    assert verdict.direction is Direction.SYN
    assert verdict.handshake_s == pytest.approx(0.5)
    assert verdict.response_s == pytest.approx(0.25)


def test_scopes_keep_equal_addresses_apart(worker: Worker) -> None:
    ours, others = traffic.tcp(7777, traffic.HTTP), traffic.tcp(7777, traffic.SSH)
    for one, other in zip(ours, others, strict=True):
        worker.feed(1, one.time, one.data)
        worker.feed(2, other.time, other.data)
    told = {v.scope: v.application for v in worker.finish(TIMEOUT_S)}
    assert told == {1: "HTTP", 2: "SSH"}


def test_a_capture(worker: Worker, tmp_path: Path) -> None:
    frames = [*traffic.tcp(80, traffic.HTTP), *traffic.udp(53, traffic.dns("example.org"))]
    found = worker.identify(traffic.capture(tmp_path / "a.pcap", frames))
    assert {v.application for v in found.verdicts} == {"HTTP", "DNS"}
    assert (found.counters.frames, found.counters.flows) == (len(frames), 2)
    assert (found.trouble, found.crashed) == ("", ())


def test_a_cut_capture_is_looked_at_as_far_as_it_goes(worker: Worker, tmp_path: Path) -> None:
    file = tmp_path / "cut.pcap"
    file.write_bytes(traffic.pcap(traffic.tcp(80, traffic.HTTP))[:-5])
    found = worker.identify(file)
    assert [v.application for v in found.verdicts] == ["HTTP"]
    assert found.trouble.startswith("ends within the frame at byte")


@pytest.mark.parametrize(
    ("content", "told"), [(b"", "is empty"), (b"neither\n", "neither pcap nor pcapng")]
)
def test_no_capture(worker: Worker, tmp_path: Path, content: bytes, told: str) -> None:
    file = tmp_path / "x.pcap"
    file.write_bytes(content)
    with pytest.raises(WorkerError, match=f"{file}: {told}"):
        worker.identify(file)
    with pytest.raises(WorkerError, match="nowhere: cannot be read: No such file"):
        worker.identify(tmp_path / "nowhere")


def test_damaged_captures_are_survived(worker: Worker, tmp_path: Path) -> None:
    chance = random.Random(1)
    file = tmp_path / "damaged.pcap"
    flows = [make() for make, _, _ in APPLICATIONS.values()]
    whole = traffic.pcap(frame for flow in flows for frame in flow)
    crashes = worker.counters.crashes
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(chance.randrange(1, 200)):
            damaged[chance.randrange(24, len(damaged))] = chance.randrange(256)
        file.write_bytes(damaged[: chance.randrange(24, len(damaged))])
        worker.identify(file, forget=False)
    assert worker.counters.crashes == crashes


def test_a_crash_costs_the_flow_that_caused_it(fragile: Worker) -> None:
    fatal = traffic.tcp(6666, [(True, crashing_process.CRASH)], sport=40_001)
    bad, good = look(fragile, fatal, traffic.tcp(7777, traffic.HTTP))
    assert (bad.kind, bad.method) == (Kind.UNKNOWN, "crashed")
    assert good.application == "HTTP"
    assert (fragile.counters.crashes, fragile.counters.hangs) == (1, 0)


def test_a_hang_is_ended(fragile: Worker) -> None:
    fatal = traffic.tcp(6666, [(True, crashing_process.HANG)], sport=40_001)
    bad, good = look(fragile, fatal, traffic.tcp(7777, traffic.HTTP))
    assert (bad.method, good.application) == ("crashed", "HTTP")
    assert (fragile.counters.crashes, fragile.counters.hangs) == (0, 1)


def test_a_crash_in_a_capture(fragile: Worker, tmp_path: Path) -> None:
    frames = [
        *traffic.tcp(6666, [(True, crashing_process.CRASH)]),
        *traffic.tcp(7777, traffic.HTTP),
        *traffic.tcp(6667, [(True, crashing_process.CRASH_AT_END)]),
    ]
    found = fragile.identify(traffic.capture(tmp_path / "fatal.pcap", frames))
    assert {v.responder.port: v.application for v in found.verdicts} == {
        6666: "unknown",
        6667: "unknown",
        7777: "HTTP",
    }
    assert {key[1][4] for key in found.crashed} == {6666, 6667}
    assert fragile.counters.crashes == 2


@pytest.mark.parametrize("fault", [crashing_process.EXIT, crashing_process.LIE])
def test_frames_that_end_it_without_blame_are_dropped(fragile: Worker, fault: bytes) -> None:
    fatal = traffic.tcp(6666, [(True, fault)])
    assert look(fragile, fatal) == []
    assert fragile.counters.crashes == 2
    assert fragile.counters.dropped == len(fatal)
    (good,) = look(fragile, traffic.tcp(7777, traffic.HTTP))
    assert good.application == "HTTP"


def test_many_crashes_make_it_wait(fragile: Worker) -> None:
    for number in range(4):
        fatal = traffic.tcp(6000 + number, [(True, crashing_process.CRASH)])
        for frame in fatal:
            fragile.feed(0, frame.time, frame.data)
        until = time.monotonic() + TIMEOUT_S
        while fragile.counters.crashes == number and time.monotonic() < until:
            fragile.poll()
    assert fragile.counters.crashes == 4
    assert fragile.pid is None
    # Meanwhile what comes is kept as far as there is room, and then dropped; nothing waits.
    frame = traffic.tcp(80, [(True, bytes(1400))])[-1]
    taken = [fragile.feed(0, frame.time, frame.data) for _ in range(100)]
    assert taken[0]
    assert not taken[-1]
    assert fragile.counters.dropped == taken.count(False)


def test_a_worker_that_was_killed_is_blamed_on_nobody(worker: Worker) -> None:
    before = worker.counters.crashes
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    (verdict,) = look(worker, traffic.tcp(7777, traffic.HTTP))
    assert verdict.application == "HTTP"
    assert worker.counters.crashes == before + 1


def test_what_does_not_keep_up_is_dropped(worker: Worker) -> None:
    pid = worker.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        frame = traffic.tcp(80, [(True, bytes(1400))])[-1]
        fed = [worker.feed(0, frame.time, frame.data) for _ in range(3_000)]
    finally:
        os.kill(pid, signal.SIGCONT)
    assert not all(fed)
    assert worker.counters.dropped == fed.count(False)
    worker.finish(TIMEOUT_S)


def test_the_process_ends_with_who_started_it() -> None:
    with closing(Worker(POLICY.naming(), LIMITS, time.monotonic)) as made:
        pid = made.pid
        assert pid is not None
        look(made, traffic.tcp(80, traffic.HTTP))
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


UNDER_EVENTLET = """
import eventlet; eventlet.monkey_patch()
import time
from controller.observe.applications import policy
from controller.observe.applications.worker import Worker
from tests.unit import applications_traffic as traffic
rules, turns, verdicts = policy.load(), [], []
def turn():
    while True:
        eventlet.sleep(0.001)
        turns.append(1)
eventlet.spawn(turn)
with Worker(rules.naming(), rules.limits(), time.monotonic) as worker:
    for frame in traffic.tcp(7777, traffic.HTTP):
        worker.feed(0, frame.time, frame.data)
    while not verdicts:
        verdicts = worker.poll()
        eventlet.sleep(0.01)
    print(verdicts[0].application, worker.counters.crashes, len(turns) > 1)
"""


def test_it_works_under_eventlet() -> None:
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", UNDER_EVENTLET],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert told.stdout == "HTTP 0 True\n", told.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to drop")
def test_it_looks_at_frames_without_privileges(worker: Worker) -> None:
    look(worker, traffic.tcp(80, traffic.HTTP))
    status = Path(f"/proc/{worker.pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    assert fields["Uid"].split() == ["65534"] * 4
    assert int(fields["CapEff"], 16) == 0
