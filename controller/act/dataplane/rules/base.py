"""What the rooms of this package share: a bag of rules, and the idioms that recur."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from controller.act.dataplane.openflow import fields as f
from controller.act.dataplane.openflow.records import (
    CONTROLLER,
    Act,
    Flow,
    Group,
    Meter,
    Output,
    Test,
    ToMeter,
    match,
)
from controller.act.dataplane.pipeline import IPV4, IPV6, MeterId, Owner, TableId, cookie
from controller.model.addresses import GATEWAY_MAC, eui64_link_local, mac_to_int

GATEWAY = mac_to_int(GATEWAY_MAC)
GATEWAY_LINK_LOCAL = eui64_link_local(GATEWAY_MAC)
MULTICAST_BIT = 1 << 40

#: Bits of ct_state (ovs-fields(7)).
CT_NEW, CT_ESTABLISHED, CT_RELATED, CT_REPLY, CT_INVALID, CT_TRACKED = (
    1 << bit for bit in range(6)
)


@dataclass(frozen=True, slots=True)
class Rules:
    """Entries of one datapath that serve one unit."""

    flows: tuple[Flow, ...] = ()
    groups: tuple[Group, ...] = ()
    meters: tuple[Meter, ...] = ()

    @classmethod
    def of(cls, entries: Iterable[Flow | Group | Meter]) -> Rules:
        """The entries, sorted into their kinds."""
        flows: list[Flow] = []
        groups: list[Group] = []
        meters: list[Meter] = []
        for entry in entries:
            if isinstance(entry, Flow):
                flows.append(entry)
            elif isinstance(entry, Group):
                groups.append(entry)
            else:
                meters.append(entry)
        return cls(tuple(flows), tuple(groups), tuple(meters))


Entries = Iterator[Flow | Group | Meter]


@dataclass(frozen=True, slots=True)
class Writer:
    """Makes flow entries that carry one owner's cookie."""

    cookie: int

    @classmethod
    def of(cls, owner: Owner, key: str = "") -> Writer:
        """A writer for `owner`, and the noun with that key where there is one."""
        return cls(cookie(owner, key))

    def flow(
        self,
        table: TableId,
        priority: int,
        *tests: tuple[f.Field, int] | Test,
        do: Iterable[Act] = (),
        goto: TableId | None = None,
    ) -> Flow:
        """A flow entry; with neither `do` nor `goto` it drops."""
        return Flow(table, priority, match(*tests), tuple(do), goto, self.cookie)


def punt(meter: MeterId) -> tuple[Act, ...]:
    """Hand the whole packet to the controller, at the pace that the meter allows."""
    return (ToMeter(meter), Output(CONTROLLER))


def address_test(
    address: IPv4Address | IPv6Address, *, source: bool
) -> tuple[tuple[f.Field, int], tuple[f.Field, int]]:
    """Tests for EtherType and source or destination address."""
    if isinstance(address, IPv4Address):
        return (f.ETH_TYPE, IPV4), (f.IPV4_SRC if source else f.IPV4_DST, int(address))
    return (f.ETH_TYPE, IPV6), (f.IPV6_SRC if source else f.IPV6_DST, int(address))
