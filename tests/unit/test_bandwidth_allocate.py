"""Meters from claims: shares, promises that cannot be kept, hysteresis, bursts, the policy."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.decide.bandwidth.allocate import Allocation, decide
from controller.decide.bandwidth.control import demands, missed
from controller.decide.bandwidth.qos import parse
from controller.decide.bandwidth.records import (
    BandwidthError,
    Claim,
    Direction,
    Meter,
    Reservation,
    Resource,
)
from controller.settings import SettingsError

OUT = Direction.OUT
QOS = Path(__file__).resolve().parents[2] / "policies" / "qos.yaml"


def claim(vm: str, demand: float, uses: str = "up", **more: float) -> Claim:
    return Claim(vm, OUT, demand, uses=tuple((name, 1.0) for name in uses.split()), **more)


def rates(allocation: Allocation) -> dict[str, float]:
    return {meter.vm: round(meter.rate_bps, 3) for meter in allocation.meters}


def test_demands_come_first_and_what_is_left_is_given_out() -> None:
    claims = [claim("a", 60), claim("b", 10), claim("c", 0, ceiling_bps=5)]
    made = decide(claims, [Resource("up", 100)])
    assert rates(made) == {"a": 60, "b": 35, "c": 5}
    assert {m.vm: m.limited_by for m in made.meters} == {"a": "up", "b": "up", "c": None}


def test_shortage_is_shared_by_weight_above_guarantees() -> None:
    claims = [
        claim("a", 100, weight=3),
        claim("b", 100),
        claim("c", 100, guarantee_bps=60),
    ]
    assert rates(decide(claims, [Resource("up", 100)])) == {"a": 30, "b": 10, "c": 60}


def test_a_guarantee_that_is_not_asked_for_is_lent() -> None:
    claims = [claim("a", 100), claim("b", 20, guarantee_bps=60)]
    assert rates(decide(claims, [Resource("up", 100)])) == {"a": 80, "b": 20}


def test_fabric_links_and_tunnels_count_by_share() -> None:
    split = Claim("a", OUT, 100, uses=(("up", 1.0), ("tunnel", 0.5)))
    made = decide([split, claim("b", 100)], [Resource("up", 200), Resource("tunnel", 20)])
    assert rates(made) == {"a": 40, "b": 160}


def test_reservations_take_from_the_tunnel_while_they_last() -> None:
    tunnel, mine = [Resource("t", 100)], [claim("a", 100, "t")]
    reserved = Reservation("move-1", "t", 70, starts_at=10, ends_at=20)
    for now, rate in ((9.9, 100), (10, 30), (19.9, 30), (20, 100)):
        assert rates(decide(mine, tunnel, reservations=[reserved], now=now)) == {"a": rate}


def test_promises_that_cannot_be_kept_are_named_and_the_last_rates_stand() -> None:
    resources = [Resource("up1", 100), Resource("up2", 100)]
    last = decide([claim("a", 10, "up1"), claim("b", 10, "up2")], resources)
    claims = [
        claim("a", 10, "up1", guarantee_bps=20),
        claim("b", 10, "up1", guarantee_bps=70),
        claim("c", 10, "up1", guarantee_bps=50),
        claim("d", 10, "up2", guarantee_bps=100),
    ]
    made = decide(claims, resources, last=last)
    assert made.meters == last.meters
    assert [conflict.members for conflict in made.conflicts] == [("b out", "c out")]
    assert str(made.conflicts[0]).startswith("up1: b out, c out are promised 120 bit/s")
    reserved = Reservation("r", "up2", 1, 0, 9)
    with_reserved = decide(claims, resources, reservations=[reserved], now=1)
    assert with_reserved.conflicts[1].members == ("d out", "reservation r")


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(1, 150))
def test_a_conflict_is_irreducible(guarantees: list[int], capacity: int) -> None:
    claims = [claim(f"v{n}", 1, guarantee_bps=g) for n, g in enumerate(guarantees)]
    made = decide(claims, [Resource("up", capacity)])
    assert bool(made.conflicts) == (sum(guarantees) > capacity)
    for conflict in made.conflicts:
        size = {c.name: c.guarantee_bps for c in claims}
        assert sum(size[name] for name in conflict.members) > capacity
        for fewer in itertools.combinations(conflict.members, len(conflict.members) - 1):
            assert sum(size[name] for name in fewer) <= capacity


def test_meters_that_would_hardly_change_stay() -> None:
    up = [Resource("up", 100)]
    first = decide([claim("a", 50), claim("b", 50)], up)
    assert rates(decide([claim("a", 52), claim("b", 48)], up, last=first)) == {"a": 50, "b": 50}
    moved = decide([claim("a", 80), claim("b", 20)], up, last=first)
    assert rates(moved) == {"a": 80, "b": 20}


@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=2, max_size=6),
    st.integers(20, 200),
)
def test_hysteresis_never_overloads(wanted: list[tuple[int, int]], capacity: int) -> None:
    names = "up" if capacity % 2 else "up core"
    resources = [Resource("up", capacity), Resource("core", capacity * 0.9)]
    last = decide([claim(f"v{n}", a, names) for n, (a, _) in enumerate(wanted)], resources)
    smaller = [
        replace(resource, capacity_bps=resource.capacity_bps * 0.97) for resource in resources
    ]
    made = decide([claim(f"v{n}", b, names) for n, (_, b) in enumerate(wanted)], smaller, last=last)
    for resource in smaller[: len(names.split())]:
        assert sum(m.rate_bps for m in made.meters) <= resource.capacity_bps * (1 + 1e-6)


def test_a_burst_that_was_not_foreseen_is_answered_within_one_interval() -> None:
    up = [Resource("up", 1000)]
    claims = [claim("calm", 700), claim("burst", 50, ceiling_bps=900)]
    last = Allocation((Meter("calm", OUT, 940, "up"), Meter("burst", OUT, 60, "up")))
    # The meter of `burst` passes all that it may: nobody can see how much more it wants.
    passed = {("calm", OUT): 700.0, ("burst", OUT): 60.0}
    assert missed(passed, last) == ("burst",)
    now = demands(claims, passed, last, {})
    assert {c.vm: c.demand_bps for c in now} == {"calm": 875, "burst": 120}
    made = decide(now, up, last=last)
    assert rates(made) == {"calm": 875, "burst": 125}


def test_demand_falls_slowly_and_never_below_the_forecast() -> None:
    mine = [claim("a", 10)]
    key = ("a", OUT)
    last = Allocation((Meter("a", OUT, 1000, None),))
    given_before = {key: 400.0}
    seen = []
    for _ in range(7):
        (now,) = demands(mine, {key: 0.0}, last, given_before)
        given_before = {key: now.demand_bps}
        seen.append(now.demand_bps)
    assert seen == [200, 100, 50, 25, 12.5, 10, 10]
    assert demands(mine, {}, last, {key: 400.0}) == tuple(mine)


def test_usage_that_cannot_be_is_refused_by_name() -> None:
    for value in (-1.0, math.nan, math.inf):
        with pytest.raises(BandwidthError, match="usage of a out"):
            demands([claim("a", 1)], {("a", OUT): value}, None, {})


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (claim("a", math.nan), "claim a out: demand is nan"),
        (claim("a", -1), "claim a out: demand is -1"),
        (claim("a", 1, weight=0), "claim a out: weight is 0"),
        (claim("a", 1, guarantee_bps=5, ceiling_bps=4), "claim a out: the guarantee of 5"),
        (claim("a", 1, "nowhere"), "claim a out: it uses nowhere, which is no resource"),
        (Claim("a", OUT, 1), "claim a out: it uses no resource"),
        (Claim("a", OUT, 1, uses=(("up", 2.0),)), "claim a out: its share of up is 2.0"),
        (claim("a", 1, "up up"), "claim a out: it uses a resource twice"),
    ],
)
def test_claims_that_make_no_sense_are_refused_by_name(wrong: Claim, told: str) -> None:
    with pytest.raises(BandwidthError) as caught:
        decide([wrong], [Resource("up", 1)])
    assert any(problem.startswith(told) for problem in caught.value.problems)


def test_resources_and_reservations_that_make_no_sense_are_refused() -> None:
    with pytest.raises(BandwidthError, match="resource up: capacity is 0"):
        decide([claim("a", 1)], [Resource("up", 0)])
    with pytest.raises(BandwidthError, match="resources up: given twice"):
        decide([claim("a", 1)], [Resource("up", 1), Resource("up", 1)])
    with pytest.raises(BandwidthError, match="claim a out: given twice"):
        decide([claim("a", 1), claim("a", 1)], [Resource("up", 1)])
    with pytest.raises(BandwidthError, match="reservation r: t is no resource"):
        decide([], [], reservations=[Reservation("r", "t", 1, 0, 9)])


def test_the_policy_that_comes_with_pleach_says_what_the_rfcs_say() -> None:
    policy = parse(QOS.read_text(), str(QOS))
    points = {name: made.dscp for name, made in policy.classes.items()}
    assert points["telephony"] == 46
    assert points["network control"] == 48
    assert points["standard"] == 0
    assert points["scavenger"] == 1
    assert points["bulk"] == 10
    assert policy.class_of("SSH", "remote administration") == "interactive"
    assert policy.class_of("unheard of", "other") == "standard"
    assert policy.terms("v", "t", ["spare"]).ceiling_bps == 100e6
    assert policy.terms("v", "t", []).weight == 1


def test_everything_wrong_with_a_policy_is_told_with_its_line() -> None:
    text = QOS.read_text()
    lines = text.splitlines()

    def line(start: str) -> int:
        return next(n for n, found in enumerate(lines, 1) if found.strip().startswith(start))

    broken = (
        text.replace("dscp: EF", "dscp: EFF")
        .replace("weight: 8", "weight: -1")
        .replace("ceiling_mbps: 100", "cieling_mbps: 100")
    )
    with pytest.raises(SettingsError) as caught:
        parse(broken, "qos.yaml")
    told = [str(problem) for problem in caught.value.problems]
    for place, words in (
        (line("telephony"), "there is no DSCP EFF: did you mean EF?"),
        (line("critical:"), "greater than 0, not -1"),
        (line("- {groups: [spare]"), "did you mean ceiling_mbps?"),
    ):
        assert any(t.startswith(f"qos.yaml:{place}:") and words in t for t in told), told


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("dscp: AF31", "dscp: EF", "dscp 46 is of telephony and of streaming"),
        ("share: 0.25}", "share: 0.9}", "the shares sum to 1.61"),
        ("default: standard", "default: other", "default is other, which is no class"),
        ("priority: normal", "priority: norml", "the priority norml, which is not there"),
        ("  - {priority: normal}\n", "", "the last entry of vms must be for all"),
        ("queue: 4", "queue: 6", "queue 6 is of telephony and of streaming"),
        ("default: standard", "default: standard\ndefault: bulk", "is set a second time"),
        ("[mining, unwanted]", "[telephony]", "telephony is in telephony and in scavenger"),
        ("classes:", "classes: [", "is not YAML"),
    ],
)
def test_contradictions_in_a_policy_are_told(old: str, new: str, told: str) -> None:
    text = QOS.read_text()
    assert old in text
    with pytest.raises(SettingsError, match=told):
        parse(text.replace(old, new, 1), "qos.yaml")
