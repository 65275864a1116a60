"""How well, how safely and how fast are applications told from first packets?

`--data` is a folder with `pcap/` (captures) and `expected/` (what nDPI's own ndpiReader 4.11
says of every flow in them, `NAME.out`).

Agreement. Flows are those of the expected results, except where these say Unknown; a flow that
we do not see counts against us. Labels are "master.application" or one name; two agree where
they have a name in common, after `RENAMED`, the protocols that nDPI 5 calls otherwise than
4.11. `*_same` is the share whose whole label is the same. Each flow is judged by its first 10
packets, whatever they are, and each capture with no memory of the others.

Errors. Every capture as it is, and versions of it that are cut, and damaged at random places,
by a seeded generator: an error is a crash or hang of the worker, or a file that it does not
bring to an end.

Speed. CPU time of the worker (reading the file, decoding, flow table, nDPI, verdicts) over all
captures, in the least disturbed of several rounds.
"""

from __future__ import annotations

import random
import re
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from controller.observe.applications import policy
from controller.observe.applications.captures import CaptureError
from controller.observe.applications.records import Kind, Verdict
from controller.observe.applications.worker import Worker, WorkerError
from tests.benchmarks.harness import Options, say

Json = dict[str, object]
Name = tuple[str, int, frozenset[tuple[str, int]]]

PACKETS = 10
ROUNDS = 5
SEED = 20_240_611
#: Names of nDPI 4.11 that are gone in 5.0, and what took their place.
RENAMED = {
    "Guildwars": ("GuildWars2",),
    "HalfLife2": ("Source_Engine",),
    "LotusNotes": ("HCL_Notes",),
    "OSPF": ("IP_OSPF",),
    "Skype_Teams": ("Teams",),
    "Skype_TeamsCall": ("TeamsCall",),
    "Starcraft": ("Blizzard",),
    "Warcraft3": ("Blizzard",),
    "IPSec": ("IPSec", "ESP", "AH"),  # was one, is three
}

_LINE = re.compile(
    r"^\t\d+\t(?P<protocol>\S+) (?P<source>\S+) (?:<->|->) (?P<target>\S+) "
    r"(?:\[VLAN: (?P<vlan>\d+)\])?.*?\[proto: (?P<label>[^\]]*)\]"
)


@dataclass(frozen=True, slots=True)
class Expected:
    """A line of the expected results."""

    protocol: str
    flow: Name
    names: frozenset[str]
    label: str


def run(options: Options) -> Json:
    """Measure; see the module for what the figures mean."""
    if options.data is None:
        say("left out: dpi needs --data, a folder with pcap/ and expected/")
        return {"left_out": "no --data"}
    captures = sorted(file for file in (options.data / "pcap").iterdir() if file.is_file())
    if options.quick:
        captures = captures[::12]
    say(f"{len(captures)} captures")
    rules = policy.load()
    limits = replace(rules.limits(), packets=PACKETS, idle_s=1e18)
    with Worker(rules.naming(), limits, time.monotonic) as worker:
        agreement = _agreement(worker, captures, options.data / "expected")
        say(agreement)
        errors = _errors(worker, captures, versions=2 if options.quick else 6)
        say(errors)
        speed = _speed(worker, captures, 2 if options.quick else ROUNDS)
        say(speed)
    return {**agreement, **errors, **speed}


def _agreement(worker: Worker, captures: list[Path], expected: Path) -> Json:
    flows: Counter[tuple[str, str]] = Counter()
    kinds: Counter[Kind] = Counter()
    for capture in captures:
        verdicts = {_name(v): v for v in reversed(worker.identify(capture).verdicts)}
        for wanted in _expected(expected / f"{capture.name}.out"):
            found = verdicts.get(wanted.flow)
            group = wanted.protocol if wanted.protocol in ("tcp", "udp") else "other"
            flows[group, "all"] += 1
            if found is None:
                continue
            kinds[found.kind] += 1
            flows[group, "agree"] += bool(wanted.names & set(found.application.split(".")))
            flows[group, "same"] += wanted.label == found.application
    result: Json = {}
    for group in ("tcp", "udp", "other"):
        every = flows[group, "all"]
        result[f"{group}_flows"] = every
        for what in ("agree", "same"):
            result[f"{group}_{what}"] = flows[group, what] / every if every else None
    every = sum(flows[group, "all"] for group in ("tcp", "udp", "other"))
    for kind in (Kind.CONFIRMED, Kind.GUESSED, Kind.UNKNOWN):
        result[f"{kind}_share"] = kinds[kind] / every
    return result


