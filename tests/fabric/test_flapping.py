"""A link that fails again and again is not used until it has been quiet for a while."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from controller.model.nouns import Watch
from mininet_labs.deployment import wait_until
from mininet_labs.traffic import Flow

pytestmark = pytest.mark.fabric

#: Three failures in a row damp; from 3 to 1 it takes some 8 s.
SETTINGS = {
    "PLEACH_SOUTHBOUND__LLDP_S": "0.5",
    "PLEACH_SOUTHBOUND__LINK_TIMEOUT_S": "3600",
    "PLEACH_SOUTHBOUND__DAMPING__CUTOFF": "2.5",
    "PLEACH_SOUTHBOUND__DAMPING__HALF_LIFE_S": "5",
    "PLEACH_SOUTHBOUND__DAMPING__MAX_S": "20",
}


def flapped(world):
    """The two directions of the link that flaps."""
    one, other = (world.lab.dpid(s) for s in ("leaf1", "spine1"))
    return [k for k in world.client.topology().links if {k.datapath, k.to_datapath} == {one, other}]


def shown(world):
    """What an operator sees."""
    token = (world.deployment.state_dir / "operator.token").read_text().strip()
    told = subprocess.run(
        [sys.executable, "-m", "controller.cli", "topology", "show"],
        env={**os.environ, "PLEACH_URL": world.deployment.url, "PLEACH_TOKEN": token},
        capture_output=True,
        text=True,
        check=True,
    )
    return told.stdout


def damp(world):
    """Cut and mend a link until it is damped."""
    for _ in range(10):
        world.lab.link_down("leaf1", "spine1")
        wait_until(lambda: not any(k.up for k in flapped(world)), "it is down")
        world.lab.link_up("leaf1", "spine1")
        wait_until(
            lambda: all(k.up for k in flapped(world)) or all(k.damped for k in flapped(world)),
            "it is up, or damped",
        )
        if all(k.damped for k in flapped(world)):
            return
    raise AssertionError("ten failures have not damped it")


def test_a_link_that_flaps_is_damped_for_a_while_and_costs_nothing(world):
    world.tenant("red")
    one = world.subnet("one", "red", "10.0.0.0/24")
    a, b = world.vm("a", one, "leaf1-h1"), world.vm("b", one, "leaf2-h1")
    assert {k.watch for k in world.client.topology().links} == {Watch.PORT}
    assert "port, LLDP" in shown(world)
    damp(world)
    assert not any(k.up for k in flapped(world))
    assert shown(world).count("damped") == 2
    assert "a link is damped: it fails too often" in world.deployment.log("southbound")
    world.applied()
    with Flow(a, b, 100) as flow:
        # It goes on failing, and nobody notices.
        world.lab.link_down("leaf1", "spine1")
        world.lab.link_up("leaf1", "spine1")
        wait_until(lambda: all(k.up for k in flapped(world)), "it was quiet for long enough")
        world.applied()
        assert [(r.lost, r.errors) for r in flow.stop()] == [(0, 0)] * 2
    assert not any(k.damped for k in flapped(world))
    assert "a link is not damped any more" in world.deployment.log("southbound")
    assert "damped" not in shown(world)


def test_a_link_is_still_damped_after_a_restart(world):
    damp(world)
    world.deployment.kill("southbound")
    world.deployment.launch("southbound")
    wait_until(
        lambda: sum(p.connected for p in world.client.topology().progress) == 4, "all are back"
    )
    assert all(k.damped and not k.up for k in flapped(world))
    wait_until(lambda: all(k.up for k in flapped(world)), "it was quiet for long enough")
