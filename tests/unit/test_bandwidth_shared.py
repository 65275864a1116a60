"""Bandwidth from the state of record to records of it, and marks of services."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.act.dataplane.openflow.counters import Counted
from controller.act.dataplane.pipeline import is_vm_meter, port_of_meter, vm_meter
from controller.act.dataplane.rules.bandwidth import effective
from controller.act.dataplane.usage import Counts, Flowed
from controller.decide.bandwidth import qos
from controller.decide.bandwidth.marks import mark, markings
from controller.decide.bandwidth.records import Direction
from controller.loops.bandwidth import Decided, Infeasible, Memory, Sharing, share
from controller.loops.foreseen import Foreseen
from controller.model.nouns import (
    Bandwidth,
    Datapath,
    Host,
    Link,
    LinkSpeed,
    Migration,
    Nic,
    Phase,
    Placement,
    RateLimit,
    Record,
    Reservation,
    Service,
    Subnet,
    Tenant,
    Tunnel,
    Vm,
)
from controller.model.state import State
from controller.predict.demand.forecast import Forecast, Reason
from controller.predict.demand.latest import Latest, sheet
from controller.predict.demand.series import Metric
from controller.predict.demand.targets import Target
from controller.settings import BandwidthSettings
from controller.store import Store
from controller.store.usage import Metered, Usage, read_usage, write_usage

EDGE, CORE = f"{1:016x}", f"{2:016x}"
POLICY = qos.DEFAULT.read_text()
SHARED = POLICY.replace("hosts: {}", "hosts: {h1: 20}")


def policy(text: str = SHARED, *rules: str) -> qos.QosPolicy:
    """The policy that comes with Pleach, with rules before its own."""
    return qos.parse(text.replace("vms:\n", "\n".join(["vms:", *rules, ""]), 1), "qos.yaml")


def vm(key: str, *groups: str) -> Vm:
    nic = Nic(mac=f"02:00:00:00:00:{ord(key):02x}", subnet="s")
    return Vm(id=key, tenant="t", nics=(nic,), groups=groups)


def world(*more: Record, vms: str = "ab") -> State:
    """VMs at one host of one edge."""
    records: list[Record] = [Host(id="h1", datapath=EDGE), Host(id="h2", datapath=CORE)]
    for key in vms:
        records += [vm(key), Placement(vm=key, host="h1", ports=(f"p{key}",))]
    return State.of([*records, *more])


class Fabric:
    """Decisions one after another, on what each VM would send."""

    def __init__(self, state: State, told: qos.QosPolicy) -> None:
        self.state, self.policy, self.memory = state, told, Memory()
        self.decided: Decided | None = None
        self.at = 0.0

    def turn(self, **mbps: float) -> dict[str, float]:
        """Mbit/s that each VM may send, after an interval in which it offered so much."""
        self.at += 1
        meters = []
        for key, offered in mbps.items():
            rate = effective(self.state, key)[0].kbit
            limit = float("inf") if rate is None else rate / 1_000
            dropped = max(0.0, offered - limit)
            meters.append(Metered(key, True, 1e6 * (offered - dropped), 1e6 * dropped))
        usage = [Usage(EDGE, self.at, tuple(meters))] if meters else []
        decided = share(
            self.state, self.policy, usage, {}, self.memory, now=self.at, hysteresis=0.05
        )
        self.decided, self.memory = decided, decided.memory
        self.state.bandwidths = dict(decided.bandwidths)
        return {key: (b.out_kbit or 0) / 1_000 for key, b in decided.bandwidths.items()}


def test_without_capacities_or_ceilings_nobody_is_metered() -> None:
    told = qos.load()
    assert Fabric(world(), told).turn() == {}
    spare = world(vm("c", "spare"), Placement(vm="c", host="h1", ports=("pc",)))
    assert Fabric(spare, told).turn() == {"c": 100.0}
    link = Link(datapath=EDGE, port=1, to_datapath=CORE, to_port=1)
    assert Fabric(world(link), told).turn() == {}


def test_a_missed_burst_has_its_fair_share_at_the_next_decision() -> None:
    fabric = Fabric(world(), policy())
    fabric.turn()
    fabric.turn(a=40)
    alone = fabric.turn(a=40, b=0)
    assert alone["a"] > 19
    assert alone["b"] >= 0.5  # enough to begin
    assert fabric.turn(a=40, b=40) == {"a": 10.0, "b": 10.0}
    assert fabric.turn(a=40, b=3)["a"] >= 15
    assert fabric.turn(a=40, b=3)["a"] > 16


def test_who_was_not_measured_is_taken_to_want_what_it_did() -> None:
    fabric = Fabric(world(), policy())
    for _ in range(3):
        busy = fabric.turn(a=40, b=0)
    assert fabric.turn() == busy
    assert fabric.turn(b=0) == busy


@settings(max_examples=30)
@given(st.floats(0.6, 19), st.floats(20, 80))
def test_who_wants_little_is_not_taken_for_who_wants_more(little: float, much: float) -> None:
    fabric = Fabric(world(), policy())
    for _ in range(12):
        rates = fabric.turn(a=much, b=little)
    fair = min(10.0, little)
    assert rates["b"] >= fair * 0.999
    assert rates["a"] >= 20 - max(fair * 1.36, 0.5) - 0.01
    assert rates["a"] + rates["b"] <= 20 * 1.03


def test_guarantees_that_cannot_be_kept_are_told_and_the_last_rates_stand() -> None:
    state = world()
    fabric = Fabric(state, policy())
    before = fabric.turn()
    fabric.policy = policy(
        SHARED,
        "  - {vms: [a], priority: normal, guarantee_mbps: 15}",
        "  - {vms: [b], priority: normal, guarantee_mbps: 12}",
    )
    assert fabric.turn() == before
    assert fabric.decided is not None
    (out, into) = sorted(fabric.decided.conflicts)
    assert "a in, b in are promised 2.7e+07 bit/s together, and it has 2e+07" in out + into
    fabric.policy = policy(SHARED, "  - {vms: [a], priority: normal, guarantee_mbps: 15}")
    assert fabric.turn(a=40, b=40) == {"a": 15.0, "b": 5.0}
    assert not fabric.decided.conflicts


def test_a_limit_is_a_ceiling_and_its_rest_goes_to_others() -> None:
    fabric = Fabric(world(RateLimit(vm="a", out_kbit=4_000)), policy())
    assert fabric.turn() == {"a": 4.0, "b": 16.0}
    out, into = effective(fabric.state, "a")
    assert (out.kbit, out.burst, out.reason) == (4_000, 2_000, "the operator's limit")
    assert into.kbit == 10_000
    assert into.reason.startswith("its share of uplink of host h1, in, 20 Mbit/s for 2 VMs")


def test_a_vm_that_moves_claims_at_both_hosts() -> None:
    move = Migration(
        id="m", vm="a", source="h1", source_ports=("pa",), target="h2", ports=("x",),
        phase=Phase.STARTED, started_at=0.0,
    )  # fmt: skip
    text = POLICY.replace("hosts: {}", "hosts: {h1: 20, h2: 5}")
    assert Fabric(world(), policy(text)).turn() == {"a": 10.0, "b": 10.0}
    assert Fabric(world(move), policy(text)).turn() == {"a": 5.0, "b": 15.0}


def test_links_of_an_edge_count_where_all_are_known_and_tunnels_less_what_is_reserved() -> None:
    one = Link(datapath=EDGE, port=1, to_datapath=CORE, to_port=1, capacity=8_000_000)
    two = Link(datapath=EDGE, port=2, to_datapath=CORE, to_port=2)
    told = qos.load()
    assert Fabric(world(one, two), told).turn() == {}
    key = f"{EDGE}:2"
    speed = LinkSpeed(id=key, speed=4_000_000)
    assert Fabric(world(one, two, speed), told).turn() == {"a": 6.0, "b": 6.0}
    down = two.model_copy(update={"up": False})
    assert Fabric(world(one, down, speed), told).turn() == {"a": 4.0, "b": 4.0}
    tunnel = Tunnel(id="wan", link=key, capacity=4_000_000)
    taken = Reservation(id="r", tunnel="wan", rate=2_000_000, forward=True, expires_at=100.0)
    assert Fabric(world(one, two, tunnel, taken), told).turn() == {"a": 5.0, "b": 5.0}


def service(key: str, port: int, category: str, how: str = "confirmed") -> Service:
    return Service.model_validate(
        {
            "vm": key, "protocol": "tcp", "port": port, "application": "x", "how": how,
            "category": category, "category_how": how, "confidence": 1.0, "concluded_at": 0.0,
            "flows": 1, "packets": 1, "due": 0.0,
        }
    )  # fmt: skip


def test_services_are_marked_as_the_policy_says_and_guesses_are_not() -> None:
    told = policy(SHARED, "  - {vms: [b], priority: normal, traffic: bulk}")
    state = world(
        service("a", 22, "remote administration"),
        service("a", 80, "web"),
        service("a", 5432, "database", "guessed"),
        vms="abc",
    )
    found = markings(state, told)
    assert found.keys() == {"a", "b"}
    assert found["a"].default is None
    assert [(s.port, s.mark.name, s.mark.dscp, s.mark.traffic) for s in found["a"].services] == [
        (22, "interactive", 18, 5)
    ]
    assert found["b"].default == mark(told, "bulk")
    assert {name: mark(told, name).paths for name in ("interactive", "standard", "bulk")} == {
        "interactive": 1,
        "standard": 0,
        "bulk": 2,
    }


def test_a_policy_that_names_no_class_of_its_own_is_refused() -> None:
    with pytest.raises(Exception, match="the class blk, which is not there"):
        policy(SHARED, "  - {vms: [b], priority: normal, traffic: blk}")


@given(st.integers(1, 0xFFFF), st.booleans())
def test_meters_tell_port_and_direction(port: int, out: bool) -> None:
    meter = vm_meter(port, out=out)
    assert is_vm_meter(meter)
    assert port_of_meter(meter) == (port, out)


def test_counts_are_rates_from_reading_to_reading() -> None:
    view = SimpleNamespace(plugged={(EDGE, 5): SimpleNamespace(vm="a")})
    counts = Counts()

    def read(at: float, octets: int, dropped: int) -> list[Flowed] | None:
        for number in (vm_meter(5, out=True), vm_meter(6, out=True), 1):
            counts.take([Counted(number, 1, 9, octets, 1.0, ((1, dropped),))])
        return counts.flowed(view, EDGE, at)  # type: ignore[arg-type]

    assert read(10.0, 1_000, 0) is None
    assert read(12.0, 4_000, 1_000) == [Flowed("a", True, 8_000.0, 4_000.0)]
    # The rate was changed, and the switch counts from 0 again.
    assert read(14.0, 2_000, 500) == [Flowed("a", True, 6_000.0, 2_000.0)]


def test_usage_is_kept_by_datapath(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/p.db")
    row = Usage(EDGE, 5.0, (Metered("a", True, 1e6, 0.0), Metered("a", False, 0.0, 2.5)))
    write_usage(store, [row, Usage(CORE, 4.0, ())])
    assert sorted(read_usage(store, 0.0), key=lambda u: u.at) == [Usage(CORE, 4.0, ()), row]
    later = Usage(EDGE, 6.0, ())
    write_usage(store, [later])
    assert read_usage(store, 4.0) == [later]
    write_usage(store, [])
    store.close()


def test_what_is_foreseen_is_given_before_it_is_wanted(tmp_path: Path) -> None:
    """Forecasts say 18 Mbit/s for a from its second five minutes on; it has them at once then."""
    latest = Latest(tmp_path)
    foreseen = Foreseen(latest)
    assert foreseen.demands(0.0) == {}

    def forecast(vm: str, target: Target, *levels: float) -> Forecast:
        quantiles = np.array([[0.0, 0.0, level, level] for level in levels])
        reason = Reason("test", 1, None, None)
        return Forecast(vm, Metric.NET_TX, target, 3_000, quantiles, None, reason)

    made, refused = sheet(
        [
            forecast("a", Target.FIVE_MINUTES, 1e3, 18e6 / 8),
            forecast("a", Target.HOUR_PEAKS, 5e5),
            forecast("b", Target.FIVE_MINUTES, 1e3, 1e3),
            forecast("b", Target.HOUR_PEAKS, 2e5),
        ]
    )
    assert made is not None
    assert not refused
    latest.put(made)
    assert foreseen.demands(2_999.0) == {}
    assert foreseen.demands(3_000.0)["a", Direction.OUT] == 8e3
    wanted = foreseen.demands(3_300.0)
    assert wanted == {("a", Direction.OUT): 18e6, ("b", Direction.OUT): 8e3}
    assert foreseen.demands(3_600.0)["b", Direction.OUT] == 1.6e6
    assert foreseen.demands(3_000.0 + 3_600) == {}
    found = share(world(), policy(), [], wanted, Memory(), now=3_300.0, hysteresis=0.05)
    assert found.bandwidths["a"].out_kbit == 18_000
    assert "it wants 18 Mbit/s" in found.bandwidths["a"].out_reason
    assert found.bandwidths["a"].in_kbit == 10_000
    (tmp_path / "net_tx.npz").write_bytes(b"nonsense")
    assert foreseen.demands(3_300.0) == {}


def test_the_loop_writes_what_differs_and_goes_on_from_the_store(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/p.db")
    with store.transaction() as tx:
        tx.put(Tenant(id="t"))
        tx.put(Subnet.model_validate({"id": "s", "tenant": "t", "cidr": "10.0.0.0/24"}))
        tx.put(Datapath(dpid=EDGE))
        tx.put(Host(id="h1", datapath=EDGE))
        for key in "ab":
            tx.put(vm(key))
            tx.put(Placement(vm=key, host="h1", ports=(f"p{key}",)))

    async def write(work: object) -> None:
        with store.transaction() as tx:
            work(tx)  # type: ignore[operator]

    ground = SimpleNamespace(store=store, state=store.snapshot, write=write)

    def turn(told: qos.QosPolicy, *, enabled: bool = True) -> dict[str, Bandwidth]:
        chosen = BandwidthSettings(enabled=enabled)
        loop = Sharing(chosen, told, Foreseen(Latest(tmp_path / "latest")))
        asyncio.run(loop.turn(ground))  # type: ignore[arg-type]
        return store.snapshot().bandwidths

    first = turn(policy())
    assert {key: (b.out_kbit, b.in_kbit) for key, b in first.items()} == {
        "a": (10_000, 10_000),
        "b": (10_000, 10_000),
    }
    revision = store.revision
    assert turn(policy()) == first
    assert store.revision == revision
    promised = "  - {tenants: [t], priority: normal, guarantee_mbps: 15}"
    with pytest.raises(Infeasible, match="lower one of them"):
        turn(policy(SHARED, promised))
    assert store.snapshot().bandwidths == first
    assert turn(qos.load()) == {}
    assert turn(policy()) == first
    assert turn(policy(), enabled=False) == {}
    store.close()
