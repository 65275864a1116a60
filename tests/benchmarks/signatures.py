"""Does the fabric know who talks to whom? Scripted connections, most of them in bursts, between
guests on four edges, beside a capture at the guests that nobody tells what to expect.

What the guests' own interfaces saw is the truth for bytes. `throughput_cost` compares bulk TCP
with the same tables without the detour through the counters, by the CPU time of the switch a byte:
by the clock a shared machine differs more than that.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from controller.act.dataplane.pipeline import MeterId, TableId
from controller.api import SignatureInfo
from mininet_labs import netns
from mininet_labs.deployment import wait_until
from mininet_labs.vm import LabVm
from tests.benchmarks.harness import Bench, Json, Options, bench, say
from topologies.generate import leaf_spine

SEED = 7
GUESTS, TENANTS = 16, 2
TCP_PORTS, UDP_PORTS = range(2_000, 2_012), range(2_000, 2_006)
OUTSIDE = ("198.51.100.7", "198.51.100.9", "203.0.113.80")
#: Connections that begin at once, one after the other, and datagrams of each over UDP.
BURSTS = (1, 1, 4, 16)
_ETH_P_IP = 0x0800
_OUTGOING = 4
_SO_RCVBUFFORCE = 33
_NAMES = {6: "tcp", 17: "udp", 1: "icmp"}

#: Who begins, whom to, protocol, port.
Key = tuple[str, str, str, int]


@dataclass(slots=True)
class Truth:
    """What was done, and what the guests' interfaces saw of it."""

    connections: Counter[Key] = field(default_factory=Counter)
    sent: Counter[Key] = field(default_factory=Counter)
    received: Counter[Key] = field(default_factory=Counter)


def run(options: Options) -> Json:
    """Do the script, ask for what was counted, and compare; then measure what counting costs."""
    wanted, total = (330, 2_300) if not options.quick else (60, 400)
    rng = random.Random(SEED)
    settings = {"PLEACH_SIGNATURES__POLL_S": "1"}
    with bench(leaf_spine(4, 2, 1), tenants=TENANTS, settings=settings) as running:
        running.define(range(GUESTS))
        for number in range(GUESTS):
            running.guest(number)
            running.place(number)
        plan = script(running, rng, wanted, total)
        say(f"{sum(n for _, n in plan)} connections over {len({k for k, _ in plan})} signatures")
        truth = Truth()
        with Capture(running.guests.values(), truth) as capture:
            asyncio.run(Traffic(running, truth).play(plan))
            wait_until(capture.quiet, "the guests are quiet", 60)
        missed = capture.missed
        wait_until(Settled(running), "the counters stand still", 60)
        found = list(running.client.signatures())
        packet_ins = sum(met(running, edge, MeterId.SIGNATURES) for edge in running.lab.edges)
        told = compare(truth, found)
        say(f"{len(found)} signatures are known; what they cost is measured next")
        running.deployment.kill("southbound")
        return {
            "signatures": len(truth.connections),
            "connections": truth.connections.total(),
            **told,
            "packet_ins": packet_ins,
            "packet_ins_per_signature": round(packet_ins / len(truth.connections), 4),
            "capture_missed": missed,
            **cost(running, 4 if options.quick else 12),
        }


# --- The script --------------------------------------------------------------------------------


def script(running: Bench, rng: random.Random, wanted: int, total: int) -> list[tuple[Key, int]]:
    """Bursts of connections, each of one signature, in the order in which they are begun."""
    pairs = [
        (a, b)
        for a in range(GUESTS)
        for b in range(GUESTS)
        if a != b and running.tenant_of(a) == running.tenant_of(b)
    ]
    keys: set[Key] = set()
    for number in range(6):
        a, b = rng.choice(pairs)
        keys.add((f"vm{a}", f"vm{b}", "icmp", 0))
        keys.add((f"vm{number}", f"{OUTSIDE[number % 3].rsplit('.', 1)[0]}.0/24", "udp", 2_000))
    while len(keys) < wanted:
        a, b = rng.choice(pairs)
        kind, ports = rng.choice((("tcp", TCP_PORTS), ("tcp", TCP_PORTS), ("udp", UDP_PORTS)))
        keys.add((f"vm{a}", f"vm{b}", kind, rng.choice(ports)))
    ordered = sorted(keys)
    plan = [(key, rng.choice(BURSTS)) for key in ordered]
    while sum(n for _, n in plan) < total:
        plan.append((rng.choice(ordered), rng.choice(BURSTS)))
    rng.shuffle(plan)
    return [(key, 1 if key[2] == "icmp" else n) for key, n in plan]


