"""What does a counter at a switch count? The entries that `rules.signatures` makes, read back."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

from controller.act.dataplane.openflow import fields as f
from controller.act.dataplane.openflow.flow_entry import Installed
from controller.act.dataplane.openflow.records import Match
from controller.act.dataplane.pipeline import SEEN, Owner, TableId, owner_of
from controller.model.addresses import mac_from_int
from controller.model.signatures import Counter, Counts, Denied

#: The tables that are read.
COUNTING = (TableId.COUNT_OUT, TableId.COUNT_IN)
DENYING = (TableId.DENIED_OUT, TableId.DENIED_IN)

_OWNERS = {Owner.SIGNATURE, Owner.LEARNED}
_SOURCES = (f.IPV4_SRC, f.IPV6_SRC)
_TARGETS = (f.IPV4_DST, f.IPV6_DST)
_SOURCE_PORTS = (f.TCP_SRC, f.UDP_SRC, f.SCTP_SRC)
_TARGET_PORTS = (f.TCP_DST, f.UDP_DST, f.SCTP_DST)
_Tests = dict[f.Field, tuple[int, int | None]]


class Counted:
    """Counters of one datapath, as they are told of entry by entry."""

    def __init__(self) -> None:
        self.talks: dict[Counter, Counts] = {}
        #: Packets, bytes, and the seconds since the first of them, of what was denied.
        self.denials: dict[Denied, tuple[int, int, float]] = {}
        #: Counters that the controller has put there.
        self.kept: set[Counter] = set()
        self.told = 0

    def add(self, entries: Iterable[Installed]) -> None:
        """Take in entries; those that count nothing of ours are passed over."""
        for entry in entries:
            self.told += 1
            flow = entry.flow
            owner = owner_of(flow.cookie)
            if flow.match is None or owner not in _OWNERS:
                continue
            if flow.table in COUNTING:
                self._talk(flow.table, flow.match, entry, kept=owner is Owner.SIGNATURE)
            elif (denied := _denied(flow.table, flow.match)) is not None:
                self.denials[denied] = (entry.packets, entry.bytes, entry.seconds)

    def _talk(self, table: int, match: Match, entry: Installed, *, kept: bool) -> None:
        counter, begins = _counter(table, match)
        if counter is None:
            return
        if kept:
            self.kept.add(counter)
        known = self.talks.get(counter, Counts())
        if table == TableId.COUNT_IN:
            self.talks[counter] = known._replace(back=entry.packets, back_bytes=entry.bytes)
        elif begins:
            self.talks[counter] = known._replace(begun=entry.packets, begun_bytes=entry.bytes)
        else:
            self.talks[counter] = known._replace(rest=entry.packets, rest_bytes=entry.bytes)


def _tests(match: Match) -> _Tests:
    return {field: (value, mask) for field, value, mask in match}


@lru_cache(maxsize=100_000)  # the same ones are read again and again
def _counter(table: int, match: Match) -> tuple[Counter | None, bool]:
    """What an entry counts, and whether it counts what begins."""
    tests = _tests(match)
    out = table == TableId.COUNT_OUT
    mac = tests.get(f.ETH_SRC if out else f.ETH_DST)
    if mac is None:
        return None, False  # it counts nothing of one VM
    peer = _network(tests, _TARGETS if out else _SOURCES)
    protocol = tests.get(f.IP_PROTO, (0, None))[0]
    port = _first(tests, _TARGET_PORTS if out else _SOURCE_PORTS)
    return Counter(mac_from_int(mac[0]), peer, protocol, port), SEEN in tests


def _denied(table: int, match: Match) -> Denied | None:
    tests = _tests(match)
    mac = tests.get(f.ETH_SRC if table == TableId.DENIED_OUT else f.ETH_DST)
    source, target = _address(tests, _SOURCES), _address(tests, _TARGETS)
    if mac is None or source is None or target is None:
        return None
    protocol = tests.get(f.IP_PROTO, (0, None))[0]
    return Denied(mac_from_int(mac[0]), source, target, protocol, _first(tests, _TARGET_PORTS))


def _first(tests: _Tests, fields: tuple[f.Field, ...]) -> int:
    return next((tests[field][0] for field in fields if field in tests), 0)


def _address(tests: _Tests, fields: tuple[f.Field, ...]) -> IPv4Address | IPv6Address | None:
    network = _network(tests, fields)
    return None if network is None else ip_address(network.network_address)


def _network(tests: _Tests, fields: tuple[f.Field, ...]) -> IPv4Network | IPv6Network | None:
    for field in fields:
        if field in tests:
            value, mask = tests[field]
            length = field.bits if mask is None else mask.bit_count()
            address = IPv4Address(value) if field.bits == 32 else IPv6Address(value)
            return ip_network((address, length), strict=False)
    return None
