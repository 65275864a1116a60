"""Which signatures are counted apart? Those that were met, up to a bound for each VM, until they
are not used any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

from controller.model.nouns import Vm
from controller.model.signatures import (
    OTHERS,
    Counter,
    Observed,
    Reading,
    Signature,
    addresses,
    prefix_of,
)
from controller.model.state import State
from controller.settings import SignatureSettings

#: Share of the bound below which a VM's signatures are told apart again.
_UNCROWDED = 0.8


class Peer(NamedTuple):
    """Who a VM talks to: a VM by its id, or a prefix."""

    name: str
    external: bool
    network: IPv4Network | IPv6Network | None


class Directory:
    """Who has an address? `follow` keeps it true; that costs what has changed since."""

    def __init__(self, state: State, observed: Observed) -> None:
        self._observed = observed
        self._revision = -1
        self._records: dict[str, Vm] = {}
        self._vms: dict[tuple[str, IPv4Address | IPv6Address], str] = {}
        self._nics: dict[str, str] = {}
        self.follow(state)

    def follow(self, state: State) -> None:
        """Be of `state` from now on."""
        if state.revision == self._revision:
            return
        self._revision = state.revision
        known = self._records
        gone = [key for key, vm in known.items() if state.vms.get(key) is not vm]
        for key in gone:
            self._leave(known.pop(key))
        if len(known) < len(state.vms):
            for key, vm in state.vms.items():
                if key not in known:
                    known[key] = vm
                    self._vms.update({(vm.tenant, at): key for at in addresses(vm)})
                    self._nics.update({nic.mac: key for nic in vm.nics})

    def _leave(self, vm: Vm) -> None:
        for at in addresses(vm):
            if self._vms.get((vm.tenant, at)) == vm.id:
                del self._vms[vm.tenant, at]
        for nic in vm.nics:
            if self._nics.get(nic.mac) == vm.id:
                del self._nics[nic.mac]

    def vm(self, tenant: str, address: IPv4Address | IPv6Address) -> str | None:
        """The VM of a tenant that has an address."""
        return self._vms.get((tenant, address))

    def owner(self, mac: str) -> str | None:
        """The VM that has a NIC."""
        return self._nics.get(mac)

    def tenant(self, vm: str) -> str:
        """The tenant of a VM; "" where it is not known any more."""
        known = self._records.get(vm)
        return known.tenant if known is not None else ""

    def peer(self, tenant: str, network: IPv4Network | IPv6Network | None) -> Peer:
        """Whom a counter's network stands for."""
        if network is None:
            return Peer(OTHERS, True, None)
        if network.prefixlen == network.max_prefixlen:
            known = self.vm(tenant, network.network_address)
            if known is not None:
                return Peer(known, False, network)
            prefixes = self._observed.prefix4, self._observed.prefix6
            network = prefix_of(network.network_address, *prefixes)
        return Peer(str(network), True, network)


class Met(NamedTuple):
    """What taking in a meeting came to: signatures that are counted from now on, and VMs that
    have more than are told apart."""

    new: tuple[Signature, ...]
    crowded: tuple[str, ...]


def observed_of(readings: Iterable[Reading], settings: SignatureSettings) -> Observed:
    """What was counted apart when counters had counted as far as `readings` say."""
    observed = Observed(prefix4=settings.prefix4, prefix6=settings.prefix6)
    for reading in readings:
        mac, peer, protocol, port = reading.counter
        if reading.kept and peer is not None:
            signature = Signature(reading.vm, mac, peer, protocol, port)
            observed.signatures.setdefault(reading.vm, set()).add(signature)
    return observed


def meet(observed: Observed, found: Iterable[Signature], most: int) -> Met:
    """Have signatures counted from now on, at most `most` a VM: `observed` is changed."""
    new: list[Signature] = []
    crowded: list[str] = []
    for signature in found:
        vm = signature.vm
        known = observed.signatures.get(vm, set())
        if signature in known or vm in observed.crowded:
            continue
        if len(known) >= most:
            observed.crowded.add(vm)
            crowded.append(vm)
            continue
        observed.signatures.setdefault(vm, set()).add(signature)
        new.append(signature)
    return Met(tuple(new), tuple(crowded))


def expire(
    observed: Observed,
    state: State,
    vms: Iterable[str],
    used: Callable[[Counter], float | None],
    before: float,
    most: int,
) -> set[str]:
    """Give up the signatures of `vms` that were `used` last before then (Unix seconds), and those
    of VMs that are gone: `observed` is changed. The VMs that this is about."""
    touched: set[str] = set()
    for vm in vms:
        known = observed.signatures.get(vm, set())
        macs = {nic.mac for nic in state.vms[vm].nics} if vm in state.vms else set[str]()
        stale = {s for s in known if s.mac not in macs or _is_old(used(Counter(*s[1:])), before)}
        if stale:
            touched.add(vm)
            known -= stale
        if not known:
            observed.signatures.pop(vm, None)
        if vm in observed.crowded and len(known) <= most * _UNCROWDED:
            observed.crowded.discard(vm)
            touched.add(vm)
    return touched


def _is_old(used: float | None, before: float) -> bool:
    """What was not read yet is new."""
    return used is not None and used < before
