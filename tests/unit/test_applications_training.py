"""The behavioural classifier: learned from labelled flows, judged on captures it has not seen,
and unsure where it does not know."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.observe.applications import model as models
from controller.observe.applications import policy, training
from controller.observe.applications.model import FEATURES, Model, ModelError, features
from controller.observe.applications.records import Kind, Verdict
from controller.observe.applications.training import Sample, Trained, TrainingError
from controller.observe.applications.worker import Worker, WorkerError
from tests.unit import applications_traffic as traffic

POLICY = policy.load()
TREES = 25


def chatter(chance: random.Random, category: str) -> traffic.Said:
    """What a flow of `category` looks like, in random bytes that nDPI does not know."""
    if category == "messaging":
        sizes = [(n % 2 == 0, chance.randint(20, 60)) for n in range(8)]
    else:
        sizes = [(True, chance.randint(80, 200)), *[(False, chance.randint(900, 1_400))] * 7]
    return [(client, chance.randbytes(size)) for client, size in sizes]


def sample(chance: random.Random, category: str, capture: str) -> Sample:
    trace = [
        (n * 0.01 * (1 + chance.random()), size if client else -size)
        for n, (client, size) in enumerate(
            (client, len(data)) for client, data in chatter(chance, category)
        )
    ]
    values = features("tcp", trace)
    assert values is not None
    return Sample(tuple(values), category, capture)


@pytest.fixture(scope="module")
def given_samples() -> list[Sample]:
    chance = random.Random(3)
    return [
        sample(chance, category, f"{category}-{capture}")
        for category in ("messaging", "file transfer")
        for capture in range(8)
        for _ in range(12)
    ]


@pytest.fixture(scope="module")
def trained(given_samples: list[Sample]) -> Trained:
    return training.train(given_samples, 1, 0.8, TREES)


def test_what_is_learned(trained: Trained) -> None:
    report = trained.report
    assert report.right_if_all >= 0.95 > report.right_of_commonest
    assert report.right is not None
    assert report.right >= 0.95
    assert report.calibration_error <= 0.1
    assert trained.flows == {"file transfer": 96, "messaging": 96}
    assert trained.left_out == {}


def test_labels_that_say_nothing_are_not_believed() -> None:
    chance = random.Random(4)
    shuffled = [
        replace(sample(chance, "messaging", f"c{capture}"), category=chance.choice(["a", "b"]))
        for capture in range(20)
        for _ in range(10)
    ]
    report = training.train(shuffled, 1, 0.8, TREES).report
    assert report.answered <= 0.1
    assert 0.3 <= report.right_if_all <= 0.7


def test_too_little_is_refused(given_samples: list[Sample]) -> None:
    with pytest.raises(TrainingError, match="are too few: give captures of at least two"):
        training.train([s for s in given_samples if s.category == "messaging"], 1, 0.8, TREES)
    rare = [replace(s, category="rare") for s in given_samples[:5]]
    assert training.train([*given_samples, *rare], 1, 0.8, TREES).left_out == {"rare": 5}


def test_the_file_says_the_same_as_scikit_learn(given_samples: list[Sample]) -> None:
    values, categories, groups = training._arrays(given_samples)
    forest = training._forest(7, TREES).fit(values, categories)
    made = training._model(forest, np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    read = Model.from_bytes(made.to_bytes())
    ours = np.array([read.probabilities(s.values) for s in given_samples])
    assert read.categories == ("file transfer", "messaging")
    assert len(groups) == len(ours)
    assert np.allclose(ours, forest.predict_proba(values))


def test_same_seed_same_file(given_samples: list[Sample], trained: Trained) -> None:
    again = training.train(given_samples, 1, 0.8, TREES)
    assert again.model.to_bytes() == trained.model.to_bytes()
    assert again.report == trained.report


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 no zip", b"\x80\x04pickle"])
def test_what_is_no_model(data: bytes) -> None:
    with pytest.raises(ModelError, match="is no model of applications"):
        Model.from_bytes(data)


def test_models_that_would_lead_astray(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained.model
    loop = model.left.copy()
    loop[model.roots[0]] = model.roots[0]
    wild = [
        replace(model, left=loop),
        replace(model, right=model.right + len(model.feature)),
        replace(model, roots=model.roots - 1),
        replace(model, leaves=model.leaves[:, :1]),
        replace(model, feature=np.where(model.feature >= 0, len(FEATURES), -1).astype(np.int32)),
        replace(model, votes=model.votes[:0]),
    ]
    for bad in wild:
        with pytest.raises(ModelError, match="contradicts itself"):
            Model.from_bytes(bad.to_bytes())
    data = model.to_bytes()
    monkeypatch.setattr(models, "VERSION", 2)
    with pytest.raises(ModelError, match="other features; train it again"):
        Model.from_bytes(data)


TRACES = st.lists(st.tuples(st.floats(0, 1e6), st.integers(-70_000, 70_000)), max_size=30)


@given(st.sampled_from(["tcp", "udp", "132"]), TRACES)
def test_features_are_numbers(protocol: str, trace: list[tuple[float, int]]) -> None:
    values = features(protocol, trace)
    carried = sum(1 for _, size in trace if size)
    assert (values is None) == (carried < 2)
    if values is not None:
        assert len(values) == len(FEATURES)
        assert np.isfinite(values).all()


def test_features_of_a_flow() -> None:
    values = features("tcp", [(0.0, 0), (1.0, 100), (1.5, -300), (1.5, -50), (2.5, 10)])
    assert values is not None
    told = dict(zip(FEATURES, values, strict=True))
    assert [told[f"size_{n}"] for n in range(5)] == [100, -300, -50, 10, 0]
    assert told["gap_1"] == pytest.approx(np.log1p(500))
    assert (told["packets_out"], told["packets_in"], told["turns"]) == (2, 2, 2)
    assert told["first_response"] == pytest.approx(np.log1p(500))
    assert told["bytes_in"] == pytest.approx(np.log1p(350))


def test_it_answers_where_packets_do_not(trained: Trained, tmp_path: Path) -> None:
    file = tmp_path / "model"
    file.write_bytes(trained.model.to_bytes())
    chance = random.Random(9)
    flows = [
        traffic.tcp(7070 + n, chatter(chance, category), step=0.015)
        for n, category in enumerate(["messaging", "file transfer"])
    ]

    def look(model: Path | None) -> list[Verdict]:
        with Worker(POLICY.naming(), POLICY.limits(), time.monotonic, model) as worker:
            for frame in (frame for flow in flows for frame in flow):
                worker.feed(0, frame.time, frame.data)
            return sorted(worker.finish(60.0), key=lambda v: v.responder.port)

    with_it = look(file)
    assert [(v.kind, v.category) for v in with_it] == [
        (Kind.BEHAVIOURAL, "messaging"),
        (Kind.BEHAVIOURAL, "file transfer"),
    ]
    assert all(0.8 <= v.confidence <= 1 for v in with_it)
    assert [v.kind for v in look(None)] == [Kind.UNKNOWN] * 2


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="nowhere: cannot be read"):
        Worker(POLICY.naming(), POLICY.limits(), time.monotonic, tmp_path / "nowhere")


def test_a_model_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "none"
    file.write_bytes(b"no model")
    with pytest.raises(WorkerError, match="none: is no model of applications"):
        Worker(POLICY.naming(), POLICY.limits(), time.monotonic, file)


def test_what_is_learned_of_a_capture() -> None:
    def verdict(kind: Kind, category: str) -> Verdict:
        trace = ((0.0, 10), (0.1, -10))
        base = Verdict(*[None] * len(Verdict._fields))  # type: ignore[arg-type]
        return base._replace(kind=kind, category=category, protocol="tcp", trace=trace)

    several = [
        verdict(Kind.CONFIRMED, "database"),
        verdict(Kind.GUESSED, "database"),
        verdict(Kind.CONFIRMED, "other"),
        verdict(Kind.CONFIRMED, "mail")._replace(trace=()),
        *[verdict(Kind.CONFIRMED, "web server")] * 300,
    ]
    learned = training.samples("c", several, training.confirmed_category)
    assert [s.category for s in learned] == ["database", *["web server"] * 200]
