"""Real servers in guests, and clients that use them: what a fabric's services look like.

Each server is Debian's, runs in the foreground with files in a directory of its own, and ends
with its guest at the latest. Ports are not the usual ones, so that nothing is told by them.
"""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mininet_labs.vm import LabVm

_READY_S = 60.0
_CLIENT_S = 30.0
_POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


class ServerError(RuntimeError):
    """A server that does not serve, or a client that is not served; the message says which."""


@dataclass(frozen=True, slots=True)
class Application:
    """A server and its client. `command` starts it in a directory, at an address and port; `use` is
    the client's command for these; `named` is what the DPI calls it."""

    name: str
    named: str
    protocol: str
    port: int
    command: Callable[[Path, str, int], list[str]]
    use: Callable[[str, int], list[str]]


def start(vm: LabVm, application: Application, directory: Path) -> None:
    """Start a server in a guest; return once it answers. ServerError where it does not."""
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o755)
    log = directory / "log"
    command = application.command(directory, str(vm.ipv4), application.port)
    with log.open("ab") as out:
        process = vm.popen(*command, stdout=out, stderr=out, cwd=directory)
    deadline = time.monotonic() + _READY_S
    while not _answers(vm, application):
        if process.poll() is not None or time.monotonic() > deadline:
            raise ServerError(f"{application.name} does not answer: {log.read_text()[-2_000:]}")
        time.sleep(0.05)


def use(client: LabVm, server: LabVm, application: Application) -> None:
    """Use a server as its client does. ServerError where that fails."""
    command = application.use(str(server.ipv4), application.port)
    done = client.run(*command, timeout_s=_CLIENT_S)
    if done.returncode:
        raise ServerError(f"{' '.join(command)}: {done.stdout[-500:]}{done.stderr[-500:]}")


def _answers(vm: LabVm, application: Application) -> bool:
    """Whether something listens at the port, looked at from within, without a packet."""
    kind = "-ltn" if application.protocol == "tcp" else "-lun"
    found = vm.run("ss", "-H", kind, f"sport = :{application.port}")
    return bool(found.stdout.strip())


def _certificate(directory: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=lab", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=directory, check=True, capture_output=True,
    )  # fmt: skip


def _nginx(directory: Path, address: str, port: int, tls: bool = False) -> list[str]:
    if tls:
        _certificate(directory)
    secure = "ssl_certificate cert.pem; ssl_certificate_key key.pem;" if tls else ""
    (directory / "nginx.conf").write_text(
        f"""user root; daemon off; pid {directory}/pid; error_log stderr; worker_processes 1;
        events {{ worker_connections 64; }}
        http {{ access_log off; client_body_temp_path {directory}; proxy_temp_path {directory};
          fastcgi_temp_path {directory}; uwsgi_temp_path {directory}; scgi_temp_path {directory};
          server {{ listen {address}:{port} {"ssl" if tls else ""}; {secure}
            location / {{ return 200 "hello"; }} }} }}"""
    )
    return ["/usr/sbin/nginx", "-p", str(directory), "-c", str(directory / "nginx.conf")]


def _dnsmasq(directory: Path, address: str, port: int) -> list[str]:
    return [
        "/usr/sbin/dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv",
        "--no-hosts", "--user=root", f"--port={port}", f"--listen-address={address}",
        "--bind-interfaces", "--address=/example.org/192.0.2.1", f"--pid-file={directory}/pid",
    ]  # fmt: skip


def _sshd(directory: Path, address: str, port: int) -> list[str]:
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    key = directory / "host_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    options = [f"ListenAddress={address}:{port}", f"HostKey={key}", f"PidFile={directory}/pid"]
    words = [word for option in options for word in ("-o", option)]
    return ["/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", *words]


def _postgresql(directory: Path, address: str, port: int) -> list[str]:
    """As Debian's user for it, because it refuses to be root."""
    owner, programs = pwd.getpwnam("postgres"), _POSTGRES[-1]
    os.chown(directory, owner.pw_uid, owner.pw_gid)
    data = directory / "data"
    drop = ["setpriv", "--reuid", str(owner.pw_uid), "--regid", str(owner.pw_gid), "--clear-groups"]
    init = [f"{programs}/initdb", "-D", str(data), "--auth=trust", "--no-sync", "-U", "lab"]
    subprocess.run([*drop, *init], check=True, capture_output=True, cwd="/")
    with (data / "pg_hba.conf").open("a") as file:
        file.write("host all all 0.0.0.0/0 trust\n")
    options = [f"listen_addresses={address}", f"port={port}", "fsync=off"]
    words = [word for option in options for word in ("-c", option)]
    return [*drop, f"{programs}/postgres", "-D", str(data), "-k", str(directory), *words]


def _redis(directory: Path, address: str, port: int) -> list[str]:
    return [
        "redis-server", "--bind", address, "--port", str(port), "--save", "", "--appendonly", "no",
        "--protected-mode", "no", "--dir", str(directory),
    ]  # fmt: skip


def _mosquitto(directory: Path, address: str, port: int) -> list[str]:
    conf = directory / "mosquitto.conf"
    conf.write_text(f"listener {port} {address}\nallow_anonymous true\nuser root\n")
    return ["/usr/sbin/mosquitto", "-c", str(conf)]


def _publish(address: str, port: int) -> None:
    """CONNECT, PUBLISH at most once, DISCONNECT (MQTT 3.1.1)."""
    with socket.create_connection((address, port), _CLIENT_S) as made:
        made.sendall(b"\x10\x0f\x00\x04MQTT\x04\x02\x00\x3c\x00\x03lab")
        if made.recv(4) != b"\x20\x02\x00\x00":
            raise ServerError("mosquitto does not accept the connection")
        made.sendall(b"\x30\x08\x00\x04room\x32\x31\xe0\x00")


APPLICATIONS = (
    Application("HTTP (nginx)", "HTTP", "tcp", 8_123, _nginx,
                lambda a, p: ["curl", "-sSf", f"http://{a}:{p}/"]),
    Application("TLS (nginx)", "TLS", "tcp", 9_443,
                lambda d, a, p: _nginx(d, a, p, tls=True),
                lambda a, p: ["curl", "-sSfk", f"https://{a}:{p}/"]),
    Application("DNS (dnsmasq)", "DNS", "udp", 53, _dnsmasq,
                lambda a, p: ["dig", f"@{a}", "-p", str(p), "+tries=1", "example.org"]),
    Application("SSH (OpenSSH)", "SSH", "tcp", 2_222, _sshd,
                lambda a, p: ["ssh-keyscan", "-t", "ed25519", "-p", str(p), a]),
    Application("PostgreSQL", "PostgreSQL", "tcp", 6_543, _postgresql,
                lambda a, p: ["psql", "-X", "-h", a, "-p", str(p), "-U", "lab", "-c", "SELECT 1",
                              "postgres"]),
    Application("Redis", "RESP", "tcp", 7_000, _redis,
                lambda a, p: ["redis-cli", "-h", a, "-p", str(p), "SET", "a", "1"]),
    Application("MQTT (Mosquitto)", "MQTT", "tcp", 9_883, _mosquitto,
                lambda a, p: [sys.executable, "-m", "mininet_labs.servers", a, str(p)]),
    Application("iPerf3", "iPerf3", "tcp", 5_301,
                lambda d, a, p: ["iperf3", "-s", "-B", a, "-p", str(p)],
                lambda a, p: ["iperf3", "-c", a, "-p", str(p), "-t", "1"]),
)  # fmt: skip


if __name__ == "__main__":
    _publish(sys.argv[1], int(sys.argv[2]))
