"""What exactly goes out for an event? Pure: what was seen here and what the controller knows of
the VM come in, a CloudEvent goes out.

Only the controller knows the order of a VM's NICs, and where a VM that arrives comes from.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from controller.agent.records import Fact
from controller.api import JSON, VmStatus
from controller.model.nouns import Vm
from controller.observe.cloudevents import EventType

_PLUGGED = (EventType.VM_PLACED, EventType.MIGRATION_STARTED, EventType.MIGRATION_COMPLETED)


def asks(fact: Fact) -> bool:
    """Whether the controller has to be asked for the VM first."""
    several = fact.type in _PLUGGED and len(fact.ports) > 1
    return several or fact.type is EventType.MIGRATION_STARTED


def final(fact: Fact, known: VmStatus | None) -> dict[str, Any] | None:
    """The event to send; None where it needs not be told. `known` is what the controller has
    of the VM, None where it has nothing, or was not asked."""
    ports = ordered(fact, known.vm) if known is not None else fact.ports
    data: dict[str, object]
    match fact.type:
        case EventType.VM_PLACED:
            data = {"vm": fact.vm, "host": fact.host, "ports": [*ports]}
        case EventType.VM_REMOVED:
            data = {"vm": fact.vm, "host": fact.host}
        case EventType.MIGRATION_STARTED:
            source = known.placement.host if known is not None and known.placement else fact.host
            if source == fact.host:
                return None  # its place alone will be told, once it runs here
            data = {
                "migration": fact.migration,
                "vm": fact.vm,
                "source": source,
                "target": fact.host,
                "ports": [*ports],
            }
        case EventType.MIGRATION_COMPLETED:
            data = {
                "migration": fact.migration,
                "vm": fact.vm,
                "target": fact.host,
                "ports": [*ports],
            }
        case EventType.MIGRATION_FAILED:
            data = {"migration": fact.migration, "vm": fact.vm, "reason": fact.reason}
        case _:
            data = {"host": fact.host}
    return {
        "specversion": "1.0",
        "id": fact.id,
        "source": f"/pleach-agent/{fact.host}",
        "type": fact.type.value,
        "time": datetime.fromtimestamp(fact.at, UTC).isoformat(),
        "datacontenttype": JSON,
        "data": data,
    }


def ordered(fact: Fact, vm: Vm) -> tuple[str, ...]:
    """The ports in the order of the VM's NICs, by their MACs; as they were seen where some NIC
    is not found among them."""
    at = dict(zip(fact.macs, fact.ports, strict=False))
    found = [at.get(nic.mac) for nic in vm.nics]
    ports = tuple(port for port in found if port is not None)
    return ports if len(ports) == len(vm.nics) else fact.ports
