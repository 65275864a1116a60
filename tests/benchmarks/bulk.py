"""How fast are very many flow entries encoded, installed, read back and decoded?

- `install_20k_s`: 20,000 entries of an edge of a large fabric, from the hand-over to a session
  until the switch has confirmed the last bundle by a barrier, over the framework's connection;
  `ovs_ofctl_bundle_20k_s`: the same entries by `ovs-ofctl --bundle add-flows`, which reads them
  from a file. The groups and meters that they refer to are there before, for both.
- `encode_per_s`: flow mods from compiled records to bytes; `framework_encode_per_s`: the
  framework's objects made of the same records, and serialised. `framework_serialize_per_s`
  leaves the making out.
- `decode_stats_per_s`: entries of the switch's own replies to FLOW_DESC, each seen for the first
  time, no layout known before; `framework_decode_stats_per_s`: the framework's parser on the
  same bytes, without entries that it cannot read, for both.
- `emulated_connect_s`: so many emulated switches connect at once; until all have confirmed.

The codecs' figures are of process time, for each message or some hundred records the best of
some rounds in which both sides take turns, without the garbage collector (as `timeit` does it):
what else the machine does slows both. `decode_stats_sustained_per_s` is of the median round as a
whole, with it.
"""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from controller.act.dataplane.compiler import Entry
from controller.act.dataplane.openflow import encode, wire
from controller.act.dataplane.openflow.flow_replies import (
    Installed,
    Layouts,
    flow_descs,
    flow_entries,
)
from controller.act.dataplane.openflow.records import Flow, Group, Meter
from controller.process import seldom_collect
from mininet_labs.deployment import Deployment, wait_until
from tests.benchmarks import bulk_oracle as oracle
from tests.benchmarks.harness import Json, Options, say
from tests.benchmarks.large_edge import entries
from tests.fakeswitch import Fakes, FakeSwitch

FLOWS = 20_000
BRIDGE = "bulk0"
TIMEOUT_S = 120
_APP = """
import eventlet
eventlet.monkey_patch()
from tests.benchmarks.bulk_app import main
main()
"""


def run(options: Options) -> Json:
    """Install, read, encode and decode; in fewer rounds where it is to be quick."""
    rounds = 7 if options.quick else 15
    seldom_collect()
    made = entries(FLOWS)
    flows = [entry for entry in made if isinstance(entry, Flow)]
    say(f"{len(made)} entries compiled")
    installed, replies, right = _install(flows, 3 if options.quick else 5)
    say("installed:", installed)
    coded, encoded_right = _encode(made, flows, rounds)
    say("encoded:", coded)
    decoded, decoded_right = _decode(replies, rounds)
    say("decoded:", decoded)
    crowd = _crowd(50 if options.quick else 200)
    say("emulated switches:", crowd)
    return {
        **installed,
        **coded,
        **decoded,
        **crowd,
        "oracle_agrees": right and encoded_right and decoded_right,
    }


# --- A real switch


def _install(flows: list[Flow], rounds: int) -> tuple[Json, list[bytes], bool]:
    """The figures, the switch's replies, and whether they tell of what was installed."""
    ours: list[float] = []
    theirs: list[float] = []
    right = True
    with (
        tempfile.TemporaryDirectory(prefix="pleach-bulk-") as directory,
        _bridge() as port,
        _southbound(port) as hand_over,
    ):
        hand_over("rest")
        for _ in range(rounds):
            ours.append(hand_over("flows"))
            text = _ofctl("dump-flows", "--no-stats", "--no-names", BRIDGE)
            replies = _replies()
            right = right and _all_there(flows, replies)
            hand_over("rest")
            file = Path(directory, "flows")
            file.write_text(text)
            begin = time.perf_counter()
            _ofctl("--bundle", "add-flows", BRIDGE, str(file))
            theirs.append(time.perf_counter() - begin)
            right = right and _all_there(flows, _replies())
            _ofctl("del-flows", BRIDGE)
    ratio = median(ours) / median(theirs)
    figures: Json = {
        "install_20k_s": round(median(ours), 3),
        "ovs_ofctl_bundle_20k_s": round(median(theirs), 3),
        "install_ratio": round(ratio, 2),
    }
    return figures, replies, right


def _all_there(flows: list[Flow], replies: list[bytes]) -> bool:
    layouts = Layouts()
    found = [item.flow for data in replies for item in flow_descs(data, layouts).items]
    return len(found) == len(flows) and set(found) == set(flows)


def _vsctl(*words: str) -> None:
    database = f"--db=unix:{os.environ['OVS_RUNDIR']}/db.sock"
    subprocess.run(["ovs-vsctl", database, *words], check=True, timeout=TIMEOUT_S)


