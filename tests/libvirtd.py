"""A libvirtd of Debian's package for tests: a session of an unprivileged user, in a directory of
its own, with guests under QEMU's software emulation that run the BIOS and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import libvirt

_TIMEOUT_S = 60.0


class Libvirtd:
    """A server that can be ended and started again; its guests go on meanwhile."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="pleach-libvirt-"))
        self._places = {
            f"XDG_{name}": self.directory / place
            for name, place in (
                ("RUNTIME_DIR", "run"),
                ("CONFIG_HOME", "config"),
                ("CACHE_HOME", "cache"),
                ("STATE_HOME", "state"),
            )
        }
        for place in self._places.values():
            place.mkdir(mode=0o700)
        configuration = self._places["XDG_CONFIG_HOME"] / "libvirt"
        configuration.mkdir()
        # Another machine than its neighbour, so that guests may move between the two.
        (configuration / "libvirtd.conf").write_text(f'host_uuid = "{uuid.uuid4()}"\n')
        # Otherwise a virtlogd would be started, and outlive the test.
        (configuration / "qemu.conf").write_text('stdio_handler = "file"\n')
        self._as: dict[str, Any] = {"cwd": "/"}
        if os.geteuid() == 0:  # which would have it be the system's own
            owner = pwd.getpwnam("nobody")
            self._as |= {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
            for path in (self.directory, *self.directory.rglob("*")):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def uri(self) -> str:
        """Where it is reached."""
        return f"qemu+unix:///session?socket={self._socket}"

    @property
    def _socket(self) -> Path:
        return self._places["XDG_RUNTIME_DIR"] / "libvirt" / "libvirt-sock"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start it; returns once it answers."""
        named = {name: str(place) for name, place in self._places.items()}
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["libvirtd"],
                env={**os.environ, **named, "HOME": str(self.directory)},
                stdout=log,
                stderr=log,
                **self._as,
            )
        deadline = time.monotonic() + _TIMEOUT_S
        while not self._listens():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError((self.directory / "log").read_text())
            time.sleep(0.05)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self._socket)) == 0

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it; guests go on."""
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(_TIMEOUT_S)

    def connect(self) -> Any:
        """A connection that may change things."""
        return libvirt.open(self.uri)

    def guest(self, name: str, mac: str, tap: str) -> None:
        """A guest that runs, with a disk of a megabyte, and a NIC at a tap that is there."""
        disk = self.directory / f"{name}.raw"
        disk.write_bytes(bytes(1 << 20))
        disk.chmod(0o666)
        with contextlib.closing(self.connect()) as connection:
            connection.createXML(
                f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>32</memory>"
                "<vcpu>1</vcpu><os><type arch='x86_64' machine='pc'>hvm</type></os><devices>"
                f"<disk type='file' device='disk'><source file='{disk}'/>"
                "<target dev='vda' bus='virtio'/></disk><memballoon model='none'/>"
                f"<interface type='ethernet'><mac address='{mac}'/>"
                f"<target dev='{tap}' managed='no'/><model type='virtio'/></interface>"
                "</devices></domain>"
            )

    def migrate(self, name: str, other: Self, tap: str) -> None:
        """Move a guest, live, to another server, where its NIC is at another tap."""
        with contextlib.closing(self.connect()) as connection:
            domain = connection.lookupByName(name)
            described = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE)
            parameters = {
                libvirt.VIR_MIGRATE_PARAM_URI: "tcp:127.0.0.1",
                libvirt.VIR_MIGRATE_PARAM_LISTEN_ADDRESS: "127.0.0.1",
                libvirt.VIR_MIGRATE_PARAM_DEST_XML: re.sub(
                    r"<target dev='[^']*' managed", f"<target dev='{tap}' managed", described
                ),
            }
            # Both use one file on one disk, which is as good as storage that is shared.
            flags = libvirt.VIR_MIGRATE_UNSAFE | libvirt.VIR_MIGRATE_PEER2PEER
            domain.migrateToURI3(other.uri, parameters, flags | libvirt.VIR_MIGRATE_LIVE)

    def close(self) -> None:
        """End guests and server, and leave nothing behind."""
        assert self._process is not None
        try:
            if self._process.poll() is None:
                connection = self.connect()
                for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
                    domain.destroy()
                connection.close()
                self.end()
        finally:
            self._process.kill()
            self._process.wait()
            shutil.rmtree(self.directory)
