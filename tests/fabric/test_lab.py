"""The lab itself, before anything is measured with it: what it builds and what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mininet_labs.dhcp import DhcpError
from mininet_labs.lab import Lab
from mininet_labs.traffic import Flow, Stream, TrafficError, probe
from topologies.generate import leaf_spine

pytestmark = pytest.mark.fabric


@pytest.fixture(scope="module")
def lab():
    """Two edges and a core; `leaf1` learns, the others are told what to do by hand."""
    with Lab(leaf_spine(2, 1)) as lab:
        for switch in lab.edges + lab.cores:
            lab.ofctl("add-flow", switch, "priority=1,actions=NORMAL")
        yield lab


@pytest.fixture(scope="module")
def pair(lab):
    """A guest on each edge."""
    a = lab.vm("a", "02:00:00:00:00:0a", "10.0.0.1", 24, ipv6="fd00::1")
    b = lab.vm("b", "02:00:00:00:00:0b", "10.0.0.2", 24, ipv6="fd00::2")
    a.plug("leaf1", "tap-a")
    b.plug("leaf2", "tap-b")
    return a, b


def forget(lab):
    """Every switch back to plain learning, with nothing learned."""
    for switch in lab.edges + lab.cores:
        lab.ofctl("del-flows", switch)
        lab.ofctl("add-flow", switch, "priority=1,actions=NORMAL")
        lab.appctl("fdb/flush", switch)


def test_guests_reach_each_other_with_full_frames(pair):
    a, b = pair
    assert a.ping("10.0.0.2", count=2)
    assert a.ping("fd00::2", count=2)
    full = a.run("ping", "-c", "2", "-i", "0.2", "-W", "2", "-M", "do", "-s", "1472", "10.0.0.2")
    assert full.returncode == 0, full.stdout + full.stderr
    assert b.ping("fe80::ff:fe00:a%eth0", count=2)
    assert not a.ping("10.0.0.77")


def test_a_guest_has_no_route_but_its_own(pair):
    a, _ = pair
    assert a.run("ip", "-4", "route").stdout.split() == (
        ["10.0.0.0/24", "dev", "eth0", "proto", "kernel", "scope", "link", "src", "10.0.0.1"]
    )
    features = a.run("ethtool", "-k", "eth0").stdout
    for name in ("tx-checksumming", "tcp-segmentation-offload", "generic-receive-offload"):
        assert f"{name}: off" in features


def test_switches_are_what_the_fabric_says(lab):
    assert lab.edges == ("leaf1", "leaf2")
    assert lab.cores == ("spine1",)
    for switch in lab.fabric.switches:
        assert lab.vsctl("get", "Bridge", switch.name, "datapath_id").strip() == (
            f'"{lab.dpid(switch.name)}"'
        )
        assert lab.vsctl("get", "Bridge", switch.name, "fail_mode").strip() == "secure"
    assert lab.port_number("spine1-2") == 2
    for port in ("leaf1-1", "spine1-1"):
        assert (Path("/proc/sys/net/ipv6/conf") / port / "mtu").read_text().strip() == "1600"
    with pytest.raises(KeyError, match="leaf9"):
        lab.switch("leaf9")


def test_a_controller_is_tried_every_second(lab, free_port):
    lab.connect_to("127.0.0.1", free_port)
    columns = "target,max_backoff,inactivity_probe,connection_mode"
    bare = ("-f", "csv", "-d", "bare", "--no-heading", f"--columns={columns}")
    listed = lab.vsctl(*bare, "list", "Controller").splitlines()
    assert listed == [f"tcp:127.0.0.1:{free_port},1000,1000,out-of-band"] * 3
    with pytest.raises(RuntimeError, match="Controller"):
        lab.wait_connected(timeout_s=1)
    lab.vsctl(*" -- ".join(f"del-controller {s}" for s in ("leaf1", "leaf2", "spine1")).split())
    forget(lab)


def test_links_are_cut_and_mended(lab, pair):
    a, _ = pair
    for cut, mend in (
        (lambda: lab.link_down("leaf1", "spine1"), lambda: lab.link_up("leaf1", "spine1")),
        (lambda: lab.isolate("spine1"), lambda: lab.rejoin("spine1")),
    ):
        cut()
        assert not a.ping("10.0.0.2")
        mend()
        assert a.ping("10.0.0.2", count=5)
    with pytest.raises(KeyError, match="no cable joins leaf1 and leaf2"):
        lab.link_down("leaf1", "leaf2")


def test_a_whole_flow_is_whole(pair):
    a, b = pair
    with Flow(a, b) as flow, Flow(a, b, 200, port=7_800, version=6) as flow6, Stream(a, b) as tcp:
        assert b.ping("10.0.0.1", count=5)
        stream = tcp.stop()
        results = [*flow.stop(), *flow6.stop()]
    for result in results:
        assert result.sent == result.received > 0
        assert (result.lost, result.duplicates, result.errors) == (0, 0, 0)
    assert stream.survived
    assert stream.bytes > 0


def test_a_cut_flow_tells_what_it_lost(lab, pair):
    a, b = pair
    with Flow(a, b) as flow:
        assert a.ping("10.0.0.2", count=2)
        lab.ofctl("add-flow", "leaf2", "priority=9,udp,nw_dst=10.0.0.2,actions=drop")
        assert a.ping("10.0.0.2", count=2)
        lab.ofctl("del-flows", "leaf2", "udp")
        assert a.ping("10.0.0.2", count=2)
        forth, back = flow.stop()
    assert 0 < forth.lost < forth.sent
    assert forth.lost == forth.sent - forth.received
    assert forth.longest_gap_ms > 100
    assert len(forth.first_lost) == 10
    assert back.lost == 0


def test_copies_are_counted_as_duplicates(lab, pair):
    a, b = pair
    number = lab.port_number("tap-b")
    with Flow(a, b) as flow:
        actions = f"actions=output:{number},output:{number}"
        lab.ofctl("add-flow", "leaf2", f"priority=9,udp,nw_dst=10.0.0.2,{actions}")
        assert a.ping("10.0.0.2", count=2)
        lab.ofctl("del-flows", "leaf2", "udp")
        forth, _ = flow.stop()
    assert forth.lost == 0
    assert 0 < forth.duplicates < forth.sent


def test_a_broken_stream_has_not_survived(lab, pair):
    a, b = pair
    with Stream(a, b) as tcp:
        assert a.ping("10.0.0.2", count=2)
        # The far host refuses to know the connection, as after a lost conntrack entry.
        b.run("ss", "-K", "sport", "=", "7702")
        b.run("ip", "addr", "del", "10.0.0.2/24", "dev", "eth0")
        b.run("ip", "addr", "add", "10.0.0.9/24", "dev", "eth0")
        lab.ofctl("add-flow", "leaf2", "priority=9,tcp,actions=drop")
        result = tcp.stop()
    lab.ofctl("del-flows", "leaf2", "tcp")
    b.run("ip", "addr", "del", "10.0.0.9/24", "dev", "eth0")
    b.run("ip", "addr", "add", "10.0.0.2/24", "dev", "eth0")
    assert not result.survived
    assert result.failure


def test_traffic_without_a_path_says_so(lab, pair, monkeypatch):
    a, b = pair
    monkeypatch.setattr("mininet_labs.traffic._READY_S", 1.0)
    lab.ofctl("add-flow", "leaf2", "priority=9,udp,actions=drop")
    with pytest.raises(TrafficError, match="udp in a said nothing"):
        Flow(a, b).start()
    lab.ofctl("del-flows", "leaf2", "udp")


def test_probes_tell_reachable_from_heard_from_silent(lab, pair):
    a, b = pair
    lab.ofctl("add-flow", "leaf2", "priority=9,udp,nw_src=10.0.0.2,actions=drop")
    both = {("a", "b"), ("b", "a")}
    reach = probe([(a, b), (b, a)], tries=2, interval_s=0.3)
    assert (reach.reachable, reach.heard) == (set(), {("a", "b")})
    lab.ofctl("del-flows", "leaf2", "udp")
    reach = probe([(a, b), (b, a)])
    assert (reach.reachable, reach.heard) == (both, both)
    reach = probe([(a, b), (b, a)], version=6)
    assert reach.reachable == both


def test_a_probe_that_another_answers_counts_for_nothing(lab, pair):
    a, _ = pair
    twin = lab.vm("twin", "02:00:00:00:00:0c", "10.0.0.2", 24)
    reach = probe([(a, twin)], tries=2, interval_s=0.3)
    assert (reach.reachable, reach.heard) == (set(), set())
    lab.remove_vm("twin")


def test_a_move_between_edges_loses_nothing(lab, pair):
    """Both places are fed, as the controller does it; what the guest hears at neither place
    within a short overlap would be the lab's own loss."""
    a, b = pair
    b.plug("leaf1", "tap-b2")
    first, second = lab.port_number("tap-b"), lab.port_number("tap-b2")
    own = lab.port_number("tap-a")
    to_b, to_a = "priority=9,dl_dst=02:00:00:00:00:0b", "priority=9,dl_dst=02:00:00:00:00:0a"
    lab.ofctl("add-flow", "leaf1", f"{to_b},actions=output:{second},output:1")
    lab.ofctl("add-flow", "leaf1", f"{to_a},actions=output:{own}")
    lab.ofctl("add-flow", "leaf2", f"{to_b},actions=output:{first}")
    lab.ofctl("add-flow", "leaf2", f"{to_a},actions=output:1")
    lab.ofctl("add-flow", "spine1", f"{to_b},actions=output:2")
    lab.ofctl("add-flow", "spine1", f"{to_a},actions=output:1")
    with Flow(a, b, 2_000) as flow, Stream(a, b) as tcp:
        for port in ("tap-b2", "tap-b") * 4:
            b.switch_over(port)
            assert b.active == port
            assert b.ping("10.0.0.1", count=1)
        forth, back = flow.stop()
        stream = tcp.stop()
    b.unplug("tap-b2")
    forget(lab)
    assert (forth.lost, back.lost, back.duplicates) == (0, 0, 0)
    assert forth.duplicates > 0
    assert stream.survived


