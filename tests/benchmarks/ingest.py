"""How quickly are samples taken through REST, how quickly is a day of one VM read, and is any
lost that was acknowledged?

A day of 5,000 VMs at 100 hosts, 10 metrics each (4 of them counters), a sample a minute
(`--quick`: 1,000 VMs, one in five minutes). Each host's token sends its 50 VMs by MessagePack
and zstd over a connection of its own, five minutes in a request, and the last hour one. The
brain is killed (SIGKILL) several times in between, once while it packs; whoever has no reply
sends again.

`values_per_cpu_s`: values by CPU seconds of the brain, from the first request until all hours
are packed, without those of starting again. `values_per_wall_s`: values by the seconds of
sending them, without those in which there was no brain. `values_per_s` is the lesser.
`one_tick_values_per_s`: by CPU seconds, of the last hour's requests, which come at 50,000
values a second; `event_*` is how long events take meanwhile, and before (`idle`).
`vm_day_query_ms`: the whole request for one VM's day, all metrics, as samples; the median.
Everything is read again at the end, and compared with what was acknowledged.
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import cramjam
import duckdb
import numpy as np

from controller.api import MSGPACK, Role
from controller.client import Client
from controller.history.opening import opened
from controller.history.samples import Batch, to_msgpack_body
from controller.history.series import Floats
from controller.model.nouns import Datapath, Host, Nic, Placement, Subnet, Tenant, Vm
from controller.northbound.auth import digest, new_secret
from controller.settings import load
from controller.store import Store, Token
from mininet_labs.deployment import Deployment, wait_until
from tests.benchmarks.harness import Json, Options, percentile, say

GAUGES = ("cpu", "memory", "net_rx_packets", "net_tx_packets", "connections", "connections_new")
COUNTERS = ("disk_read", "disk_write", "net_rx", "net_tx")
METRICS = (*GAUGES, *COUNTERS)
SCALE = np.array([1.0, 3.2e10, 5e4, 5e4, 2e3, 1e2, 4e7, 4e7, 1e8, 1e8])
COLUMNS = (*GAUGES, *(f"{name}_total" for name in COUNTERS))
SEED = 7
#: Connections that send at the same time.
THREADS = 8
#: Values per second at which events are told beside, and how long each takes.
AGREED = 50_000
HOUR_S = 3_600


@dataclass(frozen=True, slots=True)
class Size:
    """How much is sent."""

    vms: int
    hosts: int
    tick_s: int
    kills: int
    queries: int

    @property
    def ticks(self) -> int:
        return 24 * HOUR_S // self.tick_s

    @property
    def each(self) -> int:
        return self.vms // self.hosts


def run(options: Options) -> Json:
    """Send, kill, read, compare."""
    size = Size(1_000, 20, 300, 3, 20) if options.quick else Size(5_000, 100, 60, 5, 60)
    with tempfile.TemporaryDirectory() as directory:
        settings = {
            "PLEACH_HISTORY__LATE_S": "172800",
            "PLEACH_HISTORY__SETTLE_S": "15",
            "PLEACH_LOG__LEVEL": "warning",
        }
        with Deployment(Path(directory), settings) as deployment:
            return _measure(deployment, size)


def _measure(deployment: Deployment, size: Size) -> Json:
    tokens = define(deployment.store, size)
    world = World(size, time.time() // HOUR_S * HOUR_S - 24 * HOUR_S)
    brain = Brain(deployment)
    brain.launch()
    raw = deployment.state_dir / "history" / "raw"
    span = max(1, 300 // size.tick_s)
    last = size.ticks - HOUR_S // size.tick_s
    many = [(first, span) for first in range(0, last, span)]
    single = [(first, 1) for first in range(last, size.ticks)]
    deaths = {len(many) * number // size.kills for number in range(1, size.kills)}
    with Senders(brain, tokens) as senders:
        send(brain, world, senders, many, deaths)
        with Events(deployment) as idle:
            time.sleep(5)
        cpu = brain.cpu()
        with Events(deployment) as events:
            send(brain, world, senders, single, set(), size.vms * len(METRICS) / AGREED)
        single_cpu = brain.cpu() - cpu
    say("sent; killed once more while hours are packed")
    wait_until(lambda: len(list(raw.glob("*.parquet"))) >= 6, "some hours are packed", 300)
    brain.kill_and_launch()
    wait_until(lambda: packed(deployment), "every hour is packed", 600)
    cpu = brain.cpu()
    say(f"reading days, after {cpu:.0f} CPU s")
    days = read_days(deployment, world)
    day_cpu = (brain.cpu() - cpu) / len(days)
    rss = max(brain.rss_most, brain.rss())
    deployment.stop()
    say("comparing what is kept with what was acknowledged")
    lost = compare(deployment, world)
    with closing(duckdb.connect(deployment.state_dir / "history" / "history.duckdb")) as database:
        rows, size_of_files = database.execute("SELECT sum(rows), sum(bytes) FROM part").fetchall()[
            0
        ]
    values = size.vms * size.ticks * len(METRICS)
    by_cpu, by_wall = values / cpu, values / brain.sending_s
    return {
        "values_per_s": round(min(by_cpu, by_wall)),
        "vm_day_query_ms": round(percentile(days, 0.5), 1),
        "rss_mb": round(rss),
        "acknowledged_lost": lost,
        "counted_twice": (int(rows) - size.vms * size.ticks) * len(METRICS),
        "values": values,
        "values_per_cpu_s": round(by_cpu),
        "values_per_wall_s": round(by_wall),
        "one_tick_values_per_s": round(size.vms * len(single) * len(METRICS) / single_cpu),
        "vm_day_query_cpu_ms": round(day_cpu * 1000, 1),
        "vm_day_query_p95_ms": round(percentile(days, 0.95), 1),
        "event_idle_p50_ms": round(percentile(idle.took_ms, 0.5), 1),
        "event_idle_p99_ms": round(percentile(idle.took_ms, 0.99), 1),
        "event_p50_ms": round(percentile(events.took_ms, 0.5), 1),
        "event_p99_ms": round(percentile(events.took_ms, 0.99), 1),
        "kills": brain.kills,
        "requests_sent_again": senders.again,
        "bytes_per_value": round(size_of_files / values, 2),
    }


def packed(deployment: Deployment) -> bool:
    """Whether every hour is in a file, and those are joined."""
    status = deployment.client.history_status()
    raw = deployment.state_dir / "history" / "raw"
    joined = sum("-6h-" in file.name for file in raw.glob("*.parquet"))
    return status.waiting_values == 0 and status.unpacked_hours == 0 and joined >= 3


def define(store: Store, size: Size) -> list[str]:
    """Hosts with their VMs; a token for each host."""
    secrets = [new_secret() for _ in range(size.hosts)]
    with store.transaction() as tx:
        tx.put(Tenant(id="t"))
        tx.put(Subnet.model_validate({"id": "n", "tenant": "t", "cidr": "10.0.0.0/16"}))
        for host, secret in enumerate(secrets):
            dpid = f"{host + 1:016x}"
            tx.put(Datapath(dpid=dpid))
            tx.put(Host(id=f"hv{host}", datapath=dpid))
            name = f"agent-hv{host}"
            tx.put_token(Token(name, Role.HYPERVISOR, f"hv{host}", digest(secret), time.time()))
        for vm in range(size.vms):
            mac = f"02:00:00:{vm >> 16:02x}:{vm >> 8 & 255:02x}:{vm & 255:02x}"
            tx.put(Vm(id=vm_name(vm), tenant="t", nics=(Nic(mac=mac, subnet="n"),)))
            host = vm // size.each
            tx.put(Placement(vm=vm_name(vm), host=f"hv{host}", ports=(f"p{vm}",)))
    return secrets


def vm_name(vm: int) -> str:
    return f"vm-{vm:05d}"


class World:
    """What the VMs do, made anew from seeds whenever it is needed."""

    def __init__(self, size: Size, start: float) -> None:
        self.size = size
        self.start = start
        self._counts = np.zeros((size.vms, len(COUNTERS)))

    def time_of(self, tick: int) -> float:
        """Unix seconds."""
        return self.start + tick * self.size.tick_s

    def rates(self, tick: int) -> Floats:
        """[vms, metrics], as they are to be read: of few digits, as agents write them."""
        rng = np.random.default_rng((SEED, tick))
        return np.round(rng.random((self.size.vms, len(METRICS))) ** 2, 3) * SCALE

    def batches(self, first: int, ticks: int) -> Iterator[Batch]:
        """Each host's batch of these ticks; to be called for one after the other, since the
        counters go on."""
        size = self.size
        values = np.stack([self.rates(tick) for tick in range(first, first + ticks)])
        for tick in range(ticks):
            self._counts += values[tick, :, len(GAUGES) :] * size.tick_s
            values[tick, :, len(GAUGES) :] = self._counts
        codes = np.tile(np.arange(size.each, dtype=np.int32), ticks)
        times = [round(self.time_of(tick) * 1000) for tick in range(first, first + ticks)]
        for host in range(size.hosts):
            vms = range(host * size.each, (host + 1) * size.each)
            part = np.asfortranarray(values[:, vms.start : vms.stop].reshape(-1, len(METRICS)))
            yield Batch(
                "agent",
                first,
                time.time(),
                tuple(map(vm_name, vms)),
                codes,
                np.repeat(np.array(times, np.int64), size.each),
                COLUMNS,
                part,
                np.ones(part.shape, np.bool_),
            )


class Brain:
    """The brain's process, killed and started again, and what it cost in all."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.kills = 0
        self.rss_most = 0.0
        #: Seconds of sending to it.
        self.sending_s = 0.0
        self._cpu_gone = 0.0

    def launch(self) -> None:
        """Start it; returns once it has its history. What that costs does not count."""
        self.deployment.launch("brain")
        self.deployment.client.history_status()
        self._cpu_gone -= self._cpu()

    def kill_and_launch(self) -> float:
        """Kill it and start it again; the seconds that this took."""
        began = time.monotonic()
        self.rss_most = max(self.rss_most, self.rss())
        self._cpu_gone = self.cpu()
        self.deployment.kill("brain")
        self.kills += 1
        self.launch()
        return time.monotonic() - began

    def cpu(self) -> float:
        """CPU seconds of all that was done, by the killed ones too."""
        return self._cpu_gone + self._cpu()

    def _cpu(self) -> float:
        stat = Path(f"/proc/{self.deployment.pid('brain')}/stat").read_text()
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss(self) -> float:
        """The most memory that this one has had, in MiB."""
        status = Path(f"/proc/{self.deployment.pid('brain')}/status").read_text()
        return next(
            int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")
        )