class Traffic:
    """Servers in all guests, and connections to them, in one event loop."""

    def __init__(self, running: Bench, truth: Truth) -> None:
        self.guests = {f"vm{number}": guest for number, guest in running.guests.items()}
        self.truth = truth
        self.rng = random.Random(SEED)

    async def play(self, plan: list[tuple[Key, int]]) -> None:
        """Do the plan; TimeoutError where a connection hangs."""
        loop = asyncio.get_running_loop()
        async with contextlib.AsyncExitStack() as stack:
            for guest in self.guests.values():
                for port in TCP_PORTS:
                    server = await asyncio.start_server(_serve, sock=_bound(guest, port, tcp=True))
                    stack.callback(server.close)
                for port in UDP_PORTS:
                    bound = _bound(guest, port, tcp=False)
                    transport, _ = await loop.create_datagram_endpoint(_Answer, sock=bound)
                    stack.callback(transport.close)
            for number, (key, burst) in enumerate(plan):
                await asyncio.wait_for(self._burst(key, burst), 60)
                if number % 200 == 199:
                    say(f"{number + 1} of {len(plan)} bursts")

    async def _burst(self, key: Key, burst: int) -> None:
        vm, peer, kind, port = key
        self.truth.connections[key] += burst
        guest = self.guests[vm]
        other = self.guests.get(peer)
        address = str(other.ipv4) if other else next(o for o in OUTSIDE if o[:9] == peer[:9])
        if kind == "icmp":
            await asyncio.to_thread(guest.ping, address)
        elif kind == "tcp":
            ends = [_socket(guest, socket.SOCK_STREAM) for _ in range(burst)]
            await asyncio.gather(*(self._connection(end, address, port) for end in ends))
        else:
            ends = [_socket(guest, socket.SOCK_DGRAM) for _ in range(burst)]
            waits = other is not None
            await asyncio.gather(*(self._asking(end, address, port, waits) for end in ends))

    async def _connection(self, end: socket.socket, address: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        size, answer = self.rng.randrange(8, 3_000), self.rng.randrange(1, 20_000)
        with end:
            await loop.sock_connect(end, (address, port))
            await loop.sock_sendall(end, struct.pack("!II", size, answer) + bytes(size))
            while answer > 0:
                answer -= len(await loop.sock_recv(end, 65_536)) or answer

    async def _asking(self, end: socket.socket, address: str, port: int, waits: bool) -> None:
        loop = asyncio.get_running_loop()
        with end:
            for _ in range(5):
                await loop.sock_sendto(end, bytes(self.rng.randrange(20, 1_200)), (address, port))
                if not waits:
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(loop.sock_recv(end, 2_000), 2.0)
                    return


def _socket(guest: LabVm, kind: int) -> socket.socket:
    with netns.entered(guest.name):
        end = socket.socket(socket.AF_INET, kind)
    end.setblocking(False)
    return end


def _bound(guest: LabVm, port: int, *, tcp: bool) -> socket.socket:
    end = _socket(guest, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    end.bind((str(guest.ipv4), port))
    return end


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        size, answer = struct.unpack("!II", await reader.readexactly(8))
        await reader.readexactly(size)
        writer.write(bytes(answer))
        await writer.drain()
        await reader.read()
    writer.close()


class _Answer(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.DatagramTransport = transport  # type: ignore[assignment]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(data[: len(data) // 2 + 1], addr)


# --- What the guests' interfaces see -------------------------------------------------------------


class Capture:
    """All IPv4 of all guests, read by a thread each. A port below 3,000 is a server's."""

    def __init__(self, guests: Iterator[LabVm] | object, truth: Truth) -> None:
        self.guests = list(guests)  # type: ignore[call-overload]
        self.truth = truth
        self.missed = 0
        self._names = {guest.ipv4.packed: guest.name for guest in self.guests}
        self._end = threading.Event()
        self._threads: list[threading.Thread] = []
        self._last = time.monotonic()

    def __enter__(self) -> Capture:
        for guest in self.guests:
            with netns.entered(guest.name):
                end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            end.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
            end.bind(("eth0", 3))
            end.settimeout(0.2)
            thread = threading.Thread(target=self._read, args=(guest.name, end))
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def quiet(self) -> bool:
        """Whether nothing was seen for a while."""
        return time.monotonic() - self._last > 1.5

    def _read(self, name: str, end: socket.socket) -> None:
        sent: Counter[Key] = Counter()
        received: Counter[Key] = Counter()
        with end:
            while not self._end.is_set():
                try:
                    frame, where = end.recvfrom(2_048)
                except TimeoutError:
                    continue
                out = where[2] == _OUTGOING
                key = self._key(name, frame, out=out)
                if key is not None:
                    (sent if out else received)[key] += len(frame)
                    self._last = time.monotonic()
            # PACKET_STATISTICS: packets, and those of them that had no room.
            _, drops = struct.unpack("II", end.getsockopt(263, 6, 8))
        self.missed += drops
        self.truth.sent.update(sent)
        self.truth.received.update(received)

    def _key(self, name: str, frame: bytes, *, out: bool) -> Key | None:
        if frame[12:14] != b"\x08\x00":
            return None
        far = frame[30:34] if out else frame[26:30]
        peer = self._names.get(far) or f"{socket.inet_ntoa(far[:3] + bytes(1))}/24"
        protocol = _NAMES.get(frame[23])
        if protocol == "icmp":
            mine = frame[34] == 8 if out else frame[34] == 0
            return (name, peer, "icmp", 0) if mine else None
        at = 34 + (2 if out else 0)
        port = int.from_bytes(frame[at : at + 2], "big")
        return (name, peer, protocol, port) if protocol and port < 3_000 else None


# --- What is said about it -------------------------------------------------------------------


class Settled:
    """Whether what is known has not changed for some looks."""

    def __init__(self, running: Bench) -> None:
        self.running = running
        self._last: list[SignatureInfo] = []
        self._since = time.monotonic()
        self._looked = 0.0

    def __call__(self) -> bool:
        now = time.monotonic()
        if now - self._looked < 1:
            return False
        self._looked = now
        found = list(self.running.client.signatures())
        if found != self._last:
            self._last, self._since = found, now
        return now - self._since > 4


def compare(truth: Truth, found: list[SignatureInfo]) -> Json:
    """How right it is what is known."""
    known: dict[Key, SignatureInfo] = {(s.vm, s.peer, s.protocol, s.port): s for s in found}
    real = set(truth.connections)
    swapped = {(b, a, protocol) for a, b, protocol, _ in real}
    wrong = known.keys() - real
    for key in sorted(wrong)[:10]:
        say("not real:", key)
    for key in sorted(real - known.keys())[:10]:
        say("not known:", key)
    errors, volume = [], 0
    off = 0
    for key in real & known.keys():
        sent, received = truth.sent[key], truth.received[key]
        off += abs(known[key].bytes_out - sent) + abs(known[key].bytes_in - received)
        volume += sent + received
        differs = abs(known[key].bytes_out + known[key].bytes_in - sent - received)
        errors.append(differs / max(1, sent + received))
    counted = sum(known[key].connections for key in real & known.keys() if key[2] == "tcp")
    begun = sum(n for key, n in truth.connections.items() if key[2] == "tcp")
    return {
        "recall": len(real & known.keys()) / len(real),
        "precision": len(real & known.keys()) / max(1, len(known)),
        "direction_errors": sum((a, b, protocol) in swapped for a, b, protocol, _ in wrong),
        "bytes_error": round(off / max(1, volume), 6),
        "bytes_error_of_a_signature_max": round(max(errors, default=0.0), 6),
        "tcp_connections_error": round(abs(counted - begun) / max(1, begun), 6),
    }


def met(running: Bench, edge: str, meter: MeterId) -> int:
    """Packets that came to a meter."""
    told = running.lab.ofctl("meter-stats", edge, f"meter={meter.value}")
    found = re.search(r"packet_in_count:(\d+)", told)
    return int(found.group(1)) if found else 0


# --- What it costs -----------------------------------------------------------------------------

_TABLES = (TableId.OBSERVE_OUT, TableId.OBSERVE_IN)
_SENDER = (
    "import socket,sys,time\n"
    "s=socket.create_connection((sys.argv[1],2999));end=time.monotonic()+float(sys.argv[2])\n"
    "while time.monotonic()<end: s.sendall(bytes(65536))\n"
)
_RECEIVER = (
    "import socket,sys\n"
    "l=socket.create_server((sys.argv[1],2999));print('ready',flush=True)\n"
    "c,_=l.accept();n=0\n"
    "while d:=c.recv(1<<20): n+=len(d)\n"
    "print(n,flush=True)\n"
)


def cost(running: Bench, rounds: int) -> Json:
    """Bulk TCP between two edges, by turns with the counters and without."""
    rules = {edge: _detours(running, edge) for edge in running.lab.edges}
    results: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for number in range(2 * rounds):
        counting = number % 2 == 0
        for edge, (through, past) in rules.items():
            file = running.deployment.directory / f"{edge}.flows"
            file.write_text("\n".join(through if counting else past))
            running.lab.ofctl("add-flows", edge, str(file))
        results[counting].append(_bulk(running))
    # The best of many rounds is the one that others on the machine disturbed least.
    by_cpu = {on: max(n / cpu for n, cpu in results[on]) for on in results}
    by_clock = {on: max(n / _BULK_S for n, _ in results[on]) for on in results}
    return {
        "throughput_cost": round(max(0.0, 1 - by_cpu[True] / by_cpu[False]), 4),
        "throughput_cost_by_clock": round(1 - by_clock[True] / by_clock[False], 4),
        "mbit_per_s": round(8e-6 * by_clock[True], 1),
        "mbit_per_s_without": round(8e-6 * by_clock[False], 1),
    }


_BULK_S = 2.0


def _detours(running: Bench, edge: str) -> tuple[list[str], list[str]]:
    """The entries that lead through counters, as they are, and without these."""
    through, past = [], []
    for table in _TABLES:
        dump = running.lab.ofctl("--no-stats", "dump-flows", edge, f"table={table.value}")
        for line in dump.splitlines():
            if "resubmit" in line:
                flow = re.sub(r"^\s*cookie=(\w+),\s*", r"cookie=\1,", line)
                through.append(flow)
                past.append(re.sub(r"actions=.*(goto_table:\d+)", r"actions=\1", flow))
    return through, past


def _bulk(running: Bench) -> tuple[float, float]:
    """Bytes that came, and seconds of the switch's processor."""
    source, target = running.guests[0], running.guests[2]
    receiver = target.popen(
        "python3", "-c", _RECEIVER, str(target.ipv4), stdout=-1, stdin=None, stderr=None
    )
    assert receiver.stdout is not None
    receiver.stdout.readline()
    before = _cpu_s()
    sent = source.run("python3", "-c", _SENDER, str(target.ipv4), str(_BULK_S), timeout_s=60)
    assert sent.returncode == 0, sent.stderr
    came = float(receiver.stdout.readline())
    receiver.wait()
    return came, _cpu_s() - before


def _cpu_s() -> float:
    """Seconds of processor that the switch's daemon has used."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = stat.read_text().partition(") ")
            if name.endswith("(ovs-vswitchd"):
                words = rest.split()
                return (int(words[11]) + int(words[12])) / 100
    raise RuntimeError("there is no ovs-vswitchd")
