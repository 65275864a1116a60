"""`pleach ryu-manager`: apps of others and our own, on real switches."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from controller.model.nouns import Host
from mininet_labs import deployment, netns
from mininet_labs.deployment import free_port, wait_until
from mininet_labs.lab import Lab
from mininet_labs.sandbox import work_dir
from tests.certificates import Authority
from tests.fabric.world import World
from topologies.generate import leaf_spine

pytestmark = pytest.mark.fabric

ROOT = Path(__file__).parents[2]

#: Our apps beside those that `test_our_apps` loads.
OTHERS = ("traffic", "usage", "dpi", "capture", "signatures")

#: An app as users of Ryu write them: a learning switch.
LEARNING = """
from ryu.base import app_manager
from ryu.controller import ofp_event
from ryu.controller.handler import CONFIG_DISPATCHER, MAIN_DISPATCHER, set_ev_cls
from ryu.lib.packet import ethernet, packet
from ryu.ofproto import ofproto_v1_3


class Learning(app_manager.RyuApp):
    OFP_VERSIONS = [ofproto_v1_3.OFP_VERSION]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.ports = {}

    def add(self, datapath, priority, match, port):
        parser, ofproto = datapath.ofproto_parser, datapath.ofproto
        actions = [parser.OFPActionOutput(port, ofproto.OFPCML_NO_BUFFER)]
        todo = [parser.OFPInstructionActions(ofproto.OFPIT_APPLY_ACTIONS, actions)]
        datapath.send_msg(
            parser.OFPFlowMod(datapath, cookie=77, priority=priority, match=match,
                              instructions=todo))

    @set_ev_cls(ofp_event.EventOFPSwitchFeatures, CONFIG_DISPATCHER)
    def connected(self, event):
        datapath = event.msg.datapath
        self.logger.info("a learner sees %016x", datapath.id)
        match = datapath.ofproto_parser.OFPMatch()
        self.add(datapath, 0, match, datapath.ofproto.OFPP_CONTROLLER)

    @set_ev_cls(ofp_event.EventOFPPacketIn, MAIN_DISPATCHER)
    def packet_in(self, event):
        message, datapath = event.msg, event.msg.datapath
        parser, ofproto = datapath.ofproto_parser, datapath.ofproto
        port = message.match["in_port"]
        frame = packet.Packet(message.data).get_protocols(ethernet.ethernet)[0]
        self.ports[datapath.id, frame.src] = port
        out = self.ports.get((datapath.id, frame.dst), ofproto.OFPP_FLOOD)
        if out != ofproto.OFPP_FLOOD:
            self.add(datapath, 1, parser.OFPMatch(in_port=port, eth_dst=frame.dst), out)
        datapath.send_msg(
            parser.OFPPacketOut(datapath=datapath, buffer_id=ofproto.OFP_NO_BUFFER, in_port=port,
                                actions=[parser.OFPActionOutput(out)], data=message.data))
