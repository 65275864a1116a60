"""Which metrics are there? Their names, units, what they are about, and what is plausible.

A metric is stored as a gauge. What a sender can only count (bytes since boot) it sends under
the counter's name, which ends in `_total`; the rate of that is stored under the gauge's name.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Scope(StrEnum):
    """What a metric is about."""

    VM = "vm"
    HOST = "host"
    #: A port of a switch; its id is that of the record: dpid:number.
    PORT = "port"


class Unit(StrEnum):
    """What a value counts; a share lies between 0 and 1."""

    SHARE = "share"
    CORES = "cores"
    BYTES = "bytes"
    BYTES_PER_S = "bytes/s"
    PACKETS_PER_S = "packets/s"
    OPERATIONS_PER_S = "operations/s"
    CONNECTIONS = "connections"
    CONNECTIONS_PER_S = "connections/s"
    SECONDS = "seconds"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. No value lies below 0, none that is believed above `most`; `counter` is the
    name under which an ever-growing count of it is taken, if any."""

    name: str
    scope: Scope
    unit: Unit
    most: float
    counter: str | None = None


#: Bounds of what is believed. Memory and rates are far above the largest machines of today
#: (64 TiB, 400 Gbit/s a NIC, 100 GB/s of local disks), and far below what a counter that was
#: read wrongly makes.
_MEMORY = float(1 << 47)
_NETWORK = 2e11
_PACKETS = 1e9
_DISK = 1e12
_OPERATIONS = 1e9
_CORES = 8_192.0
#: A share is measured over a tick, and timers are not exact.
_SHARE = 1.5


def _rate(name: str, scope: Scope, unit: Unit, most: float) -> Metric:
    return Metric(name, scope, unit, most, f"{name}_total")


_VM = (
    #: CPU time used over the time of all vCPUs.
    Metric("cpu", Scope.VM, Unit.SHARE, _SHARE),
    #: CPU seconds used per second.
    Metric("cpu_cores", Scope.VM, Unit.CORES, _CORES, "cpu_seconds_total"),
    #: Time that vCPUs were ready and had to wait, over the time of all vCPUs.
    Metric("cpu_wait", Scope.VM, Unit.SHARE, _SHARE),
    Metric("memory", Scope.VM, Unit.BYTES, _MEMORY),
    Metric("memory_size", Scope.VM, Unit.BYTES, _MEMORY),
    _rate("disk_read", Scope.VM, Unit.BYTES_PER_S, _DISK),
    _rate("disk_write", Scope.VM, Unit.BYTES_PER_S, _DISK),
    _rate("disk_reads", Scope.VM, Unit.OPERATIONS_PER_S, _OPERATIONS),
    _rate("disk_writes", Scope.VM, Unit.OPERATIONS_PER_S, _OPERATIONS),
    _rate("net_rx", Scope.VM, Unit.BYTES_PER_S, _NETWORK),
    _rate("net_tx", Scope.VM, Unit.BYTES_PER_S, _NETWORK),
    _rate("net_rx_packets", Scope.VM, Unit.PACKETS_PER_S, _PACKETS),
    _rate("net_tx_packets", Scope.VM, Unit.PACKETS_PER_S, _PACKETS),
    _rate("net_drops", Scope.VM, Unit.PACKETS_PER_S, _PACKETS),
    Metric("connections", Scope.VM, Unit.CONNECTIONS, 1e8),
    _rate("connections_new", Scope.VM, Unit.CONNECTIONS_PER_S, 1e8),
    #: To first response, of the VM's services (mean).
    Metric("response_time", Scope.VM, Unit.SECONDS, 86_400.0),
)
_HOST = (
    Metric("host_cpu", Scope.HOST, Unit.SHARE, _SHARE),
    #: What the host has, and what is used of it.
    Metric("host_cores", Scope.HOST, Unit.CORES, _CORES),
    Metric("host_memory", Scope.HOST, Unit.BYTES, _MEMORY),
    Metric("host_memory_size", Scope.HOST, Unit.BYTES, _MEMORY),
    _rate("host_disk_read", Scope.HOST, Unit.BYTES_PER_S, _DISK),
    _rate("host_disk_write", Scope.HOST, Unit.BYTES_PER_S, _DISK),
    _rate("host_net_rx", Scope.HOST, Unit.BYTES_PER_S, 10 * _NETWORK),
    _rate("host_net_tx", Scope.HOST, Unit.BYTES_PER_S, 10 * _NETWORK),
    #: What the host's uplinks can carry, one direction.
    Metric("host_net_size", Scope.HOST, Unit.BYTES_PER_S, 10 * _NETWORK),
)
_PORT = (
    _rate("port_rx", Scope.PORT, Unit.BYTES_PER_S, 10 * _NETWORK),
    _rate("port_tx", Scope.PORT, Unit.BYTES_PER_S, 10 * _NETWORK),
    _rate("port_rx_packets", Scope.PORT, Unit.PACKETS_PER_S, 10 * _PACKETS),
    _rate("port_tx_packets", Scope.PORT, Unit.PACKETS_PER_S, 10 * _PACKETS),
    _rate("port_drops", Scope.PORT, Unit.PACKETS_PER_S, 10 * _PACKETS),
)

#: Every metric by its name.
METRICS: dict[str, Metric] = {metric.name: metric for metric in (*_VM, *_HOST, *_PORT)}
#: The metric whose rate a counter gives, by the counter's name.
COUNTERS: dict[str, Metric] = {m.counter: m for m in METRICS.values() if m.counter is not None}


def metrics_of(scope: Scope) -> tuple[Metric, ...]:
    """The metrics about one kind of thing, in a fixed order."""
    return tuple(metric for metric in METRICS.values() if metric.scope is scope)
