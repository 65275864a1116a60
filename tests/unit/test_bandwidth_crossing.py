"""Which links VMs send over, and what that allows each of them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest

from controller.decide.bandwidth import qos
from controller.decide.bandwidth.claims import ask
from controller.decide.bandwidth.crossing import NOWHERE, Crossing, crossing
from controller.decide.bandwidth.records import Direction
from controller.loops.bandwidth import Decided, Memory, share
from controller.model.addresses import format_dpid
from controller.model.nouns import (
    LinkSpeed,
    Nic,
    Placement,
    Record,
    Reservation,
    Route,
    RouteClass,
    Tunnel,
    Vm,
    Way,
)
from controller.model.state import State
from controller.store.traffic import Row
from tests.unit.label_machine import Cable, fabric

ONE, TWO, THREE, FOUR, FIVE = map(format_dpid, range(1, 6))
BULK, URGENT = RouteClass.BULK, RouteClass.INTERACTIVE
#: Two ways from 1 to 4; 5 hangs on 4.
CABLES: list[Cable] = [(1, 2), (2, 4), (1, 3), (3, 4), (4, 5)]
MBIT = 1_000_000


def put(state: State, records: Iterable[Record]) -> State:
    for record in records:
        state.table(record.kind)[record.key] = record
    return state


def square(mbps: int = 100) -> State:
    """Edges 1, 4 and 5; every link of the square and the last one carries `mbps`."""
    state = fabric(CABLES, [1, 4, 5])
    return put(state, [LinkSpeed(id=key, speed=mbps * MBIT) for key in state.links])


def sends(**rates: float) -> list[Row]:
    """What edge 1 sent to others, bit/s, by their number."""
    return [Row(ONE, 1.0, {format_dpid(int(k[1:])): {BULK: v} for k, v in rates.items()})]


def on(found: Crossing, edge: str) -> dict[str, float]:
    """The share on each link of what an edge sends."""
    return {**dict(found.bound.get(edge, ())), **dict(found.beside.get(edge, ()))}


def test_traffic_without_a_route_is_split_evenly_over_the_shortest_ways() -> None:
    found = crossing(square(), sends(e4=3e6, e5=1e6), 0.0)
    # Of links that are filled alike one tells for all: of the square's, the first.
    assert on(found, ONE) == {
        f"link {ONE}->{TWO}": pytest.approx(0.5),
        f"link {FOUR}->{FIVE}": pytest.approx(0.25),
    }
    assert found.capacity[f"link {ONE}->{TWO}"] == 100 * MBIT
    assert not on(found, FOUR)


def test_routes_say_how_much_of_a_pair_is_on_each_link() -> None:
    ways = (
        Way(nodes=(ONE, TWO, FOUR), tree=48, buckets=(0, 1, 2)),
        Way(nodes=(ONE, THREE, FOUR), tree=49, buckets=(3,)),
    )
    state = put(square(), [Route(ingress=ONE, egress=FOUR, ways=ways)])
    found = on(crossing(state, sends(e4=1e6), 0.0), ONE)
    assert found == {f"link {ONE}->{TWO}": 0.75, f"link {ONE}->{THREE}": 0.25}
    # What is urgent has no route of its own, and goes with the bulk.
    urgent = [Row(ONE, 1.0, {FOUR: {URGENT: 5.0}})]
    assert on(crossing(state, urgent, 0.0), ONE) == found
    # A way that is cut takes nothing.
    broken = state.links[f"{ONE}:10"]
    put(state, [broken.model_copy(update={"up": False})])
    assert on(crossing(state, sends(e4=1e6), 0.0), ONE) == {f"link {ONE}->{THREE}": 1.0}


def test_only_links_that_somebody_tells_the_speed_of_are_shared() -> None:
    state = fabric(CABLES, [1, 4, 5])
    assert crossing(state, sends(e4=1e6), 0.0) == NOWHERE
    put(state, [Tunnel(id="wan", link=f"{TWO}:11", capacity=10 * MBIT)])
    taken = Reservation(id="r", tunnel="wan", rate=4 * MBIT, expires_at=9.0)
    put(state, [taken])
    assert crossing(state, sends(e4=1e6), 0.0).capacity == {f"link {TWO}->{FOUR}": 6 * MBIT}
    assert crossing(state, sends(e4=1e6), 9.0).capacity == {f"link {TWO}->{FOUR}": 10 * MBIT}


def test_parallel_cables_count_together_and_only_where_all_are_known() -> None:
    state = fabric([(1, 2), (1, 2)], [1, 2])
    first, second = f"{ONE}:10", f"{ONE}:11"
    put(state, [LinkSpeed(id=first, speed=MBIT)])
    assert crossing(state, [Row(ONE, 1.0, {TWO: {BULK: 1.0}})], 0.0) == NOWHERE
    put(state, [LinkSpeed(id=second, speed=MBIT)])
    found = crossing(state, [Row(ONE, 1.0, {TWO: {BULK: 1.0}})], 0.0)
    assert found.capacity == {f"link {ONE}->{TWO}": 2 * MBIT}


def test_a_link_to_few_places_holds_nobody_back_and_is_loaded_all_the_same() -> None:
    found = crossing(square(), sends(e4=9e6, e5=1e6), 0.0)
    last = f"link {FOUR}->{FIVE}"
    assert last in dict(found.beside[ONE])
    assert last not in dict(found.bound[ONE])
    told = Crossing({"l": 100.0}, {"a": (("l", 0.5),)}, {"b": (("l", 0.1),)})
    assert told.left({"a": 100.0, "b": 200.0}) == {"l": 80.0}
    # Where more is wanted than there is, each has what is due to it.
    assert told.left({"a": 100.0, "b": 1_500.0}) == {"l": 25.0}
    assert told.left({}) == {"l": 100.0}


@pytest.mark.parametrize("rate", [0.0, -5.0, math.nan, math.inf])
def test_rates_that_cannot_be_say_nothing(rate: float) -> None:
    assert on(crossing(square(), sends(e4=rate), 0.0), ONE) == {}
    assert on(crossing(square(), sends(e4=rate, e5=1e6), 0.0), ONE) == on(
        crossing(square(), sends(e5=1e6), 0.0), ONE
    )


def test_pairs_that_a_cut_parts_cross_nothing() -> None:
    state = square()
    for key in (f"{FOUR}:{state.links[k].port}" for k in list(state.links) if k.startswith(FOUR)):
        if state.links[key].to_datapath == FIVE:
            put(state, [state.links[key].model_copy(update={"up": False})])
    found = crossing(state, sends(e4=1e6, e5=1e6), 0.0)
    assert on(found, ONE) == {f"link {ONE}->{TWO}": pytest.approx(0.25)}
    alone = fabric([(1, 2)], [1, 4])
    put(alone, [LinkSpeed(id=key, speed=MBIT) for key in alone.links])
    assert not any(on(crossing(alone, sends(e4=1e6), 0.0), edge) for edge in (ONE, FOUR))


# --- What it allows VMs


def with_vms(state: State, **edges: int) -> State:
    for number, (name, edge) in enumerate(edges.items()):
        nic = Nic(mac=f"02:00:00:00:01:{number:02x}", subnet="s")
        put(state, [
            Vm(id=name, tenant="t", nics=(nic,)),
            Placement(vm=name, host=f"h{edge}", ports=(f"p{name}",)),
        ])  # fmt: skip
    return state


def decided(state: State, rows: list[Row], text: str = "", **wanted: float) -> Decided:
    """When VMs want to send so many Mbit/s."""
    policy = qos.parse(qos.DEFAULT.read_text().replace("vms:\n", f"vms:\n{text}", 1), "qos.yaml")
    demand = {(vm, Direction.OUT): mbps * MBIT for vm, mbps in wanted.items()}
    return share(
        state, policy, [], demand, Memory(), now=0.0, hysteresis=0.05,
        crossing=crossing(state, rows, 0.0),
    )  # fmt: skip


def test_vms_of_other_edges_share_a_link_between_core_switches() -> None:
    """1 and 5 send to 4 over their own links, then both over 2->3, which is narrow."""
    cables: list[Cable] = [(1, 2), (5, 2), (2, 3), (3, 4)]
    state = with_vms(fabric(cables, [1, 4, 5]), a=1, b=1, c=5, d=4)
    core = next(k.key for k in state.links.values() if (k.datapath, k.to_datapath) == (TWO, THREE))
    put(state, [LinkSpeed(id=core, speed=30 * MBIT)])
    rows = [Row(ONE, 1.0, {FOUR: {BULK: 1e6}}), Row(FIVE, 1.0, {FOUR: {BULK: 7e6}})]
    found = decided(state, rows, a=50, b=5, c=50).bandwidths
    sent = {vm: (b.out_kbit or 0) / 1_000 for vm, b in found.items()}
    assert sent == {"a": 12.5, "b": 5.0, "c": 12.5}
    assert found["a"].out_reason.startswith(
        f"its share of link {TWO}->{THREE}, 30 Mbit/s for 3 VMs (it wants 30 Mbit/s"
    )
    # d sends nothing over it, and what VMs receive was let through by those who sent it.
    assert "d" not in found
    assert all(b.in_kbit is None for b in found.values())


def test_a_vm_is_held_back_by_so_much_of_it_as_is_on_the_link() -> None:
    state = with_vms(square(mbps=20), a=1)
    found = decided(state, sends(e4=1e6), a=100).bandwidths["a"]
    assert found.out_kbit == 40_000
    assert "its share of links of edge" in found.out_reason


def test_promises_that_a_link_cannot_keep_together_are_named_and_the_last_rates_stand() -> None:
    cables: list[Cable] = [(1, 2), (5, 2), (2, 3), (3, 4)]
    state = with_vms(fabric(cables, [1, 4, 5]), a=1, c=5)
    core = next(k.key for k in state.links.values() if (k.datapath, k.to_datapath) == (TWO, THREE))
    put(state, [LinkSpeed(id=core, speed=30 * MBIT)])
    rows = [Row(ONE, 1.0, {FOUR: {BULK: 1e6}}), Row(FIVE, 1.0, {FOUR: {BULK: 7e6}})]
    state.bandwidths = dict(decided(state, rows, a=50, c=50).bandwidths)
    rule = "  - {vms: [a, c], priority: normal, guarantee_mbps: 20}\n"
    found = decided(state, rows, rule)
    (told,) = found.conflicts
    assert told.startswith(f"link {TWO}->{THREE}: a out, c out are promised 4e+07 bit/s together")
    assert found.bandwidths == state.bandwidths


def test_what_others_send_over_a_link_breaks_no_promise() -> None:
    """Nobody of 5 is metered; it was measured to send 450 Mbit/s, a fifth of it over the link."""
    told = Crossing({"l": 100e6}, {ONE: (("l", 1.0),)}, {FIVE: (("l", 0.2),)}, {FIVE: 450e6})
    state = with_vms(fabric(CABLES, [1, 5]), a=1, b=5)
    rule = "  - {vms: [a], priority: normal, guarantee_mbps: 90}\n"
    policy = qos.parse(qos.DEFAULT.read_text().replace("vms:\n", f"vms:\n{rule}", 1), "q")
    demand = {("a", Direction.OUT): 1e6}
    asked = ask(state, policy, demand, 0.0, told)
    (link,) = asked.left(asked.claims)
    assert link.capacity_bps == 90e6


def test_a_forecast_that_cannot_be_is_named_and_the_last_rates_stand() -> None:
    state = with_vms(square(mbps=20), a=1, b=1)
    state.bandwidths = dict(decided(state, sends(e4=1e6), a=100, b=100).bandwidths)
    found = decided(state, sends(e4=1e6), a=math.nan, b=100)
    assert found.conflicts == ("claim a out: demand is nan bit/s: give a number from 0",)
    assert found.bandwidths == state.bandwidths


@pytest.mark.parametrize("wanted", [1e300, math.inf, 1e12])
def test_an_absurd_forecast_is_taken_for_all_that_there_is(wanted: float) -> None:
    state = with_vms(square(mbps=20), a=1, b=1)
    found = decided(state, sends(e4=1e6), a=wanted, b=5).bandwidths
    assert (found["a"].out_kbit, found["b"].out_kbit) == (35_000, 5_000)


def test_who_has_not_sent_anything_yet_may_begin() -> None:
    """Nothing foreseen, nothing measured, all history zero: what there is, in equal parts."""
    state = with_vms(square(mbps=20), a=1, b=1)
    found = decided(state, []).bandwidths
    assert (found["a"].out_kbit, found["b"].out_kbit) == (20_000, 20_000)
