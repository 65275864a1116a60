"""One fabric of real switches with Pleach on it for each module that asks for `world`.

A module says in `FABRIC` which fabric it wants, and in `SETTINGS` what is to differ from the
default settings.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from controller.model.nouns import Host
from mininet_labs.deployment import Deployment
from mininet_labs.lab import Lab
from mininet_labs.sandbox import work_dir
from tests.fabric.world import World
from topologies.generate import leaf_spine
from topologies.model import Fabric


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """A fabric that is connected, whose links are known, and whose hosts are on record."""
    fabric: Fabric = getattr(request.module, "FABRIC", leaf_spine(2, 2))
    # Who looks at entries wants none that come by themselves, as chosen paths do.
    settings: dict[str, str] = {
        "PLEACH_PATHS__ENABLED": "false",
        **getattr(request.module, "SETTINGS", {}),
    }
    directory = work_dir() / request.module.__name__
    with Deployment(directory, settings) as deployment:
        deployment.start()
        with Lab(fabric, controller=deployment.controller) as lab:
            here = World(lab, deployment)
            for host in fabric.hosts:
                deployment.client.put(Host(id=host.name, datapath=lab.dpid(host.edge)))
            here.whole()
            yield here
            log, brain = deployment.log("southbound"), deployment.log("brain")
    # A loop or handler that failed goes on, so that only the log tells.
    forbidden = ["a loop of the southbound process failed", "Exception occurred during handler"]
    if not getattr(request.module, "MALFORMED", False):
        forbidden.append("Traceback")
    assert not [words for words in forbidden if words in log]
    assert "Traceback" not in brain


@pytest.hookimpl(tryfirst=True)  # before it is chosen by markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What asks for a `world`, or stands in a module that starts a `Deployment` itself, has a
    southbound process: the runs under the two frameworks are told apart by that."""
    for item in items:
        module = getattr(item, "module", None)
        if "world" in getattr(item, "fixturenames", ()) or hasattr(module, "Deployment"):
            item.add_marker(pytest.mark.southbound)
