"""Which services are tapped, and what several flows tell of one."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from controller.observe.applications.identifier import Identifier
from controller.observe.applications.records import (
    Application,
    Direction,
    Endpoint,
    Kind,
    Service,
    Verdict,
)
from controller.observe.applications.services import (
    Progress,
    Rules,
    Services,
    State,
    conclude,
    elapsed,
    judged,
    noticed,
)

SERVICE = Service("vm-1", "tcp", 5432)
RULES = Rules(flows=1, attempts=3, every_s=1_000, retry_s=100, jitter=0.2, patience_s=60)


def verdict(
    application: str = "PostgreSQL", kind: Kind = Kind.CONFIRMED, category: str = "database",
    category_kind: Kind | None = None, confidence: float = 1.0, handshake: float | None = None,
    response: float | None = None, risks: tuple[str, ...] = (), port: int = 5432,
) -> Verdict:  # fmt: skip
    return Verdict(
        scope=0, protocol="tcp", vlan=0, initiator=Endpoint("10.0.0.1", 40_000),
        responder=Endpoint("10.0.0.2", port), direction=Direction.SYN, application=application,
        kind=kind, category=category, category_kind=category_kind or kind, confidence=confidence,
        method="dpi", risks=risks, server_name="", first_seen=0.0, packets=5,
        handshake_s=handshake, response_s=response, trace=((0.0, 1),),
    )  # fmt: skip


UNKNOWN = verdict("unknown", Kind.UNKNOWN, "unknown", confidence=0.0)
GUESS = verdict("PostgreSQL", Kind.GUESSED)
BEHAVED = verdict("unknown", Kind.BEHAVIOURAL, "database", confidence=0.9)


def after(verdicts: list[Verdict], rules: Rules = RULES) -> Progress:
    progress = noticed(SERVICE, 0.0, rules)
    for at, one in enumerate(verdicts):
        progress = judged(progress, one, float(at), 0.0, rules)
    return progress


def test_a_new_service_is_tapped_until_it_is_identified() -> None:
    progress = noticed(SERVICE, 10.0, RULES)
    assert (progress.state, progress.due) == (State.TAPPED, 70.0)
    progress = judged(progress, verdict(), 20.0, 0.5, RULES)
    assert (progress.state, progress.due) == (State.IDENTIFIED, 20.0 + 1_000 * 1.1)
    assert progress.application is not None
    assert progress.application.application == "PostgreSQL"
    assert progress.verdicts == ()


def test_unsure_verdicts_are_gathered() -> None:
    assert after([UNKNOWN, GUESS]).state is State.TAPPED
    identified = after([UNKNOWN, GUESS, verdict()])
    assert identified.state is State.IDENTIFIED
    assert identified.application is not None
    assert identified.application.flows == 3


def test_what_nothing_recognises_is_let_be_for_a_while() -> None:
    left = after([UNKNOWN, GUESS, UNKNOWN])
    assert (left.state, left.due) == (State.LEFT, 2.0 + 100)
    assert left.application is not None
    assert left.application.kind is Kind.GUESSED


def test_behaviour_identifies_after_several_flows() -> None:
    assert after([BEHAVED, UNKNOWN]).state is State.TAPPED
    identified = after([BEHAVED, UNKNOWN, UNKNOWN])
    assert identified.state is State.IDENTIFIED
    assert identified.application is not None
    assert identified.application.kind is Kind.BEHAVIOURAL
    assert identified.application.confidence == pytest.approx(0.9)


def test_more_flows_that_agree_can_be_asked_for() -> None:
    rules = Rules(flows=2, attempts=9)
    other = verdict("MySQL")
    assert after([verdict(), UNKNOWN], rules).state is State.TAPPED
    assert after([verdict(), other], rules).state is State.TAPPED
    assert after([verdict(), other, verdict()], rules).state is State.IDENTIFIED


def test_a_tap_that_sees_too_little_concludes_from_it() -> None:
    progress = after([GUESS])
    assert elapsed(progress, progress.due - 1, 0.0, RULES) is progress
    done = elapsed(progress, progress.due, 0.0, RULES)
    assert done.state is State.LEFT
    assert done.application is not None
    assert done.application.application == "PostgreSQL"


def test_late_verdicts_change_nothing() -> None:
    known = after([verdict()])
    assert judged(known, verdict("MySQL"), 5.0, 0.0, RULES) is known


def test_jitter_out_of_bounds() -> None:
    with pytest.raises(ValueError, match="jitter is 2: give -1 to 1"):
        judged(noticed(SERVICE, 0.0, RULES), verdict(), 0.0, 2, RULES)


KINDS = [verdict(), GUESS, BEHAVED, UNKNOWN, verdict("MySQL"), verdict("TLS.YouTube")]
STEPS = st.lists(st.one_of(st.sampled_from(KINDS), st.floats(0, 500)), max_size=40)


@given(STEPS, st.floats(-1, 1))
def test_whatever_happens_it_goes_on(steps: list[Verdict | float], jitter: float) -> None:
    """Verdicts are bounded, no tap that saw something lasts for ever, and what is settled is."""
    now, progress = 0.0, noticed(SERVICE, 0.0, RULES)
    for step in steps:
        before = progress
        if isinstance(step, float):
            now += step
            progress = elapsed(progress, now, jitter, RULES)
        else:
            progress = judged(progress, step, now, jitter, RULES)
        assert len(progress.verdicts) < RULES.attempts
        assert progress.due <= now + RULES.every_s * (1 + RULES.jitter)
        assert before.application is None or progress.application is not None
        if progress.state is not State.TAPPED:
            assert progress.application is not None


def test_the_protocol_of_most_flows_is_the_services() -> None:
    told = conclude(SERVICE, [verdict(), verdict("MySQL"), verdict(), UNKNOWN], 7.0)
    assert (told.application, told.conflicts) == ("PostgreSQL", (("MySQL", 1),))
    assert told.confidence == pytest.approx(2 / 3)
    assert (told.at, told.flows, told.packets) == (7.0, 4, 20)


def test_an_application_is_named_where_most_flows_are_of_it() -> None:
    youtube, teams = verdict("TLS.YouTube"), verdict("TLS.Teams")
    assert conclude(SERVICE, [youtube, youtube, teams], 0.0).application == "TLS.YouTube"
    assert conclude(SERVICE, [youtube, teams], 0.0).application == "TLS"
    assert conclude(SERVICE, [youtube, teams], 0.0).conflicts == ()


def test_a_name_server_is_not_what_it_is_asked_for() -> None:
    asked = verdict("DNS.YouTube", category="name service")
    assert conclude(SERVICE, [asked, asked], 0.0).application == "DNS"


def test_the_surest_kind_counts() -> None:
    assert conclude(SERVICE, [GUESS, GUESS, verdict("MySQL")], 0.0).application == "MySQL"
    assert conclude(SERVICE, [GUESS, BEHAVED], 0.0).kind is Kind.BEHAVIOURAL
    assert conclude(SERVICE, [GUESS, UNKNOWN], 0.0).conflicts == ()
    assert conclude(SERVICE, [UNKNOWN], 0.0).confidence == 0.0


def test_behaviour_tells_more_of_what_is_hidden() -> None:
    plain = verdict("TLS", category="web server")
    closer = verdict(
        "TLS", category="video streaming", category_kind=Kind.BEHAVIOURAL, confidence=0.85
    )
    told = conclude(SERVICE, [plain, plain, closer], 0.0)
    assert (told.kind, told.category) == (Kind.CONFIRMED, "video streaming")
    assert (told.category_kind, told.confidence) == (Kind.BEHAVIOURAL, 0.85)


def test_times_and_risks() -> None:
    several = [
        verdict(handshake=0.001, response=0.010, risks=("b",)),
        verdict(handshake=0.003, risks=("a", "b")),
        verdict(handshake=0.100, response=0.020),
    ]
    told = conclude(SERVICE, several, 0.0)
    assert (told.times.handshake_s, told.times.handshakes) == (0.003, 3)
    assert (told.times.response_s, told.times.responses) == (pytest.approx(0.015), 2)
    assert told.risks == ("a", "b")
    assert conclude(SERVICE, [verdict()], 0.0).times.handshake_s is None


def test_a_record_goes_through_json() -> None:
    told = conclude(SERVICE, [verdict(response=0.1), verdict("MySQL")], 3.0)
    adapter = TypeAdapter(Application)
    assert adapter.validate_json(adapter.dump_json(told)) == told
    assert asdict(told)["service"] == {"vm": "vm-1", "protocol": "tcp", "port": 5432}


def test_the_services_that_are_looked_at() -> None:
    services = Services(RULES, lambda: 0.0, bound=2)
    others = [Service("vm-2", "tcp", 80), Service("vm-3", "tcp", 80)]
    assert services.judge(SERVICE, UNKNOWN, 0.0) is None
    assert services.judge(others[0], UNKNOWN, 0.0) is None
    # There is no room for a third.
    assert services.judge(others[1], verdict(), 0.0) is None

    told = services.judge(SERVICE, verdict(), 1.0)
    assert told is not None
    assert told.application is not None
    assert (told.application.application, told.application.flows) == ("PostgreSQL", 2)
    assert services.progress(SERVICE) is None

    assert services.tick(59.0) == []
    assert [p.state for p in services.tick(61.0)] == [State.LEFT]
    assert services.progress(others[0]) is None
    assert services.tick(10_000.0) == []


class FakeWorker:
    def __init__(self, verdicts: list[Verdict]) -> None:
        self.verdicts = verdicts
        self.fed: list[int] = []
        self.expired: list[float] = []

    def expire(self, now: float) -> None:
        self.expired.append(now)

    def feed(self, scope: int, time: float, frame: bytes, link: int) -> bool:
        self.fed.append(scope)
        return True

    def poll(self) -> list[Verdict]:
        verdicts, self.verdicts = self.verdicts, []
        return verdicts


def test_tenants_may_have_the_same_addresses() -> None:
    worker = FakeWorker(
        [verdict()._replace(scope=1), verdict(port=80)._replace(scope=0), verdict()]
    )
    owners = {("red", 5432): "vm-red", ("blue", 5432): "vm-blue"}
    identifier = Identifier(
        worker,  # type: ignore[arg-type]
        lambda tenant, end: owners.get((tenant, end.port)),
    )
    for tenant in ("red", "blue", "red"):
        assert identifier.feed(tenant, 1.0, b"frame")
    assert worker.fed == [0, 1, 0]
    found = identifier.poll(5.0)
    assert [service.vm for service, _ in found] == ["vm-blue", "vm-red"]
    assert worker.expired == []
    assert identifier.poll(6.0) == []
    assert worker.expired == [6.0]
