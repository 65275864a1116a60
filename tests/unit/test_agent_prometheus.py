"""What operators already have: Debian's Prometheus, scraping a small exporter of the test."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from history_world import wait_until

from controller.agent import mapping
from controller.agent.outbox import Outbox
from controller.agent.prometheus import Prometheus
from controller.history.samples import Batch

#: Seconds between two scrapes.
SCRAPE_S = 1


@dataclass
class Exporter:
    """Counts scrapes; each adds 100 to every counter of the VM."""

    port: int = 0
    scrapes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def page(self) -> str:
        with self.lock:
            self.scrapes += 1
            count = self.scrapes * 100
        lines = [
            'libvirt_domain_info_virtual_cpus{domain="web-1"} 2',
            f'libvirt_domain_info_cpu_time_seconds_total{{domain="web-1"}} {count / 100}',
            'libvirt_domain_info_memory_usage_bytes{domain="web-1"} 1e9',
            *(
                f'libvirt_domain_interface_stats_receive_bytes_total{{domain="web-1",'
                f'target_device="vnet{n}"}} {count}'
                for n in range(2)
            ),
            "node_memory_MemTotal_bytes 8e9",
            "node_memory_MemAvailable_bytes 6e9",
            *(f'node_cpu_seconds_total{{cpu="{n}",mode="idle"}} {count}' for n in range(4)),
        ]
        return "\n".join([*lines, ""])


@contextmanager
def exporting() -> Iterator[Exporter]:
    exporter = Exporter()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = exporter.page().encode()
            self.send_response(200)
            self.send_header("content-type", "text/plain; version=0.0.4")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    exporter.port = server.server_port
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield exporter
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def prometheus(directory: Path, port: int, exporter: Exporter) -> Iterator[str]:
    """Debian's Prometheus on a port, its files in `directory`; its address."""
    file = directory / "prometheus.yml"
    file.write_text(
        f"global: {{scrape_interval: {SCRAPE_S}s, scrape_timeout: {SCRAPE_S}s}}\n"
        "scrape_configs:\n- job_name: libvirt\n  static_configs:\n"
        f"  - targets: ['127.0.0.1:{exporter.port}']\n"
        "  relabel_configs: [{target_label: instance, replacement: 'hv1:9100'}]\n"
    )
    log = (directory / "prometheus.log").open("wb")
    with log:
        server = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={file}",
                f"--storage.tsdb.path={directory / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
            cwd=directory,
        )
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert server.poll() is None, (directory / "prometheus.log").read_text()
        try:
            return httpx.get(f"{url}/-/ready", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_until(ready, "Prometheus answers")
        yield url
    finally:
        server.terminate()
        server.wait(30)


def taken(outbox: Outbox) -> list[Batch]:
    package = outbox.package(1_000_000)
    if package is None:
        return []
    outbox.delivered(package)
    return list(package.batches)


def column(batches: list[Batch], subject: str, name: str) -> dict[float, float]:
    """Time to value."""
    found = {}
    for batch in batches:
        at = batch.columns.index(name) if name in batch.columns else None
        for row, code in enumerate(batch.codes.tolist()):
            if at is not None and batch.subjects[code] == subject and batch.given[row, at]:
                when = batch.times[row] / 1000
                assert when not in found  # nothing is told twice
                found[when] = float(batch.values[row, at])
    return found


def test_what_prometheus_has_is_passed_on_as_it_was_scraped(
    tmp_path: Path, make_port: Callable[[], int]
) -> None:
    names = mapping.load().model_copy(update={"delay_s": 0.5})
    with (
        exporting() as exporter,
        prometheus(tmp_path, make_port(), exporter) as url,
        closing(Outbox(tmp_path / "box", 1 << 20)) as outbox,
    ):
        batches: list[Batch] = []

        def read_until(scrapes: int, reader: Prometheus) -> None:
            def enough() -> bool:
                reader.once(time.time())
                assert reader.trouble is None
                batches.extend(taken(outbox))
                return len(column(batches, "web-1", "net_rx_total")) >= scrapes

            wait_until(enough, f"{scrapes} scrapes are read")

        read_until(3, Prometheus(url, names, outbox, 1.0))
        # Another process goes on where that one was.
        before = column(batches, "web-1", "net_rx_total")
        read_until(5, Prometheus(url, names, outbox, 1.0))
        totals = column(batches, "web-1", "net_rx_total")
        assert dict(list(totals.items())[: len(before)]) == before
        values = list(totals.values())
        # Two NICs with 100 bytes each a scrape; the second process begins at zero.
        assert values[: len(before)] == [200.0 * n for n in range(len(before))]
        assert values[len(before) :] == [200.0 * n for n in range(len(values) - len(before))]
        shares = list(column(batches, "web-1", "cpu").values())
        assert shares
        assert all(0 < share < 2 for share in shares)  # a second each scrape, of two CPUs
        assert set(column(batches, "web-1", "memory").values()) == {1e9}
        assert set(column(batches, "hv1", "host_memory").values()) == {2e9}
        assert set(column(batches, "hv1", "host_cores").values()) == {4.0}


def test_a_prometheus_that_is_away_or_refuses_is_told(tmp_path: Path, free_port: int) -> None:
    with closing(Outbox(tmp_path / "box", 1 << 20)) as outbox:
        reader = Prometheus(f"http://127.0.0.1:{free_port}", mapping.load(), outbox, 1.0)
        reader.once(time.time())
        assert reader.trouble is not None
        assert "agent.prometheus" in reader.trouble[1]
        assert outbox.depth().ticks == 0


@pytest.mark.parametrize("body", [b"[]", b'{"status": "error", "error": "bad"}', b"<html>"])
def test_what_is_no_answer_of_prometheus_is_told(tmp_path: Path, body: bytes) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with closing(Outbox(tmp_path / "box", 1 << 20)) as outbox:
            url = f"http://127.0.0.1:{server.server_port}"
            reader = Prometheus(url, mapping.load(), outbox, 1.0)
            reader.once(time.time())
            assert reader.trouble is not None
            assert outbox.depth().ticks == 0
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
