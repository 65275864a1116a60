"""The store on both engines: events per second through REST, how soon another process has a
change that was acknowledged, and whether anything acknowledged is lost when the brain, or the
database's server, is killed at random.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Address
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

from sqlalchemy import create_engine, select

from controller.api import CLOUDEVENT, EventReply
from controller.model.nouns import Host, Nic, Placement, Subnet, Tenant, Vm
from controller.model.state import State
from controller.store import Store, schema
from mininet_labs.deployment import Deployment
from tests.benchmarks.harness import Json, Options, percentile, say
from tests.postgres import PostgresServer

EngineName = Literal["sqlite", "postgresql"]
ENGINES: tuple[EngineName, ...] = ("sqlite", "postgresql")
#: Senders that each wait for an answer before they go on.
SENDERS = 32
#: Those of them that send while something is killed.
SENDERS_UNDER_KILLS = 8
#: Events per second, on average, while the latency of the feed is measured.
PACE = 100.0
#: Seconds from the first answer after a start to the next kill, at most.
KILL_WITHIN_S = 0.5
SEED = 1
_SOURCE = "/benchmark"
#: Sends a request; the body of the reply, or None where it cannot be taken now.
_Post = Callable[[bytes], Awaitable[bytes | None]]
_spawn = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything."""

    events: int
    paced: int
    kills: int


FULL, QUICK = Size(4_000, 2_000, 50), Size(600, 200, 3)


@dataclass(frozen=True, slots=True)
class Told:
    """An event that was acknowledged: VM n was placed as its turn `turn` says."""

    id: str
    vm: int
    turn: int
    revision: int
    #: When the answer was there (CLOCK_MONOTONIC, which all processes share).
    at: float


def run(options: Options) -> Json:
    """Measure each engine in turn."""
    size = QUICK if options.quick else FULL
    found = {engine: measured(engine, size) for engine in ENGINES}

    def of(key: str) -> dict[str, object]:
        return {engine: result[key] for engine, result in found.items()}

    return {
        "events_per_s": of("events_per_s"),
        "brain_cpu_ms_per_event": of("brain_cpu_ms_per_event"),
        "feed_latency_ms_p99": max(float(r["feed_latency_ms_p99"]) for r in found.values()),
        "feed_latency_ms_p50_by_engine": of("feed_latency_ms_p50"),
        "feed_latency_ms_p99_by_engine": of("feed_latency_ms_p99"),
        "kills": of("kills"),
        "acknowledged_under_kills": of("acknowledged"),
        "acknowledged_lost": sum(int(r["acknowledged_lost"]) for r in found.values()),
        "applied_twice": sum(int(r["applied_twice"]) for r in found.values()),
        "feed_is_the_state": all(bool(r["feed_is_the_state"]) for r in found.values()),
    }


def measured(engine: EngineName, size: Size) -> dict[str, float]:
    """All figures of one engine, each with a durable database of its own."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pleach-bench-")))
        settings = {
            "PLEACH_NORTHBOUND__REQUESTS_PER_S": "0",
            "PLEACH_STORE__FEED_KEEP": "10000000",
            "PLEACH_LOG__LEVEL": "warning",
        }
        server = None
        if engine == "postgresql":
            server = stack.enter_context(PostgresServer(durable=True))
            settings["PLEACH_STORE__URL"] = server.url(server.create())
        deployment = stack.enter_context(Deployment(directory, settings))
        deployment.launch("brain")
        define(deployment)
        target = Target(deployment)
        result = throughput(target, size.events)
        say(engine, f"{result['events_per_s']:.0f} events/s")
        result |= latency(target, size.paced)
        say(engine, f"feed p99 {result['feed_latency_ms_p99']:.2f} ms")
        result |= killed(target, size.kills, server)
        say(engine, f"{result['acknowledged_lost']} of {result['acknowledged']} lost")
        return result


class Target:
    """The brain under test, and how processes that send to it find it."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.token = (deployment.state_dir / "operator.token").read_text().strip()
        local = f"sqlite:///{deployment.state_dir}/pleach.db"
        self.store_url = deployment.environment.get("PLEACH_STORE__URL", local)

    @contextlib.contextmanager
    def sending(self, senders: int, part: str, count: int, pace: float = 0) -> Iterator[Connection]:
        """Another process that sends `count` events by so many senders, and at the end tells
        all that were acknowledged; what it is sent meanwhile stops it."""
        ours, theirs = _spawn.Pipe()
        arguments = (theirs, self.deployment.northbound, self.token, part, senders, count, pace)
        process = _spawn.Process(target=send, args=arguments)
        process.start()
        theirs.close()
        try:
            yield ours
        finally:
            if process.is_alive() and not ours.closed:
                with contextlib.suppress(OSError):  # it has ended meanwhile
                    ours.send("stop")
            process.join(60)
            if process.is_alive():
                process.kill()


