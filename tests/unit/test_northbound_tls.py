"""A real `pleach brain` that speaks TLS on loopback, and who may speak to it and who not."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from northbound_server import running

from controller.client import Client, Problem
from controller.model.nouns import Tenant
from controller.northbound.server import listen, open_store, server
from controller.settings import Settings, SettingsError, load
from mininet_labs.deployment import Deployment
from tests.certificates import Authority, Certificate

NORTHBOUND = "PLEACH_NORTHBOUND__"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"), "ours")


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that nobody has been told to trust."""
    return Authority(tmp_path_factory.mktemp("certificates"), "others")


@pytest.fixture(scope="module")
def certificate(ours: Authority) -> Certificate:
    return ours.issue("IP:127.0.0.1")


@pytest.fixture(scope="module")
def brain(
    certificate: Certificate, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """A brain whose clients need a token only."""
    with _brain(tmp_path_factory.mktemp("brain"), certificate) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def strict(
    ours: Authority, certificate: Certificate, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """A brain whose clients need a certificate of `ours` too."""
    more = {"CLIENT_CA": str(ours.file), "REQUIRE_CLIENT_CERTIFICATE": "true"}
    with _brain(tmp_path_factory.mktemp("strict"), certificate, **more) as deployment:
        yield deployment


def _tls(certificate: Certificate, **more: str) -> dict[str, str]:
    """Environment that sets `northbound.tls`."""
    named = {"CERTIFICATE": str(certificate.certificate), "KEY": str(certificate.key), **more}
    return {f"{NORTHBOUND}TLS__{name}": value for name, value in named.items()}


@contextmanager
def _brain(directory: Path, certificate: Certificate, **more: str) -> Iterator[Deployment]:
    with Deployment(directory, _tls(certificate, **more)) as deployment:
        deployment.launch("brain")
        yield deployment
    # However it was spoken to, nothing came up that nobody had thought of.
    log = deployment.log("brain")
    assert "brain has stopped" in log
    assert "Traceback" not in log
    assert " error " not in log


def _url(deployment: Deployment) -> str:
    return f"https://127.0.0.1:{deployment.northbound}"


def _token(deployment: Deployment) -> str:
    return (deployment.state_dir / "operator.token").read_text().strip()


def _client(
    deployment: Deployment, ca: Authority | None, certificate: Certificate | None = None
) -> Client:
    return Client(
        _url(deployment),
        _token(deployment),
        ca=ca.file if ca else None,
        certificate=certificate,
        attempts=1,
    )


def _refused(client: Client) -> str:
    """Why a client cannot speak to the brain, which goes on serving others."""
    with client, pytest.raises(Problem) as problem:
        client.put(Tenant(id="refused"))
    assert problem.value.status == 0
    untrusted = "CERTIFICATE_VERIFY_FAILED" in problem.value.detail
    assert ("PLEACH_CA=" if untrusted else "client's certificate") in problem.value.mend
    return problem.value.detail


def test_who_keeps_a_connection_does_not_hold_up_the_end(
    ours: Authority, certificate: Certificate, tmp_path: Path
) -> None:
    """Else the log has an error. What was answered arrives whole all the same."""
    trusting = ssl.create_default_context(cafile=ours.file)
    with ExitStack() as stack:
        deployment = stack.enter_context(_brain(tmp_path, certificate))

        def connect() -> ssl.SSLSocket:
            plain = socket.create_connection(("127.0.0.1", deployment.northbound), timeout=20)
            made = trusting.wrap_socket(stack.enter_context(plain), server_hostname="127.0.0.1")
            return stack.enter_context(made)

        connect()  # and says nothing
        idle, slow = connect(), connect()
        idle.sendall(b"GET /v1/health HTTP/1.1\r\nhost: brain\r\n\r\n")
        assert idle.recv(65_536).startswith(b"HTTP/1.1 200")
        slow.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: brain\r\n\r\n")
        answer = slow.recv(1)
        deployment.stop()
        while piece := slow.recv(65_536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}\r\n".encode() in head.lower() + b"\r\n"


def test_a_client_that_trusts_the_authority(brain: Deployment, ours: Authority) -> None:
    with _client(brain, ours) as client:
        assert client.health().status == "ok"
        client.put(Tenant(id="red"))
        assert [tenant.id for tenant in client.list(Tenant)] == ["red"]
        client.delete(Tenant, "red")


def test_a_client_that_trusts_others_does_not_tell_its_token(
    brain: Deployment, others: Authority
) -> None:
    assert "CERTIFICATE_VERIFY_FAILED" in _refused(_client(brain, others))
    # Nor one that trusts what the system trusts.
    assert "CERTIFICATE_VERIFY_FAILED" in _refused(_client(brain, None))


def test_a_certificate_for_another_name(brain: Deployment, ours: Authority) -> None:
    url = f"https://localhost:{brain.northbound}"
    client = Client(url, _token(brain), ca=ours.file, attempts=1)
    assert "localhost" in _refused(client)


def test_a_client_without_a_certificate_where_one_is_required(
    strict: Deployment, ours: Authority, others: Authority
) -> None:
    _refused(_client(strict, ours))
    _refused(_client(strict, ours, others.issue("DNS:operator")))


def test_a_client_with_a_certificate_needs_its_token_too(
    strict: Deployment, ours: Authority
) -> None:
    mine = ours.issue("DNS:operator")
    with _client(strict, ours, mine) as client:
        client.put(Tenant(id="red"))
        client.delete(Tenant, "red")
    stranger = Client(_url(strict), "wrong", ca=ours.file, certificate=mine)
    with stranger, pytest.raises(Problem) as problem:
        stranger.get(Tenant, "red")
    assert problem.value.status == 401


def test_a_certificate_that_is_asked_for_and_not_required(
    ours: Authority, others: Authority, certificate: Certificate, tmp_path: Path
) -> None:
    """One is taken where it is of `client_ca`, and none is taken too; another is refused."""
    with _brain(tmp_path, certificate, CLIENT_CA=str(ours.file)) as deployment:
        for mine in (None, ours.issue("DNS:operator")):
            with _client(deployment, ours, mine) as client:
                assert client.health().status == "ok"
        _refused(_client(deployment, ours, others.issue("DNS:operator")))


def test_plain_http_to_a_port_of_tls(brain: Deployment, ours: Authority) -> None:
    plain = Client(f"http://127.0.0.1:{brain.northbound}", _token(brain), attempts=1)
    assert "http://127.0.0.1" in _refused(plain)
    with _client(brain, ours) as client:
        assert client.health().status == "ok"


def test_tls_to_a_port_of_plain_http(ours: Authority, tmp_path: Path) -> None:
    with running(tmp_path / "state") as served:
        url = f"https://127.0.0.1:{served.port}"
        assert "https://127.0.0.1" in _refused(Client(url, served.token, ca=ours.file, attempts=1))
        with served.client() as client:
            assert client.health().status == "ok"


def _handshake(port: int, context: ssl.SSLContext) -> str | None:
    """The version that a client agrees on with what listens there."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
    ):
        return secure.version()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_versions_that_are_too_old(brain: Deployment, ours: Authority) -> None:
    assert _handshake(brain.northbound, ssl.create_default_context(cafile=ours.file)) == "TLSv1.3"
    for version, accepted in {
        ssl.TLSVersion.TLSv1_2: True,
        ssl.TLSVersion.TLSv1_1: False,
        ssl.TLSVersion.TLSv1: False,
    }.items():
        context = ssl.create_default_context(cafile=ours.file)
        # Otherwise the client itself would not offer them.
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version
        if accepted:
            assert _handshake(brain.northbound, context) == "TLSv1.2"
        else:
            with pytest.raises(ssl.SSLError, match=r"EOF|ALERT_PROTOCOL_VERSION"):
                _handshake(brain.northbound, context)


# The command line


@pytest.fixture
def pleach(monkeypatch: pytest.MonkeyPatch, command: Run) -> Run:
    """Runs a command, without pauses."""
    monkeypatch.setattr("controller.client.time.sleep", lambda _: None)
    return command


def test_commands_with_a_certificate(
    strict: Deployment, ours: Authority, pleach: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = ours.issue("DNS:operator")
    shown = ("--certificate", str(mine.certificate), "--key", str(mine.key))
    monkeypatch.setenv("PLEACH_TOKEN", _token(strict))
    monkeypatch.setenv("PLEACH_URL", _url(strict))
    code, _, err = pleach(*shown, "tenant", "list")
    assert code == 3
    assert "CERTIFICATE_VERIFY_FAILED" in err
    monkeypatch.setenv("PLEACH_CA", str(ours.file))
    assert pleach(*shown, "tenant", "list")[0] == 0
    code, _, err = pleach("tenant", "list")
    assert code == 3
    assert "certificate" in err
    code, _, err = pleach(*shown[:2], "tenant", "list")
    assert code == 2
    assert "--key" in err
    code, _, err = pleach("--certificate", "/nowhere.pem", *shown[2:], "tenant", "list")
    assert code == 2
    assert "/nowhere.pem" in err


def test_commands_beside_the_brain_find_it_by_its_settings(
    brain: Deployment, ours: Authority, pleach: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in brain.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PLEACH_CA", str(ours.file))
    assert pleach("tenant", "create", "red")[0] == 0
    code, out, _ = pleach("tenant", "list")
    assert (code, "red" in out) == (0, True)
    assert pleach("tenant", "delete", "red")[0] == 0


# Starting


def _settings(directory: Path, **northbound: str) -> Settings:
    environment = {f"{NORTHBOUND}{name.upper()}": value for name, value in northbound.items()}
    return load(None, {"PLEACH_STATE_DIR": str(directory), f"{NORTHBOUND}PORT": "0", **environment})


def test_beyond_this_machine_without_tls(tmp_path: Path) -> None:
    environment = {"PLEACH_STATE_DIR": str(tmp_path), f"{NORTHBOUND}HOST": "0.0.0.0"}
    done = subprocess.run(
        [sys.executable, "-m", "controller.cli", "brain"],
        env=environment | {f"{NORTHBOUND}PORT": "0"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "0.0.0.0:0: northbound.host: tokens would cross the network in the clear" in done.stderr
    assert "northbound.tls" in done.stderr
    assert "--plain" in done.stderr


def test_beyond_this_machine_by_leave_or_with_tls(
    certificate: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pleach: Run
) -> None:
    # A socket that is bound only takes no connection of anybody.
    with closing(listen(_settings(tmp_path, host="0.0.0.0"), plain=True)) as bound:
        assert bound.getsockname()[0] == "0.0.0.0"
    secure = {"tls__certificate": str(certificate.certificate), "tls__key": str(certificate.key)}
    with closing(listen(_settings(tmp_path, host="0.0.0.0", **secure), plain=False)) as bound:
        assert bound.getsockname()[0] == "0.0.0.0"
    asked: list[bool] = []
    monkeypatch.setattr(
        "controller.northbound.server.serve", lambda _, *, plain: asked.append(plain)
    )
    monkeypatch.setenv("PLEACH_STATE_DIR", str(tmp_path))
    assert pleach("brain")[0] == pleach("brain", "--plain")[0] == 0
    assert asked == [False, True]


def test_the_least_version_is_our_own_choice(certificate: Certificate, tmp_path: Path) -> None:
    files = {"tls__certificate": str(certificate.certificate), "tls__key": str(certificate.key)}
    settings = _settings(tmp_path / "state", **files)
    with closing(open_store(settings)) as store:
        context = server(settings, store).config.ssl
    assert context is not None
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("wrong", ["certificate", "key", "client_ca"])
def test_files_that_are_wrong(
    wrong: str, ours: Authority, certificate: Certificate, tmp_path: Path
) -> None:
    files = {
        "certificate": str(certificate.certificate),
        "key": str(certificate.key),
        "client_ca": str(ours.file),
    }
    bad = tmp_path / "bad.pem"
    # A key that belongs to another certificate, and text that is no PEM.
    other_key = ours.issue("IP:127.0.0.1").key.read_text()
    for text in ("no PEM\n", other_key if wrong == "key" else ""):
        bad.write_text(text)
        named = {f"tls__{name}": path for name, path in {**files, wrong: str(bad)}.items()}
        settings = _settings(tmp_path / "state", **named)
        with closing(open_store(settings)) as store, pytest.raises(SettingsError) as error:
            server(settings, store)
        assert str(bad) in str(error.value)
