"""Does a definition fit the others? What no single record can see of itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from controller.api import Fault
from controller.decide.paths.tunnels import reserved
from controller.model.nouns import (
    Host,
    Migration,
    Nic,
    Placement,
    Record,
    Reservation,
    Subnet,
    Tunnel,
    Vm,
)
from controller.northbound.problems import CONFLICT, INVALID, MISSING, Problem
from controller.store import Transaction


def check(transaction: Transaction, record: Record) -> None:
    """Raise Problem where `record` would contradict what the store holds."""
    if isinstance(record, Vm):
        check_vm(transaction, record)
    elif isinstance(record, Subnet):
        _check_subnet(transaction, record)
    elif isinstance(record, Tunnel):
        _check_tunnel(transaction, record)


def check_vm(transaction: Transaction, vm: Vm, *, with_ports: bool = True) -> None:
    """Raise Problem where a NIC's subnet is missing, of another tenant, or does not hold the
    NIC's addresses, or (`with_ports`) where the VM is placed on another number of ports."""
    faults: list[Fault] = []
    for index, nic in enumerate(vm.nics):
        at = f"/nics/{index}"
        subnet = transaction.get(Subnet, nic.subnet)
        if subnet is None:
            raise Problem(
                MISSING,
                f"vm {vm.id}: there is no subnet {nic.subnet}",
                f"PUT /v1/subnets/{nic.subnet} first.",
                (Fault(pointer=f"{at}/subnet", detail=f"there is no subnet {nic.subnet}"),),
            )
        if subnet.tenant != vm.tenant:
            detail = f"subnet {subnet.id} belongs to tenant {subnet.tenant}, not to {vm.tenant}"
            faults.append(Fault(pointer=f"{at}/subnet", detail=detail))
        faults += _misplaced(nic, subnet, at)
    if faults:
        raise Problem(
            INVALID,
            f"vm {vm.id}: {faults[0].detail}",
            "Correct what `faults` lists.",
            tuple(faults),
        )
    placement = transaction.get(Placement, vm.id) if with_ports else None
    if placement is not None and len(placement.ports) != len(vm.nics):
        raise Problem(
            CONFLICT,
            f"vm {vm.id} is at {placement.host} on {len(placement.ports)} port(s) and would have "
            f"{len(vm.nics)} NIC(s)",
            "Send vm.updated with nics and ports together.",
        )


def check_ports(transaction: Transaction, vm: str, host_id: str, ports: tuple[str, ...]) -> None:
    """Raise Problem where a VM of another host of the same datapath has one of `ports`. (That
    another VM of the same host has it, the store sees by itself.)"""
    host = transaction.get(Host, host_id)
    if host is None:
        return
    for other in transaction.where(Host, datapath=host.datapath):
        if other.id == host.id:
            continue
        held = {p: x.vm for x in transaction.where(Placement, host=other.id) for p in x.ports}
        for move in transaction.where(Migration, target=other.id):
            if move.open:
                held |= dict.fromkeys(move.ports, move.vm)
        for port in ports:
            if held.get(port, vm) != vm:
                raise Problem(
                    CONFLICT,
                    f"port {port} of datapath {host.datapath} already belongs to vm {held[port]} "
                    f"of host {other.id}",
                    f"Remove vm {held[port]} first, or name the port that vm {vm} is plugged into.",
                )


def _check_tunnel(transaction: Transaction, tunnel: Tunnel) -> None:
    """Another tunnel over the same port would sell its bandwidth twice, and what was granted is
    not taken back."""
    for other in transaction.all(Tunnel):
        if other.link == tunnel.link and other.id != tunnel.id:
            raise Problem(
                CONFLICT,
                f"tunnel {other.id} leaves by {tunnel.link} already",
                f"Name another port, or delete tunnel {other.id} first.",
                (Fault(pointer="/link", detail=f"is that of tunnel {other.id}"),),
            )
    now = time.time()
    granted = transaction.where(Reservation, tunnel=tunnel.id)
    for forward in (True, False):
        taken = reserved(tunnel, granted, forward, now)
        if taken > tunnel.capacity * tunnel.reservable:
            raise Problem(
                CONFLICT,
                f"{taken} bit/s of tunnel {tunnel.id} are reserved, more than "
                f"{tunnel.reservable:.0%} of {tunnel.capacity}",
                "Release reservations first, or let them end.",
                (Fault(pointer="/capacity", detail=f"{taken} bit/s are reserved"),),
            )


def _misplaced(nic: Nic, subnet: Subnet, at: str) -> Iterator[Fault]:
    """The addresses of `nic` that `subnet` cannot hold."""
    if nic.ipv4 is not None:
        yield from _outside(nic.ipv4, subnet.cidr, subnet.gateway, f"{at}/ipv4")
    if nic.ipv6 is not None:
        if subnet.cidr6 is None:
            yield Fault(pointer=f"{at}/ipv6", detail=f"subnet {subnet.id} has no IPv6")
        else:
            yield from _outside(nic.ipv6, subnet.cidr6, subnet.gateway6, f"{at}/ipv6")


def _outside(
    address: IPv4Address | IPv6Address,
    cidr: IPv4Network | IPv6Network,
    gateway: IPv4Address | IPv6Address | None,
    pointer: str,
) -> Iterator[Fault]:
    if address not in cidr:
        yield Fault(pointer=pointer, detail=f"{address} lies outside {cidr}")
    elif address == gateway:
        yield Fault(pointer=pointer, detail=f"{address} is the gateway of {cidr}")
    elif isinstance(cidr, IPv4Network) and address in (
        cidr.network_address,
        cidr.broadcast_address,
    ):
        yield Fault(pointer=pointer, detail=f"{address} is no host's address in {cidr}")


def _check_subnet(transaction: Transaction, subnet: Subnet) -> None:
    for other in transaction.where(Subnet, tenant=subnet.tenant):
        if other.id == subnet.id:
            continue
        both = other.cidr6 is not None and subnet.cidr6 is not None
        if other.cidr.overlaps(subnet.cidr) or (
            both and other.cidr6 is not None and other.cidr6.overlaps(subnet.cidr6)  # type: ignore[arg-type]
        ):
            raise Problem(
                CONFLICT,
                f"subnet {subnet.id} overlaps subnet {other.id} of the same tenant "
                f"({other.cidr}{f', {other.cidr6}' if other.cidr6 else ''})",
                "Choose another range; only subnets of different tenants may overlap.",
            )
    for vm in transaction.where(Vm, subnet=subnet.id):
        for nic in vm.nics:
            if nic.subnet != subnet.id:
                continue
            fault = next(_misplaced(nic, subnet, ""), None)
            if fault is None and vm.tenant != subnet.tenant:
                fault = Fault(pointer="/tenant", detail=f"the VM belongs to {vm.tenant}")
            if fault is not None:
                raise Problem(
                    CONFLICT,
                    f"subnet {subnet.id} is used by vm {vm.id}: {fault.detail}",
                    f"Change vm {vm.id} first.",
                )