def define(deployment: Deployment) -> None:
    """A tenant, two hosts, and a VM for each sender."""
    client = deployment.client
    client.put(Tenant(id="t"))
    client.put(Subnet(id="s", tenant="t", cidr="10.0.0.0/16"))
    for n in (0, 1):
        client.put(Host(id=f"h{n}", datapath=f"{n + 1:016x}"))
    for n in range(SENDERS):
        nic = Nic(mac=f"02:00:00:00:00:{n:02x}", subnet="s", ipv4=IPv4Address("10.0.1.0") + n)
        client.put(Vm(id=f"vm{n}", tenant="t", nics=(nic,)))


# What is measured.


def throughput(target: Target, count: int) -> dict[str, float]:
    """Events per second, and the processor time of the brain for each, in milliseconds."""
    with target.sending(SENDERS, "warm", count // 10) as warm:
        warm.recv()
    pid = target.deployment.pid("brain")
    before = _cpu_s(pid)
    with target.sending(SENDERS, "rate", count) as sender:
        told: list[Told] = sender.recv()
    cpu = _cpu_s(pid) - before
    # From the first answer to the last: the process that sends takes a while to start.
    elapsed = max(t.at for t in told) - min(t.at for t in told)
    return {
        "events_per_s": round((len(told) - 1) / elapsed, 1),
        "brain_cpu_ms_per_event": round(cpu / len(told) * 1000, 3),
    }


def latency(target: Target, count: int) -> dict[str, float]:
    """Milliseconds from an event's acknowledgement to a follower in another process having the
    change; 0 where that is first."""
    ours, theirs = _spawn.Pipe()
    follower = _spawn.Process(target=follow, args=(theirs, target.store_url))
    follower.start()
    theirs.close()
    ours.recv()  # it follows
    with target.sending(1, "paced", count, PACE) as sender:
        told: list[Told] = sender.recv()
    ours.send(max(t.revision for t in told))
    seen: dict[int, float] = ours.recv()
    follower.join()
    waits = [max(0.0, seen[t.revision] - t.at) * 1000 for t in told]
    return {
        "feed_latency_ms_p50": round(percentile(waits, 0.5), 3),
        "feed_latency_ms_p99": round(percentile(waits, 0.99), 3),
    }


def killed(target: Target, kills: int, server: PostgresServer | None) -> dict[str, float]:
    """Kill the brain, with PostgreSQL in turn with its server, and count what is lost of that
    which was acknowledged."""
    rng = random.Random(SEED)
    deployment = target.deployment
    with target.sending(SENDERS_UNDER_KILLS, "kills", 1 << 30) as sender:
        for number in range(kills):
            heard(sender)
            time.sleep(rng.random() * KILL_WITHIN_S)
            if server is not None and number % 2:
                server.kill()
                server.start()
            else:
                deployment.kill("brain")
                deployment.launch("brain")
            if number % 10 == 9:
                say("killed", number + 1, "times")
        heard(sender)
        sender.send("stop")
        while not isinstance(told := sender.recv(), list):
            pass
    return {"kills": kills, "acknowledged": len(told), **compared(target.store_url, told)}


def heard(sender: Connection) -> None:
    """Return once another event has been acknowledged since the call."""
    sender.send("tell")
    if sender.recv() != "acknowledged":
        raise RuntimeError("the sender ended before its time")


def compared(url: str, told: list[Told]) -> dict[str, float]:
    """What the store says of events that were acknowledged."""
    store = Store.open(url)
    store.check()
    changes = {change.revision: change for change in store.changes(0, 1 << 40)}
    followed = State()
    for change in changes.values():
        followed.apply(change)
    lost = 0
    for event in told:
        change = changes.get(event.revision)
        placed = None if change is None else change.record
        host, port = place(event.vm, event.turn)
        kept = isinstance(placed, Placement) and (placed.vm, placed.host, placed.ports) == (
            f"vm{event.vm}",
            host,
            (port,),
        )
        lost += not kept
    placements = Counter(
        (c.record.vm, c.record.ports) for c in changes.values() if isinstance(c.record, Placement)
    )
    engine = create_engine(url)
    with engine.connect() as connection:
        query = select(schema.event.c.event_id).where(schema.event.c.source.endswith(_SOURCE))
        receipts = set(connection.scalars(query))
    engine.dispose()
    lost += sum(event.id not in receipts for event in told)
    same = followed == store.snapshot()
    store.close()
    return {
        "acknowledged_lost": lost,
        "applied_twice": sum(count > 1 for count in placements.values()),
        "feed_is_the_state": same,
    }


def place(vm: int, turn: int) -> tuple[str, str]:
    """Where a VM is at its nth turn: each time elsewhere, and never at the same port again."""
    return f"h{turn % 2}", f"p{vm}-{turn}"


def _cpu_s(pid: int) -> float:
    """Processor time that a process has used, in seconds (proc(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# What other processes do.


def follow(pipe: Connection, url: str) -> None:
    """Follow the feed as the southbound process does; told the last revision wanted, answer
    when each was there."""
    store = Store.open(url)
    bell = store.bell("benchmark")
    at, last = store.revision, None
    seen: dict[int, float] = {}
    pipe.send("following")
    while last is None or at < last:
        bell.wait(0.1 if last is None else 0.01)
        changes = store.changes(at)
        now = time.monotonic()
        for change in changes:
            at = change.revision
            seen[at] = now
        if last is None and pipe.poll():
            last = pipe.recv()
    pipe.send(seen)
    store.close()


def send(
    pipe: Connection, port: int, token: str, part: str, senders: int, count: int, pace: float
) -> None:
    """Send events until `count` are acknowledged, or "stop" is said; then tell those."""
    told = asyncio.run(_Load(pipe, port, token, part, count, pace).run(senders))
    pipe.send(told)


class _Load:
    """Senders that each send one event after another, and the same again where none answered."""

    def __init__(
        self, pipe: Connection, port: int, token: str, part: str, count: int, pace: float
    ) -> None:
        self._pipe, self._port, self._token, self._part = pipe, port, token, part
        self._left = count
        self._pace = pace
        self._rng = random.Random(SEED)
        self._told: list[Told] = []
        self._stopped = False
        self._asked = False

    async def run(self, senders: int) -> list[Told]:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pipe.fileno(), self._hear)
        await asyncio.gather(*(self._sender(vm) for vm in range(senders)))
        loop.remove_reader(self._pipe.fileno())
        return self._told

    def _hear(self) -> None:
        try:
            word = self._pipe.recv()
        except EOFError:
            word = "stop"
        self._stopped = self._stopped or word == "stop"
        self._asked = word == "tell"

    async def _sender(self, vm: int) -> None:
        # Another part may have ended anywhere: turns never come back.
        turn = time.time_ns() // 1_000
        async with contextlib.AsyncExitStack() as stack:
            post: _Post | None = None
            while self._left > 0 and not self._stopped:
                self._left -= 1
                turn += 1
                event = self._event(vm, turn)
                while not self._stopped:
                    try:
                        if post is None:
                            post = await stack.enter_async_context(self._connected())
                        reply = await post(event)
                    except (OSError, EOFError):
                        await stack.aclose()
                        post = None
                        reply = None
                    if reply is not None:
                        self._take(vm, turn, reply)
                        break
                    await asyncio.sleep(0.02)
                if self._pace:
                    await asyncio.sleep(self._rng.expovariate(self._pace))

    def _take(self, vm: int, turn: int, reply: bytes) -> None:
        at = time.monotonic()
        said = EventReply.model_validate_json(reply)
        if said.outcome not in ("applied", "replayed"):
            raise RuntimeError(f"an event was {said.outcome}: {said.reason}")
        self._told.append(Told(f"{self._part}-{vm}-{turn}", vm, turn, said.revision, at))
        if self._asked:
            self._asked = False
            self._pipe.send("acknowledged")

    def _event(self, vm: int, turn: int) -> bytes:
        host, port = place(vm, turn)
        body = json.dumps(
            {
                "specversion": "1.0",
                "id": f"{self._part}-{vm}-{turn}",
                "source": _SOURCE,
                "type": "vm.placed",
                "time": datetime.now(UTC).isoformat(),
                "data": {"vm": f"vm{vm}", "host": host, "ports": [port]},
            }
        ).encode()
        head = (
            "POST /v1/events HTTP/1.1\r\nhost: 127.0.0.1\r\n"
            f"authorization: Bearer {self._token}\r\n"
            f"content-type: {CLOUDEVENT}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[_Post]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)

        async def post(request: bytes) -> bytes | None:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            length = next(
                int(line.split(b":")[1])
                for line in head.lower().split(b"\r\n")
                if line.startswith(b"content-length:")
            )
            body = await reader.readexactly(length)
            if status not in (200, 503):
                raise RuntimeError(f"an event was answered {status}: {body!r}")
            return body if status == 200 else None

        try:
            yield post
        finally:
            writer.close()
