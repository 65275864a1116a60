"""The channel to one switch, against a fake switch that keeps entries and answers in bytes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.act.dataplane import channel as channel_module
from controller.act.dataplane import reading
from controller.act.dataplane.channel import Channel, Stage
from controller.act.dataplane.compiler import Desired, FlowKey, GroupKey, Key, key_of
from controller.act.dataplane.openflow import decode, encode, wire
from controller.act.dataplane.openflow import fields as f
from controller.act.dataplane.openflow.oxm import put_match
from controller.act.dataplane.openflow.records import (
    Bucket,
    Flow,
    Group,
    GroupType,
    Output,
    ToGroup,
    match,
)
from tests.unit.fake_switch import FakeSwitch


def flow(port: int, out: int = 1, cookie: int = 7) -> Flow:
    return Flow(0, 10, match((f.IN_PORT, port)), (Output(out),), None, cookie)


def desired(*entries: Flow | Group) -> Desired:
    return Desired({}, {key_of(e): e for e in entries})


def settle(channel: Channel, switch: FakeSwitch) -> None:
    """Let both talk until neither has anything to say."""
    for _ in range(50):
        sent = b"".join(channel.batch(0.0))
        if not sent:
            return
        talk(channel, switch, sent)
    raise AssertionError("they never come to an end")


def talk(channel: Channel, switch: FakeSwitch, sent: bytes, now: float = 0.0) -> None:
    for kind, reply in switch.receive(sent):
        channel.received(kind, reply, now)


def started(wanted: Desired, switch: FakeSwitch, revision: int = 1) -> Channel:
    channel = Channel(wanted, revision)
    talk(channel, switch, channel.read(0.0))
    settle(channel, switch)
    return channel


def test_only_the_difference_is_sent() -> None:
    same, changed, missing, stale = flow(1), flow(2), flow(3), flow(4)
    switch = FakeSwitch([same, flow(2, out=9), stale])
    channel = started(desired(same, changed, missing), switch)
    assert switch.flows() == {same, changed, missing}
    assert switch.touched == {changed.place, missing.place, stale.place}
    assert channel.confirmed == 1
    assert channel.pending == 0


def test_nothing_is_sent_where_nothing_differs() -> None:
    switch = FakeSwitch([flow(1)])
    channel = started(desired(flow(1)), switch)
    assert not switch.touched
    assert channel.confirmed == 1


def test_a_change_is_confirmed_by_its_barrier_only() -> None:
    switch = FakeSwitch([])
    wanted = desired()
    channel = started(wanted, switch)
    wanted.entries[key_of(flow(1))] = flow(1)
    channel.changed({key_of(flow(1))}, 2)
    sent = b"".join(channel.batch(0.0))
    replies = switch.receive(sent)
    for kind, reply in replies[:-1]:
        channel.received(kind, reply, 0.0)
        assert channel.confirmed == 1
    channel.received(*replies[-1], 0.0)
    assert channel.confirmed == 2


def test_a_revision_that_changes_nothing_here_is_confirmed_at_once() -> None:
    channel = started(desired(), FakeSwitch([]))
    channel.changed(set(), 9)
    assert channel.confirmed == 9


def test_a_refused_entry_is_set_aside_with_its_error_and_the_rest_stands() -> None:
    bad, good = flow(1, out=666), flow(2)
    switch = FakeSwitch([], refuses=lambda f: Output(666) in f.actions)
    wanted = desired(bad, good)
    channel = started(wanted, switch)
    assert switch.flows() == {good}
    (refusal,) = channel.refused.values()
    assert refusal.entry == bad
    assert "BAD_ACTION" in refusal.error
    # Something else in its place is tried again.
    wanted.entries[key_of(bad)] = flow(1)
    channel.changed({key_of(bad)}, 2)
    settle(channel, switch)
    assert switch.flows() == {flow(1), good}
    assert not channel.refused
    assert channel.confirmed == 2


def test_drift_is_found_and_repaired_and_aliens_go() -> None:
    wanted = desired(flow(1), flow(2))
    switch = FakeSwitch([flow(1), flow(2)])
    channel = started(wanted, switch)
    switch.put(flow(1, out=5))
    switch.drop(flow(2))
    switch.put(flow(9, cookie=0))
    talk(channel, switch, channel.read(0.0))
    assert {d.key for d in channel.drifts} == {key_of(x) for x in (flow(1), flow(2), flow(9))}
    settle(channel, switch)
    assert switch.flows() == {flow(1), flow(2)}


def test_an_audit_in_parts_sees_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "PART", 3)
    flows = [flow(port, cookie=port) for port in range(20)]
    switch = FakeSwitch(flows)
    channel = started(desired(*flows), switch)
    assert channel.parts == 8
    switch.put(flow(3, out=9, cookie=4))
    switch.drop(flow(5))
    switch.put(flow(30, cookie=0x1234))
    found: set[object] = set()
    for _ in range(channel.parts):
        talk(channel, switch, channel.audit(0.0))
        found |= {d.key for d in channel.drifts}
        settle(channel, switch)
    assert found == {key_of(flow(p)) for p in (3, 5, 30)}
    assert switch.flows() == set(flows)
    for _ in range(channel.parts):
        talk(channel, switch, channel.audit(0.0))
        assert not channel.drifts


def test_what_is_in_flight_is_no_drift() -> None:
    wanted = desired(flow(1))
    switch = FakeSwitch([flow(1)])
    channel = started(wanted, switch)
    question = channel.read(0.0)
    wanted.entries[key_of(flow(2))] = flow(2)
    channel.changed({key_of(flow(2))}, 2)
    # The switch reads the question before the change that was decided after it.
    answers = switch.receive(question)
    sent = b"".join(channel.batch(0.0))
    for kind, reply in answers:
        channel.received(kind, reply, 0.0)
    assert channel.drifts == []
    talk(channel, switch, sent)
    settle(channel, switch)
    assert switch.flows() == {flow(1), flow(2)}


def test_groups_come_before_what_refers_to_them_and_go_after() -> None:
    inner = Group(2, GroupType.ALL, (Bucket((Output(1),)),))
    outer = Group(1, GroupType.ALL, (Bucket((ToGroup(2),)),))
    user = Flow(0, 10, match((f.IN_PORT, 1)), (ToGroup(1),), None, 7)
    switch = FakeSwitch([])
    wanted = desired(user, outer, inner)
    channel = started(wanted, switch)
    assert [k for k in switch.order if isinstance(k, GroupKey)] == [GroupKey(2), GroupKey(1)]
    assert isinstance(switch.order[-1], FlowKey)
    switch.order.clear()
    keys: set[Key] = set(wanted.entries)
    wanted.entries.clear()
    channel.changed(keys, 2)
    settle(channel, switch)
    assert isinstance(switch.order[0], FlowKey)
    assert not switch.groups


def test_zones_are_forgotten_before_rules_change() -> None:
    wanted = desired()
    channel = started(wanted, FakeSwitch([]))
    wanted.entries[key_of(flow(1))] = flow(1)
    channel.changed({key_of(flow(1))}, 2, [77])
    sent = b"".join(channel.batch(0.0))
    first = encode.ct_flush_zone(0, 77)
    assert sent[8 : len(first)] == first[8:]
    assert sent[1] == wire.EXPERIMENTER


def test_never_more_than_the_window_is_unanswered() -> None:
    flows = [flow(port) for port in range(25)]
    switch = FakeSwitch([])
    channel = Channel(desired(*flows), 1, window=10)
    talk(channel, switch, channel.read(0.0))
    sizes = []
    while sent := b"".join(channel.batch(0.0)):
        assert not list(channel.batch(0.0))
        before = len(switch.order)
        talk(channel, switch, sent)
        sizes.append(len(switch.order) - before)
    assert sizes == [10, 10, 5]
    assert switch.flows() == set(flows)
    assert channel.confirmed == 1


def test_a_silent_switch_has_a_deadline() -> None:
    channel = Channel(desired(flow(1)), 1, timeout_s=5)
    assert channel.deadline() is None
    channel.read(10.0)
    assert channel.deadline() == 15.0
    assert channel.stage is Stage.READING
    assert not list(channel.batch(11.0))


PORTS = st.integers(1, 6)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("want"), PORTS, st.integers(1, 3)),
        st.tuples(st.just("forget"), PORTS, st.just(0)),
        st.tuples(st.just("tamper"), PORTS, st.integers(1, 3)),
        st.tuples(st.just("steal"), PORTS, st.just(0)),
        st.tuples(st.just("audit"), st.just(0), st.just(0)),
        st.tuples(st.just("answer"), st.just(0), st.just(0)),
        st.tuples(st.just("send"), st.just(0), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=200)
@given(STEPS, st.sets(st.integers(1, 3), max_size=1))
def test_whatever_happens_an_audit_ends_with_what_is_wanted(
    steps: list[tuple[str, int, int]], refused: set[int]
) -> None:
    """Changes, tampering, audits and answers in any order; then one audit in peace."""
    wanted = desired()
    switch = FakeSwitch([], refuses=lambda f: any(Output(o) in f.actions for o in refused))
    channel = started(wanted, switch)
    waiting: list[bytes] = []
    revision = 1
    for what, port, out in steps:
        entry = flow(port, out or 1)
        if what in ("want", "forget"):
            revision += 1
            if what == "want":
                wanted.entries[key_of(entry)] = entry
            else:
                wanted.entries.pop(key_of(entry), None)
            channel.changed({key_of(entry)}, revision)
        elif what == "tamper" and out not in refused:
            switch.put(flow(port, out, cookie=0))
        elif what == "steal":
            switch.drop(entry)
        elif what == "audit":
            waiting.append(channel.read(0.0))
        elif what == "send":
            waiting.append(b"".join(channel.batch(0.0)))
        elif waiting:
            talk(channel, switch, waiting.pop(0))
        assert channel.confirmed <= revision
    for sent in waiting:
        talk(channel, switch, sent)
    settle(channel, switch)
    talk(channel, switch, channel.read(0.0))
    settle(channel, switch)
    takes = {e for e in wanted.entries.values() if not any(Output(o) in e.actions for o in refused)}
    assert takes <= switch.flows()
    assert {x.place for x in switch.flows()} <= {e.place for e in wanted.entries.values()}
    assert {r.key for r in channel.refused.values()} == {
        key_of(e) for e in wanted.entries.values() if e not in takes
    }
    assert channel.confirmed == revision


def test_who_answers_soon_gets_more_and_who_takes_long_less() -> None:
    channel = Channel(desired(*(flow(n) for n in range(10_000))), 1, timeout_s=16, window=2_000)
    switch = FakeSwitch([])
    talk(channel, switch, channel.read(0.0))
    paces = []
    for took in (1.0, 1.9, 2.1, 8.0, 9.0, 15.0, 1.0):
        paces.append(channel.pace)
        before = len(switch.order)
        talk(channel, switch, b"".join(channel.batch(100.0)), now=100.0 + took)
        assert len(switch.order) - before == paces[-1]
    assert [*paces, channel.pace] == [500, 1_000, 2_000, 2_000, 2_000, 1_000, 500, 1_000]
    settle(channel, switch)
    assert len(switch.flows()) == 10_000


def test_however_slow_it_is_given_something_to_do() -> None:
    channel = Channel(desired(*(flow(n) for n in range(30))), 1, timeout_s=16, window=4)
    switch = FakeSwitch([])
    talk(channel, switch, channel.read(0.0))
    while sent := b"".join(channel.batch(0.0)):
        talk(channel, switch, sent, now=15.0)
    assert channel.pace == 1
    assert channel.confirmed == 1


def part_of_a_dump(xid: int, told: str, number: int) -> bytes:
    """One part with one entry, and more to come."""
    if told == "of no field of ours":
        tests = bytes.fromhex("0001000c80001a040000000000000000")
    else:
        tests = put_match(flow(1 if told == "the same" else number).match)
    entry = tests + bytes.fromhex("0000000400000000")
    head = wire.FLOW_DESC.pack(24 + len(entry), 0, number, 0, 0, 0, 0, 0)
    body = wire.MULTIPART.pack(wire.MP_FLOW_DESC, wire.MP_MORE) + head + entry
    return wire.message(wire.MULTIPART_REPLY, xid, body)


@pytest.mark.parametrize("told", ["different", "the same", "of no field of ours"])
def test_a_switch_that_tells_of_entries_for_ever_is_not_listened_to(
    told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MOST", 100)
    channel = Channel(desired(flow(1)), 1)
    xid = decode.header(channel.read(0.0)).xid
    for number in range(100):
        channel.received(wire.MULTIPART_REPLY, part_of_a_dump(xid, told, number), 0.0)
    with pytest.raises(wire.Malformed, match="more than 100"):
        channel.received(wire.MULTIPART_REPLY, part_of_a_dump(xid, told, 100), 0.0)