"""


def command(*words):
    return [sys.executable, "-m", "controller.cli", "ryu-manager", *map(str, words)]


@contextlib.contextmanager
def ryu_manager(port, *words, cwd, settings=()):
    """It runs and listens at `port`; told to stop, it ends in good order. Yields its log."""
    cwd.mkdir(parents=True, exist_ok=True)
    log = work_dir() / f"ryu-manager-{port}.log"
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | dict(settings)
    with log.open("wb") as file:
        process = subprocess.Popen(
            command("--ofp-listen-host", "127.0.0.1", *words),
            cwd=cwd, env=environment, stdout=file, stderr=file,
        )  # fmt: skip

    def listens():
        assert process.poll() is None, log.read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(listens, "it listens")
        yield log
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("scheme", ["tcp", "ssl"])
def test_an_app_of_a_user(scheme):
    """By its file and by its name; over TLS too, through which Ryu's own server lets one switch
    alone."""
    here, port = work_dir() / f"user-{scheme}", free_port()
    here.mkdir()
    (here / "learning.py").write_text(LEARNING)
    ours = Authority(here, "ours")
    own, badge = ours.issue("IP:127.0.0.1"), ours.issue("DNS:switches")
    words = {
        "tcp": (here / "learning.py", "--ofp-tcp-listen-port", port),
        "ssl": (
            *("learning", "--ofp-ssl-listen-port", port, "--ca-certs", ours.file),
            *("--ctl-privkey", own.key, "--ctl-cert", own.certificate),
        ),
    }
    with ryu_manager(port, *words[scheme], cwd=here) as log, Lab(leaf_spine(2, 1)) as lab:
        lab.vsctl("set-ssl", str(badge.key), str(badge.certificate), str(ours.file))
        for switch in lab.fabric.switches:
            lab.vsctl(
                *("set", "bridge", switch.name, "protocols=OpenFlow13"),
                *("--", "set-controller", switch.name, f"{scheme}:127.0.0.1:{port}"),
            )
        lab.wait_connected()
        a = lab.vm("a", "02:00:00:00:00:0a", "10.0.0.10")
        b = lab.vm("b", "02:00:00:00:00:0b", "10.0.0.11")
        a.plug("leaf1", "a1")
        b.plug("leaf2", "b1")
        assert a.ping(b.ipv4, count=5)
        for switch in lab.fabric.switches:
            told = netns.call("ovs-ofctl", "-O", "OpenFlow13", "dump-flows", switch.name)
            assert "cookie=0x4d" in told
            assert f"dl_dst={b.mac}" in told
            assert f"a learner sees {switch.dpid:016x}" in log.read_text()
        assert "Traceback" not in log.read_text()


def test_our_apps():
    running = deployment.Deployment(work_dir() / "our-apps")
    port = running.openflow
    apps = ("apps/fabric.py", "apps/discovery.py", "apps/services.py")
    with running, contextlib.ExitStack() as stack:
        running.launch("brain")
        words = (*apps, "--ofp-tcp-listen-port", port)
        log = stack.enter_context(ryu_manager(port, *words, cwd=ROOT, settings=running.environment))
        lab = stack.enter_context(Lab(leaf_spine(2, 1), controller=running.controller))
        world = World(lab, running)
        for host in lab.fabric.hosts:
            running.client.put(Host(id=host.name, datapath=lab.dpid(host.edge)))
        world.whole()
        world.tenant("red")
        one = world.subnet("one", "red", "10.0.0.0/24", "fd00:1::/64")
        a = world.vm("a", one, "leaf1-h1", dhcp=True)
        b = world.vm("b", one, "leaf2-h1")
        assert str(a.lease().address) == str(one.cidr[10])
        assert a.ping(b.ipv4, count=3)
        assert a.ping(b.ipv6, count=3)
        # What an event is about is told by Ryu's log too.
        assert f"a switch is connected datapath={lab.dpid('leaf1')}" in log.read_text()
        assert "Traceback" not in log.read_text()
        told = [line for line in log.read_text().splitlines() if "not all of Pleach's" in line]
        assert [line.partition("purpose: ")[2] for line in told] == [
            " ".join(f"apps/{name}.py" for name in OTHERS)
        ]
        told = [line for line in log.read_text().splitlines() if "does not hold" in line]
        assert len(told) == 1
        assert "southbound.port" in told[0]
        assert "--ofp-tcp-listen-port" in told[0]


def test_all_our_apps():
    """Nothing is missed, whether they are named by their files or as modules."""
    port = free_port()
    apps = ["apps/fabric.py", "apps/discovery.py", "apps/services.py"]
    apps += [f"apps.{name}" for name in OTHERS]
    words = (*apps, "--ofp-tcp-listen-port", port)
    settings = {"PLEACH_STATE_DIR": str(work_dir() / "all-our-apps")}
    with ryu_manager(port, *words, cwd=ROOT, settings=settings) as log:
        assert "loading app apps.signatures" in log.read_text()
        assert "not all of Pleach's" not in log.read_text()
        assert "does not hold" not in log.read_text()


def test_what_cannot_be_run(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        here = ("--ofp-listen-host", "127.0.0.1", "--ofp-tcp-listen-port", port)
        wrongs = {
            f"127.0.0.1:{port}: --ofp-tcp-listen-port: cannot be listened at": here,
            "nowhere: there is neither a file nor a module": ("nowhere.py",),
            "unrecognized arguments: --nonsense": ("--nonsense",),
            "see that the file and its disk are in order": (ROOT / "apps" / "fabric.py",),
        }
        for told, words in wrongs.items():
            settings = {
                "PYTHONPATH": str(ROOT),
                "PLEACH_STATE_DIR": str(tmp_path),
                "PLEACH_STORE__URL": "sqlite:////proc/pleach.db",
            }
            done = subprocess.run(
                command(*words), cwd=tmp_path, env=os.environ | settings, check=False,
                capture_output=True, text=True, timeout=60,
            )  # fmt: skip
            assert (done.returncode, told in done.stderr) == (2, True), done.stderr
            assert "Traceback" not in done.stderr
