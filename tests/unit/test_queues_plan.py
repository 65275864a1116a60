"""Which queues a port gets, and which bits tell packets apart."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.contrib.mpls import MPLS
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6

from controller.act.queues.plan import IPV4, IPV6, LLDP, Plan, filter_of, minor, plan
from controller.act.queues.plan import MPLS as LABELLED
from controller.decide.bandwidth import qos


@pytest.fixture(scope="module")
def made() -> Plan:
    policy = qos.load()
    return plan(policy.classes, policy.default, 1e9)


def queue_of(made: Plan, protocol: int, data: bytes) -> int:
    """The queue that the filters choose for a packet, as the kernel would."""
    (word,) = struct.unpack_from(">I", data)
    for found in sorted(made.filters, key=lambda f: f.priority):
        value, mask = found.bits
        if found.protocol == protocol and word & mask == value:
            return found.minor
    return made.default


def test_shares_are_of_the_port_and_the_best_class_comes_first(made: Plan) -> None:
    queues = {queue.minor: queue for queue in made.queues}
    assert len(queues) == 8
    assert made.rate == 125_000_000
    assert sum(queue.rate for queue in made.queues) <= made.rate
    telephony = queues[minor(6)]
    assert (telephony.rate, telephony.ceil) == (12_500_000, 62_500_000)
    assert min(made.queues, key=lambda queue: queue.priority).minor == minor(7)
    assert all(queue.ceil >= queue.rate > 0 for queue in made.queues)
    assert made.default == minor(0)


def test_packets_are_told_apart_by_dscp_and_by_the_labels_traffic_class(made: Plan) -> None:
    for name, known in qos.load().classes.items():
        for data, protocol in (
            (bytes(IP(tos=known.dscp << 2 | 3, len=1_400)), IPV4),
            (bytes(IPv6(tc=known.dscp << 2 | 1, fl=0xFFFFF)), IPV6),
            (bytes(MPLS(label=0xFFFFF, cos=known.queue, s=1, ttl=255)), LABELLED),
        ):
            assert queue_of(made, protocol, data) == minor(known.queue), name
    assert queue_of(made, IPV4, bytes(IP(tos=62 << 2))) == made.default
    assert queue_of(made, LLDP, bytes(20)) == minor(7)


def test_a_filter_is_known_by_its_priority(made: Plan) -> None:
    assert len({found.priority for found in made.filters}) == len(made.filters)
    for found in made.filters:
        assert filter_of(found.priority, found.minor) == found
        assert 0 < found.priority < 1 << 16
    assert filter_of(49_152, minor(1)) is None


@given(st.floats(8_000, 8e12))
def test_any_rate_makes_queues_that_the_kernel_takes(rate: float) -> None:
    policy = qos.load()
    for queue in plan(policy.classes, policy.default, rate).queues:
        assert 1 <= queue.rate <= queue.ceil
        assert queue.burst > 0
        assert queue.depth > 0


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_rate_is_refused(rate: float) -> None:
    policy = qos.load()
    with pytest.raises(ValueError, match="and not"):
        plan(policy.classes, policy.default, rate)
