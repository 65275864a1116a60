"""What do libvirt's answers mean? Pure: a domain's XML and its statistics come in, a Machine and
its counts go out (libvirt's formatdomain, virConnectGetAllDomainStats).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal
from xml.etree import ElementTree

from controller.agent.records import Machine, Raw

#: virDomainState, virDomainRunningReason and virDomainPausedReason of libvirt's API.
_RUNNING = 1
#: It came from another host, all of it or with memory to follow (post-copy).
_RUNNING_MIGRATED = (2, 10, 11)
_PAUSED = 3
_PAUSED_STARTING = 11
#: Its memory goes or comes; its memory is fetched by the target (post-copy), or could not be.
_PAUSED_MOVING = (2, 12, 13)

Stats = Mapping[str, object]
_NET = (
    ("net_rx_total", "rx.bytes"),
    ("net_tx_total", "tx.bytes"),
    ("net_rx_packets_total", "rx.pkts"),
    ("net_tx_packets_total", "tx.pkts"),
)
_DISK = (
    ("disk_read_total", "rd.bytes"),
    ("disk_write_total", "wr.bytes"),
    ("disk_reads_total", "rd.reqs"),
    ("disk_writes_total", "wr.reqs"),
)
_NS = 1e9
_KIB = 1024.0


@dataclass(frozen=True, slots=True)
class Domain:
    """What the XML of a running domain says: its names, and its NICs that are plugged into
    something (port and MAC)."""

    name: str
    uuid: str
    nics: tuple[tuple[str, str], ...]

    def machine(self, vm: str, state: int, reason: int) -> Machine:
        """The VM as it is seen now."""
        ports, macs = tuple(port for port, _ in self.nics), tuple(mac for _, mac in self.nics)
        migrated = state == _RUNNING and reason in _RUNNING_MIGRATED
        return Machine(vm, ports, macs, arriving(state, reason), migrated)


def arriving(state: int, reason: int) -> bool:
    """Whether it stands still because its memory comes, or goes."""
    return state == _PAUSED and reason in _PAUSED_MOVING


def starting(state: int, reason: int) -> bool:
    """Whether it is not yet there."""
    return state == _PAUSED and reason == _PAUSED_STARTING


def parse(xml: str) -> Domain:
    """The domain of an XML as libvirt writes it. Raises ValueError."""
    try:
        root = ElementTree.fromstring(xml)  # noqa: S314 - libvirt's own, with no entities
    except ElementTree.ParseError as error:
        raise ValueError(f"the XML of a domain cannot be read: {error}") from None
    nics = []
    for nic in root.iterfind("devices/interface"):
        target, mac = nic.find("target"), nic.find("mac")
        if target is not None and mac is not None and target.get("dev"):
            nics.append((target.get("dev", ""), mac.get("address", "").lower()))
    return Domain(root.findtext("name", ""), root.findtext("uuid", ""), tuple(nics))


def raw(stats: Stats) -> Raw:
    """What the statistics of one domain say."""
    vcpus = _number(stats, "vcpu.current") or 0.0
    used = _number(stats, "cpu.time")
    counts: dict[str, dict[str, float]] = defaultdict(dict)
    shares: dict[str, tuple[dict[str, float], float]] = {}
    if used is not None:
        counts["cpu_seconds_total"]["cpu"] = used / _NS
        shares["cpu"] = ({"cpu": used / _NS}, vcpus)
    waits = {
        f"vcpu{n}": delay / _NS
        for n in range(int(_number(stats, "vcpu.maximum") or vcpus))
        if (delay := _number(stats, f"vcpu.{n}.delay")) is not None
    }
    if waits:
        shares["cpu_wait"] = (waits, vcpus)
    for name, prefix in _devices(stats, "net"):
        for counter, key in _NET:
            _put(counts[counter], name, _number(stats, f"{prefix}.{key}"))
        drops = [_number(stats, f"{prefix}.{way}.drop") for way in ("rx", "tx")]
        if None not in drops:
            counts["net_drops_total"][name] = sum(drop or 0.0 for drop in drops)
    for name, prefix in _devices(stats, "block"):
        for counter, key in _DISK:
            _put(counts[counter], name, _number(stats, f"{prefix}.{key}"))
    return Raw(_memory(stats), dict(counts), shares)


def basic(
    info: tuple[int, int, int, int, int], nics: Mapping[str, tuple[int, ...]]
) -> dict[str, object]:
    """The same statistics of a driver that tells none in bulk: `info` is virDomainInfo, `nics`
    virDomainInterfaceStats by port."""
    _, most, memory, vcpus, used = info
    stats: dict[str, object] = {
        "cpu.time": used,
        "vcpu.current": vcpus,
        "balloon.current": memory,
        "balloon.maximum": most,
        "net.count": len(nics),
    }
    for number, (name, told) in enumerate(nics.items()):
        stats[f"net.{number}.name"] = name
        for way, at in (("rx", 0), ("tx", 4)):
            for key, offset in (("bytes", 0), ("pkts", 1), ("drop", 3)):
                stats[f"net.{number}.{way}.{key}"] = told[at + offset]
    return stats


def _memory(stats: Stats) -> dict[str, float]:
    """Memory in use as the guest says, else what the host gave to the process, else all of it."""
    found = {}
    size = _number(stats, "balloon.current")
    if size is not None:
        found["memory_size"] = size * _KIB
    has, free = _number(stats, "balloon.available"), _number(stats, "balloon.usable")
    resident = _number(stats, "balloon.rss")
    if has is not None and free is not None:
        found["memory"] = (has - free) * _KIB
    elif resident is not None:
        found["memory"] = resident * _KIB
    elif size is not None:
        found["memory"] = size * _KIB
    return found


def _devices(stats: Stats, group: Literal["net", "block"]) -> Iterator[tuple[str, str]]:
    """Each device of a group: its name, and what its keys begin with."""
    for number in range(int(_number(stats, f"{group}.count") or 0)):
        prefix = f"{group}.{number}"
        name = stats.get(f"{prefix}.name")
        if isinstance(name, str):
            yield name, prefix


def _put(devices: dict[str, float], name: str, value: float | None) -> None:
    if value is not None:
        devices[name] = value


def _number(stats: Stats, key: str) -> float | None:
    value = stats.get(key)
    return float(value) if isinstance(value, int | float) else None
