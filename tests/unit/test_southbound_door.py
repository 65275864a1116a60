"""Where the southbound process cannot listen for switches, it ends with the reason."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.certificates import Authority

SOUTHBOUND = "PLEACH_SOUTHBOUND__"


def _ends(directory: Path, **southbound: object) -> str:
    """What the process says as it ends for its settings; it has not touched the store."""
    named = {f"{SOUTHBOUND}{name.upper()}": str(value) for name, value in southbound.items()}
    done = subprocess.run(
        [sys.executable, "-m", "apps.southbound"],
        env={**os.environ, "PLEACH_STATE_DIR": str(directory), **named},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert not list(directory.glob("*.db"))
    return done.stderr


def test_a_port_where_somebody_listens(tmp_path: Path) -> None:
    with socket.socket() as other:
        # It would share the port, and each would get some of the switches.
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        said = _ends(tmp_path, port=port)
    assert f"127.0.0.1:{port}: southbound.port: cannot be listened at" in said


def test_an_address_of_another_machine(tmp_path: Path) -> None:
    # TEST-NET-1 (RFC 5737), which nobody has.
    assert "192.0.2.1:6653: southbound.port: cannot be listened at" in _ends(
        tmp_path, host="192.0.2.1", port=6653
    )


@pytest.mark.parametrize("wrong", ["certificate", "key", "client_ca"])
def test_a_tls_file_that_is_wrong(wrong: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "certificates", "ours")
    own, other = authority.issue("IP:127.0.0.1"), authority.issue("IP:127.0.0.1")
    files = {"certificate": own.certificate, "key": own.key, "client_ca": authority.file}
    bad = tmp_path / "bad.pem"
    bad.write_text(other.key.read_text() if wrong == "key" else "no PEM\n")
    named = {f"tls__{name}": path for name, path in {**files, wrong: bad}.items()}
    said = _ends(tmp_path / "state", **named)
    assert str(bad) in said
    assert "southbound.tls: cannot be used" in said
    gone = tmp_path / "gone.pem"
    assert f"{gone}: southbound.tls.{wrong}: cannot be read" in _ends(
        tmp_path / "state", **{**named, f"tls__{wrong}": gone}
    )