def test_a_move_on_a_learning_switch_is_announced_and_loses_nothing(lab, pair):
    a, _ = pair
    c = lab.vm("c", "02:00:00:00:00:0d", "10.0.0.3", 24)
    c.plug("leaf1", "tap-c")
    c.plug("leaf1", "tap-c2")
    new = lab.port_number("tap-c2")
    rarp = "priority=9,dl_type=0x8035,dl_src=02:00:00:00:00:0d,actions=NORMAL"
    lab.ofctl("add-flow", "leaf1", rarp)
    with Flow(a, c) as flow:
        # Open vSwitch relearns a MAC within its 500 ms of revalidation; the old place stays
        # fed until then, so only a hole in the redirection itself would lose a packet.
        c.switch_over("tap-c2", overlap_s=1.2)
        forth, back = flow.stop()
    (counted,) = [line for line in lab.ofctl("dump-flows", "leaf1").splitlines() if "rarp" in line]
    learned = [
        line.split()[0]
        for line in lab.appctl("fdb/show", "leaf1").splitlines()
        if "02:00:00:00:00:0d" in line
    ]
    c.unplug("tap-c")
    assert a.ping("10.0.0.3")
    lab.remove_vm("c")
    forget(lab)
    assert "n_packets=3," in counted
    assert learned == [str(new)]
    assert (forth.lost, back.lost) == (0, 0)


