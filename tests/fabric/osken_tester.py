"""os-ken's own switch tests (os_ken/tests/switch): patterns of entries and packets, tried on a
bridge that another one is cabled to.
"""

from __future__ import annotations

import importlib.util
import json
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.fabric.direct import vsctl

BRIDGES = ("target", "tester")
TIMEOUT_S = 300
#: What is not tried: Open vSwitch knows no PBB; and labels are popped there by entries that do not
#: match on MPLS, which it does not do.
FOREIGN = ("ethernet/itag/", "ethernet/mpls/")
_PROGRAM = """
import logging, sys
logging.basicConfig(level=logging.INFO)
import eventlet
eventlet.monkey_patch()
import os_ken.flags, os_ken.log
from os_ken import cfg
from os_ken.base.app_manager import AppManager
from os_ken.controller import controller
cfg.CONF(args=[], project="os_ken", default_config_files=[])
cfg.CONF.set_override("ofp_tcp_listen_port", int(sys.argv[1]))
cfg.CONF.set_override("ofp_listen_host", "127.0.0.1")
for name, value in (
    ("dir", sys.argv[2]), ("target_version", "openflow14"), ("tester_version", "openflow14")
):
    cfg.CONF.set_override(name, value, group="test-switch")
AppManager.run_apps(["os_ken.tests.switch.tester"])
"""
_RESULT = re.compile(r"^ {4}(\S.*\S) +(OK|ERROR)$", re.MULTILINE)


class Report(NamedTuple):
    """How many tests passed, and what the others say of themselves."""

    passed: int
    errors: list[str]


def run(patterns: Sequence[str]) -> Report:
    """Run the patterns of these names, such as "match/00_IN_PORT"."""
    spec = importlib.util.find_spec("os_ken.tests.switch")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent / "of14"
    with tempfile.TemporaryDirectory(prefix="pleach-patterns-") as directory, _cabled() as port:
        for name in patterns:
            title, *tests = json.loads((source / f"{name}.json").read_text())
            left = [t for t in tests if not any(x in t["description"] for x in FOREIGN)]
            file = Path(directory, name.replace("/", "-") + ".json")
            file.write_text(json.dumps([title, *left]))
        command = [sys.executable, "-W", "ignore", "-c", _PROGRAM, str(port), directory]
        # It ends by a signal to itself.
        done = subprocess.run(
            command,
            check=False,
            env={"OSKEN_HUB_TYPE": "eventlet", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
        )
    if "---  Test end  ---" not in done.stdout:
        raise RuntimeError(f"os-ken's switch tests did not come to their end:\n{done.stdout}")
    results = _RESULT.findall(done.stdout)
    errors = [name for name, result in results if result == "ERROR"]
    return Report(len(results) - len(errors), errors)


@contextmanager
def _cabled() -> Iterator[int]:
    """Two bridges with three cables between them; the port at which they look for a controller."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    try:
        for number, bridge in enumerate(BRIDGES, 1):
            vsctl(
                "add-br", bridge, "--", "set", "bridge", bridge, "datapath_type=netdev",
                "protocols=OpenFlow14", "fail_mode=secure",
                f"other-config:datapath-id={number:016x}", "other_config:disable-in-band=true",
            )  # fmt: skip
        for one, other in (BRIDGES, BRIDGES[::-1]):
            for number in (1, 2, 3):
                vsctl(
                    "add-port", one, f"{one}{number}", "--", "set", "interface", f"{one}{number}",
                    "type=patch", f"options:peer={other}{number}", f"ofport_request={number}",
                )  # fmt: skip
            vsctl("set-controller", one, f"tcp:127.0.0.1:{port}",
                  "--", "set", "controller", one, "max_backoff=1000")  # fmt: skip
        yield port
    finally:
        for bridge in BRIDGES:
            vsctl("--if-exists", "del-br", bridge)
