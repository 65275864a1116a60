"""What do this host and its processes use? Read from /proc (proc(5)) and /sys."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from controller.agent.records import Raw

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
#: Of /proc/diskstats (Documentation/admin-guide/iostats.rst).
_SECTOR = 512


def host(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> Raw:
    """What this host uses: CPU, memory, and its disks and network cards, not those that only
    pass on to others (partitions, bridges, VLANs, taps)."""
    memory = _memory(proc)
    cores = _cores(proc)
    disks = _disks(proc, sys)
    cards = _cards(proc, sys)
    return Raw(
        gauges={
            "host_cores": float(cores),
            "host_memory_size": memory["MemTotal"],
            "host_memory": memory["MemTotal"] - memory["MemAvailable"],
        },
        counts={
            "host_disk_read_total": {name: read for name, (read, _) in disks.items()},
            "host_disk_write_total": {name: written for name, (_, written) in disks.items()},
            "host_net_rx_total": {name: rx for name, (rx, _) in cards.items()},
            "host_net_tx_total": {name: tx for name, (_, tx) in cards.items()},
        },
        shares={"host_cpu": ({"cpu": _busy_s(proc)}, float(cores))},
    )


def process(pid: int, cores: float, proc: Path = Path("/proc")) -> Raw:
    """What a process uses. OSError where it is not there (any more). What may not be read, as
    disk I/O of other users' processes, is left out."""
    place = proc / str(pid)
    # After the name, which may hold anything, from field 3 on (proc(5)).
    fields = (place / "stat").read_text().rpartition(")")[2].split()
    began = fields[19]
    used_s = (int(fields[11]) + int(fields[12])) / _TICKS
    cpu = {f"{pid} of {began}": used_s}
    counts = {"cpu_seconds_total": cpu}
    try:
        io = _pairs((place / "io").read_text().splitlines())
        for name, key in (("disk_read_total", "read_bytes"), ("disk_write_total", "write_bytes")):
            counts[name] = {f"{pid} of {began}": float(io[key])}
    except PermissionError:
        pass  # only its user and root may see it
    memory = {"memory": float(int(fields[21]) * _PAGE)}
    return Raw(gauges=memory, counts=counts, shares={"cpu": (cpu, cores)})


def boot_id(proc: Path = Path("/proc")) -> str:
    """Another text after each start of this host."""
    return (proc / "sys/kernel/random/boot_id").read_text().strip()


def _cores(proc: Path) -> int:
    lines = (proc / "stat").read_text().splitlines()
    return sum(line[:3] == "cpu" and line[3:4].isdigit() for line in lines)


def _busy_s(proc: Path) -> float:
    """CPU seconds used since the start: user, nice, system, irq, softirq, and what the
    hypervisor beneath took (steal). Guests are in user already."""
    first = (proc / "stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(int(first[n]) for n in (0, 1, 2, 5, 6, 7)) / _TICKS


def _memory(proc: Path) -> dict[str, float]:
    pairs = _pairs((proc / "meminfo").read_text().splitlines())
    return {name: pairs[name] * 1024.0 for name in ("MemTotal", "MemAvailable")}


def _pairs(lines: Iterable[str]) -> dict[str, int]:
    found = {}
    for line in lines:
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            found[name] = int(words[0])
    return found


def _disks(proc: Path, sys: Path) -> dict[str, tuple[float, float]]:
    """Bytes read and written of whole disks with a device of their own."""
    found = {}
    for line in (proc / "diskstats").read_text().splitlines():
        words = line.split()
        if (sys / "block" / words[2] / "device").exists():
            found[words[2]] = (float(words[5]) * _SECTOR, float(words[9]) * _SECTOR)
    return found


def _cards(proc: Path, sys: Path) -> dict[str, tuple[float, float]]:
    """Bytes received and sent by network cards with a device of their own."""
    found = {}
    for line in (proc / "net/dev").read_text().splitlines()[2:]:
        name, _, rest = line.partition(":")
        words = rest.split()
        if (sys / "class/net" / name.strip() / "device").exists():
            found[name.strip()] = (float(words[0]), float(words[8]))
    return found
