"""What the agent decides, without a hypervisor, a switch or a controller."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.agent import domains, mapping, proc
from controller.agent.changes import changes
from controller.agent.final import asks, final, ordered
from controller.agent.mapping import PrometheusNames, Sample, readings
from controller.agent.meter import Meter
from controller.agent.records import Fact, Machine, Raw, Row, Told, batch_of, joined
from controller.agent.tools import parsed, zones
from controller.agent.watching import MOST_REFUSED_S, REFUSED_S, held_back
from controller.api import VmStatus
from controller.history.counters import NEVER, rates
from controller.history.samples import from_msgpack_body, to_msgpack_body
from controller.model.metrics import COUNTERS, METRICS
from controller.model.nouns import Placement, Vm
from controller.observe import events
from controller.observe.case import Known
from controller.observe.cloudevents import EventType, parse
from controller.settings import SettingsError

NOW = 1_893_456_000.0
MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")


def vm_of(*macs: str) -> Vm:
    nics = [{"mac": mac, "subnet": "web"} for mac in macs]
    return Vm.model_validate({"id": "vm1", "tenant": "acme", "nics": nics})


def status(vm: Vm, host: str | None = None) -> VmStatus:
    placed = Placement(vm=vm.id, host=host, ports=("p0",)) if host else None
    return VmStatus(vm=vm, placement=placed, status="placed", revision=1, applied=True)


# The meter


def counted(*devices: dict[str, float]) -> list[float]:
    meter = Meter()
    return [
        meter.take("vm", Raw(counts={"net_rx_total": found}), n)["net_rx_total"]
        for n, found in enumerate(devices)
    ]


def test_a_total_begins_at_zero_and_grows_with_all_devices() -> None:
    assert counted({"a": 7, "b": 5}, {"a": 8, "b": 9}, {"a": 18, "b": 9}) == [0, 5, 15]


@pytest.mark.parametrize(
    "after",
    [{"a": 20, "b": 1e12}, {"a": 20}, {"b": 1e12}, {"a": 3}, {}],
    ids=["one more", "the same", "another", "fewer", "none"],
)
def test_a_total_never_grows_by_what_a_device_brought_along(after: dict[str, float]) -> None:
    meter = Meter()
    totals = [
        meter.take("vm", Raw(counts={"net_rx_total": found}), n).get("net_rx_total", 0.0)
        for n, found in enumerate([{"a": 10}, {"a": 15}, after])
    ]
    assert totals[:2] == [0, 5]
    assert totals[2] in (0, 10)


step = st.dictionaries(st.sampled_from("an"), st.integers(0, 100), max_size=2)
change = st.sampled_from(["grow", "grow", "grow", "reset", "plug", "unplug", "restart"])
#: Where a counter of 32 bits begins anew.
WRAP = 2**32


@given(st.lists(st.tuples(change, step), min_size=2, max_size=30))
def test_no_change_of_devices_ever_makes_a_spike(history: list[tuple[str, dict[str, int]]]) -> None:
    """As the controller sees it: no rate above what the devices truly did, however their
    counters, the devices or the agent come and go."""
    meter, raw = Meter(), {"a": WRAP - 150}
    totals, most = [], []
    for number, (what, grown) in enumerate(history):
        if what == "reset":
            raw = dict.fromkeys(raw, 0)
        elif what == "plug":
            raw = {**raw, f"new {number}": 9_000_000_000}
        elif what == "unplug" and len(raw) > 1:
            raw = dict(list(raw.items())[1:])
        elif what == "restart":
            meter = Meter()
        raw = {n: count + grown.get(n[0], 0) for n, count in raw.items()}
        raw = {n: count if n != "a" else count % WRAP for n, count in raw.items()}
        totals.append(meter.take("vm", Raw(counts={"n_total": raw}), 0)["n_total"])
        most.append(sum(grown.get(n[0], 0) for n in raw))
    n = len(totals)
    found = rates(
        np.zeros(n, np.int32),
        np.arange(n, dtype=np.int64) * 1_000,
        np.array(totals),
        np.array([NEVER]),
        np.array([np.nan]),
    )
    for rate, bound in zip(found.values.tolist(), most, strict=True):
        assert np.isnan(rate) or 0 <= rate <= bound


def test_a_share_is_of_the_time_between_two_readings() -> None:
    meter = Meter()
    taken = [
        meter.take("vm", Raw(shares={"cpu": ({"cpu": used}, 2.0)}), at).get("cpu")
        for used, at in [(10.0, 0.0), (15.0, 10.0), (15.0, 10.1), (35.0, 20.0), (1.0, 30.0)]
    ]
    assert taken == [None, 0.25, None, 1.0, None]


def test_what_is_no_number_is_left_out() -> None:
    raw = Raw(
        gauges={"memory": float("nan"), "memory_size": -1.0, "connections": 3.0},
        counts={"net_rx_total": {"a": float("inf")}, "net_tx_total": {"a": -5.0}},
    )
    assert Meter().take("vm", raw, 0) == {"connections": 3.0}


def test_vms_that_are_gone_are_forgotten() -> None:
    meter = Meter()
    raw = Raw(counts={"net_rx_total": {"a": 1.0}})
    meter.take("vm", raw, 0)
    meter.keep(["other"])
    assert meter.take("vm", Raw(counts={"net_rx_total": {"a": 1e15}}), 1)["net_rx_total"] == 0


# Changes


def machine(
    vm: str = "vm1", *ports: str, arriving: bool = False, migrated: bool = False
) -> Machine:
    return Machine(vm, ports or ("p1",), MACS[: max(1, len(ports))], arriving, migrated)


def found(told: dict[str, Told], *seen: Machine) -> list[tuple[str, str | None]]:
    ids = (f"id{n}" for n in itertools.count())
    result = changes("hv1", told, seen, NOW, lambda: next(ids))
    return [(fact.type.value, fact.migration) for fact in result.facts]


@pytest.mark.parametrize(
    ("told", "seen", "event"),
    [
        ({}, [machine()], ("vm.placed", None)),
        ({}, [machine(arriving=True)], ("vm.migration.started", "agent-id0")),
        ({"vm1": Told(("p1",), "m")}, [machine()], ("vm.migration.completed", "m")),
        ({"vm1": Told(("p1",), "m")}, [], ("vm.migration.failed", "m")),
        ({"vm1": Told(("p0",))}, [machine()], ("vm.placed", None)),
        ({"vm1": Told(("p1",))}, [], ("vm.removed", None)),
        ({"vm1": Told(("p1",), "m")}, [machine(migrated=True)], ("vm.migration.completed", "m")),
        ({"vm1": Told(("p1",))}, [machine()], None),
        ({"vm1": Told(("p1",))}, [machine(migrated=True)], None),
        ({"vm1": Told(("p1",))}, [machine(arriving=True)], None),
        ({"vm1": Told(("p1",), "m")}, [machine(arriving=True)], None),
        ({}, [Machine("vm1")], None),
    ],
)
def test_what_is_seen_and_was_told_makes_the_event(
    told: dict[str, Told], seen: list[Machine], event: tuple[str, str | None] | None
) -> None:
    assert found(told, *seen) == ([event] if event else [])


def test_who_came_too_quickly_to_be_seen_has_migrated_nevertheless() -> None:
    assert found({}, machine(migrated=True)) == [
        ("vm.migration.started", "agent-id0"),
        ("vm.migration.completed", "agent-id0"),
    ]


looks = st.lists(
    st.dictionaries(
        st.sampled_from(["a", "b", "c"]),
        st.tuples(st.sampled_from("xy"), st.sampled_from(["here", "arriving", "migrated"])),
    ),
    max_size=8,
)


@settings(max_examples=50)
@given(looks)
def test_what_the_controller_makes_of_the_events_is_what_was_seen_last(
    history: list[dict[str, tuple[str, str]]],
) -> None:
    """Told to the controller's own rules, the events of any looks end with the VMs placed that
    were last seen running here."""
    ids = (f"id{n}" for n in itertools.count())
    told: dict[str, Told] = {}
    placed: dict[str, str] = {}
    for look in history:
        seen = [
            Machine(vm, (port,), MACS[:1], how == "arriving", how == "migrated")
            for vm, (port, how) in look.items()
        ]
        result = changes("hv1", told, seen, NOW, lambda: next(ids))
        for fact in result.facts:
            if fact.type in (EventType.VM_PLACED, EventType.MIGRATION_COMPLETED):
                placed[fact.vm] = fact.ports[0]
            elif fact.type is EventType.VM_REMOVED:
                del placed[fact.vm]
        told = {vm: after for vm, after in {**told, **result.told}.items() if after is not None}
        assert not changes("hv1", told, seen, NOW, lambda: next(ids)).facts
        running = {vm: port for vm, (port, how) in look.items() if how != "arriving"}
        leaving = {vm for vm, (_, how) in look.items() if how == "arriving"} & placed.keys()
        assert {vm: port for vm, port in placed.items() if vm not in leaving} == running


def test_a_refused_vm_is_let_be_for_longer_each_time() -> None:
    fact = Fact("1", EventType.VM_PLACED, NOW, "vm1", "hv1", ("p1",))
    once, twice = [(NOW, fact, "no")], [(NOW - 60, fact, "no"), (NOW, fact, "no")]
    assert held_back(once, NOW + REFUSED_S - 1) == {"vm1"}
    assert held_back(once, NOW + REFUSED_S + 1) == set()
    assert held_back(twice, NOW + REFUSED_S + 1) == {"vm1"}
    assert held_back(twice * 20, NOW + MOST_REFUSED_S + 1) == set()
    assert held_back(once, NOW - 5) == set()  # the clock was set back: not for ever


# Final


def fact(kind: EventType, ports: Sequence[str] = ("p1",), **more: Any) -> Fact:
    return Fact("e1", kind, NOW, "vm1", "hv1", tuple(ports), MACS[: len(ports)], **more)


def test_ports_go_in_the_order_of_the_nics() -> None:
    plugged = fact(EventType.VM_PLACED, ("p1", "p2"))
    assert asks(plugged)
    assert ordered(plugged, vm_of(*MACS)) == ("p1", "p2")
    assert ordered(plugged, vm_of(*reversed(MACS))) == ("p2", "p1")
    assert ordered(plugged, vm_of(MACS[1])) == ("p2",)
    assert ordered(plugged, vm_of("02:00:00:00:00:09", MACS[0])) == ("p1", "p2")


def test_every_event_is_one_that_the_controller_reads() -> None:
    for kind in EventType:
        if kind in (EventType.VM_UPDATED,):
            continue
        body = final(fact(kind, migration="m1"), status(vm_of(MACS[0]), "hv0"))
        event = parse(body)
        assert (event.type, event.at, event.id) == (kind, NOW, "e1")
        assert events.hosts_concerned(event, Known(None, None, {}, {}, {})) in (
            frozenset({"hv1"}),
            frozenset({"hv0", "hv1"}),
            frozenset(),  # `failed` is of the migration's hosts
        )


@pytest.mark.parametrize("known", [None, status(vm_of(MACS[0])), status(vm_of(MACS[0]), "hv1")])
def test_a_move_from_nowhere_is_not_told(known: VmStatus | None) -> None:
    assert final(fact(EventType.MIGRATION_STARTED, migration="m1"), known) is None


def test_no_other_event_waits_for_an_answer() -> None:
    assert not asks(fact(EventType.VM_PLACED))
    assert not asks(fact(EventType.VM_REMOVED, ("p1", "p2")))
    assert asks(fact(EventType.MIGRATION_STARTED))


# Batches


rows = st.lists(
    st.builds(
        Row,
        st.sampled_from(["vm1", "vm2", "hv1"]),
        st.integers(0, 10**6).map(lambda n: NOW + n / 1000),
        st.dictionaries(st.sampled_from(["cpu", "memory", "net_rx_total"]), st.floats(0, 1e12)),
    ),
    min_size=1,
    max_size=10,
)


def content(values: Any) -> list[tuple[str, int, str, float]]:
    return [
        (values.subjects[code], int(at), name, float(values.values[row, column]))
        for row, (code, at) in enumerate(zip(values.codes, values.times, strict=True))
        for column, name in enumerate(values.columns)
        if values.given[row, column]
    ]


@settings(max_examples=40)
@given(st.lists(rows, min_size=1, max_size=4))
def test_what_is_joined_is_all_that_was_there(pieces: list[list[Row]]) -> None:
    wanted = [
        (row.subject, round(row.at * 1000), name, value)
        for piece in pieces
        for row in piece
        for name, value in row.values.items()
    ]
    made = joined([batch_of(piece) for piece in pieces], "me", 7, NOW)
    again = from_msgpack_body(to_msgpack_body(made))
    assert sorted(content(again)) == sorted(wanted)
    assert (again.sender, again.sequence, again.sent_at) == ("me", 7, NOW)


# libvirt


XML = """
<domain type='kvm' id='3'><name>web-1</name><uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid>
<devices>
  <interface type='bridge'><mac address='52:54:00:AA:BB:CC'/><target dev='vnet1'/></interface>
  <interface type='user'><mac address='52:54:00:00:00:02'/></interface>
  <interface type='bridge'><mac address='52:54:00:00:00:03'/><target dev='vnet0'/></interface>
