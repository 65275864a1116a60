"""Which packets are copied, and which services are let by."""

from __future__ import annotations

from typing import Any

import pytest

from controller.act.dataplane.compiler import Compiler, compile_unit
from controller.act.dataplane.explain import actions_text, explain, match_text
from controller.act.dataplane.impact import Unit
from controller.act.dataplane.openflow.records import Flow
from controller.act.dataplane.pipeline import TableId
from controller.act.dataplane.rules.tap import PACKETS
from controller.act.dataplane.view import FabricView
from controller.model.nouns import MAX_SERVICES, Host, Migration, Phase, Port, Record
from controller.model.state import Change, State
from tests.unit.test_compiler import DPIDS, base_state, service_record

EDGE, OTHER, CORE = DPIDS


def view(*more: Record, tapping: bool = True) -> FabricView:
    return FabricView.of(State.of([*base_state().records(), *more]), tapping=tapping)


def words(found: FabricView, unit: Unit, datapath: str = EDGE) -> list[str]:
    flows = compile_unit(found, unit, datapath).flows
    return [f"{f.table}:{f.priority} {match_text(f.match)} -> {actions_text(f)}" for f in flows]


def let_by(found: FabricView, vm: str, datapath: str = EDGE) -> list[Flow]:
    return list(compile_unit(found, Unit("services", vm), datapath).flows)


def test_a_known_service_is_let_by_at_its_first_packet() -> None:
    flows = words(view(service_record("r1", "tcp", 22)), Unit("services", "r1"))
    start = f"{TableId.TAP_IN}:200 ct_state=0x0/0x20,eth_dst=02:00:00:00:00:00"
    end = f"ip_proto=6,tcp_dst=22 -> goto_table:{TableId.BANDWIDTH_IN}"
    assert flows == [f"{start},eth_type={kind},{end}" for kind in ("0x800", "0x86dd")]


@pytest.mark.parametrize(
    ("protocol", "shown"),
    [
        ("udp", "ip_proto=17,udp_dst=53"),
        ("sctp", "ip_proto=132,sctp_dst=53"),
        ("47", "ip_proto=47"),
    ],
)
def test_other_protocols(protocol: str, shown: str) -> None:
    [flow, _] = words(view(service_record("r1", protocol, 53)), Unit("services", "r1"))
    assert f"{shown} ->" in flow


def test_where_nothing_is_let_by() -> None:
    known = view(service_record("r1", "tcp", 22))
    assert let_by(known, "r1", OTHER) == []  # it is not there
    assert let_by(known, "r3") == []
    assert let_by(view(service_record("r1", "tcp", 22, tapped=True)), "r1") == []
    assert let_by(view(service_record("r1", "tcp", 22), tapping=False), "r1") == []
    compiler = Compiler(base_state())
    compiler.apply([Change(1, "tenant", "red", None)])
    service = service_record("r1", "tcp", 22)
    compiler.apply([Change(2, "service", service.key, service)])  # of nobody's VM
    assert let_by(compiler.view, "r1") == []


def test_each_nic_has_rules_of_its_own() -> None:
    assert len(let_by(view(service_record("r2", "tcp", 22)), "r2", OTHER)) == 4


def test_a_vm_with_too_many_services_is_let_by_as_a_whole() -> None:
    few = [service_record("r1", "tcp", port) for port in range(1, MAX_SERVICES)]
    assert len(let_by(view(*few), "r1")) == 2 * len(few)
    full = let_by(view(*few, service_record("r1", "tcp", 9_999, tapped=True)), "r1")
    assert len(full) == 2 * len(few) + 1
    assert "ip_proto" not in match_text(full[-1].match)


def test_services_follow_a_migration() -> None:
    moving = Migration(
        id="m",
        vm="r1",
        source="h1",
        source_ports=("r1s0",),
        target="h2",
        ports=("r1t0",),
        phase=Phase.STARTED,
        started_at=0.0,
    )
    compiler = Compiler(State.of([*base_state().records(), service_record("r1", "tcp", 22)]))
    assert Unit("services", "r1") not in compiler.desired[OTHER].units
    compiler.apply([Change(1, "migration", "m", moving)])
    assert Unit("services", "r1") in compiler.desired[OTHER].units
    compiler.apply([Change(2, "service", "r1:tcp:22", None)])
    assert Unit("services", "r1") not in compiler.desired[OTHER].units


def copied(found: FabricView, datapath: str = EDGE) -> list[str]:
    return [line for line in words(found, Unit("tap"), datapath) if "clone" in line]


def test_the_frame_does_not_grow() -> None:
    flows = copied(view())
    assert len(flows) == 2 * (1 + 2 * (PACKETS - 1))
    assert all("meter:4,output:CONTROLLER" in flow for flow in flows)
    assert copied(view(), CORE) == []
    assert words(view(), Unit("tap"), CORE) == []
    assert copied(view(tapping=False)) == []
    assert len(words(view(tapping=False), Unit("tap"))) == 2


def test_a_count_leads_to_the_next_and_ends() -> None:
    flows = [line for line in copied(view()) if "eth_type=0x800 " in line]
    for count in range(1, PACKETS):
        here = [line for line in flows if f"ct_mark={0x10 | count:#x}/0x1f" in line]
        assert len(here) == 2  # either way
        assert all(f"set_field:{0x10 | count + 1:#x}/0x1f->ct_mark" in line for line in here)
    assert not any(f"ct_mark={0x10 | PACKETS:#x}" in line for line in flows)


def agent(**host: Any) -> list[Record]:
    return [
        Port(datapath=EDGE, number=77, name="dpi", up=host.pop("up", True)),
        Host(id="h1", datapath=EDGE, dpi_port="dpi", **host),
    ]


def test_copies_go_to_the_dpi_port_where_it_is_up() -> None:
    assert all("meter:5,output:77" in flow for flow in copied(view(*agent())))
    assert all("output:CONTROLLER" in flow for flow in copied(view(*agent(up=False))))
    other = view(*agent(), Host(id="h0", datapath=EDGE, dpi_port="elsewhere"))
    assert all("output:77" in flow for flow in copied(other))


def test_a_dpi_port_that_comes_and_goes() -> None:
    compiler = Compiler(base_state())
    port, host = agent()

    def goes_to(*changes: Record) -> bool:
        compiler.apply([Change(0, record.kind, record.key, record) for record in changes])
        entries = compiler.desired[EDGE].entries.values()
        return any(isinstance(e, Flow) and "output:77" in actions_text(e) for e in entries)

    assert not goes_to(host)
    assert goes_to(port)
    assert not goes_to(port.model_copy(update={"up": False}))
    assert goes_to(port)
    assert not goes_to(host.model_copy(update={"dpi_port": None}))


def test_it_can_be_explained() -> None:
    state = State.of([*base_state().records(), service_record("r1", "tcp", 22)])
    found = [one for one in explain(state, vm="r1", datapath=EDGE) if one.owner == "services r1"]
    assert len(found) == 2
    assert all("first packets" in one.reason for one in found)
