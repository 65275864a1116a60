"""In which class are the packets of each VM? From what its services were identified as, and the
policy. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from controller.decide.bandwidth.qos import QosClass, QosPolicy
from controller.model.nouns import Mark, Marking, Service, ServiceMark
from controller.model.state import State

#: Classes by which paths are chosen: those of the data plane.
_DEFAULT, _INTERACTIVE, _BULK = 0, 1, 2
#: What is only guessed by its port is not marked: whoever likes may use a port.
_TRUSTED = frozenset({"confirmed", "behavioural"})


def mark(policy: QosPolicy, name: str) -> Mark:
    """What the class `name` writes on packets."""
    made: QosClass = policy.classes[name]
    if made.paths == "latency":
        paths = _INTERACTIVE
    else:
        paths = _DEFAULT if name == policy.default else _BULK
    return Mark(name=name, dscp=made.dscp, traffic=made.queue, paths=paths)


def markings(state: State, policy: QosPolicy) -> dict[str, Marking]:
    """The marking of every VM that has any; the others' packets are of the default class."""
    marks = {name: mark(policy, name) for name in policy.classes}
    services: dict[str, list[ServiceMark]] = {}
    for service in state.services.values():
        made = _service(service, policy, marks)
        if made is not None:
            services.setdefault(service.vm, []).append(made)
    found = {}
    for vm in state.vms.values():
        name = policy.terms(vm.id, vm.tenant, vm.groups).traffic or policy.default
        default = marks[name]
        # A packet that nobody marks is already as one of this class would be.
        plain = (default.dscp, default.traffic, default.paths) == (0, 0, 0)
        own = sorted(services.get(vm.id, ()), key=lambda s: (s.protocol, s.port))
        if own or not plain:
            found[vm.id] = Marking(
                vm=vm.id, default=None if plain else default, services=tuple(own[:1_000])
            )
    return found


def _service(service: Service, policy: QosPolicy, marks: Mapping[str, Mark]) -> ServiceMark | None:
    if service.protocol not in ("tcp", "udp") or not service.port:
        return None
    if service.how not in _TRUSTED and service.category_how not in _TRUSTED:
        return None
    name = policy.class_of(service.application, service.category)
    if name == policy.default:
        return None
    protocol = "tcp" if service.protocol == "tcp" else "udp"
    return ServiceMark(protocol=protocol, port=service.port, mark=marks[name])
