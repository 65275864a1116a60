"""A hundred switches that connect all at once get what they are to have; they are emulated."""

from __future__ import annotations

import pytest

from mininet_labs.deployment import Deployment, wait_until
from tests.fakeswitch import Fakes, FakeSwitch

pytestmark = pytest.mark.fabric


def test_a_hundred_switches_at_once(tmp_path):
    with Deployment(tmp_path) as deployment:
        deployment.start()
        with Fakes(deployment.controller) as fakes:
            many = [FakeSwitch(0x1000 + n, {1: f"p{n}", 2: f"q{n}"}) for n in range(100)]
            for fake in many:
                fakes.connect(fake)
            wait_until(lambda: settled(deployment, many), "all have confirmed", 120)
            assert all(fake.connections == 1 for fake in many)
            for fake in many[::10]:
                wanted = deployment.client.explain(datapath=f"{fake.dpid:016x}").items
                assert wanted
                assert len(fake.flows) + len(fake.groups) + len(fake.meters) == len(wanted)


def settled(deployment, many):
    """Whether all have confirmed all that was changed."""
    topology = deployment.client.topology()
    told = {p.datapath: p for p in topology.progress}
    mine = [told.get(f"{fake.dpid:016x}") for fake in many]
    return all(p and p.connected and p.revision >= topology.revision for p in mine)
