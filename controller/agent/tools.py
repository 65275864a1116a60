"""How is Open vSwitch asked for what its database does not have? By its own programs."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

from controller.agent.records import SourceAway

#: Seconds that the switch has to answer.
TIMEOUT_S = 5
_ZONE = re.compile(rb"\bzone=(\d+)")
_PORT = re.compile(
    rb"port\s+(\d+): rx pkts=(\d+), bytes=(\d+), drop=(\d+|\?),[^\n]*\n"
    rb"\s+tx pkts=(\d+), bytes=(\d+), drop=(\d+|\?)"
)
#: What a port receives, the VM has sent.
_FIELDS = (
    "net_tx_packets_total",
    "net_tx_total",
    "rx_drops",
    "net_rx_packets_total",
    "net_rx_total",
    "tx_drops",
)


def control_directory(ovsdb: str) -> Path:
    """Where the Open vSwitch of a database has its sockets: beside the database's."""
    kind, _, place = ovsdb.partition(":")
    return Path(place).parent if kind == "unix" else Path("/var/run/openvswitch")


def appctl(directory: Path, *words: str) -> bytes:
    """What ovs-vswitchd, with its sockets in `directory`, answers to `ovs-appctl WORDS`. Raises
    SourceAway."""
    try:
        pid = (directory / "ovs-vswitchd.pid").read_text().strip()
    except OSError as error:
        raise _away(str(error)) from error
    return _run("ovs-appctl", "-t", str(directory / f"ovs-vswitchd.{pid}.ctl"), *words)


def port_counts(directory: Path, bridge: str) -> dict[int, dict[str, float]]:
    """The counters of a bridge's ports as they stand now, by number of the port and counter of
    the VM that is plugged in there. Raises SourceAway."""
    versions = "OpenFlow10,OpenFlow13,OpenFlow14,OpenFlow15"
    place = f"unix:{directory / bridge}.mgmt"
    return parsed(_run("ovs-ofctl", "--no-names", "-O", versions, "dump-ports", place))


def parsed(dump: bytes) -> dict[int, dict[str, float]]:
    """The same of what `ovs-ofctl --no-names dump-ports` prints."""
    found = {}
    for number, *values in _PORT.findall(dump):
        told = {
            name: float(value) for name, value in zip(_FIELDS, values, strict=True) if value != b"?"
        }
        drops = [told.pop(way, None) for way in ("rx_drops", "tx_drops")]
        if None not in drops:
            told["net_drops_total"] = sum(drop or 0.0 for drop in drops)
        found[int(number)] = told
    return found


def zones(dump: bytes) -> Counter[int]:
    """How many connections there are in each zone, by what `dpctl/dump-conntrack` prints."""
    return Counter(map(int, _ZONE.findall(dump)))


def _run(*words: str) -> bytes:
    command = [words[0], f"--timeout={TIMEOUT_S}", *words[1:]]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except OSError as error:
        raise _away(str(error)) from error
    if done.returncode != 0:
        raise _away(done.stderr.decode(errors="replace").strip() or f"ended: {done.returncode}")
    return done.stdout


def _away(cause: str) -> SourceAway:
    return SourceAway(
        "Open vSwitch",
        cause,
        "See that it runs, that its sockets lie beside that of agent.ovsdb, and that this user "
        "may run ovs-appctl and ovs-ofctl.",
    )
