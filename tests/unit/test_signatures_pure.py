"""Who talks to whom: heads of packets, readings of counters, and which are told apart."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import ARP, Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

from controller.act.dataplane.compiler import compile_all
from controller.act.dataplane.counting import Counted
from controller.act.dataplane.openflow.flow_entry import Installed
from controller.act.dataplane.openflow.records import Flow
from controller.act.dataplane.pipeline import Owner, TableId, cookie, owner_of
from controller.act.dataplane.view import FabricView
from controller.model.nouns import Host, Nic, Placement, Port, Subnet, Tenant, Vm
from controller.model.signatures import (
    OTHERS,
    Counter,
    Counts,
    Observed,
    Reading,
    Refused,
    Signature,
    Talked,
)
from controller.model.state import Change, State
from controller.observe.signatures.book import Directory, expire, meet
from controller.observe.signatures.heads import head
from controller.observe.signatures.ledger import Ledger
from controller.observe.signatures.tally import Tally, since

ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
V4 = IP(src="10.0.0.1", dst="10.0.0.2")
V6 = IPv6(src="2001:db8::1", dst="2001:db8::2")


@pytest.mark.parametrize(
    ("packet", "protocol", "ports"),
    [
        (V4 / TCP(sport=4000, dport=80), 6, (4000, 80)),
        (
            IP(src="10.0.0.1", dst="10.0.0.2", options=b"\x01" * 8) / UDP(sport=1, dport=2),
            17,
            (1, 2),
        ),
        (V4 / SCTP(sport=5, dport=6), 132, (5, 6)),
        (V4 / ICMP(), 1, (0, 0)),
        (IP(src="10.0.0.1", dst="10.0.0.2", frag=5, proto=17) / Raw(b"x" * 8), 17, (0, 0)),
        (V6 / TCP(sport=4000, dport=80), 6, (4000, 80)),
        (V6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / UDP(sport=1, dport=2), 17, (1, 2)),
        (V6 / IPv6ExtHdrFragment(offset=0, m=1) / UDP(sport=1, dport=2), 17, (1, 2)),
        (V6 / IPv6ExtHdrFragment(offset=9, nh=17) / Raw(b"x" * 8), 17, (0, 0)),
    ],
)
def test_the_head_of_a_packet(packet: Packet, protocol: int, ports: tuple[int, int]) -> None:
    read = head(bytes(ETHER / packet))
    assert read is not None
    assert (read.sender, read.receiver) == (ETHER.src, ETHER.dst)
    assert (read.source, read.target) == (ip_address(packet.src), ip_address(packet.dst))
    assert (read.protocol, (read.source_port, read.port)) == (protocol, ports)


@given(st.binary(max_size=120), st.sampled_from([b"\x08\x00\x45", b"\x86\xdd\x60", b""]))
def test_no_bytes_are_too_strange(data: bytes, kind: bytes) -> None:
    read = head(bytes(12) + kind + data)
    assert read is None or 0 <= read.port < 1 << 16
    assert head(bytes(ETHER / ARP())) is None


COUNTS = st.builds(Counts, *[st.integers(0, 1 << 40)] * 6)


@given(COUNTS, COUNTS)
def test_no_count_is_negative_and_a_reset_is_no_spike(before: Counts, now: Counts) -> None:
    new = since(before, now)
    assert all(count >= 0 for count in new)
    assert all(count <= after for count, after in zip(new, now, strict=True))
    assert since(before, before) == Counts()


WEB = Counter("02:00:00:00:00:01", ip_network("10.0.0.2/32"), 6, 80)


def test_what_was_counted_is_counted_once() -> None:
    tally = Tally()
    assert tally.take("d1", {WEB: Counts(2, 120, 7, 700)}, 10.0).counted[WEB].rest == 7
    assert tally.take("d1", {WEB: Counts(2, 120, 7, 700)}, 20.0).counted == {}
    assert tally.used(WEB) == 10.0
    # At another switch it counts apart, and both are the signature's.
    assert tally.take("d2", {WEB: Counts(0, 0, 1, 60)}, 30.0).counted[WEB] == Counts(0, 0, 1, 60)
    assert tally.used(WEB) == 30.0
    # It was made anew with less in it, and then went away.
    assert tally.take("d1", {WEB: Counts(1, 60, 7, 700)}, 40.0).counted[WEB] == Counts(1, 60)
    assert tally.take("d1", {}, 50.0).gone == (WEB,)
    assert tally.take("d1", {WEB: Counts(9, 99)}, 60.0).counted[WEB] == Counts(9, 99)


def test_a_process_goes_on_where_the_one_before_ended() -> None:
    known = Reading("d1", WEB, "a", True, Counts(5, 300), 10.0)
    assert Tally([known]).take("d1", {WEB: Counts(6, 360)}, 20.0).counted[WEB] == Counts(1, 60)


def state() -> State:
    return State.of(
        [
            Tenant(id="red", number=1),
            Tenant(id="blue", number=2),
            Subnet(id="net", tenant="red", cidr="10.0.0.0/24", number=1),
            *(
                Vm(
                    id=key,
                    tenant="red" if key in "ab" else "blue",
                    nics=(Nic(mac=f"02:00:00:00:00:0{n}", subnet="net", ipv4=f"10.0.0.{n}"),),
                )
                for key, n in (("a", 1), ("b", 2), ("c", 3))
            ),
            Host(id="h1", datapath="0000000000000001"),
            Port(datapath="0000000000000001", number=4, name="tap1"),
            Placement(vm="a", host="h1", ports=("tap1",)),
        ]
    )


def test_whom_an_address_stands_for() -> None:
    directory = Directory(state(), Observed())
    assert directory.peer("red", ip_network("10.0.0.2/32"))[:2] == ("b", False)
    # What is no VM of the tenant, or another's, is grouped by prefix.
    assert directory.peer("red", ip_network("10.0.0.3/32"))[:2] == ("10.0.0.0/24", True)
    assert directory.peer("red", ip_network("2001:db8:1:2::3/128")).name == "2001:db8:1::/48"
    assert directory.peer("red", None).name == OTHERS


def test_the_directory_follows() -> None:
    now = state()
    directory = Directory(now, Observed())
    moved = now.vms["b"].model_copy(
        update={"nics": (Nic(mac="02:00:00:00:00:09", subnet="net", ipv4="10.0.0.9"),)}
    )
    now.apply(Change(1, "vm", "b", moved))
    now.apply(Change(2, "vm", "c", None))
    directory.follow(now)
    assert directory.vm("red", ip_address("10.0.0.9")) == "b"
    assert directory.vm("red", ip_address("10.0.0.2")) is None
    assert directory.owner("02:00:00:00:00:09") == "b"
    assert directory.owner("02:00:00:00:00:03") is None
    assert (directory.tenant("b"), directory.tenant("c")) == ("red", "")


def of(vm: str, number: int) -> Signature:
    return Signature(vm, "02:00:00:00:00:01", ip_network("10.0.0.2/32"), 6, number)


def test_no_more_are_told_apart_than_the_bound() -> None:
    observed = Observed()
    met = meet(observed, [of("a", n) for n in (1, 2, 2, 3, 4)], 2)
    assert met.new == (of("a", 1), of("a", 2))
    assert met.crowded == ("a",)
    assert meet(observed, [of("a", 1), of("a", 9)], 2) == ((), ())
    assert meet(observed, [of("b", 1)], 2).new == (of("b", 1),)


def test_what_is_not_used_is_given_up() -> None:
    observed = Observed()
    meet(observed, [of("a", n) for n in range(10)] + [of("gone", 1)], 9)
    assert observed.crowded == {"a"}
    used = {Counter(*of("a", n)[1:]): 50.0 if n < 7 else 150.0 for n in range(9)}
    vms = list(observed.signatures)
    assert expire(observed, state(), vms, used.get, before=100.0, most=9) == {"a", "gone"}
    assert observed.signatures == {"a": {of("a", 7), of("a", 8)}}
    assert not observed.crowded


def test_the_ledger_adds_up() -> None:
    talk = Talked("a", "b", "tcp", 80, 7, "red", False, 1, 2, 3, 4, 5, 10.0, 10.0)
    denial = Refused("a", "b", "tcp", 81, 7, "red", False, 1, 60, 10.0, 10.0)
    ledger = Ledger()
    ledger.talked(talk)
    ledger.talked(replace(talk, first_at=20.0, last_at=20.0))
    ledger.talked(replace(talk, hour=8))
    ledger.refused(denial)
    rows = ledger.take()
    assert rows == [
        replace(talk, connections=2, packets_out=4, bytes_out=6, packets_in=8, bytes_in=10,
                last_at=20.0),
        replace(talk, hour=8),
        denial,
    ]  # fmt: skip
    assert ledger.take() == []
    ledger.put_back(rows)
    ledger.refused(denial)
    assert [getattr(row, "packets", 0) for row in ledger.take()] == [0, 0, 2]


def test_counters_are_read_as_they_were_made() -> None:
    peers = ("10.0.0.2/32", "192.0.2.0/24", "2001:db8::2/128", "2001:db8::/48")
    signatures = {
        Signature("a", "02:00:00:00:00:01", ip_network(peer), protocol, port)
        for peer in peers
        for protocol, port in ((6, 80), (17, 53), (132, 9), (1, 0))
    }
    observed = Observed({"a": signatures}, {"a"})
    view = FabricView.of(state(), observed)
    flows = [
        entry
        for entry in compile_all(view, "0000000000000001").entries.values()
        if isinstance(entry, Flow) and entry.table in (TableId.COUNT_OUT, TableId.COUNT_IN)
    ]
    read = Counted()
    read.add(Installed(flow, n + 1, 100 * (n + 1), 1.0, 0) for n, flow in enumerate(flows))
    all_else = Counter("02:00:00:00:00:01", None, 0, 0)
    assert set(read.talks) == {Counter(*s[1:]) for s in signatures} | {all_else}
    assert read.kept == set(read.talks)
    ours = [n + 1 for n, flow in enumerate(flows) if owner_of(flow.cookie) is Owner.SIGNATURE]
    told = sorted(n for counts in read.talks.values() for n in counts[::2])
    assert told == ours
    learned = Counted()
    learned.add(
        Installed(replace(flow, cookie=cookie(Owner.LEARNED)), 1, 1, 1.0, 0) for flow in flows
    )
    assert set(learned.talks) == set(read.talks)
    assert not learned.kept


def test_addresses_are_those_of_their_kind() -> None:
    read = head(bytes(ETHER / V6 / UDP()))
    assert read is not None
    assert isinstance(read.source, IPv6Address)
    read = head(bytes(ETHER / V4 / UDP()))
    assert read is not None
    assert isinstance(read.source, IPv4Address)
