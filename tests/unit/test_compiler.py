"""The compiler: change by change must end where computing from nothing ends."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from ipaddress import ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.act.dataplane.compiler import Compiler, FlowKey, Key, compile_all, compile_unit
from controller.act.dataplane.impact import Impact, Spot, datapaths, units_at
from controller.act.dataplane.openflow.records import Flow
from controller.act.dataplane.pipeline import TABLES, WEIGHTED, TableId
from controller.act.dataplane.view import FabricView
from controller.model.addresses import format_dpid
from controller.model.nouns import (
    AccessRule,
    Action,
    Bandwidth,
    Capture,
    Datapath,
    Host,
    Link,
    Mark,
    Marking,
    Migration,
    Nic,
    Phase,
    Placement,
    Port,
    PortRange,
    Protocol,
    RateLimit,
    Record,
    Route,
    RouteClass,
    Selector,
    Service,
    ServiceMark,
    Subnet,
    Tenant,
    Vm,
    Way,
)
from controller.model.signatures import Signature
from controller.model.state import Change, State

DPIDS = [format_dpid(n) for n in (1, 2, 3)]
TENANTS = ["red", "blue"]
SUBNETS = {"red1": "red", "red2": "red", "blue1": "blue"}
VMS = {"r1": "red", "r2": "red", "r3": "red", "b1": "blue"}
PORT_NAMES = [f"{vm}{side}{nic}" for vm in VMS for side in "st" for nic in "01"]


def vm_record(key: str, subnets: list[str], groups: tuple[str, ...]) -> Vm:
    index = list(VMS).index(key)
    return Vm(
        id=key,
        tenant=VMS[key],
        groups=groups,
        nics=tuple(
            Nic(mac=f"02:00:00:00:{i:02x}:{index:02x}", subnet=s, ipv4=f"10.{i}.0.{10 + index}")
            for i, s in enumerate(subnets)
        ),
    )


def service_record(vm: str, protocol: str, port: int, *, tapped: bool = False) -> Service:
    return Service(
        vm=vm,
        protocol=protocol,
        port=port,
        application="HTTP",
        how="confirmed",
        category="web server",
        category_how="confirmed",
        confidence=1.0,
        concluded_at=0.0,
        flows=1,
        packets=4,
        tapped=tapped,
        due=1.0,
    )


#: What is drawn more often stands here more than once.
KINDS = (
    *("route", "route", "datapath", "port", "link", "tenant", "subnet", "host", "access_rule"),
    *("vm", "vm", "placement", "placement", "migration", "migration"),
    *("rate_limit", "bandwidth", "marking", "capture", "service"),
)

SELECTORS = (
    Selector(),
    Selector(groups=("web",)),
    Selector(subnets=("red1",)),
    Selector(vms=("r1", "r2")),
    Selector(cidrs=("10.0.0.0/25",)),
)


@st.composite
def changes(  # noqa: C901 one branch for each kind of record
    draw: st.DrawFn,
) -> list[tuple[str, str, Record | None]]:
    def dpid() -> str:
        return draw(st.sampled_from(DPIDS))

    def ports(vm: str, side: str) -> tuple[str, ...]:
        return (f"{vm}{side}0", f"{vm}{side}1")

    def one() -> tuple[str, str, Record | None]:  # noqa: C901 one branch a kind
        kind = draw(st.sampled_from(KINDS))
        record: Record
        if kind == "datapath":
            d = dpid()
            record = Datapath(dpid=d, connected=draw(st.booleans()), number=int(d, 16))
        elif kind == "port":
            name = draw(st.sampled_from(PORT_NAMES))
            number = 20 + PORT_NAMES.index(name) + draw(st.sampled_from([0, 100]))
            record = Port(datapath=dpid(), number=number, name=name, up=draw(st.booleans()))
        elif kind == "link":
            a, b = draw(st.sampled_from([(0, 2), (2, 0), (1, 2), (2, 1), (0, 1), (1, 0)]))
            cable = draw(st.sampled_from([10, 10, 30]))  # the second one is parallel
            record = Link(
                datapath=DPIDS[a],
                port=cable + b,
                to_datapath=DPIDS[b],
                to_port=cable + a,
                up=draw(st.booleans()),
                latency_s=draw(st.sampled_from([None, 0.001])),
            )
        elif kind == "tenant":
            t = draw(st.sampled_from(TENANTS))
            record = Tenant(
                id=t,
                number=1 + TENANTS.index(t),
                inside=draw(st.sampled_from([Action.ALLOW, Action.DENY])),
            )
        elif kind == "subnet":
            s = draw(st.sampled_from(list(SUBNETS)))
            i = list(SUBNETS).index(s)
            record = Subnet(
                id=s,
                tenant=SUBNETS[s],
                cidr=f"10.{i}.0.0/24",
                number=1 + i,
                dhcp=draw(st.booleans()),
            )
        elif kind == "route":
            a, b = draw(st.permutations([0, 1]))
            nodes = draw(st.sampled_from([(a, b), (a, 2, b)]))
            record = Route(
                ingress=DPIDS[a],
                egress=DPIDS[b],
                traffic_class=draw(st.sampled_from(RouteClass)),
                ways=(
                    Way(
                        nodes=tuple(DPIDS[node] for node in nodes),
                        tree=draw(st.sampled_from(WEIGHTED[:2])),
                        buckets=tuple(range(draw(st.integers(1, 3)))),
                    ),
                ),
            )
        elif kind == "host":
            record = Host(
                id=draw(st.sampled_from(["h1", "h2", "h3"])),
                datapath=dpid(),
                dpi_port=draw(st.sampled_from([None, *PORT_NAMES[:2]])),
            )
        elif kind == "vm":
            key = draw(st.sampled_from(list(VMS)))
            allowed = [s for s, t in SUBNETS.items() if t == VMS[key]]
            subnets = draw(st.lists(st.sampled_from(allowed), min_size=1, max_size=2))
            record = vm_record(key, subnets, draw(st.sampled_from([(), ("web",)])))
        elif kind == "placement":
            key = draw(st.sampled_from(list(VMS)))
            host = draw(st.sampled_from(["h1", "h2", "h3"]))
            record = Placement(vm=key, host=host, ports=ports(key, draw(st.sampled_from("st"))))
        elif kind == "migration":
            key = draw(st.sampled_from(list(VMS)))
            phase = draw(st.sampled_from(list(Phase)))
            record = Migration(
                id=f"m-{key}",
                vm=key,
                source="h1",
                source_ports=ports(key, "s"),
                target=draw(st.sampled_from(["h2", "h3"])),
                ports=ports(key, "t"),
                phase=phase,
                started_at=0.0,
            )
        elif kind in ("rate_limit", "bandwidth"):
            kbit = st.sampled_from([None, 1_000, 2_000])
            cls = RateLimit if kind == "rate_limit" else Bandwidth
            key = draw(st.sampled_from(list(VMS)))
            record = cls(vm=key, out_kbit=draw(kbit) or 500, in_kbit=draw(kbit))
        elif kind == "capture":
            vm = draw(st.sampled_from(list(VMS)))
            record = Capture(vm=vm, alert=draw(st.integers(1, 2)), packets=9, until=1.0)
        elif kind == "marking":
            mark = Mark(name="interactive", dscp=18, traffic=5, paths=1)
            services = draw(st.lists(st.sampled_from([80, 443]), max_size=2))
            record = Marking(
                vm=draw(st.sampled_from(list(VMS))),
                default=draw(st.sampled_from([None, mark])),
                services=tuple(ServiceMark(protocol="tcp", port=p, mark=mark) for p in services),
            )
        elif kind == "service":
            record = service_record(
                draw(st.sampled_from(list(VMS))),
                draw(st.sampled_from(["tcp", "udp", "47"])),
                draw(st.sampled_from([22, 80])),
                tapped=draw(st.booleans()),
            )
        else:
            sides = st.sampled_from(SELECTORS)
            record = AccessRule(
                id=draw(st.sampled_from(["a1", "a2"])),
                tenant="red",
                number=draw(st.sampled_from([1, 2])),
                source=draw(sides),
                destination=draw(sides),
                protocol=Protocol.TCP,
                action=draw(st.sampled_from(list(Action))),
                ports=(PortRange(first=80, last=draw(st.integers(80, 99))),),
            )
        removed = kind not in ("datapath",) and draw(st.integers(0, 4)) == 0
        return kind, record.key, None if removed else record

    return [one() for _ in range(draw(st.integers(1, 12)))]


def base_state() -> State:
    """A small fabric in which something is plugged in everywhere."""
    records: list[Record] = [
        *(Datapath(dpid=d, number=i + 1, connected=True) for i, d in enumerate(DPIDS)),
        *(
            Port(datapath=d, number=20 + i, name=name)
            for d in DPIDS
            for i, name in enumerate(PORT_NAMES)
        ),
        *(Tenant(id=t, number=i + 1) for i, t in enumerate(TENANTS)),
        *(
            Subnet(id=s, tenant=t, cidr=f"10.{i}.0.0/24", number=i + 1)
            for i, (s, t) in enumerate(SUBNETS.items())
        ),
        Host(id="h1", datapath=DPIDS[0]),
        Host(id="h2", datapath=DPIDS[1]),
        vm_record("r1", ["red1"], ()),
        vm_record("r2", ["red1", "red2"], ("web",)),
        Placement(vm="r1", host="h1", ports=("r1s0",)),
        Placement(vm="r2", host="h2", ports=("r2s0", "r2s1")),
        RateLimit(vm="r2", out_kbit=3_000),
        Bandwidth(vm="r1", out_kbit=1_000, in_kbit=2_000, out_reason="its share"),
        Marking(
            vm="r2",
            default=Mark(name="bulk", dscp=10, traffic=2, paths=2),
            services=(ServiceMark(protocol="udp", port=53, mark=Mark(name="names", dscp=48)),),
        ),
    ]
    for a, b in ((0, 2), (2, 0), (1, 2), (2, 1)):
        records.append(Link(datapath=DPIDS[a], port=10 + b, to_datapath=DPIDS[b], to_port=10 + a))
    return State.of(records)


SIGNATURES = [
    Signature(vm, f"02:00:00:00:{nic:02x}:{index:02x}", ip_network(peer), protocol, port)
    for index, vm in enumerate(VMS)
    for nic in (0, 1)
    for peer, protocol, port in (
        ("10.0.0.11/32", 6, 80),
        ("198.51.100.0/24", 17, 53),
        ("2001:db8::/48", 58, 0),
    )
]


def observe(compiler: Compiler, seen: list[Signature], crowded: list[str]) -> dict[str, set[Key]]:
    """Have these signatures counted, and no others."""
    observed = compiler.view.observed
    touched = {*observed.signatures, *observed.crowded, *crowded, *(s.vm for s in seen)}
    observed.signatures.clear()
    for signature in seen:
        observed.signatures.setdefault(signature.vm, set()).add(signature)
    observed.crowded = set(crowded)
    return compiler.observe(touched)


@settings(max_examples=60)
@given(
    changes(),
    st.integers(1, 5),
    st.lists(st.lists(st.sampled_from(SIGNATURES), max_size=4), min_size=1, max_size=4),
    st.lists(st.sampled_from(list(VMS)), max_size=2),
)
def test_change_by_change_equals_from_nothing(
    steps: list[tuple[str, str, Record | None]],
    batch: int,
    seen: list[list[Signature]],
    crowded: list[str],
) -> None:
    compiler = Compiler(base_state())
    for start in range(0, len(steps), batch):
        before = {d: dict(x.entries) for d, x in compiler.desired.items()}
        changed = compiler.apply(
            Change(start + i + 1, *step) for i, step in enumerate(steps[start : start + batch])
        ).changed
        for datapath, keys in observe(compiler, seen[start % len(seen)], crowded).items():
            changed.setdefault(datapath, set()).update(keys)
        fresh = FabricView.of(copy.deepcopy(compiler.view.state), compiler.view.observed)
        for datapath in datapaths(fresh):
            expected = compile_all(fresh, datapath).entries
            got = compiler.desired[datapath].entries
            assert got == expected
            differing = {
                key
                for key in {*before.get(datapath, {}), *got}
                if before.get(datapath, {}).get(key) != got.get(key)
            }
            assert differing <= changed.get(datapath, set())


class InOrder(set[Spot]):
    """Spots in a certain order; that of a set is any."""

    backwards = False

    def __iter__(self) -> Iterator[Spot]:
        return iter(sorted(super().__iter__(), key=str, reverse=self.backwards))


def handed_on() -> dict[str, list[tuple[str, str, Record | None]]]:
    """What passes from VM r1 to another at once: its port, the number of that, its MAC."""
    other = vm_record("r3", ["red1"], ())
    again = base_state().vms["r1"].model_copy(update={"id": "r9"})
    number = f"{DPIDS[0]}:20"
    return {
        "port": [
            ("vm", "r3", other),
            ("placement", "r1", None),
            ("placement", "r3", Placement(vm="r3", host="h1", ports=("r1s0",))),
        ],
        "number": [
            ("vm", "r3", other),
            ("placement", "r3", Placement(vm="r3", host="h1", ports=("r3s0",))),
            ("port", number, Port(datapath=DPIDS[0], number=20, name="r3s0")),
        ],
        "mac": [
            ("placement", "r1", None),
            ("vm", "r1", None),
            ("vm", "r9", again),
            ("placement", "r9", Placement(vm="r9", host="h1", ports=("r1s0",))),
        ],
    }


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("what", handed_on())
def test_what_is_handed_on_at_once_is_the_next_one_s(
    what: str, backwards: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    init = Impact.__init__

    def ordered(self: Impact, view: FabricView) -> None:
        init(self, view)
        self.spots = InOrder()
        self.spots.backwards = backwards

    compiler = Compiler(base_state())
    monkeypatch.setattr(Impact, "__init__", ordered)
    compiler.apply(Change(n + 1, *step) for n, step in enumerate(handed_on()[what]))
    fresh = FabricView.of(copy.deepcopy(compiler.view.state), compiler.view.observed)
    for datapath in datapaths(fresh):
        expected = compile_all(fresh, datapath)
        got = compiler.desired[datapath]
        assert got.entries == expected.entries
        assert {k: got.owner(k) for k in got.entries} == {
            k: expected.owner(k) for k in expected.entries
        }


def observed_view() -> FabricView:
    compiler = Compiler(base_state())
    observe(compiler, SIGNATURES, ["r1"])
    return compiler.view


def test_no_two_units_write_to_one_place() -> None:
    view = observed_view()
    for datapath in DPIDS:
        seen: dict[object, object] = {}
        for unit in units_at(view, datapath):
            for flow in compile_unit(view, unit, datapath).flows:
                assert flow.place not in seen, (unit, seen[flow.place])
                seen[flow.place] = unit


def test_rules_keep_to_the_declared_tables() -> None:
    view = observed_view()
    for datapath in DPIDS:
        for entry in compile_all(view, datapath).entries.values():
            if isinstance(entry, Flow):
                table = TABLES[TableId(entry.table)]
                assert table.provisioned
                assert table.on_core or view.is_edge(datapath)
                assert {test[0] for test in entry.match} <= table.matches, entry
                assert entry.goto is None or TableId(entry.goto) in table.next, entry


def test_core_rules_do_not_grow_with_vms() -> None:
    state = base_state()
    compiler = Compiler(state)
    before = dict(compiler.desired[DPIDS[2]].entries)
    compiler.apply(
        [
            Change(1, "vm", "r3", vm_record("r3", ["red1"], ())),
            Change(2, "placement", "r3", Placement(vm="r3", host="h1", ports=("r3s0",))),
        ]
    )
    assert compiler.desired[DPIDS[2]].entries == before


def test_what_a_link_takes_changes_no_rule() -> None:
    compiler = Compiler(base_state())
    link = next(iter(compiler.view.state.links.values()))
    slower = link.model_copy(update={"latency_s": 0.5})
    applied = compiler.apply([Change(1, "link", link.key, slower)])
    assert (applied.changed, applied.paths) == ({}, False)
    # There is another way, without which nothing would become of this either.
    more = [
        Link(datapath=DPIDS[a], port=10 + b, to_datapath=DPIDS[b], to_port=10 + a)
        for a, b in ((0, 1), (1, 0))
    ]
    compiler.apply([Change(2, "link", known.key, known) for known in more])
    direct = more[0].model_copy(update={"up": False})
    applied = compiler.apply([Change(3, "link", direct.key, direct)])
    assert applied.changed
    assert applied.paths


def test_every_entry_has_an_owner_by_name() -> None:
    compiler = Compiler(base_state())
    owners = {
        desired.owner(key) for desired in compiler.desired.values() for key in desired.entries
    }
    assert {"vm r1", "vm r2", "subnet red1", "tenant red", "switch", "paths"} <= owners
    assert "nobody" not in owners


def test_a_vm_that_comes_costs_no_rule_of_who_talks_to_whom() -> None:
    compiler = Compiler(base_state())
    changed = compiler.apply(
        [
            Change(1, "vm", "r3", vm_record("r3", ["red1"], ())),
            Change(2, "placement", "r3", Placement(vm="r3", host="h1", ports=("r3s0",))),
        ]
    ).changed
    counting = {TableId.OBSERVE_OUT, TableId.OBSERVE_IN}
    counting |= {TableId.COUNT_OUT, TableId.COUNT_IN, TableId.DENIED_OUT, TableId.DENIED_IN}
    keys = [key for found in changed.values() for key in found]
    assert keys
    assert not [key for key in keys if isinstance(key, FlowKey) and key.table in counting]
