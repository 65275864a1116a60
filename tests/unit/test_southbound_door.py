"""Where the southbound process cannot listen for switches, it ends with the reason."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from apps.door import BufferedSocket, bind, context, stranger
from controller.act.dataplane.openflow import wire
from controller.settings import SettingsError, Tls
from tests.certificates import Authority


def test_a_port_where_somebody_listens(tmp_path: Path) -> None:
    """The process ends before it has touched the store of the one that listens."""
    with socket.socket() as other:
        # By this it would share the port, and each would get some of the switches.
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        settings = {"PLEACH_STATE_DIR": str(tmp_path), "PLEACH_SOUTHBOUND__PORT": str(port)}
        done = subprocess.run(
            [sys.executable, "-m", "apps.southbound"],
            env=os.environ | settings,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 2, done.stderr
    assert f"127.0.0.1:{port}: southbound.port: cannot be listened at" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_address_of_another_machine() -> None:
    # TEST-NET-1 (RFC 5737), which nobody has.
    with pytest.raises(SettingsError, match=r"192\.0\.2\.1:6653: southbound\.port: cannot be"):
        bind("192.0.2.1", 6653)


def test_who_is_asked_for_a_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ours")
    own = authority.issue("IP:127.0.0.1")
    assert context(Tls()) is None
    for client_ca, asked in ((None, ssl.CERT_NONE), (authority.file, ssl.CERT_REQUIRED)):
        tls = Tls(certificate=own.certificate, key=own.key, client_ca=client_ca)
        made = context(tls)
        assert made is not None
        assert made.verify_mode is asked
        assert made.minimum_version is ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("wrong", ["certificate", "key", "client_ca"])
def test_a_tls_file_that_is_wrong(wrong: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ours")
    own, other = authority.issue("IP:127.0.0.1"), authority.issue("IP:127.0.0.1")
    files = {"certificate": own.certificate, "key": own.key, "client_ca": authority.file}
    bad, gone = tmp_path / "bad.pem", tmp_path / "gone.pem"
    bad.write_text(other.key.read_text() if wrong == "key" else "no PEM\n")
    with pytest.raises(SettingsError, match=r"southbound\.tls: cannot be used") as error:
        context(Tls.model_validate({**files, wrong: bad}))
    assert str(bad) in str(error.value)
    with pytest.raises(SettingsError, match=rf"southbound\.tls\.{wrong}: cannot be read") as error:
        context(Tls.model_validate({**files, wrong: gone}))
    assert str(gone) in str(error.value)


@pytest.mark.parametrize(
    ("first", "told"), [(0x16, "it speaks TLS"), (0, "0x00"), (7, "0x07"), (ord("G"), "0x47")]
)
def test_who_does_not_begin_as_a_switch(
    first: int, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told once, whatever comes with the first byte, and nothing of it is read."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(bytes([first]))
        reading = BufferedSocket(ours, ("192.0.2.1", 1), lambda: None)
        with pytest.raises(ConnectionError, match=told):
            reading.recv(8)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert told in record.getMessage()
    assert record.__dict__["address"] == ("192.0.2.1", 1)


def test_who_begins_as_a_switch() -> None:
    """Later bytes may be anything."""
    assert all(stranger(version) is None for version in range(1, wire.VERSION + 1))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reading = BufferedSocket(ours, ("192.0.2.1", 1), lambda: None)
        for data in (wire.HEADER.pack(wire.VERSION, wire.HELLO, 8, 1), b"\x16\x03\x01"):
            theirs.sendall(data)
            assert reading.recv(8) == data
