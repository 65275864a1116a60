"""From what was found to what is told: alerts, their states, and their renderings."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.observe.anomalies import alerts, rendering, signatures
from controller.observe.anomalies.alerts import Alert, Kind, Signal, State
from controller.observe.anomalies.bank import Finding, View
from controller.observe.anomalies.roles import strays
from controller.observe.anomalies.signatures import Talk, What
from controller.observe.behaviour.roles import Role

HOUR = 3_600.0
SIGNAL = Signal(Kind.OWN_PATTERN, "web-1", "cpu", 1_000.0, 1.5, "cpu rose")


def opened(signal: Signal = SIGNAL) -> Alert:
    return alerts.take({}, signal, "a1")


def test_signals_about_one_thing_are_one_alert():
    first = opened()
    second = alerts.take({first.key: first}, replace(SIGNAL, at=1_300.0, score=4.0, why="more"), "")
    assert (second.id, second.count, second.score, second.why) == ("a1", 2, 4.0, "more")
    assert (second.first_at, second.last_at) == (1_000.0, 1_300.0)
    other = alerts.take({first.key: first}, replace(SIGNAL, metric="memory"), "a2")
    assert other.id == "a2"


def test_a_late_and_weaker_signal_moves_nothing_back():
    first = opened()
    late = alerts.take({first.key: first}, replace(SIGNAL, at=500.0, score=1.1, why="less"), "")
    assert (late.first_at, late.last_at, late.why) == (500.0, 1_000.0, "cpu rose")


def test_a_closed_alert_is_not_opened_again():
    closed = alerts.moved(opened(), State.CLOSED, 2_000.0, "ann")
    assert alerts.take({closed.key: closed}, SIGNAL, "a2").id == "a2"
    with pytest.raises(alerts.WrongStateError, match="a new finding opens a new alert"):
        alerts.moved(closed, State.OPEN, 3_000.0, "ann")


@given(st.lists(st.sampled_from(State), max_size=6))
def test_states_only_go_forward(wanted):
    order = list(State)
    alert = opened()
    for to in wanted:
        before = alert.state
        try:
            alert = alerts.moved(alert, to, 2_000.0, "ann")
        except alerts.WrongStateError:
            assert order.index(to) < order.index(before)
        assert order.index(alert.state) >= order.index(before)


def test_what_is_quiet_is_closed_unless_someone_has_it():
    alert = opened()
    assert alerts.settled(alert, 1_500.0, 600.0) is alert
    assert alerts.settled(alert, 1_700.0, 600.0).state is State.CLOSED
    theirs = alerts.moved(alert, State.ACKNOWLEDGED, 1_100.0, "ann")
    assert alerts.settled(theirs, 1e9, 600.0) is theirs


@pytest.mark.parametrize("view", View)
@pytest.mark.parametrize("upward", [True, False])
def test_a_finding_is_told_in_words_and_numbers(view, upward):
    signal = alerts.of_finding(Finding(0, 5.0, view, upward, 93.2, 41.0, 2.25), "web-1", "cpu")
    assert all(part in signal.why for part in ("cpu", "93.2", "41", "2.2"))


def test_a_cloud_event_of_an_alert():
    event = rendering.cloud_event(opened(), "/pleach/brain")
    assert event["specversion"] == "1.0"
    assert event["type"] == "io.pleach.alert.open"
    assert event["time"] == "1970-01-01T00:16:40.000Z"
    assert event["data"]["why"] == "cpu rose"
    closed = alerts.moved(opened(), State.CLOSED, 2_000.0, "ann")
    assert rendering.cloud_event(closed, "/x")["id"] != event["id"]


def test_alertmanager_is_told_until_it_is_over():
    closed = alerts.moved(opened(), State.CLOSED, 1_600.0, "ann")
    now, over = rendering.alertmanager([opened(), closed], 1_900.0, 60.0, "https://x/alerts/")
    assert now["labels"] == over["labels"]
    assert all(isinstance(value, str) for value in now["labels"].values())
    assert (now["startsAt"], now["endsAt"]) == (
        "1970-01-01T00:16:40.000Z",
        "1970-01-01T00:34:40.000Z",
    )
    assert over["endsAt"] == "1970-01-01T00:26:40.000Z"
    assert now["generatorURL"] == "https://x/alerts/a1"


def talked(hour: int, peers=("db",), size=1e6, external=False) -> list[Talk]:
    return [Talk("web", peer, "tcp", 5432, size, hour * HOUR, external) for peer in peers]


def learned(hours=48, **talks) -> dict[str, signatures.Habit]:
    habits: dict[str, signatures.Habit] = {}
    for hour in range(hours):
        habits, found = signatures.judge(habits, talked(hour, **talks))
        assert found == ()
    return habits


def test_a_new_peer():
    habits, (found,) = signatures.judge(learned(), talked(48, ("db", "mail")))
    assert (found.what, found.about) == (What.NEW_PEER, ("mail tcp/5432",))
    assert "mail tcp/5432" in alerts.of_deviation(found).why
    assert signatures.judge(habits, talked(49, ("mail",)))[1] == ()


def test_a_scan_is_one_report():
    peers = tuple(f"h{i}" for i in range(200))
    (found,) = signatures.judge(learned(), talked(48, peers))[1]
    assert (found.what, found.value) == (What.SCAN, 200)
    assert alerts.of_deviation(found).kind is Kind.SCAN


def test_a_volume_as_in_exfiltration_counts_only_what_leaves():
    habits = learned(external=True)
    (found,) = signatures.judge(habits, talked(48, size=5e9, external=True))[1]
    assert (found.what, found.value) == (What.VOLUME, 5e9)
    assert "5e+09 bytes" in alerts.of_deviation(found).why
    assert signatures.judge(habits, talked(48, size=5e9))[1] == ()


def test_a_source_without_a_past_is_not_judged():
    assert signatures.judge({}, talked(0, tuple(f"h{i}" for i in range(500))))[1] == ()


@given(
    st.lists(
        st.builds(
            Talk,
            st.sampled_from(["a", "b"]),
            st.sampled_from(["x", "y", "z"]),
            st.just("tcp"),
            st.integers(0, 3),
            st.floats(max_value=0) | st.just(float("nan")) | st.just(float("inf")),
            st.floats(),
            st.booleans(),
        ),
        max_size=20,
    )
)
def test_counters_that_were_reset_are_no_volume(talks):
    _, found = signatures.judge(learned(30), talks)
    assert all(one.what is not What.VOLUME for one in found)


def test_a_vm_that_left_its_role():
    chance = np.random.default_rng(2)
    vectors = {f"vm{i}": chance.normal(size=6) for i in range(20)}
    role = Role("r1", frozenset(vectors) | {"gone"})
    assert strays((role,), vectors) == ()
    vectors["vm3"] = np.full(6, 40.0)
    (found,) = strays((role,), vectors)
    assert (found.vm, found.role) == ("vm3", "r1")
    signal = alerts.of_stray(found, "trend", 9.0)
    assert (signal.kind, "role r1" in signal.why) == (Kind.ROLE, True)
