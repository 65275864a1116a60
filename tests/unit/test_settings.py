from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from controller.commands.settings_help import explained
from controller.settings import (
    Settings,
    SettingsError,
    Tls,
    _leaves,
    default_state_dir,
    load,
    masked,
    safe_directory,
)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "pleach.yaml"
    path.write_text(text)
    return path


def refused(path: Path | None, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(path, environ or {})
    return [str(problem) for problem in caught.value.problems]


def test_defaults_need_no_file() -> None:
    settings = load(None, {"HOME": "/x", "PATH": "/bin"})
    assert settings == Settings.model_validate({})
    assert settings.state_dir == default_state_dir()
    assert settings.store.url == f"sqlite:///{default_state_dir()}/pleach.db"
    assert settings.northbound.port == 8640
    assert settings.southbound.framework == "os-ken"
    assert not settings.southbound.tls.enabled


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load(None, {}).northbound.port = 1  # type: ignore[misc]


def test_the_file_is_read_and_the_environment_wins(tmp_path: Path) -> None:
    path = write(tmp_path, "northbound:\n  port: 1\n  host: '::1'\nmigration: {drain_s: 3}\n")
    settings = load(path, {"PLEACH_NORTHBOUND__PORT": "2", "PLEACH_LOG__LEVEL": "debug"})
    assert (settings.northbound.port, settings.northbound.host) == (2, "::1")
    assert settings.migration.drain_s == 3.0
    assert settings.log.level == "debug"


def test_the_environment_names_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "log: {format: text}\n")
    assert load(None, {"PLEACH_CONFIG": str(path)}).log.format == "text"


def test_the_database_lies_in_the_state_directory_unless_said_otherwise(tmp_path: Path) -> None:
    moved = load(None, {"PLEACH_STATE_DIR": str(tmp_path)})
    assert moved.store.url == f"sqlite:///{tmp_path}/pleach.db"
    kept = load(write(tmp_path, "store: {url: 'sqlite:////x/y.db'}"), {})
    assert kept.store.url == "sqlite:////x/y.db"
    assert load(None, {"PLEACH_STATE_DIR": "~/p"}).state_dir == Path.home() / "p"


def test_an_empty_file_is_no_settings(tmp_path: Path) -> None:
    assert load(write(tmp_path, "# nothing yet\n"), {}) == load(None, {})


@pytest.mark.parametrize(
    ("text", "line", "field", "said"),
    [
        ("log:\n  level: info\n  levl: info\n", 3, "log.levl", "did you mean level?"),
        ("norhtbound:\n  port: 1\n", 1, "norhtbound", "did you mean northbound?"),
        ("northbound:\n  tls:\n    cert: x\n", 3, "northbound.tls.cert", "certificate"),
        ("northbound:\n  port: '1'\n", 2, "northbound.port", "valid integer, not '1'"),
        ("northbound:\n\n  port: 70000\n", 3, "northbound.port", "65535"),
        ("northbound:\n  port: yes\n", 2, "northbound.port", "valid integer"),
        ("migration:\n  drain_s: .inf\n", 2, "migration.drain_s", "finite"),
        ("log:\n  level: loud\n", 2, "log.level", "choose one of debug, info, warning, error"),
        ("southbound:\n  framework: nox\n", 2, "southbound.framework", "choose one of os-ken, ryu"),
        ("northbound: 5\n", 1, "northbound", "not 5"),
        ("log:\n  level: info\nlog:\n  format: text\n", 3, "log", "second time (first in line 1)"),
        ("log:\n  level: info\n  level: info\n", 3, "log.level", "first in line 2"),
        ("- a\n", 1, "", "mapping"),
        ("log: {level: info\n", 2, "", "is no YAML"),
        ("log: &a {level: *a}\n", 1, "log.level", "contains itself"),
        ("northbound:\n  tls:\n    key: /k\n", 2, "northbound.tls", "without certificate"),
        ("southbound:\n  tls: {require_client_certificate: true}\n", 2, "southbound.tls", "needs"),
        ("southbound:\n  lldp_s: 60\n", 1, "southbound", "longer than lldp_s"),
        ("southbound:\n  ovsdb: ptcp:6640\n", 2, "southbound.ovsdb", "tcp:HOST:PORT"),
        ("southbound:\n  damping: {cutoff: 1}\n", 2, "southbound.damping", "less than cutoff"),
        ("southbound:\n  damping: {max_s: 9}\n", 2, "southbound.damping", "must be 48 or more"),
        ("store:\n  url: oracle://x/y\n", 2, "store.url", "postgresql://user@host/database"),
        ("store:\n  url: pleach.db\n", 2, "store.url", "sqlite:////full/path.db"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(
    tmp_path: Path, text: str, line: int, field: str, said: str
) -> None:
    path = write(tmp_path, text)
    (problem,) = refused(path)
    assert problem.startswith(f"{path}:{line}: {field}")
    assert said in problem


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("store:\n  url: sqlite:////a.db\n  url: postgresql://u@h/d\n", [3]),
        ("store:\n  url: sqlite:////a.db,postgresql://u@h/d\n", [2]),
        ("store:\n  url:\n    - sqlite:////a.db\n    - postgresql://u@h/d\n", [2]),
        ("store:\n  sqlite: /a.db\n  postgresql: {host: h}\n", [2, 3]),
        ("store:\n  url: sqlite:////a.db\n  postgresql:\n    host: h\n", [3]),
        ("store: {url: 'sqlite:////a.db'}\nstore: {url: 'postgresql://u@h/d'}\n", [2]),
    ],
)
def test_a_store_of_two_engines_is_refused(tmp_path: Path, text: str, lines: list[int]) -> None:
    path = write(tmp_path, text)
    told = refused(path)
    assert [line.split(": ")[0] for line in told] == [f"{path}:{n}" for n in lines]
    assert all(line.split(": ")[1].startswith("store") for line in told)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:s3cret@h/d",
        "postgresql://ann:s3/c@ret@h:5432/d?sslmode=require",
        "postgresql://ann@h/d?password=s3cret&sslmode=require",
        "postgresql:///d?host=/run&sslpassword=s3cret",
    ],
)
def test_passwords_are_never_shown(tmp_path: Path, url: str) -> None:
    settings = load(None, {"PLEACH_STORE__URL": url})
    assert settings.store.url == url
    assert "***" in settings.model_dump(mode="json")["store"]["url"]
    shown = [repr(settings), str(settings.model_dump(mode="json")), masked(f"{url}: refused")]
    for text in (f"store: {url}", f"store:\n  url: [{url!r}]", f"store: {{url: 'x{url}'}}"):
        shown += refused(write(tmp_path, text))
    shown += refused(None, {"PLEACH_STORE__URL": f"my{url}"})
    assert len(shown) == 7
    for text in shown:
        assert "s3" not in text
        assert "ret" not in text.replace("retur", "").replace("retrain", "")


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "log: {level: loud}\nstore: {feed_keep: few}\n")
    told = refused(path, {"PLEACH_NORTHBOUND__PRT": "1", "PLEACH_SOUTHBOUND__LLDP_S": "often"})
    assert len(told) == 4
    assert any(t.startswith("PLEACH_NORTHBOUND__PRT: ") for t in told)
    assert any("did you mean PLEACH_NORTHBOUND__PORT?" in t for t in told)
    assert any(t.startswith("PLEACH_SOUTHBOUND__LLDP_S: southbound.lldp_s: ") for t in told)


