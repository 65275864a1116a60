"""os-ken beside Pleach, Ryu in an environment of its own: which Python runs what."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from check_environment import pins

from controller import cli
from controller.commands import southbound
from controller.commands.common import Failure
from controller.settings import SouthboundSettings

ROOT = Path(__file__).parents[2]


def test_each_framework_has_its_python(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.touch()
    assert southbound.command(SouthboundSettings())[0] == sys.executable
    settings = SouthboundSettings(framework="ryu", ryu_python=python)
    assert southbound.command(settings) == [str(python), "-P", "-m", "apps.southbound"]
    words = southbound.manager(SouthboundSettings(ryu_python=python), ["app.py", "--verbose"])
    assert words == [str(python), "-P", "-m", "apps.ryu_manager", "app.py", "--verbose"]


def test_where_ryu_is_not_there_it_is_told_what_to_do(tmp_path: Path) -> None:
    settings = SouthboundSettings(framework="ryu", ryu_python=tmp_path / "python")
    for start in (southbound.command, lambda s: southbound.manager(s, [])):
        with pytest.raises(Failure, match=f"no {tmp_path}/python") as failure:
            start(settings)
        assert "make ryu" in failure.value.mend


@pytest.mark.parametrize(
    "words",
    [
        ["southbound", "--framework", "ryu"],
        ["run"],
        ["ryu-manager", "--verbose", "app.py", "--help"],
    ],
)
def test_commands_take_the_framework_that_is_set(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PLEACH_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("PLEACH_SOUTHBOUND__RYU_PYTHON", str(tmp_path / "none"))
    monkeypatch.setenv("PLEACH_SOUTHBOUND__FRAMEWORK", "ryu" if words == ["run"] else "os-ken")
    monkeypatch.setattr(sys, "argv", ["pleach", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert "make ryu" in capsys.readouterr().err


def test_options_of_ryu_are_passed_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.touch()
    monkeypatch.setenv("PLEACH_SOUTHBOUND__RYU_PYTHON", str(python))
    words = ["--verbose", "a/b.py", "ryu.app.rest", "--wsapi-port", "8080", "--help"]
    monkeypatch.setattr(sys, "argv", ["pleach", "--config", "/dev/null", "ryu-manager", *words])
    became: list[list[str]] = []

    def become(path: str, command: list[str]) -> None:
        assert path == str(python)
        became.append(command)

    monkeypatch.setattr(os, "execv", become)
    monkeypatch.setenv("PLEACH_CONFIG", "")
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert became == [[str(python), "-P", "-m", "apps.ryu_manager", *words]]
    assert os.environ["PLEACH_CONFIG"] == "/dev/null"


def test_the_wrong_python_is_told(tmp_path: Path) -> None:
    """Ryu is set, and the process is started by the Python that has os-ken."""
    settings = {"PLEACH_STATE_DIR": str(tmp_path), "PLEACH_SOUTHBOUND__FRAMEWORK": "ryu"}
    done = subprocess.run(
        [sys.executable, "-m", "apps.southbound"],
        env=os.environ | settings, cwd=ROOT, check=False,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"southbound.framework: is ryu, but {sys.executable} has os-ken" in done.stderr
    assert "pleach southbound" in done.stderr
    assert not list(tmp_path.iterdir())


def test_both_environments_have_the_same_versions() -> None:
    """But for what Ryu must have older, and what it alone has."""
    main, ryu = (
        pins((ROOT / name).read_text()) for name in ("constraints.txt", "constraints-ryu.txt")
    )
    others = {name for name in ryu if ryu[name] != main.get(name)}
    assert others == {"ryu", "setuptools", "tinyrpc", "wheel"}
    # Ryu's build uses easy_install's get_script_args, which setuptools 68 removed; before 70 it
    # builds wheels by the package of that name.
    assert int(ryu["setuptools"].split(".")[0]) < 68
