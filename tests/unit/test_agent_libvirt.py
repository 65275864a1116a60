"""What the agent sees of libvirt: its test driver, in this process, whose events are real."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import libvirt
import pytest

from controller.agent.hypervisor import Libvirt
from controller.agent.naming import Names
from controller.agent.outbox import Outbox
from controller.agent.records import Machine, SourceAway, Told
from controller.agent.watching import Watcher
from controller.api import ProblemBody
from controller.client import Client, Problem
from controller.model.nouns import Vm

URI = "test:///default"
MAC = "52:54:00:00:00:77"
Find = Callable[[str, str, Iterable[str]], str | None]


def xml(name: str, port: str = "tap7", more: str = "") -> str:
    return f"""<domain type='test'><name>{name}</name><memory unit='MiB'>64</memory>
      <vcpu>2</vcpu><os><type>hvm</type></os><devices>
      <interface type='ethernet'><mac address='{MAC}'/><target dev='{port}'/></interface>{more}
      </devices></domain>"""


@pytest.fixture
def driver() -> Iterator[Any]:
    """What the test driver has, which goes on after the test without what that made."""
    with closing(libvirt.open(URI)) as connection:
        before = {domain.name() for domain in connection.listAllDomains()}
        yield connection
        for domain in connection.listAllDomains():
            if domain.name() not in before:
                domain.destroy()


def by_name(name: str, _uuid: str, _macs: Iterable[str]) -> str | None:
    return name if name.startswith("web") else None


@contextmanager
def running(source: Libvirt) -> Iterator[None]:
    stopping = threading.Event()
    thread = threading.Thread(target=source.run, args=(stopping,))
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(20)
        assert not thread.is_alive()


def test_domains_are_seen_and_measured(driver: Any) -> None:
    source = Libvirt(URI, by_name, lambda: None)
    with closing(source):
        assert source.machines() == ()
        driver.createXML(xml("web-1"))
        assert source.machines() == (Machine("web-1", ("tap7",), (MAC,)),)
        raw = source.measure()["web-1"]
        assert raw.gauges["memory_size"] == 64 << 20
        assert raw.counts["net_rx_total"].keys() == {"tap7"}
        assert raw.shares["cpu"][1] == 2


def test_an_event_wakes_and_a_look_tells_what_it_was(driver: Any, tmp_path: Path) -> None:
    woken = threading.Event()
    source = Libvirt(URI, by_name, woken.set)

    def next_event(outbox: Outbox, watcher: Watcher) -> str:
        assert woken.wait(20)
        woken.clear()
        watcher.look()
        (waiting,) = outbox.events(9)
        outbox.took([waiting.number])
        return waiting.fact.type.value

    with running(source), closing(Outbox(tmp_path / "box", 1 << 20)) as outbox:
        watcher = Watcher("hv1", outbox, 10, 60)
        watcher.source = source
        watcher.look()
        assert outbox.events(9) == []
        domain = driver.createXML(xml("web-1"))
        assert next_event(outbox, watcher) == "vm.placed"
        assert outbox.told()["web-1"].ports == ("tap7",)
        domain.suspend()  # which changes nothing of where it is
        assert woken.wait(20)
        woken.clear()
        watcher.look()
        assert outbox.events(9) == []
        domain.destroy()
        assert next_event(outbox, watcher) == "vm.removed"


def test_what_happened_while_the_agent_was_away_is_told(driver: Any, tmp_path: Path) -> None:
    def looked() -> list[tuple[str, str]]:
        source = Libvirt(URI, by_name, lambda: None)
        with closing(source), closing(Outbox(tmp_path / "box", 1 << 20)) as outbox:
            watcher = Watcher("hv1", outbox, 10, 60)
            watcher.source = source
            watcher.look()
            waiting = outbox.events(9)
            outbox.took([one.number for one in waiting])
            return [(one.fact.type.value, one.fact.vm) for one in waiting]

    first = driver.createXML(xml("web-1"))
    assert looked() == [("vm.placed", "web-1")]
    first.destroy()
    driver.createXML(xml("web-2"))
    assert sorted(looked()) == [("vm.placed", "web-2"), ("vm.removed", "web-1")]
    assert looked() == []


def test_a_libvirt_that_is_not_there_removes_nobody(tmp_path: Path) -> None:
    source = Libvirt(f"qemu+unix:///system?socket={tmp_path}/none", by_name, lambda: None)
    with closing(Outbox(tmp_path / "box", 1 << 20)) as outbox:
        outbox.tell([], {"web-1": Told(("tap7",))})
        watcher = Watcher("hv1", outbox, 10, 60)
        watcher.source, watcher.gauges = source, [source]
        watcher.look()
        watcher.measure()
        assert outbox.events(9) == []
        cause, mend = watcher.sight.troubles["libvirt"]
        assert "Failed to connect socket" in cause
        assert "agent.libvirt" in mend
        # The host itself is told of all the same.
        package = outbox.package(1_000)
        assert package is not None
        assert package.batches[0].subjects == ("hv1",)


def test_without_the_module_it_says_where_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libvirt", None)
    with pytest.raises(SourceAway, match="module is missing") as away:
        Libvirt(URI, by_name, lambda: None).machines()
    assert "python3-libvirt" in away.value.mend


# Names


class _Controller:
    """Knows one VM, where it can be reached."""

    def __init__(self) -> None:
        self.reached = True
        self.asked: list[str] = []

    def __enter__(self) -> _Controller:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def list(self, _cls: type, mac: str) -> Iterator[Vm]:
        self.asked.append(mac)
        if not self.reached:
            raise Problem(ProblemBody(type="x", title="x", status=0, detail="away"))
        nics = [{"mac": MAC, "subnet": "web"}]
        if mac == MAC:
            yield Vm.model_validate({"id": "web-1", "tenant": "acme", "nics": nics})


def test_names_are_found_as_set(tmp_path: Path) -> None:
    controller = _Controller()
    now = time.monotonic()

    def connect() -> Client:
        return controller  # type: ignore[return-value]

    with closing(Outbox(tmp_path / "box", 1 << 20)) as outbox:
        asked = ("web 1", "6695eb01-f6a4-8304-79aa-97f2502e193f", [MAC.upper()])
        assert Names("name", outbox, connect).vm("web-1", "u", []) == "web-1"
        assert Names("name", outbox, connect).vm(*asked) is None  # no id may be so
        assert Names("uuid", outbox, connect).vm(*asked) == asked[1]
        assert controller.asked == []
        names = Names("mac", outbox, connect, lambda: now)
        assert names.vm(*asked) == "web-1"
        assert names.vm("x", "y", ["no mac", "52:54:00:00:00:78", MAC]) == "web-1"
        assert names.vm("x", "y", []) is None
        assert controller.asked == [MAC, "52:54:00:00:00:78"]
        controller.reached = False
        now += 7_200
        assert names.vm(*asked) == "web-1"
        assert Names("mac", outbox, connect, lambda: now).vm(*asked) == "web-1"  # from the disk