def _expected(path: Path) -> list[Expected]:
    """The flows that are not Unknown."""
    found = []
    for line in path.read_text(errors="replace").splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        # "GRE:91.119/TLS.Facebook": a tunnel, the numbers, the names.
        label = match["label"].rpartition("/")[2]
        if label == "Unknown":
            continue
        names = {new for old in label.split(".") for new in RENAMED.get(old, (old,))}
        protocol = match["protocol"].lower()
        ends = frozenset({_end(match["source"]), _end(match["target"])})
        flow = (_PROTOCOLS.get(protocol, protocol), int(match["vlan"] or 0), ends)
        found.append(Expected(flow[0], flow, frozenset(names), label))
    return found


#: What ndpiReader calls a protocol that our verdicts tell by number.
_PROTOCOLS = {"igmp": "2", "esp": "50", "gre": "47", "ospf": "89", "vrrp": "112", "pim": "103"}


def _end(text: str) -> tuple[str, int]:
    """Address and port of "1.2.3.4:5", "[fe80::1]:5" or an address alone."""
    if text.startswith("["):
        address, _, port = text[1:].rpartition("]:")
    elif text.count(":") == 1:
        address, _, port = text.partition(":")
    else:
        address, port = text.strip("[]"), "0"
    return _as_reader(address), int(port)


def _as_reader(address: str) -> str:
    """ndpiReader writes addresses of IPv6 with each ":0:" as "::"."""
    return address.replace(":0:", "::")


def _name(verdict: Verdict) -> Name:
    ends = (verdict.initiator, verdict.responder)
    return (
        verdict.protocol,
        verdict.vlan,
        frozenset((_as_reader(end.address), end.port) for end in ends),
    )


def _errors(worker: Worker, captures: list[Path], versions: int) -> Json:
    """Look at damaged versions of all captures."""
    chance = random.Random(SEED)
    looked, errors, refused = 0, 0, 0
    before = worker.counters.crashes + worker.counters.hangs
    with tempfile.TemporaryDirectory(prefix="pleach-dpi-") as folder:
        file = Path(folder) / "capture"
        for capture in captures:
            data = capture.read_bytes()[:200_000]
            for version in range(versions):
                file.write_bytes(_damaged(data, version, chance))
                looked += 1
                try:
                    worker.identify(file, forget=False)
                except WorkerError as error:
                    # A file whose very first bytes are damaged is no capture any more.
                    refused += isinstance(error.__cause__, CaptureError)
                    errors += not isinstance(error.__cause__, CaptureError)
    crashed = worker.counters.crashes + worker.counters.hangs - before
    return {"errors": errors + crashed, "damaged_files": looked, "damaged_refused": refused}


def _damaged(data: bytes, version: int, chance: random.Random) -> bytes:
    """Cut, with bytes of any value at random places, or with frames shortened in place."""
    if version % 3 == 0:
        return data[: chance.randrange(1, len(data))]
    changed = bytearray(data)
    # Behind the headers of the file, so that most of it is still looked at.
    first = min(200 if version % 3 == 1 else 24, len(changed) - 1)
    for _ in range(max(1, len(changed) // (100 if version % 3 == 1 else 1_000))):
        changed[chance.randrange(first, len(changed))] = chance.randrange(256)
    return bytes(changed)


def _speed(worker: Worker, captures: list[Path], rounds: int) -> Json:
    rates = []
    for _ in range(rounds):
        packets, cpu_s = 0, 0.0
        for capture in captures:
            found = worker.identify(capture, forget=False)
            packets += found.counters.frames
            cpu_s += found.cpu_s
        rates.append(packets / cpu_s)
    return {"packets_per_cpu_s": max(rates), "packets": packets}
