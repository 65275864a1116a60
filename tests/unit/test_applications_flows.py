"""What the first packets of a flow tell: who began, how fast it was answered, and no more of
them than asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.observe.applications.captures import Frame
from controller.observe.applications.engine import Finding
from controller.observe.applications.flows import FlowTable, Key, Limits, Trace
from controller.observe.applications.frames import Packet
from controller.observe.applications.naming import Naming
from controller.observe.applications.records import Direction, Kind, Verdict
from tests.unit import applications_traffic as traffic

NAMING = Naming(
    applications={"HTTP": "web server", "TLS": "web server", "YouTube": "video streaming"},
    ndpi={"Chat": "messaging"},
    ports={"tcp/7777": "HTTP", "udp/5000": "RTP"},
    opaque=frozenset({"TLS"}),
)


class FakeEngine:
    """Says `finding` of every flow, from its `sure_after`-th packet on."""

    def __init__(self, finding: Finding, sure_after: int = 1_000) -> None:
        self.finding = finding
        self.sure_after = sure_after
        self.open: list[list[int]] = []
        self.packets = 0

    def begin(self, key: Key, time: float, packet: Packet, frame: bytes) -> Any:
        self.packets += 1
        self.open.append([1])
        return self.open[-1]

    def more(self, key: Key, flow: Any, time: float, packet: Packet, frame: bytes) -> None:
        self.packets += 1
        flow[0] += 1

    def decided(self, flow: Any) -> bool:
        return bool(flow[0] >= self.sure_after)

    def end(self, key: Key, flow: Any) -> Finding:
        self.open = [held for held in self.open if held is not flow]
        return self.finding


def found(label: str = "HTTP", category: str = "Web", sure: bool = True) -> Finding:
    return Finding(label, category, sure, "dpi", ("some_risk",), "name")


UNKNOWN = found("Unknown", "Unspecified", sure=False)


class FakeBehaviour:
    def __init__(self, answer: tuple[str, float] | None) -> None:
        self.answer = answer
        self.asked: list[Trace] = []

    def classify(self, protocol: str, trace: Trace) -> tuple[str, float] | None:
        self.asked.append(list(trace))
        return self.answer


def table(engine: FakeEngine | None = None, **limits: Any) -> FlowTable:
    return FlowTable(engine or FakeEngine(found()), NAMING, Limits(**{"idle_s": 1e9, **limits}))


def fed(flows: FlowTable, frames: Iterable[Frame]) -> list[Verdict]:
    for frame in frames:
        flows.feed(0, frame.time, frame.link, frame.data)
    flows.finish()
    return flows.verdicts


def test_who_sends_the_syn_began() -> None:
    (verdict,) = fed(table(), traffic.tcp(7777, traffic.HTTP))
    assert (verdict.direction, verdict.responder.port) == (Direction.SYN, 7777)
    assert verdict.responder.address == traffic.SERVER
    assert verdict.initiator.mac == traffic.CLIENT_MAC


def test_who_answers_the_syn_did_not_begin() -> None:
    frames = traffic.tcp(55_555, traffic.HTTP)[1:]
    (verdict,) = fed(table(), frames)
    assert (verdict.direction, verdict.responder.port) == (Direction.SYN, 55_555)


@pytest.mark.parametrize("port", [80, 7777], ids=["reserved", "of the policy"])
def test_without_a_syn_a_known_port_answers(port: int) -> None:
    frames = traffic.tcp(port, traffic.HTTP)
    for seen in (frames[3:], frames[4:]):
        (verdict,) = fed(table(), seen)
        assert (verdict.direction, verdict.responder.port) == (Direction.PORT, port)
        assert verdict.handshake_s is None


def test_without_either_who_came_first_began() -> None:
    frames = traffic.tcp(55_555, traffic.HTTP)
    (verdict,) = fed(table(), frames[3:])
    assert (verdict.direction, verdict.responder.port) == (Direction.FIRST, 55_555)
    (verdict,) = fed(table(), frames[4:])
    assert (verdict.direction, verdict.responder.port) == (Direction.FIRST, 40_000)


def test_a_datagram_that_answers_a_question_not_seen() -> None:
    (verdict,) = fed(table(), traffic.udp(53, traffic.dns("x.example"))[1:])
    assert (verdict.direction, verdict.responder.port) == (Direction.PORT, 53)
    assert verdict.response_s is None


@pytest.mark.parametrize(
    ("said", "response"),
    [
        ([(True, b"ask"), (False, b"answer")], 0.001),
        ([(True, b"ask"), (True, b"more"), (False, b"answer")], 0.001),
        ([(False, b"welcome"), (True, b"thanks")], 0.001),
        ([(True, b"ask")], None),
        ([], None),
    ],
    ids=["answer", "after the last question", "server first", "no answer", "silence"],
)
def test_response_times(said: traffic.Said, response: float | None) -> None:
    (verdict,) = fed(table(), traffic.tcp(80, said))
    assert verdict.handshake_s == pytest.approx(0.002)
    assert verdict.response_s == (response if response is None else pytest.approx(response))


def test_a_lost_syn_was_waited_for() -> None:
    frames = traffic.tcp(80, traffic.HTTP)
    again = [frames[0]._replace(time=frames[0].time - 1.0), *frames]
    (verdict,) = fed(table(), again)
    assert verdict.handshake_s == pytest.approx(1.002)


def test_clocks_that_go_back_make_no_time() -> None:
    frames = traffic.tcp(80, traffic.HTTP, step=-1.0)
    (verdict,) = fed(table(), frames)
    assert (verdict.handshake_s, verdict.response_s) == (None, None)


def test_only_the_first_packets_are_looked_at() -> None:
    engine = FakeEngine(found())
    said = [(n % 2 == 0, b"x" * n) for n in range(1, 60)]
    flows = table(engine, packets=6)
    for frame in traffic.tcp(80, said):
        flows.feed(0, frame.time, frame.link, frame.data)
    assert engine.packets == 6
    assert [v.packets for v in flows.verdicts] == [6]
    assert engine.open == []
    flows.finish()
    assert len(flows.verdicts) == 1


def test_what_is_known_sooner_is_told_sooner() -> None:
    engine = FakeEngine(found(), sure_after=4)
    flows = table(engine)
    for frame in traffic.tcp(80, traffic.HTTP):
        flows.feed(0, frame.time, frame.link, frame.data)
    # Four packets name it; the fifth is the response, which is waited for.
    (verdict,) = flows.verdicts
    assert (engine.packets, verdict.packets) == (4, 4)
    assert verdict.response_s is not None


def test_names_kinds_and_categories() -> None:
    def told(finding: Finding, port: int = 55_555) -> tuple[str, Kind, str, str]:
        (v,) = fed(table(FakeEngine(finding)), traffic.tcp(port, traffic.HTTP))
        return v.application, v.kind, v.category, v.method

    assert told(found("HTTP")) == ("HTTP", Kind.CONFIRMED, "web server", "dpi")
    assert told(found("TLS.YouTube"))[2] == "video streaming"
    assert told(found("DNS.YouTube", "Chat"))[2] == "messaging"
    assert told(found("Slack", "Chat"))[2] == "messaging"
    assert told(found("Thing", "Else"))[2] == "other"
    assert told(found("HTTP", sure=False))[1] is Kind.GUESSED
    assert told(UNKNOWN, 7777) == ("HTTP", Kind.GUESSED, "web server", "policy_port")
    assert told(UNKNOWN) == ("unknown", Kind.UNKNOWN, "unknown", "dpi")


def test_behaviour_is_asked_where_packets_say_too_little() -> None:
    def told(finding: Finding, answer: tuple[str, float] | None) -> tuple[str, Kind, str, Kind]:
        behaviour = FakeBehaviour(answer)
        flows = FlowTable(FakeEngine(finding), NAMING, Limits(), behaviour)
        (v,) = fed(flows, traffic.tcp(55_555, traffic.HTTP))
        assert (v.confidence == 0.9) == (v.category_kind is Kind.BEHAVIOURAL)
        assert not behaviour.asked or behaviour.asked[0][3][1] > 0 > behaviour.asked[0][4][1]
        return v.application, v.kind, v.category, v.category_kind

    sure, unsure = ("database", 0.9), ("database", 0.5)
    behavioural = ("unknown", Kind.BEHAVIOURAL, "database", Kind.BEHAVIOURAL)
    nothing = ("unknown", Kind.UNKNOWN, "unknown", Kind.UNKNOWN)
    hidden = ("TLS", Kind.CONFIRMED, "database", Kind.BEHAVIOURAL)
    assert told(UNKNOWN, sure) == behavioural
    assert told(UNKNOWN, unsure) == nothing
    assert told(UNKNOWN, None) == nothing
    assert told(found("TLS"), sure) == hidden
    assert told(found("HTTP"), sure)[2:] == ("web server", Kind.CONFIRMED)


def test_traces() -> None:
    flows = table(FakeEngine(found(), sure_after=1), traces=True)
    (verdict,) = fed(flows, traffic.tcp(80, [(True, b"ask"), (False, b"answer")]))
    assert [size for _, size in verdict.trace] == [0, 0, 0, 3, -6]
    assert [at for at, _ in verdict.trace] == pytest.approx([0, 0.001, 0.002, 0.003, 0.004])


def test_a_full_table_ends_the_oldest() -> None:
    engine = FakeEngine(found())
    flows = table(engine, flows=3)
    for sport in range(40_000, 40_010):
        frame = traffic.tcp(80, [], sport=sport)[0]
        flows.feed(0, frame.time, frame.link, frame.data)
    assert [v.initiator.port for v in flows.verdicts] == list(range(40_000, 40_007))
    assert (flows.counters.evicted, len(engine.open)) == (7, 3)


def test_idle_flows_end() -> None:
    flows = table(idle_s=30.0)
    for start, sport in ((0.0, 1), (10.0, 2), (35.0, 3), (100.0, 4)):
        frame = traffic.tcp(80, [], sport=sport, start=1_000.0 + start)[0]
        flows.feed(0, frame.time, frame.link, frame.data)
    assert [v.initiator.port for v in flows.verdicts] == [1, 2, 3]


def test_a_told_flow_that_goes_on_is_not_told_again() -> None:
    flows = table(packets=3, idle_s=30.0)
    (verdict,) = fed_for(flows, traffic.tcp(80, [(True, b"x")] * 200, step=1.0))
    assert verdict.packets == 3


def fed_for(flows: FlowTable, frames: Iterable[Frame]) -> list[Verdict]:
    for frame in frames:
        flows.feed(0, frame.time, frame.link, frame.data)
    return flows.verdicts


def test_poisoned_flows_are_kept_from_the_engine() -> None:
    engine = FakeEngine(found())
    frames = traffic.tcp(80, traffic.HTTP)
    packet = (6, bytes([10, 0, 0, 2]), bytes([10, 0, 0, 1]), 80, 40_000, 0)
    flows = FlowTable(engine, NAMING, Limits(), poisoned=[(0, packet)])
    (verdict,) = fed(flows, frames)
    assert (verdict.kind, verdict.method, engine.packets) == (Kind.UNKNOWN, "crashed", 0)


def test_what_is_no_packet_is_counted() -> None:
    flows = table()
    flows.feed(0, 1.0, 1, b"nothing")
    flows.feed(0, 1.0, 77, b"no such link")
    assert (flows.counters.frames, flows.counters.ignored) == (2, 2)
    assert fed(flows, []) == []


SOME = {
    (flow, client, size): traffic.tcp(80, [(client, b"x" * size)], sport=40_000 + flow)[-1].data
    for flow in range(4)
    for client in (True, False)
    for size in range(3)
}


@given(
    st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 2)), max_size=60),
    st.integers(1, 8),
    st.integers(1, 4),
)
def test_each_flow_is_told_once(
    steps: list[tuple[int, bool, int]], packets: int, most: int
) -> None:
    """Whatever the order of packets: every flow begun is ended, and shown in bounds."""
    engine = FakeEngine(found())
    flows = table(engine, packets=packets, flows=most)
    for at, (flow, client, size) in enumerate(steps):
        flows.feed(0, float(at), 1, SOME[flow, client, size])
        assert len(engine.open) <= most
    flows.finish()
    assert engine.open == []
    assert len(flows.verdicts) == flows.counters.flows
    assert all(1 <= v.packets <= packets for v in flows.verdicts)


COOKIE = b"a2z7" * 9 + b"\0"


@pytest.mark.parametrize(
    ("said", "application"),
    [
        ([(True, COOKIE), (False, b"\x09"), (True, b"\0\0\0\x02{}")], "iPerf3"),
        ([(True, COOKIE), (False, b"\x0a")], "unknown"),
        ([(True, COOKIE.upper()), (False, b"\x09")], "unknown"),
        ([(True, COOKIE[:20]), (False, b"\x09")], "unknown"),
        ([(False, COOKIE), (True, b"\x09")], "unknown"),
    ],
)
def test_what_we_recognise_ourselves(said: traffic.Said, application: str) -> None:
    (told,) = fed(table(FakeEngine(UNKNOWN)), traffic.tcp(7_000, said))
    assert told.application == application
    assert (told.kind is Kind.CONFIRMED) == (application != "unknown")


def test_what_is_cut_off_is_not_recognised() -> None:
    frames = traffic.tcp(7_000, [(True, COOKIE), (False, b"\x09")])
    cut = [frame._replace(data=frame.data[:60]) for frame in frames]
    assert all(told.application == "unknown" for told in fed(table(FakeEngine(UNKNOWN)), cut))