SERVER = """
import socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
s.bind(("0.0.0.0", 67))
print("on", flush=True)
while True:
    q = s.recv(2048)
    kind = 2 if q[242] == 1 else {kind}
    a = b"\\x02" + q[1:16] + socket.inet_aton("10.0.0.50") + q[20:236] + q[236:240]
    o = [(53, bytes([kind])), (54, socket.inet_aton("10.0.0.2")), (51, struct.pack("!I", 600))]
    o += [(1, b"\\xff\\xff\\xff\\0"), (3, socket.inet_aton("10.0.0.254")), (56, b"none left")]
    a += b"".join(bytes((c, len(v))) + v for c, v in o) + b"\\xff"
    s.sendto(a, ("255.255.255.255", 68))
"""


def test_a_guest_takes_its_address_by_dhcp(lab, pair):
    a, b = pair
    guest = lab.vm("d", "02:00:00:00:00:0d", None, dhcp=True)
    guest.plug("leaf1", "tap-d")
    with pytest.raises(DhcpError, match="no DHCP server answered"):
        guest.lease(timeout_s=0.2)
    for kind in ("6", "5"):
        server = b.popen(
            *(sys.executable, "-c", SERVER.replace("{kind}", kind)), stdout=subprocess.PIPE
        )
        b.run("ip", "route", "add", "255.255.255.255", "dev", "eth0")
        assert server.stdout.readline() == "on\n"
        if kind == "6":
            with pytest.raises(DhcpError, match="refused: none left"):
                guest.lease()
        else:
            granted = guest.lease()
        server.kill()
        server.communicate(timeout=10)
    assert (str(granted.address), granted.prefix, granted.lease_s) == ("10.0.0.50", 24, 600)
    assert str(granted.gateway) == "10.0.0.254"
    assert a.ping("10.0.0.50", count=2)
    lab.remove_vm("d")


def test_a_guest_unplugged_is_silent_until_plugged_again(pair):
    a, b = pair
    b.unplug("tap-b")
    assert b.active is None
    assert not a.ping("10.0.0.2")
    with pytest.raises(KeyError):
        b.switch_over("tap-b")
    b.plug("leaf2", "tap-b")
    with pytest.raises(ValueError, match="already"):
        b.plug("leaf2", "tap-b")
    assert b.ping("10.0.0.1", count=5)
    assert a.ping("10.0.0.2", count=5)


def test_silent_ports_cost_no_interface(lab):
    before = set(Path("/proc/sys/net/ipv6/conf").iterdir())
    names = [f"s{number}" for number in range(300)]
    lab.silent_ports("leaf1", names)
    numbers = {lab.port_number(names[0]), lab.port_number(names[-1])}
    assert len(numbers) == 2
    assert set(Path("/proc/sys/net/ipv6/conf").iterdir()) == before
    lab.remove_ports("leaf1", names)
    assert lab.vsctl("list-ports", "leaf1").split() == ["leaf1-1", "tap-a"]