</devices></domain>"""
STATS = {
    "state.state": 1,
    "state.reason": 1,
    "cpu.time": 5_000_000_000,
    "vcpu.current": 2,
    "vcpu.maximum": 2,
    "vcpu.0.delay": 1_000_000_000,
    "vcpu.1.delay": 3_000_000_000,
    "balloon.current": 1_048_576,
    "balloon.maximum": 2_097_152,
    "balloon.rss": 524_288,
    "net.count": 1,
    "net.0.name": "vnet1",
    **{
        f"net.0.{way}.{key}": n
        for n, (way, key) in enumerate(
            itertools.product(("rx", "tx"), ("bytes", "pkts", "errs", "drop"))
        )
    },
    "block.count": 2,
    "block.0.name": "vda",
    "block.0.rd.bytes": 10,
    "block.0.rd.reqs": 1,
    "block.0.wr.bytes": 20,
    "block.0.wr.reqs": 2,
    "block.1.name": "sda",  # an empty drive has no counters
}


def test_a_domain_is_read_from_its_xml() -> None:
    domain = domains.parse(XML)
    assert (domain.name, domain.uuid) == ("web-1", "6695eb01-f6a4-8304-79aa-97f2502e193f")
    seen = domain.machine("web-1", 1, 1)
    assert seen.ports == ("vnet1", "vnet0")
    assert seen.macs == ("52:54:00:aa:bb:cc", "52:54:00:00:00:03")
    assert not seen.arriving
    assert domain.machine("web-1", 3, 2).arriving
    assert domain.machine("web-1", 3, 12).arriving  # its target fetches what is missing
    assert not domain.machine("web-1", 1, 10).arriving  # that is the target
    assert not domain.machine("web-1", 3, 1).arriving  # an operator's pause
    with pytest.raises(ValueError, match="cannot be read"):
        domains.parse("<domain>")


def test_statistics_become_counts() -> None:
    raw = domains.raw(STATS)
    assert raw.gauges == {"memory_size": 2.0**30, "memory": 2.0**29}
    assert raw.counts["cpu_seconds_total"] == {"cpu": 5.0}
    assert raw.counts["net_tx_total"] == {"vnet1": 4.0}
    assert raw.counts["net_drops_total"] == {"vnet1": 10.0}
    assert raw.counts["disk_write_total"] == {"vda": 20.0}
    assert raw.shares["cpu"] == ({"cpu": 5.0}, 2.0)
    assert raw.shares["cpu_wait"] == ({"vcpu0": 1.0, "vcpu1": 3.0}, 2.0)
    assert all(name in METRICS for name in (*raw.gauges, *raw.shares))
    assert all(name in COUNTERS for name in raw.counts)


def test_a_guest_that_tells_its_memory_is_believed() -> None:
    told = {**STATS, "balloon.available": 1_000_000, "balloon.usable": 400_000}
    assert domains.raw(told).gauges["memory"] == 600_000 * 1024


@given(
    st.dictionaries(
        st.sampled_from([*STATS, "net.7.name"]),
        st.one_of(st.integers(-(2**63), 2**63 - 1), st.text(max_size=3), st.none()),
        max_size=12,
    )
)
def test_strange_statistics_break_nothing(told: dict[str, Any]) -> None:
    told = {**told, "vcpu.maximum": 2, "net.count": 1, "block.count": 1}
    Meter().take("vm", domains.raw(told), 0.0)


def test_a_driver_without_statistics_in_bulk_tells_the_basic_ones() -> None:
    raw = domains.raw(domains.basic((1, 2_048, 1_024, 2, 10**9), {"tap0": tuple(range(8))}))
    assert raw.gauges == {"memory": 2.0**20, "memory_size": 2.0**20}
    assert raw.counts["cpu_seconds_total"] == {"cpu": 1.0}
    assert raw.counts["net_rx_total"] == {"tap0": 0.0}
    assert raw.counts["net_tx_packets_total"] == {"tap0": 5.0}


# The switch


PORTS = b"""OFPST_PORT reply (OF1.5) (xid=0x2): 3 ports
  port LOCAL: rx pkts=1, bytes=2, drop=3, errs=0, frame=0, over=0, crc=0
           tx pkts=4, bytes=5, drop=6, errs=0, coll=0
           duration=1.5s
  port  7: rx pkts=10, bytes=1000, drop=1, errs=0, frame=0, over=0, crc=0
           tx pkts=20, bytes=2000, drop=2, errs=0, coll=0
           duration=1.5s
  port 12: rx pkts=0, bytes=0, drop=?, errs=0, frame=0, over=0, crc=0
           tx pkts=0, bytes=0, drop=?, errs=0, coll=0
