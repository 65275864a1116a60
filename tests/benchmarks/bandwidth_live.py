"""Meters, classes and missed bursts on real switches.

`meters`: what passes a meter in each direction, as the receiver's interface counts it (Ethernet
frames), once the burst is used up; the worst difference to what was set.

`classes`: round trips of an interactive service while an uplink is overloaded by bulk, with a
queue a class and with one for all (of the same rate and depth).

`missed`: one VM uses an uplink alone, and another begins without having been foreseen: seconds
from its first packet until the switch has the meter of its fair share.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from controller.act.dataplane.pipeline import vm_meter
from controller.act.queues import tc
from controller.act.queues.plan import Plan, plan
from controller.decide.bandwidth import qos
from controller.model.nouns import RateLimit, Service
from mininet_labs import netns
from mininet_labs.deployment import wait_until
from mininet_labs.vm import LabVm
from tests.benchmarks.harness import Bench, Json, bench, percentile, say
from topologies.generate import leaf_spine

#: Seconds until a burst is used up, and then measured.
WARM_S, WINDOW_S = 2.0, 5.0
QUICK_WARM_S, QUICK_WINDOW_S = 1.5, 2.5
#: Mbit/s of the overloaded uplink, and of the bulk that overloads it.
UPLINK, BULK = 20, 40
#: Seconds between two round trips; their service's port.
PROBE_S, PORT = 0.01, 7_722
FABRIC = leaf_spine(2, 1)
SEED = 5


def run(quick: bool) -> Json:
    """All that is measured live."""
    with bench(FABRIC, tenants=1) as running:
        guests = _guests(running, 4)
        if quick:
            result = meters(running, guests, (20,), ("out",), QUICK_WARM_S, QUICK_WINDOW_S)
        else:
            result = meters(running, guests, (5, 20, 60), ("out", "in"), WARM_S, WINDOW_S)
        result |= classes(running, guests, 1.5 if quick else 20.0)
    return result | missed(1 if quick else 6)


def meters(
    running: Bench,
    guests: list[LabVm],
    rates: tuple[int, ...],
    ways: tuple[str, ...],
    warm_s: float,
    window_s: float,
) -> Json:
    """`meters_worst_error`, and each rate's rows; what passes is measured for `window_s` after
    `warm_s` seconds."""
    rows = []
    with _server(guests[1]):
        for mbps in rates:
            for protocol in ("udp", "tcp"):
                for way in ways:
                    kbit = mbps * 1_000
                    limit = (
                        RateLimit(vm="vm0", out_kbit=kbit)
                        if way == "out"
                        else RateLimit(vm="vm1", in_kbit=kbit)
                    )
                    running.client.limit(limit)
                    _confirmed(running)
                    seconds = warm_s + window_s + 1.0
                    with _sending(guests[0], guests[1], protocol, 2 * mbps, seconds):
                        time.sleep(warm_s)
                        passed = _rate(guests[1], window_s)
                    running.client.unlimit(limit.vm)
                    row = {"protocol": protocol, "direction": way, "mbps": mbps}
                    rows.append(row | {"passed_mbps": round(passed / 1e6, 3)})
                    say("meter", rows[-1])
    worst = max(abs(row["passed_mbps"] / row["mbps"] - 1) for row in rows)  # type: ignore[operator]
    return {
        "meters": rows,
        "meters_worst_error": round(worst, 4),
        "meters_within_10_percent": worst <= 0.1,
    }


def classes(running: Bench, guests: list[LabVm], seconds: float) -> Json:
    """p99 of round trips in milliseconds: `idle`, `with`, and `without` classes."""
    policy = qos.load()
    service = Service(
        vm="vm3", protocol="udp", port=PORT, application="SSH", how="confirmed",
        category="remote administration", category_how="confirmed", confidence=1.0,
        concluded_at=time.time(), flows=20, packets=200, due=time.time(),
    )  # fmt: skip
    with running.store.transaction() as transaction:
        transaction.put(service)
    wait_until(lambda: "vm3" in running.store.snapshot().markings, "the service has a class")
    _confirmed(running)
    port = running.lab.cable_ports(running.lab.edges[0])[0]
    whole = policy.classes["standard"].model_copy(update={"share": 1.0})
    found: Json = {}
    for name, wanted, load in (
        ("idle", plan(policy.classes, policy.default, UPLINK * 1e6), False),
        ("with_classes", plan(policy.classes, policy.default, UPLINK * 1e6), True),
        ("without_classes", plan({"standard": whole}, "standard", UPLINK * 1e6), True),
    ):
        found[name] = _interactive(guests, port, wanted, seconds, load=load)
        say("classes", name, found[name])
    return {"interactive_ms": found} | {
        f"interactive_p99_ms_{name}": told["p99_ms"]  # type: ignore[index]
        for name, told in found.items()
        if name != "idle"
    }


def _interactive(
    guests: list[LabVm], port: str, wanted: Plan, seconds: float, *, load: bool
) -> dict[str, float]:
    tc.apply(port, wanted)
    try:
        with contextlib.ExitStack() as stack:
            if load:
                stack.enter_context(_server(guests[1]))
                stack.enter_context(_sending(guests[0], guests[1], "udp", BULK, seconds + 4))
                time.sleep(2)
            times = _round_trips(guests[2], guests[3], seconds)
    finally:
        tc.clear(port)
    lost = sum(t is None for t in times)
    came = [t * 1_000 for t in times if t is not None]
    if not came:
        raise RuntimeError("no probe came back: is there a path?")
    return {
        "p50_ms": round(percentile(came, 0.5), 2),
        "p99_ms": round(percentile(came, 0.99), 2),
        "probes": len(times),
        "lost": lost,
    }


def _round_trips(client: LabVm, server: LabVm, seconds: float) -> list[float | None]:
    """Seconds that each probe took; None for one that never came back."""
    with netns.entered(server.name):
        there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with netns.entered(client.name):
        here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with there, here:
        there.bind((str(server.ipv4), PORT))
        there.settimeout(0.2)
        here.settimeout(0.2)
        stopping = threading.Event()
        sent: list[float] = []
        came: dict[int, float] = {}

        def echo() -> None:
            while not stopping.is_set():
                with contextlib.suppress(TimeoutError):
                    data, sender = there.recvfrom(2_000)
                    there.sendto(data, sender)

        def listen() -> None:
            while not stopping.is_set():
                with contextlib.suppress(TimeoutError):
                    number = int.from_bytes(here.recv(2_000)[:4], "big")
                    came.setdefault(number, time.perf_counter())

        threads = [threading.Thread(target=target) for target in (echo, listen)]
        for thread in threads:
            thread.start()
        until = time.perf_counter() + seconds
        while (now := time.perf_counter()) < until:
            sent.append(now)
            here.sendto((len(sent) - 1).to_bytes(4, "big") + bytes(60), (str(server.ipv4), PORT))
            time.sleep(PROBE_S)
        time.sleep(1.0)
        stopping.set()
        for thread in threads:
            thread.join()
    return [came[n] - at if n in came else None for n, at in enumerate(sent)]


def missed(times: int) -> Json:
    """`missed_burst_reaction_s`, the longest of several; and what both VMs then have."""
    source = qos.DEFAULT.read_text().replace("hosts: {}", f"hosts: {{host0: {UPLINK}}}")
    randomly = random.Random(SEED)
    reactions, gaps = [], []
    with tempfile.TemporaryDirectory(prefix="pleach-bench-") as directory:
        policy = Path(directory) / "qos.yaml"
        policy.write_text(source)
        with bench(
            FABRIC, tenants=1, settings={"PLEACH_BANDWIDTH__POLICY": str(policy)}
        ) as running:
            guests = _guests(running, 4)
            interval_s = 2.0
            with _server(guests[1]), _server(guests[3]):
                for _ in range(times):
                    with _sending(guests[0], guests[1], "udp", BULK, 60):
                        _rates_reach(running, ("tap0", 0.9 * UPLINK))
                        time.sleep(randomly.uniform(0, interval_s))
                        begin = time.monotonic()
                        with _sending(guests[2], guests[3], "udp", BULK, 30):
                            at = _rates_reach(running, ("tap2", 0.95 * UPLINK / 2))
                            reactions.append(at - begin)
                            time.sleep(2 * interval_s)
                            shares = [_meter(running, port) for port in ("tap0", "tap2")]
                            gaps.append(max(abs(s / (UPLINK / 2) - 1) for s in shares))
                    say("missed burst", round(reactions[-1], 2), shares)
    return {
        "missed_burst_reaction_s": round(max(reactions), 3),
        "missed_burst_reaction_mean_s": round(sum(reactions) / len(reactions), 3),
        "control_interval_s": interval_s,
        "live_max_min_gap": round(max(gaps), 4),
    }


def _rates_reach(running: Bench, *wanted: tuple[str, float]) -> float:
    """When the switch has meters of at least so many Mbit/s for what ports send, monotonic."""
    wait_until(
        lambda: all(_meter(running, port) >= mbps for port, mbps in wanted),
        f"meters of {wanted}",
        60,
    )
    return time.monotonic()


def _meter(running: Bench, port: str) -> float:
    """Mbit/s that the VM at a port may send, as its switch says."""
    number = vm_meter(running.lab.port_number(port), out=True)
    told = running.lab.ofctl("dump-meters", running.lab.edges[0])
    for block in told.split("meter=")[1:]:
        if int(block.split()[0]) == number:
            return int(block.split("rate=")[1].split()[0]) / 1_000
    return 0.0


def _guests(running: Bench, count: int) -> list[LabVm]:
    running.define(range(count))
    guests = [running.guest(number) for number in range(count)]
    for number in range(count):
        running.place(number)
    return guests


def _confirmed(running: Bench) -> None:
    """All switches have what is stored now."""
    wanted = running.client.topology().revision
    wait_until(
        lambda: all(p.revision >= wanted for p in running.client.topology().progress),
        "all switches confirmed",
    )


@contextlib.contextmanager
def _server(guest: LabVm) -> Iterator[None]:
    process = guest.popen("iperf3", "-s", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(
            lambda: ":5201 " in guest.run("ss", "-Hltn").stdout, f"iperf3 listens in {guest.name}"
        )
        yield
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _sending(
    source: LabVm, to: LabVm, protocol: str, mbps: float, seconds: float
) -> Iterator[None]:
    """Traffic of one connection, as fast as TCP goes, or UDP at `mbps`."""
    udp = ["-u", "-b", f"{mbps}M", "-l", "1400"] if protocol == "udp" else []
    process = source.popen(
        "iperf3", "-c", str(to.ipv4), "-t", str(int(seconds)), *udp,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _rate(guest: LabVm, seconds: float) -> float:
    """bit/s of Ethernet frames that a guest receives for some seconds."""
    before, begin = _received(guest), time.monotonic()
    time.sleep(seconds)
    return (_received(guest) - before) * 8 / (time.monotonic() - begin)


def _received(guest: LabVm) -> int:
    told = json.loads(guest.run("ip", "-json", "-s", "link", "show", "eth0").stdout)
    return int(told[0]["stats64"]["rx"]["bytes"])
