"""A DPI port in the flesh: frames arrive at an interface, `pleach dpi watch` tells what they
are."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from scapy.layers.l2 import Dot1Q, Ether

from controller.observe.applications.capture import Sniffer, SnifferError
from controller.observe.applications.frames import decode
from mininet_labs import netns
from tests.unit import applications_traffic as traffic

pytestmark = pytest.mark.fabric

PORT, PEER = "dpi0", "dpi0-peer"


@pytest.fixture
def peer() -> Iterator[socket.socket]:
    """Sends frames that arrive at PORT."""
    netns.call("ip", "link", "add", PORT, "type", "veth", "peer", "name", PEER)
    try:
        for name in (PORT, PEER):
            netns.call("sysctl", "-qw", f"net.ipv6.conf.{name}.disable_ipv6=1")
            netns.call("ip", "link", "set", name, "up")
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
            sender.bind((PEER, 0))
            yield sender
    finally:
        netns.call("ip", "link", "del", PORT)


def test_watch(peer: socket.socket) -> None:
    watching = subprocess.Popen(
        [sys.executable, "-m", "controller.cli", "dpi", "watch", PORT],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    _until_listened_to()
    http = traffic.tcp(8123, traffic.HTTP)
    # No answer, so that only the end makes it known.
    hello = traffic.tcp(9443, [(True, traffic.hello("shop.example.org"))], sport=41_000)
    for frame in [*http, *hello]:
        peer.send(frame.data)
    first = json.loads(watching.stdout.readline())
    assert (first["application"], first["kind"]) == ("HTTP", "confirmed")
    assert first["service"] == {"vm": traffic.SERVER, "protocol": "tcp", "port": 8123}
    assert first["initiator"]["mac"] == traffic.CLIENT_MAC
    assert abs(first["first_seen"] - time.time()) < 600
    assert first["handshake_s"] > 0

    watching.send_signal(signal.SIGTERM)
    out, _ = watching.communicate(timeout=60)
    second, last = map(json.loads, out.splitlines())
    assert second["application"] == "TLS"
    assert second["server_name"] == "shop.example.org"
    assert last["counters"]["fed"] == len(http) + len(hello)
    assert (last["counters"]["dropped"], last["counters"]["crashes"]) == (0, 0)
    assert watching.returncode == 0


def _until_listened_to() -> None:
    """A packet socket is bound to PORT."""
    number = str(socket.if_nametoindex(PORT))
    until = time.monotonic() + 60
    while time.monotonic() < until:
        _, *sockets = Path("/proc/net/packet").read_text().splitlines()
        if any(line.split()[4] == number for line in sockets):
            return
        time.sleep(0.05)
    raise AssertionError(f"nobody listens to {PORT}")


def test_vlan_tags_are_put_back(peer: socket.socket) -> None:
    frame = traffic.tcp(80, traffic.HTTP)[0]
    whole = Ether(frame.data)
    tagged = Ether(src=whole.src, dst=whole.dst) / Dot1Q(vlan=7) / whole.payload
    with closing(Sniffer(PORT)) as sniffer:
        peer.send(bytes(tagged))
        (seen,) = _received(sniffer, 1)
    packet = decode(seen.link, seen.data)
    assert packet is not None
    assert (packet.vlan, packet.destination_port) == (7, 80)


def test_what_leaves_is_not_shown(peer: socket.socket) -> None:
    with (
        closing(Sniffer(PORT)) as sniffer,
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as leaving,
    ):
        leaving.bind((PORT, 0))
        frames = traffic.tcp(80, traffic.HTTP)
        leaving.send(frames[0].data)
        peer.send(frames[1].data)
        (seen,) = _received(sniffer, 1)
    assert seen.data == frames[1].data


def test_what_nobody_fetches_is_dropped_and_counted(peer: socket.socket) -> None:
    frame = traffic.tcp(80, [(True, bytes(1_400))])[-1]
    with closing(Sniffer(PORT, buffer=65_536)) as sniffer:
        for _ in range(500):
            peer.send(frame.data)
        seen = list(sniffer.frames(1_000))
        counters = sniffer.count()
    assert 0 < len(seen) < 500
    assert counters.seen == len(seen)
    assert counters.dropped == 500 - len(seen)


def test_an_interface_that_goes_away(peer: socket.socket) -> None:
    with closing(Sniffer(PORT)) as sniffer:
        netns.call("ip", "link", "set", PORT, "down")
        with pytest.raises(SnifferError, match="cannot be listened to any more: Network is down"):
            _received(sniffer, 1)


def test_without_the_right_to(peer: socket.socket) -> None:
    # Imported before, because the tree may lie where only root can read.
    load = "import os; from controller.observe.applications.capture import Sniffer"
    done = subprocess.run(
        [sys.executable, "-c", f"{load}; os.setuid(65534); Sniffer({PORT!r})"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )
    assert f"{PORT}: may not be listened to; run this with CAP_NET_RAW" in done.stderr


def _received(sniffer: Sniffer, number: int) -> list:
    got: list = []
    until = time.monotonic() + 30
    while len(got) < number and time.monotonic() < until:
        got += sniffer.frames(number - len(got))
    return got