class Senders:
    """Threads that send batches over connections of their own until each has its reply."""

    def __init__(self, brain: Brain, tokens: list[str]) -> None:
        self._port = brain.deployment.northbound
        self._tokens = tokens
        self._batches: queue.Queue[tuple[int, Batch] | None] = queue.Queue()
        self._threads = [threading.Thread(target=self._run) for _ in range(THREADS)]
        self._lock = threading.Lock()
        self._failures: list[str] = []
        #: Requests that had no reply, or were put off.
        self.again = 0

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for _ in self._threads:
            self._batches.put(None)
        for thread in self._threads:
            thread.join()

    def put(self, host: int, batch: Batch) -> None:
        """Send this soon."""
        self._batches.put((host, batch))

    def wait(self) -> None:
        """Return once everything has its reply. RuntimeError where one is a refusal."""
        self._batches.join()
        if self._failures:
            raise RuntimeError(self._failures[0])

    def _run(self) -> None:
        connection: http.client.HTTPConnection | None = None
        while (found := self._batches.get()) is not None:
            host, batch = found
            body = bytes(cramjam.zstd.compress(to_msgpack_body(batch), level=1))
            headers = {
                "authorization": f"Bearer {self._tokens[host]}",
                "content-type": MSGPACK,
                "content-encoding": "zstd",
            }
            told = False
            while not told:
                try:
                    if connection is None:
                        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
                    connection.request("POST", "/v1/samples", body, headers)
                    answer = connection.getresponse()
                    told = self._judge(answer.status, answer.read(), batch)
                except (OSError, http.client.HTTPException):
                    connection = None
                if not told:
                    with self._lock:
                        self.again += 1
                    time.sleep(0.05)
            self._batches.task_done()
        if connection is not None:
            connection.close()

    def _judge(self, status: int, body: bytes, batch: Batch) -> bool:
        """Whether this was an answer; what is not the one wanted is kept."""
        if status in (429, 503):
            return False
        reply = json.loads(body)
        taken = reply.get("outcome") == "duplicate" or reply.get("accepted") == batch.values.size
        if status != 200 or not taken:
            self._failures.append(f"{status} {body[:500].decode()}")
        return True


