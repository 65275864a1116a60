"""What a VM can use at most, and whom it is like before it has a past."""

from __future__ import annotations

import math

import pytest

from controller.decide.bandwidth import qos
from controller.loops.capacities import capacities
from controller.loops.kindred import kindred
from controller.model.nouns import Host, Nic, Placement, Port, RateLimit, Record, Vm
from controller.model.state import State
from controller.observe.behaviour.album import Role
from controller.predict.demand.series import Metric
from controller.settings import ForecastSettings

EDGE = f"{1:016x}"
IN, OUT = Metric.NET_RX, Metric.NET_TX


def machine(key: str, *groups: str, tenant: str = "t") -> Vm:
    return Vm(
        id=key, tenant=tenant, nics=(Nic(mac="02:00:00:00:00:01", subnet="s"),), groups=groups
    )


def known(
    *more: Record, text: str = "", vm: Vm | None = None, **told: float
) -> dict[Metric, float]:
    """Mbit/s, or MB/s of disks, that a VM at a host can use."""
    records = (Host(id="h", datapath=EDGE), Placement(vm="a", host="h", ports=("p", "q")))
    state = State.of([*records, vm or machine("a"), *more])
    policy = qos.parse(qos.DEFAULT.read_text().replace("hosts: {}", text or "hosts: {}"), "q")
    settings = ForecastSettings.model_validate(told)
    found = {
        metric: capacities(state, policy, settings, metric, ["a"], {"a": 2.0**30})[0]
        for metric in Metric
    }
    assert found[Metric.CPU] == 1.0
    assert found[Metric.MEMORY] == 2**30
    return {
        metric: found[metric] * (8 if metric.family == "net" else 1) / 1e6
        for metric in Metric
        if metric.family in ("net", "disk") and not math.isnan(found[metric])
    }


def test_what_nobody_says_is_not_known() -> None:
    assert known() == {}
    assert capacities(State(), qos.load(), ForecastSettings(nic_mbps=8), OUT, ["gone"], {}) == [1e6]


def test_the_least_of_what_is_said_holds_in_each_direction() -> None:
    assert known(nic_mbps=1_000) == {IN: 1_000, OUT: 1_000}
    assert known(text="hosts: {h: 500}", nic_mbps=1_000) == {IN: 500, OUT: 500}
    assert known(vm=machine("a", "spare"), nic_mbps=1_000) == {IN: 100, OUT: 100}
    assert known(RateLimit(vm="a", out_kbit=4_000), nic_mbps=10) == {IN: 10, OUT: 4}
    assert known(disk_mb_s=200) == {Metric.DISK_READ: 200, Metric.DISK_WRITE: 200}


def test_ports_are_believed_where_nobody_else_says_anything_and_taps_are_not() -> None:
    one = Port(datapath=EDGE, number=1, name="p", speed=10**9)
    two = Port(datapath=EDGE, number=2, name="q", speed=10**9)
    assert known(one, two) == {IN: 2_000, OUT: 2_000}
    assert known(one, two, nic_mbps=3_000) == {IN: 3_000, OUT: 3_000}
    assert known(one) == {}
    assert known(one, two.model_copy(update={"speed": 10**7})) == {}


@pytest.mark.parametrize("wrong", [0, -1, math.nan, math.inf, 1e9])
def test_capacities_that_cannot_be_are_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="nic_mbps"):
        ForecastSettings.model_validate({"nic_mbps": wrong})


def test_kinds_are_told_the_closest_first() -> None:
    vms = {vm.id: vm for vm in (
        machine("a", "web"), machine("b", "web"), machine("c", "web"), machine("new", "web", "eu"),
        machine("lone", tenant="u"), machine("odd", "db"), machine("odder", "db"),
    )}  # fmt: skip
    roles = [
        Role("role-1", ("a", "b"), 0, 0, 1),
        Role("role-2", ("c",), 0, 0, 1),
        Role("role-3", ("odd",), 0, 0, 1),
        Role("role-4", ("gone",), 0, 0, 1),
    ]
    found = kindred(vms, roles, {"new": 2.0**32, "lone": math.nan})
    assert found["c"] == ("role-2", "group web", "tenant t")
    assert found["new"] == ("role-1", "group web", "group eu", "flavour of 4 GiB", "tenant t")
    assert found["odder"][0] == "role-3"
    assert found["lone"] == ("tenant u",)
    assert kindred({}, roles, {}) == {}
    # Where a group plays many roles, none is the group's.
    many = [Role(f"role-{vm}", (vm,), 0, 0, 1) for vm in ("a", "b", "c")]
    assert kindred(vms, many, {})["new"][0] == "group web"