def _ofctl(*words: str) -> str:
    target = f"{os.environ['OVS_RUNDIR']}/{BRIDGE}.mgmt"
    command = ["ovs-ofctl", "-OOpenFlow15", *(target if w == BRIDGE else w for w in words)]
    done = subprocess.run(command, check=True, timeout=TIMEOUT_S, capture_output=True, text=True)
    return done.stdout


@contextmanager
def _bridge() -> Iterator[int]:
    """A bridge; the port at which it looks for its controller."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    _vsctl(
        "add-br", BRIDGE,
        "--", "set", "bridge", BRIDGE, "datapath_type=netdev", "protocols=OpenFlow15",
        "fail_mode=secure", "other_config:disable-in-band=true",
        "--", "set-controller", BRIDGE, f"tcp:127.0.0.1:{port}",
        "--", "set", "controller", BRIDGE, "max_backoff=1000",
    )  # fmt: skip
    try:
        yield port
    finally:
        _vsctl("del-br", BRIDGE)


@contextmanager
def _southbound(port: int) -> Iterator[Callable[[str], float]]:
    """A process with the session; gives the function that hands entries over to it."""
    with socket.create_server(("127.0.0.1", 0)) as control:
        control.settimeout(TIMEOUT_S)
        command = [sys.executable, "-W", "ignore", "-c", _APP]
        words = [str(FLOWS), str(port), str(control.getsockname()[1])]
        process = subprocess.Popen([*command, *words])
        try:
            connection, _ = control.accept()
            connection.settimeout(TIMEOUT_S)
            stream = connection.makefile("rw")
            assert stream.readline() == "ready\n"

            def hand_over(what: str) -> float:
                stream.write(f"{what}\n")
                stream.flush()
                return float(stream.readline())

            yield hand_over
            stream.close()
            connection.close()
        finally:
            process.kill()
            process.wait()


def _replies() -> list[bytes]:
    """What the bridge answers to a request for all flow entries."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(TIMEOUT_S)
        connection.connect(f"{os.environ['OVS_RUNDIR']}/{BRIDGE}.mgmt")
        connection.sendall(wire.message(wire.HELLO, 1, b"") + encode.flow_desc_request(2))
        stream = connection.makefile("rb")
        found: list[bytes] = []
        more = True
        while more:
            head = stream.read(wire.HEADER_SIZE)
            _, kind, length, xid = wire.HEADER.unpack(head)
            data = head + stream.read(length - wire.HEADER_SIZE)
            if (kind, xid) == (wire.MULTIPART_REPLY, 2):
                found.append(data)
                more = bool(int.from_bytes(data[10:12], "big") & wire.MP_MORE)
        return found


# --- Many switches


def _crowd(count: int) -> Json:
    """Emulated switches that connect all at once, to brain and southbound process as they are."""
    with (
        tempfile.TemporaryDirectory(prefix="pleach-bulk-") as directory,
        Deployment(Path(directory)) as deployment,
    ):
        deployment.start()
        with Fakes(deployment.controller) as fakes:
            many = [FakeSwitch(1 + n, {1: f"a{n}", 2: f"b{n}"}) for n in range(count)]
            begin = time.perf_counter()
            for fake in many:
                fakes.connect(fake)

            def settled() -> bool:
                topology = deployment.client.topology()
                told = [p for p in topology.progress if p.revision >= topology.revision]
                return len(told) == count and all(fake.barriers for fake in many)

            wait_until(settled, "all switches have confirmed", TIMEOUT_S)
            took = time.perf_counter() - begin
    return {"emulated_switches": count, "emulated_connect_s": round(took, 2)}


# --- The codec

#: Pieces of work of one side, made afresh for every round; each tells how much it did.
Side = Callable[[], Sequence[Callable[[], int]]]


def _best(rounds: int, sides: dict[str, Side]) -> dict[str, float]:
    """Of each side what it does a second of process time, each piece at its best."""
    times: dict[str, list[float]] = {}
    done: dict[str, int] = {}
    for _ in range(rounds):
        for name, side in sides.items():
            gc.collect()
            gc.disable()
            took, done[name] = _timed(side())
            gc.enable()
            times[name] = [min(pair) for pair in zip(times.get(name, took), took, strict=True)]
    return {name: done[name] / sum(times[name]) for name in sides}


def _timed(pieces: Sequence[Callable[[], int]]) -> tuple[list[float], int]:
    took = []
    done = 0
    for piece in pieces:
        begin = time.process_time()
        done += piece()
        took.append(time.process_time() - begin)
    return took, done