class Events:
    """Sends an event now and then; `took_ms` is how long each took."""

    def __init__(self, deployment: Deployment) -> None:
        self._url = deployment.url
        self._token = (deployment.state_dir / "operator.token").read_text().strip()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.took_ms: list[float] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        with Client(self._url, self._token) as client:
            while not self._ended.wait(0.05):
                began = time.perf_counter()
                client.tell("host.up", host="hv0")
                self.took_ms.append((time.perf_counter() - began) * 1000)


def send(
    brain: Brain,
    world: World,
    senders: Senders,
    chunks: list[tuple[int, int]],
    deaths: set[int],
    pace_s: float = 0.0,
) -> None:
    """Send chunks of ticks, each by all hosts at once and every `pace_s` seconds at most; the
    brain dies in the middle of those whose numbers are in `deaths`."""
    began = time.monotonic()
    away_s = 0.0
    spare_s = 0.0
    for number, (first, ticks) in enumerate(chunks):
        for host, batch in enumerate(world.batches(first, ticks)):
            senders.put(host, batch)
        if number in deaths:
            away_s += brain.kill_and_launch()
        senders.wait()
        spare = began + (number + 1) * pace_s - time.monotonic()
        if spare > 0:
            spare_s += spare
            time.sleep(spare)
        if number % max(1, len(chunks) // 10) == 0:
            say(f"{number} of {len(chunks)} rounds sent, {brain.cpu():.1f} CPU s")
    brain.sending_s += time.monotonic() - began - away_s - spare_s


def read_days(deployment: Deployment, world: World) -> list[float]:
    """Milliseconds of reading the day of one VM after the other, all metrics."""
    rng = np.random.default_rng(SEED)
    token = (deployment.state_dir / "operator.token").read_text().strip()
    connection = http.client.HTTPConnection("127.0.0.1", deployment.northbound, timeout=60)
    query = "&".join(f"metric={name}" for name in METRICS)
    span = f"start={world.start}&end={world.time_of(world.size.ticks)}"
    took = []
    with closing(connection):
        for vm in rng.integers(0, world.size.vms, world.size.queries).tolist():
            began = time.perf_counter()
            path = f"/v1/history/{vm_name(vm)}?{query}&{span}"
            connection.request("GET", path, headers={"authorization": f"Bearer {token}"})
            body = connection.getresponse().read()
            took.append((time.perf_counter() - began) * 1000)
            told = json.loads(body)["metrics"]
            gaps = sum(values.count(None) for values in told.values())
            if gaps != len(COUNTERS) or any(len(v) != world.size.ticks for v in told.values()):
                raise RuntimeError(f"the day of VM {vm} is not whole: {gaps} gaps")
    return took


def compare(deployment: Deployment, world: World) -> int:
    """How many values are not there, or are others than was sent."""
    size = world.size
    lost = 0
    names = [vm_name(vm) for vm in range(size.vms)]
    with opened(load(None, deployment.environment)) as history:
        quarter = size.ticks // 4  # as hours are joined
        for first in range(0, size.ticks, quarter):
            ticks = range(first, first + quarter)
            wanted = np.stack([world.rates(tick) for tick in ticks], axis=1)
            for column, metric in enumerate(METRICS):
                found = history.read_many(
                    metric,
                    world.time_of(first),
                    world.time_of(first + len(ticks)),
                    size.tick_s,
                    subjects=names,
                )
                same = np.isclose(found.values, wanted[:, :, column], rtol=1e-6, atol=1e-9)
                if first == 0 and metric in COUNTERS:
                    same[:, 0] = True  # a first count has no rate
                lost += int(np.count_nonzero(~same))
    return lost
