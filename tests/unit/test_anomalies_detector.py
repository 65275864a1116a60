"""Banks of a fabric's series: VMs come and go, files are written, read again, or damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from controller.history.series import Matrix
from controller.observe.anomalies import detector
from controller.observe.anomalies.bank import Rule
from controller.observe.anomalies.detector import Config, Detector, Span, StaleError
from controller.observe.anomalies.limits import before, beyond
from controller.observe.anomalies.rules import Limit

RULE = Rule(near=8, burst=3, window=4, base=6, block=4, remembered=40, learning=6, quiet=8)
STEP = 300.0


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(tmp_path / "anomalies", {"cpu": 0.0, "memory": 0.0}, 1e6, RULE)


def samples(series: int, steps: int, seed: int = 1) -> np.ndarray:
    values = 50.0 + np.random.default_rng(seed).normal(size=(series, steps))
    values[0, 300:301] += 40.0
    return values


def names(count: int) -> tuple[detector.Name, ...]:
    return tuple((f"vm{n // 2}", ("cpu", "memory")[n % 2]) for n in range(count))


def span(of: Detector, values: np.ndarray, first: int, last: int, **more: object) -> Span:
    times = STEP * np.arange(first + 1, last + 1)
    made = Span(of.token, names(len(values)), times, values[:, first:last])
    return replace(made, **more)  # type: ignore[arg-type]


def test_the_length_of_spans_does_not_matter(config: Config, tmp_path: Path) -> None:
    values = samples(4, 400)
    one, other = Detector(config), Detector(replace(config, directory=tmp_path / "other"))
    together = one.advance(span(one, values, 0, 400))
    apart = [
        f for n in range(0, 400, 7) for f in other.advance(span(other, values, n, min(400, n + 7)))
    ]
    assert apart == together
    assert (("vm0", "cpu"), 301 * STEP) in [(name, found.at) for name, found in together]
    assert one.upto == other.upto == 400 * STEP


def test_after_a_restart_it_goes_on_as_if_there_had_been_none(config: Config) -> None:
    values = samples(6, 400)
    steady, first = Detector(config), Detector(config)
    expected = steady.advance(span(steady, values, 0, 400))
    first.advance(span(first, values, 0, 250))
    assert first.save(np.inf) == 0
    lost = first.advance(span(first, values, 250, 320))  # the files know nothing of these
    assert lost
    again = Detector(config)
    assert again.upto == 250 * STEP
    found = again.advance(span(again, values, 240, 400))
    assert found == [one for one in expected if one[1].at > 250 * STEP]


def test_more_than_one_bank_is_written_a_few_at_once(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detector, "SIZE", 4)
    values = samples(18, 60)
    found = Detector(config)
    found.advance(span(found, values, 0, 40))
    assert [found.save(np.inf) for _ in range(4)] == [3, 1, 0, 0]
    assert len(list(config.directory.glob("bank-*.npz"))) == 5
    found.advance(span(found, values, 40, 50))
    found.save(np.inf)  # two of five
    again = Detector(config)
    assert again.upto == 40 * STEP
    assert again.advance(span(again, values, 40, 60)) == found.advance(span(found, values, 50, 60))


def test_rows_of_vms_that_are_gone_are_used_again(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detector, "SIZE", 4)
    values = samples(4, 400)
    found = Detector(config)
    found.advance(span(found, values, 0, 200))
    found.keep(frozenset({"vm1"}))
    fresh = (("new", "cpu"), ("new", "memory"), ("vm1", "cpu"), ("vm1", "memory"))
    left = found.advance(span(found, values, 200, 400, names=fresh))
    found.save(np.inf)
    assert len(list(config.directory.glob("*"))) == 1
    alone = Detector(replace(config, directory=config.directory / "alone"))
    expected = alone.advance(span(alone, values, 200, 400, names=fresh))
    mine = [one for one in left if one[0][0] == "new"]
    assert [one[0] for one in mine] == [one[0] for one in expected if one[0][0] == "new"]


@pytest.mark.parametrize("damage", [b"", b"no archive", None])
def test_a_damaged_file_is_learned_again(config: Config, damage: bytes | None) -> None:
    values = samples(2, 400)
    first = Detector(config)
    expected = first.advance(span(first, values, 0, 400))
    first.save(np.inf)
    (file,) = config.directory.glob("bank-*.npz")
    file.write_bytes(file.read_bytes()[:-200] if damage is None else damage)
    again = Detector(config)
    assert again.upto is None
    assert again.advance(span(again, values, 0, 400)) == expected


def test_who_feeds_it_is_told_that_it_was_opened_anew(config: Config) -> None:
    stands = detector.standing(config)
    assert stands.upto is None
    assert detector.standing(config) == stands
    values = samples(2, 10)
    opened = Span(stands.token, names(2), STEP * np.arange(1, 11), values)
    detector.advance(config, opened)
    detector.keep(config, stands.token, ["vm0"])
    assert detector.save(config, stands.token, np.inf) == 0
    with pytest.raises(StaleError):
        detector.advance(config, replace(opened, token=stands.token + 1))
    with pytest.raises(StaleError):
        detector.save(replace(config, directory=config.directory / "x"), stands.token, 0.0)


def matrix(*values: list[float]) -> Matrix:
    width = len(values[0])
    return Matrix(
        tuple(f"vm{n}" for n in range(len(values))), STEP * np.arange(width), np.array(values)
    )


def test_a_limit_holds_for_as_long_as_it_says() -> None:
    nan = float("nan")
    limit = Limit.model_validate(
        {"metric": "cpu", "above": 0.9, "for_s": 900, "severity": "critical", "vms": ["vm*"]}
    )
    assert before([limit], STEP) == 600.0
    found = {"cpu": matrix([1, 1, 1, 0.1], [1, 1, nan, 1], [0.95, 0.99, 1, 1], [0.1] * 4)}
    vms = {f"vm{n}" for n in range(4)}
    told = beyond([limit], found, STEP, 600.0, vms)
    assert [(one.vm, one.at, one.severity) for one in told] == [
        ("vm0", 900.0, "critical"),
        ("vm2", 1200.0, "critical"),
    ]
    assert [one.vm for one in beyond([limit], found, STEP, 900.0, vms)] == ["vm2"]
    assert beyond([limit], found, STEP, 900.0, {"vm0"}) == []
    low = Limit.model_validate({"metric": "cpu", "below": 0.5, "for_s": 300})
    assert [one.vm for one in beyond([low], found, STEP, 900.0, vms)] == ["vm0", "vm3"]
