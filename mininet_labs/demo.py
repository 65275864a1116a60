"""The main job, shown: `make demo`.

A leaf-spine fabric of real Open vSwitch bridges, the two processes of Pleach with embedded
storage, VMs placed by REST, traffic, a service that is recognised, a limit on a VM, a migration
under traffic, and both processes killed and started again. Every step prints what was measured;
a table closes it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from controller.api import SignatureInfo
from controller.model.nouns import Host, Nic, RateLimit, Service, Subnet, Tenant, Vm
from mininet_labs.deployment import Deployment, Process, wait_until
from mininet_labs.lab import Lab
from mininet_labs.sandbox import inside
from mininet_labs.traffic import Flow, FlowResult, Stream, probe
from mininet_labs.vm import LabVm
from topologies.generate import leaf_spine

#: VM, tenant, subnet, address, edge. Two tenants use the same addresses, on purpose.
VMS = (
    ("web-1", "red", "red-front", "10.0.0.11", 0),
    ("web-2", "red", "red-front", "10.0.0.12", 1),
    ("db-1", "red", "red-back", "10.0.1.11", 2),
    ("app-1", "blue", "blue-front", "10.0.0.11", 0),
    ("app-2", "blue", "blue-front", "10.0.0.12", 3),
)
SUBNETS = (
    ("red-front", "red", "10.0.0.0/24"),
    ("red-back", "red", "10.0.1.0/24"),
    ("blue-front", "blue", "10.0.0.0/24"),
)
RATE = 1_000
#: What db-1 serves over HTTP, where, and how fast it may in the end.
PORT, SERVED_BYTES, LIMIT_KBIT = 80, 4 << 20, 8_000


@dataclass(slots=True)
class Report:
    """Steps with what was measured, and whether it was as it should be."""

    rows: list[tuple[str, str, bool]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def step(self, what: str) -> None:
        """Say what happens next."""
        print(f"\n[{time.monotonic() - self.began:5.1f} s] {what}", flush=True)

    def result(self, what: str, measured: str, good: bool) -> None:
        """Note one measurement."""
        self.rows.append((what, measured, good))
        print(
            f"          {what}: {measured}{'' if good else '   <- not as it should be'}", flush=True
        )

    def table(self) -> str:
        """All measurements, aligned."""
        width = max(len(what) for what, _, _ in self.rows)
        lines = [
            f"  {'ok ' if good else 'BAD'}  {what:<{width}}  {m}" for what, m, good in self.rows
        ]
        rule = "  " + "-" * (max(map(len, lines)) - 2)
        return "\n".join([rule, *lines, rule])


def lost_in(results: tuple[FlowResult, FlowResult]) -> str:
    """Both directions of a flow in words."""
    sent = sum(r.sent for r in results)
    lost = sum(r.lost for r in results)
    gap = max(r.longest_gap_ms for r in results)
    return f"{lost} of {sent} packets lost, longest gap {gap:.0f} ms"


class Demo:
    """One run of it."""

    def __init__(self, lab: Lab, deployment: Deployment, report: Report, served: Path) -> None:
        self.lab, self.deployment, self.report, self.served = lab, deployment, report, served
        self.guests: dict[str, LabVm] = {}
        self.addresses: dict[str, str] = {}

    def run(self) -> None:
        """All steps in order."""
        self.discover()
        self.place()
        self.reach()
        self.observe()
        self.limit()
        self.migrate()
        self.kill("southbound")
        self.kill("brain")
        self.explain()

    def discover(self) -> None:
        """Switches connect, links are found, tenants and hosts are told."""
        self.report.step("switches connect, and links are discovered by LLDP")
        self.lab.wait_connected()
        links = 2 * len(self.lab.fabric.cables)
        client = self.deployment.client
        took = timed(
            lambda: wait_until(
                lambda: sum(link.up for link in client.topology().links) == links,
                "all links are found",
            )
        )
        self.report.result(
            "links discovered", f"{links} directions, {took:.2f} s after the last connection", True
        )
        for tenant in ("red", "blue"):
            client.put(Tenant(id=tenant))
        for subnet, tenant, cidr in SUBNETS:
            client.put(Subnet(id=subnet, tenant=tenant, cidr=cidr))
        for index, edge in enumerate(self.lab.edges):
            client.put(Host(id=f"host-{index + 1}", datapath=self.lab.dpid(edge)))

    def place(self) -> None:
        """VMs are defined, plugged in, and placed by events."""
        self.report.step("VMs are placed by POST /v1/events, as a hypervisor would")
        client = self.deployment.client
        times = []
        for number, (name, tenant, subnet, address, edge) in enumerate(VMS, 1):
            mac = f"02:00:00:00:00:{number:02x}"
            guest = self.lab.vm(name, mac, address, 24, address.rsplit(".", 1)[0] + ".1")
            guest.plug(self.lab.edges[edge], f"tap{number}")
            self.guests[name], self.addresses[name] = guest, address
            client.put(
                Vm(id=name, tenant=tenant, nics=(Nic(mac=mac, subnet=subnet, ipv4=address),))
            )
            begin = time.time()
            reply = client.place(name, f"host-{edge + 1}", [f"tap{number}"])
            status = client.vm(name, wait=True, revision=reply.revision)
            times.append(((status.confirmed_at or begin) - begin) * 1000)
            print(
                f"          {name} of {tenant} at host-{edge + 1}: {times[-1]:.0f} ms", flush=True
            )
        self.report.result(
            "event to the last switch's barrier",
            f"{sorted(times)[len(times) // 2]:.0f} ms (median of {len(times)})",
            True,
        )

    def reach(self) -> None:
        """Who reaches whom."""
        self.report.step("who reaches whom")
        tenant = {name: t for name, t, *_ in VMS}
        pairs = [
            (a, b)
            for a in tenant
            for b in tenant
            if a != b and self.addresses[a] != self.addresses[b]
        ]
        same = [p for p in pairs if tenant[p[0]] == tenant[p[1]]]
        other = [p for p in pairs if tenant[p[0]] != tenant[p[1]]]
        guests = self.guests
        good = probe([(guests[a], guests[b]) for a, b in same])
        leak = probe([(guests[a], guests[b]) for a, b in other])
        self.report.result(
            "inside a tenant",
            f"{len(good.reachable)} of {len(same)} pairs reach each other, across subnets too",
            len(good.reachable) == len(same),
        )
        self.report.result(
            "between tenants with the same addresses",
            f"{len(leak.heard)} of {len(other)} pairs leak",
            not leak.heard,
        )

    def observe(self) -> None:
        """What a VM offers is told from the first packets of who asks it."""
        self.report.step("db-1 begins to serve HTTP, which nobody tells Pleach; web-1 asks it")
        self.guests["db-1"].popen(
            *(sys.executable, "-m", "http.server", str(PORT), "--directory", str(self.served)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: self.fetch("web-1") is not None, "db-1 answers")
        client = self.deployment.client
        wait_until(lambda: any(client.list(Service, vm="db-1")), "its service is known")
        known = next(client.list(Service, vm="db-1"))
        self.report.result(
            f"port {known.port} of db-1",
            f"{known.application} ({known.category}), {known.how} by {known.packets} packets",
            known.application == "HTTP",
        )

    def limit(self) -> None:
        """A VM is given a limit, and has it."""
        self.report.step(f"db-1 may send {LIMIT_KBIT} kbit/s from now on (`pleach bandwidth`)")
        client = self.deployment.client
        before = self.fetch("web-1")
        client.limit(RateLimit(vm="db-1", out_kbit=LIMIT_KBIT))
        client.vm("db-1", wait=True)
        after = self.fetch("web-1")
        client.unlimit("db-1")
        self.report.result(
            f"{SERVED_BYTES >> 10} KiB from db-1",
            f"{before or 0:.0f} kbit/s, limited {after or 0:.0f} kbit/s",
            before is not None and after is not None and after < before,
        )
        self.told()

    def told(self) -> None:
        """Who talked to whom until now, as the edges have counted it."""
        self.report.step("who talks to whom? `pleach signatures --vm web-1` says:")
        client = self.deployment.client

        def found() -> list[SignatureInfo]:
            return [s for s in client.signatures(vm="web-1") if (s.peer, s.port) == ("db-1", PORT)]

        # Counters are read now and then.
        wait_until(lambda: any(s.bytes_in > 2 * SERVED_BYTES for s in found()), "it was counted")
        for known in found():
            self.report.result(
                f"{known.vm} to {known.protocol} {known.port} of {known.peer}",
                f"{known.application}, {known.connections} connections, "
                f"{known.bytes_out >> 10} KiB out, {known.bytes_in >> 10} KiB in",
                known.application == "HTTP",
            )

    def fetch(self, name: str) -> float | None:
        """A guest gets what db-1 serves: kbit/s, or None where it does not answer."""
        url = f"http://{self.addresses['db-1']}:{PORT}/file"
        begin = time.monotonic()
        got = self.guests[name].run("curl", "-sf", "-m", "20", "-o", "/dev/null", url, timeout_s=25)
        return SERVED_BYTES * 8e-3 / (time.monotonic() - begin) if got.returncode == 0 else None

    def migrate(self) -> None:
        """A VM moves while it talks."""
        self.report.step(
            "web-2 moves from host-2 to host-4 under 1,000 packets/s each way and a TCP stream"
        )
        client, guest = self.deployment.client, self.guests["web-2"]
        stream = Stream(self.guests["web-1"], guest).start()
        flow = Flow(self.guests["db-1"], guest, RATE).start()
        guest.plug(self.lab.edges[3], "tap2b")
        reply = client.start_migration("move-1", "web-2", "host-2", "host-4", ["tap2b"])
        client.vm("web-2", wait=True, revision=reply.revision)
        print("          rules stand at both places; the guest goes", flush=True)
        time.sleep(1)
        guest.switch_over("tap2b")
        began = time.time()
        wait_until(
            lambda: (m := client.vm("web-2").migration) is None or m.activated_at,
            "the fabric has seen it arrive",
        )
        seen = (time.time() - began) * 1000
        client.complete_migration("move-1", "web-2")
        time.sleep(2)
        results, told = flow.stop(), stream.stop()
        self.report.result(
            "seen at the new place by its first packet", f"after {seen:.0f} ms", True
        )
        self.report.result(
            "migration under traffic", lost_in(results), not any(r.lost for r in results)
        )
        fate = "survived" if told.survived else told.failure
        self.report.result(
            "its TCP connection",
            f"{fate}, longest stall {told.longest_stall_ms:.0f} ms",
            told.survived,
        )

    def kill(self, process: Process) -> None:
        """A process dies and comes back."""
        self.report.step(f"the {process} process is killed (SIGKILL) and started again")
        flow = Flow(self.guests["web-1"], self.guests["db-1"], RATE).start()
        time.sleep(1)
        self.deployment.kill(process)
        time.sleep(1)
        begin = time.time()
        took = timed(lambda: self.deployment.launch(process))
        if process == "southbound":
            store = self.deployment.store
            wait_until(
                lambda: all(
                    p.connected and not p.pending and p.confirmed_at > begin
                    for p in store.progress().values()
                ),
                "every switch is reconciled",
            )
            took = time.time() - begin
        time.sleep(1)
        results = flow.stop()
        self.report.result(f"{process} back", f"after {took:.2f} s", True)
        self.report.result(
            f"meanwhile ({process})", lost_in(results), not any(r.lost for r in results)
        )

    def explain(self) -> None:
        """Why a rule is there."""
        self.report.step("why is a rule there? `pleach explain --vm web-2` says of its new edge:")
        entries = self.deployment.client.explain(
            vm="web-2", datapath=self.lab.dpid(self.lab.edges[3])
        ).items
        for entry in entries[:4]:
            print(
                f"          {entry.table}\n              {entry.match} -> {entry.actions}",
                flush=True,
            )
        print(f"          ... {len(entries)} in all", flush=True)


def timed(do: Callable[[], object]) -> float:
    """Seconds that `do` takes."""
    begin = time.monotonic()
    do()
    return time.monotonic() - begin


def main() -> int:
    """Run the demo; 0 where everything was as it should be."""
    if not inside():
        print("run it by `make demo`, which gives it a network of its own", file=sys.stderr)
        return 2
    report = Report()
    fabric = leaf_spine(4, 2, 1)
    report.step(
        f"{len(fabric.switches)} Open vSwitch bridges and the two processes of Pleach start"
    )
    with (
        tempfile.TemporaryDirectory(prefix="pleach-demo-") as directory,
        Deployment(Path(directory)) as deployment,
    ):
        started = timed(deployment.start)
        report.result("brain and southbound process listen", f"after {started:.2f} s", True)
        with Lab(fabric, controller=deployment.controller) as lab:
            served = Path(directory) / "served"
            served.mkdir()
            (served / "file").write_bytes(bytes(SERVED_BYTES))
            Demo(lab, deployment, report, served).run()
    print(f"\n{report.table()}\n")
    return 0 if all(good for _, _, good in report.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
