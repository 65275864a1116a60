"""policies/alerts.yaml: what an operator may say, and how what is wrong is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.loops.all import loops_of
from controller.observe.anomalies import rules
from controller.observe.anomalies.alerts import Kind, Severity, Signal
from controller.settings import SettingsError, load


def signal(kind: Kind, score: float, vm: str = "web-1", severity: Severity | None = None) -> Signal:
    return Signal(kind, vm, "", 1.0, score, "", severity)


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "alerts.yaml"
    file.write_text(text)
    return file


def test_the_rules_that_come_with_pleach_are_sound() -> None:
    found = rules.load()
    assert "cpu" in found.own_pattern.metrics
    assert found.limits == ()
    assert rules.load(rules.DEFAULT) == found


def test_scores_say_what_is_told_and_how_loudly(tmp_path: Path) -> None:
    text = "scan: {score: 2, critical: 5, quiet_s: 60, except_vms: [lab-*, web-9]}"
    found = rules.load(written(tmp_path, text))
    quiet, loud = signal(Kind.SCAN, 1.9), signal(Kind.SCAN, 5.0)
    lab, nine = signal(Kind.SCAN, 9.0, "lab-1"), signal(Kind.SCAN, 9.0, "web-9")
    other = signal(Kind.ROLE, 1.0, "lab-1")
    assert found.wanted([quiet, loud, lab, nine, other]) == [loud, other]
    assert found.severity(loud) is Severity.CRITICAL
    assert found.severity(signal(Kind.SCAN, 4.9)) is Severity.WARNING
    assert found.severity(signal(Kind.LIMIT, 1.0, severity=Severity.CRITICAL)) is Severity.CRITICAL
    assert found.of(Kind.SCAN).quiet_s == 60


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("scan:\n  scores: 2", ":2: scan.scores: there is no such setting (did you mean score?)"),
        ("role: {score: 0.5}", ":1: role.score: Input should be greater than or equal to 1"),
        (
            "own_pattern:\n  metrics:\n    cpus: {}",
            ":3: own_pattern.metrics.cpus: there is no metric cpus of VMs: there are cpu",
        ),
        ("own_pattern:\n  metrics:\n    port_rx: {}", "no metric port_rx of VMs: there are cpu"),
        ("limits:\n  - {metric: cpu}", ":2: limits.0: give either above or below"),
        ("limits:\n  - {metric: cpu, above: 1, below: 2}", "give either above or below"),
        ("limits:\n  - metric: cpu\n    above: 1\n    severity: loud", ":4: limits.0.severity"),
        ("scan: {quiet_s: .nan}", "scan.quiet_s: Input should be"),
        ("scan: 3", ":1: scan:"),
        ("scan: {}\nscan: {}", ":2: scan: is set a second time (first in line 1)"),
        ("scan: [", "is no YAML"),
    ],
)
def test_what_is_wrong_is_told_by_its_line(tmp_path: Path, text: str, told: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(SettingsError) as error:
        rules.load(file)
    assert told in str(error.value)
    assert str(error.value).startswith(str(file))


def test_a_brain_with_wrong_rules_does_not_start(tmp_path: Path) -> None:
    file = written(tmp_path, "skan: {}")
    environ = {"PLEACH_STATE_DIR": str(tmp_path), "PLEACH_ALERTS__RULES": str(file)}
    with pytest.raises(SettingsError, match="did you mean scan"):
        loops_of(load(None, environ))
    with pytest.raises(SettingsError, match="No such file"):
        rules.load(tmp_path / "nothing.yaml")


def test_who_is_told_is_said_in_settings() -> None:
    environ = {"PLEACH_ALERTS__WEBHOOKS": "https://a.example/x, http://u:secret@b.example"}
    found = load(None, environ)
    assert found.alerts.webhooks == ("https://a.example/x", "http://u:secret@b.example")
    assert "secret" not in repr(found)
    assert "secret" not in found.model_dump_json()
    with pytest.raises(SettingsError, match="an address begins with http"):
        load(None, {"PLEACH_ALERTS__WEBHOOKS": "ftp://a.example"})
