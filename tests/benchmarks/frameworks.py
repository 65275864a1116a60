"""The benchmarks of the fabric, of restarts and of migrations, under os-ken and under Ryu."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from mininet_labs.deployment import FRAMEWORK
from tests.benchmarks import fabric, migration, restart
from tests.benchmarks.harness import Json, Options, say

PARTS = {"fabric": fabric.run, "restart": restart.run, "migration": migration.run}


def run(options: Options) -> Json:
    """Each framework's figures: those of every benchmark under its name, and all beside each
    other."""
    return {"os_ken": measured("os-ken", options), "ryu": measured("ryu", options)}


def measured(framework: str, options: Options) -> Json:
    """The three benchmarks under one framework. What restarts and migrations both count, such as
    packets lost, is added up where the figures stand beside each other."""
    results: dict[str, Json] = {}
    for name, part in PARTS.items():
        say(name, "under", framework)
        with chosen(framework):
            results[name] = part(options)
    beside: Json = {}
    for result in results.values():
        for key, value in result.items():
            earlier = beside.get(key, 0)
            assert isinstance(earlier, int | float)
            assert isinstance(value, int | float)
            beside[key] = value if key not in beside else earlier + value
    return {**results, **beside}


@contextlib.contextmanager
def chosen(framework: str) -> Iterator[None]:
    """Have every deployment that is started take this framework."""
    before = os.environ.get(FRAMEWORK)
    os.environ[FRAMEWORK] = framework
    try:
        yield
    finally:
        del os.environ[FRAMEWORK]
        if before is not None:
            os.environ[FRAMEWORK] = before