def _in_pieces(work: Callable[[Any], object], items: Sequence[Any], size: int = 200) -> Side:
    def piece(some: Sequence[Any]) -> int:
        for item in some:
            work(item)
        return len(some)

    pieces = [partial(piece, items[n : n + size]) for n in range(0, len(items), size)]
    return lambda: pieces


def _encode(made: list[Entry], flows: list[Flow], rounds: int) -> tuple[Json, bool]:
    """The figures, and whether the framework writes and reads the same of every entry."""
    some = flows[:: len(flows) // 2_000]
    groups = [entry for entry in made if isinstance(entry, Group)] * 20
    meters = [entry for entry in made if isinstance(entry, Meter)] * 200
    ready = [oracle.flow_mod(flow) for flow in some]
    best = _best(
        rounds,
        {
            "encode": _in_pieces(_flow, flows),
            "framework_encode": _in_pieces(lambda e: oracle.written(oracle.flow_mod(e)), some),
            "framework_serialize": _in_pieces(oracle.written, ready),
            "encode_groups": _in_pieces(_group, groups),
            "framework_encode_groups": _in_pieces(
                lambda e: oracle.written(oracle.group_mod(e)), groups
            ),
            "encode_meters": _in_pieces(_meter, meters),
            "framework_encode_meters": _in_pieces(
                lambda e: oracle.written(oracle.meter_mod(e)), meters
            ),
        },
    )
    kinds: dict[type, Callable[[Any], bytes]] = {Flow: _flow, Group: _group, Meter: _meter}
    right = all(oracle.encoded_alike(entry, kinds[type(entry)](entry)) for entry in made)
    figures: Json = {f"{name}_per_s": round(rate) for name, rate in best.items()}
    for name in ("encode", "encode_groups", "encode_meters"):
        figures[f"{name}_ratio"] = _ratio(best, name)
    figures["serialize_only_ratio"] = round(best["encode"] / best["framework_serialize"], 1)
    return figures, right


def _flow(flow: Flow) -> bytes:
    return encode.flow_mod(1, encode.Command.ADD, flow)


def _group(group: Group) -> bytes:
    return encode.group_mod(1, encode.Change.ADD, group)


def _meter(meter: Meter) -> bytes:
    return encode.meter_mod(1, encode.Change.ADD, meter)


def _ratio(best: dict[str, float], name: str) -> float:
    return round(best[name] / best[f"framework_{name}"], 1)


def _decode(replies: list[bytes], rounds: int) -> tuple[Json, bool]:
    """The figures, and whether the framework reads the same of every entry that it can read."""
    messages = [oracle.readable(data) for data in replies]
    compared = [_decoded_alike(data) for data in messages]
    known = Layouts()
    seen = {s: item for data in messages for s, item in flow_entries(data, {}, known).items}
    best = _best(
        rounds,
        {
            "decode_stats": lambda: _cold(messages),
            "decode_stats_known_layouts": lambda: [
                partial(_entries, data, known) for data in messages
            ],
            "decode_stats_seen_before": lambda: [
                partial(_seen, data, seen, known) for data in messages
            ],
            "framework_decode_stats": lambda: [
                partial(_parsed, data) for data in messages[:: max(1, len(messages) // 10)]
            ],
        },
    )
    figures: Json = {f"{name}_per_s": round(rate) for name, rate in best.items()}
    figures["decode_ratio"] = _ratio(best, "decode_stats")
    sustained = [_timed(_cold(messages)) for _ in range(rounds)]
    figures["decode_stats_sustained_per_s"] = round(
        median(done / sum(took) for took, done in sustained)
    )
    figures["entries_compared"] = sum(count for count, _ in compared)
    return figures, all(alike for _, alike in compared)


def _decoded_alike(data: bytes) -> tuple[int, bool]:
    theirs, ours = oracle.parsed(data), flow_descs(data, Layouts()).items
    pairs = list(zip(theirs, ours, strict=True))
    return len(pairs), all(oracle.decoded_alike(*pair) for pair in pairs)


def _cold(messages: list[bytes]) -> list[Callable[[], int]]:
    """Reading by a decoder that has seen nothing before."""
    layouts = Layouts()
    return [partial(_entries, data, layouts) for data in messages]


def _entries(data: bytes, layouts: Layouts) -> int:
    return len(flow_descs(data, layouts).items)


def _seen(data: bytes, seen: dict[bytes, Installed], layouts: Layouts) -> int:
    return len(flow_entries(data, seen, layouts).items)


def _parsed(data: bytes) -> int:
    return len(oracle.parsed(data))