def test_a_value_out_of_bounds_names_the_variable() -> None:
    (problem,) = refused(None, {"PLEACH_NORTHBOUND__MAX_BATCH": "0"})
    assert problem.startswith("PLEACH_NORTHBOUND__MAX_BATCH: northbound.max_batch: ")


def test_the_environment_does_not_hide_what_is_wrong_in_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "northbound: 5\n")
    (problem,) = refused(path, {"PLEACH_NORTHBOUND__PORT": "1"})
    assert problem.startswith(f"{path}:1: northbound: ")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (problem,) = refused(tmp_path / "absent.yaml")
    assert "absent.yaml: No such file" in problem
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    (problem,) = refused(binary)
    assert "UTF-8" in problem


@given(st.sampled_from(_leaves(Settings)), st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1))
def test_no_unknown_variable_is_overlooked(leaf: tuple[str, ...], more: str) -> None:
    name = "PLEACH_" + "__".join(leaf).upper() + more.upper()
    known = {"PLEACH_" + "__".join(other).upper() for other in _leaves(Settings)}
    if name not in known:
        with pytest.raises(SettingsError, match=name):
            load(None, {name: "1"})


@given(st.text(max_size=200))
def test_no_file_ends_in_another_error(text: str) -> None:
    # Written where nothing else is: hypothesis calls this many times.
    path = Path(f"/dev/shm/pleach-settings-{os.getpid()}.yaml")
    try:
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        said = str(path)
        try:
            load(path, {})
        except SettingsError as error:
            said = str(error)
        assert str(path) in said
    finally:
        path.unlink()


def test_tls_files_are_looked_at_when_used(tmp_path: Path) -> None:
    certificate = tmp_path / "c.pem"
    tls = Tls(certificate=certificate, key=tmp_path / "k.pem")
    with pytest.raises(SettingsError) as caught:
        tls.check("northbound.tls")
    assert [p.field for p in caught.value.problems] == [
        "northbound.tls.certificate",
        "northbound.tls.key",
    ]
    certificate.touch()
    (tmp_path / "k.pem").touch()
    tls.check("northbound.tls")


def test_a_safe_directory_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = safe_directory(tmp_path / "a" / "b")
    assert path.stat().st_mode & 0o777 == 0o700
    assert safe_directory(path) == path
    path.chmod(0o770)
    with pytest.raises(SettingsError, match="others may write"):
        safe_directory(path)


def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        assert safe_directory(Path("/usr")) == Path("/usr")  # root's are trusted
        return
    path = safe_directory(tmp_path / "theirs")
    os.chown(path, 65_534, 65_534)
    with pytest.raises(SettingsError, match="belongs to user 65534"):
        safe_directory(path)
    assert safe_directory(path, owner=65_534) == path


def test_every_setting_is_explained_as_yaml_that_is_a_file_of_settings(tmp_path: Path) -> None:
    values = load(None, {"PLEACH_STATE_DIR": str(tmp_path)}).model_dump(mode="json")
    told = explained(values)
    assert yaml.safe_load(told) == values
    assert "# Whether paths are chosen" in told
    assert "# The REST door." in told
    # One comment stands above several, and once.
    assert told.count("then means over 5 minutes") == 1
    assert explained(values, "history.hourly_days").splitlines() == [
        "# Days for which samples are kept, then means over 5 minutes, then over an hour.",
        f"hourly_days: {values['history']['hourly_days']}",
    ]
    assert yaml.safe_load(explained(values, "northbound.tls")) == {
        "tls": values["northbound"]["tls"]
    }
    for wrong in ("nothing", "paths.nothing", "paths.hedge.more"):
        with pytest.raises(ValueError, match=wrong):
            explained(values, wrong)
