"""How labs and sandboxes end: whatever happens, nothing is left behind."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mininet_labs import netns, sandbox
from mininet_labs.lab import Lab
from topologies.generate import hybrid, leaf_spine
from topologies.model import Cable, Fabric, Role, Switch

pytestmark = pytest.mark.fabric

ROOT = Path(__file__).parents[2]


def test_only_tunnels_are_limited():
    with Lab(hybrid(1, 1, 1, 1, tunnel_bps=25_000_000)) as lab:
        (tunnel,) = lab.cable_ports("priv-gw1", "pub-gw1")
        (cable,) = lab.cable_ports("priv-gw1", "priv-spine1")
        assert "rate 25Mbit" in netns.call("tc", "class", "show", "dev", tunnel)
        assert netns.call("tc", "class", "show", "dev", cable) == ""


def test_programs_of_any_user_may_have_taps():
    """As those of a libvirt that is no root's, also where the machine's node is root's alone."""
    opened = ("sh", "-c", "exec 3<>/dev/net/tun")
    subprocess.run(opened, user="nobody", group="nogroup", extra_groups=[], check=True)


def _left() -> tuple[list[str], list[str], str, str]:
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    interfaces = sorted(path.name for path in Path("/proc/sys/net/ipv4/conf").iterdir())
    return (
        interfaces,
        sorted(path.name for path in Path("/run/netns").iterdir()),
        netns.call("ovs-vsctl", "list-br"),
        " ".join(children),
    )


def test_a_lab_that_fails_half_way_leaves_nothing():
    before = _left()
    netns.call("ip", "link", "add", "x-2", "type", "veth", "peer", "name", "x-2-peer")
    with pytest.raises(Exception, match="x-2"), Lab(_clash()):
        pass
    netns.call("ip", "link", "del", "x-2")
    assert _left() == before


def test_a_lab_whose_test_fails_leaves_nothing():
    before = _left()

    def fail():
        with Lab(leaf_spine(2, 1)) as lab:
            vm = lab.vm("z", "02:00:00:00:00:0e", "10.0.0.9", 24)
            vm.plug("leaf1", "tap-z")
            vm.popen("sleep", "1000")
            lab.silent_port("leaf1", "tap-s")
            raise LookupError("the test")

    with pytest.raises(LookupError, match="the test"):
        fail()
    assert _left() == before


def test_a_second_lab_in_one_sandbox_is_refused():
    with Lab(leaf_spine(1, 1)), pytest.raises(RuntimeError, match="a lab runs"):
        Lab(leaf_spine(1, 1)).start()


def _clash():
    switches = tuple(Switch(name, number, Role.EDGE) for number, name in enumerate("xyz", 1))
    return Fabric("clash", switches, (Cable("x", "y"), Cable("x", "z")), ())


def _sandbox(*command: str, **options) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mininet_labs.sandbox", "--", *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("kill -9 $$", 137), ("true", 0)])
def test_the_sandbox_returns_the_status_of_its_command(script, status):
    process = _sandbox("bash", "-c", script)
    assert process.communicate(timeout=60)[0] == ""
    assert process.returncode == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_sandbox_passes_signals_on(number):
    name = number.name.removeprefix("SIG")
    process = _sandbox("bash", "-c", f"trap 'echo heard; exit 9' {name}; echo on; sleep 60 & wait")
    assert process.stdout.readline() == "on\n"
    process.send_signal(number)
    assert process.communicate(timeout=60)[0] == "heard\n"
    assert process.returncode == 9


def test_a_killed_sandbox_leaves_no_process_and_no_namespace():
    bridge = "ovs-vsctl add-br gone -- set bridge gone datapath_type=netdev; "
    process = _sandbox("bash", "-c", bridge + "echo on; sleep 1000")
    assert process.stdout.readline() == "on\n"
    (first,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    inner = os.pidfd_open(int(first))
    process.kill()
    # Process 1 of the inner sandbox ends only after everything else in it has.
    assert select.select([inner], [], [], 30)[0]
    os.close(inner)
    process.communicate(timeout=30)
    assert netns.call("ovs-vsctl", "list-br").find("gone") == -1


def test_a_fabric_test_outside_of_the_sandbox_fails_and_says_how():
    environment = {k: v for k, v in os.environ.items() if k != sandbox.VARIABLE}
    name = f"{__file__}::{test_only_tunnels_are_limited.__name__}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", name],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "python -m mininet_labs.sandbox -- python -m pytest" in done.stdout
