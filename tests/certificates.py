"""Authorities and certificates for tests, made by the command `openssl` in some milliseconds."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path
from typing import NamedTuple

# The system's own configuration would make an authority of everybody.
_CONFIGURATION = """
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[end]
basicConstraints = critical, CA:FALSE
subjectAltName = {names}
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


class Certificate(NamedTuple):
    """Two PEM files."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates, all in `directory`; `file` is what those who trust it are given."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory / name
        self._directory.mkdir(parents=True)
        self._numbers = itertools.count(1)
        self._own = self._make("authority", name, "authority")
        self.file = self._own.certificate

    def issue(self, *names: str) -> Certificate:
        """A certificate for names such as `IP:127.0.0.1` and `DNS:pleach.test`."""
        signer = ("-CA", str(self._own.certificate), "-CAkey", str(self._own.key))
        number = f"{next(self._numbers)}"
        return self._make(number, f"end {number}", "end", *signer, names=names)

    def _make(
        self,
        stem: str,
        subject: str,
        extensions: str,
        *more: str,
        names: tuple[str, ...] = (),
    ) -> Certificate:
        made = Certificate(self._directory / f"{stem}.pem", self._directory / f"{stem}.key")
        configuration = self._directory / "openssl.cnf"
        configuration.write_text(_CONFIGURATION.format(names=",".join(names) or "DNS:nobody"))
        command = ["openssl", "req", "-x509", "-config", str(configuration)]
        command += ["-extensions", extensions, "-subj", f"/CN={subject}", "-days", "2"]
        command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        command += ["-keyout", str(made.key), "-out", str(made.certificate), *more]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"`{' '.join(command)}` failed: {done.stderr}")
        return made