"""


def test_ports_are_counted_as_their_vms_see_it() -> None:
    told = parsed(PORTS)
    assert told.keys() == {7, 12}
    assert told[7] == {
        "net_tx_packets_total": 10,
        "net_tx_total": 1000,
        "net_rx_packets_total": 20,
        "net_rx_total": 2000,
        "net_drops_total": 3,
    }
    assert "net_drops_total" not in told[12]


def test_connections_are_counted_by_zone() -> None:
    dump = b"tcp,orig=(src=10.0.0.1,sport=5),reply=(),zone=5,protoinfo=()\n" * 3
    dump += b"udp,orig=(),reply=(),zone=51\nicmp,orig=(),reply=()\n"
    assert zones(dump) == {5: 3, 51: 1}


# This host


def test_this_host_is_read_from_proc() -> None:
    raw = proc.host()
    assert 1 <= raw.gauges["host_cores"] <= (os.cpu_count() or 1)
    assert 0 < raw.gauges["host_memory"] < raw.gauges["host_memory_size"]
    (used, cores) = raw.shares["host_cpu"]
    assert used["cpu"] > 0
    assert cores == raw.gauges["host_cores"]
    assert len(proc.boot_id()) > 8


def test_a_process_is_read_from_proc(tmp_path: Path) -> None:
    place = tmp_path / "42"
    place.mkdir()
    numbers = [str(n) for n in range(4, 53)]
    (place / "stat").write_text(f"42 (a) b (c) S {' '.join(numbers)}")
    (place / "io").write_text("rchar: 1\nread_bytes: 4096\nwrite_bytes: 8192\n")
    raw = proc.process(42, 2.0, tmp_path)
    ticks = proc._TICKS
    assert raw.counts["cpu_seconds_total"] == {"42 of 22": (14 + 15) / ticks}
    assert raw.counts["disk_write_total"] == {"42 of 22": 8192.0}
    assert raw.gauges == {"memory": 24 * proc._PAGE}
    with pytest.raises(FileNotFoundError):
        proc.process(43, 1.0, tmp_path)


# Prometheus


def series(name: str, value: float, at: float = NOW, **labels: str) -> Sample:
    return Sample({"__name__": name, **labels}, at, value)


def told_by(*samples: Sample, names: PrometheusNames) -> dict[str, Iterable[Sample]]:
    return {
        selector: [s for s in samples if s.labels["__name__"] == selector.partition("{")[0]]
        for selector in names.selectors
    }


def test_the_mapping_that_comes_along_is_right() -> None:
    names = mapping.load()
    assert {"cpu", "memory", "net_rx_total"} <= names.vm.metrics.keys()
    assert all(name in COUNTERS or name in METRICS or name[0] == "_" for name in names.vm.metrics)


def test_series_become_readings() -> None:
    names = mapping.load()
    samples = [
        series("libvirt_domain_info_virtual_cpus", 2, domain="web-1"),
        series("libvirt_domain_info_cpu_time_seconds_total", 50, domain="web-1"),
        series("libvirt_domain_info_memory_usage_bytes", 1e9, domain="web-1"),
        series("libvirt_domain_block_stats_read_bytes_total", 5, domain="web-1", target_device="a"),
        series("libvirt_domain_block_stats_read_bytes_total", 7, domain="web-1", target_device="b"),
        series("node_memory_MemTotal_bytes", 64e9, instance="hv1:9100"),
        series("node_memory_MemAvailable_bytes", 60e9, instance="hv1:9100"),
        series("node_cpu_seconds_total", 1, instance="hv1:9100", cpu="0", mode="idle"),
        series("libvirt_domain_info_virtual_cpus", 2, NOW + 15, domain="web-1"),
        series("node_memory_MemTotal_bytes", 64e9),  # names nobody
    ]
    found = {(who, at): raw for who, at, raw in readings(names, told_by(*samples, names=names))}
    assert found.keys() == {("web-1", NOW), ("hv1", NOW), ("web-1", NOW + 15)}
    web = found["web-1", NOW]
    assert web.gauges == {"memory": 1e9}
    assert list(web.counts["disk_read_total"].values()) == [5, 7]
    assert web.shares["cpu"][1] == 2
    assert found["hv1", NOW].gauges == {
        "host_memory_size": 64e9,
        "host_memory": 4e9,
        "host_cores": 1.0,
    }
    assert found["web-1", NOW + 15] == Raw()


def test_a_mapping_that_is_wrong_is_told_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "names.yaml"
    file.write_text("vm:\n  label: domain\n  metrics:\n    cpuu: [{select: up}]\n")
    with pytest.raises(SettingsError, match=r"names.yaml:1: cpuu is no metric of a vm"):
        mapping.load(file)
    file.write_text("vm:\n  label: domain\n  metrics:\n    cpu: [{select: up, off: x}]\n")
    with pytest.raises(SettingsError, match=r"names.yaml:4: vm.metrics.cpu.0.off: there is no"):
        mapping.load(file)
    file.write_text("vm:\n  label: domain\n  metrics:\n    cpu: [{select: up, of: cores}]\n")
    with pytest.raises(SettingsError, match="share of cores"):
        mapping.load(file)
