"""Samples and history by REST: forms, compression, who may tell of what, how much, and what is
told when the history cannot be used."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cramjam
import msgpack
import pytest
from history_world import batch
from northbound_server import EDGES, Answer, Running, connect, define, other_store, running, vm
from typer.testing import CliRunner

from controller.api import MSGPACK, NewToken, SampleBatch
from controller.cli import app
from controller.client import Problem
from controller.history.samples import Batch, to_json_document, to_msgpack_body
from controller.model.metrics import METRICS
from controller.model.nouns import Port, Vm

ROOM = {"min_free_bytes": 0}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("brain") / "state", history=ROOM) as found:
        define(found, vms=6)
        with found.client() as client:
            client.place("vm0", "h1", ["p0"])
            client.place("vm1", "h2", ["p1"])
        with other_store(found) as store:
            connect(store, (EDGES["h1"], "uplink1"), (EDGES["h2"], "uplink2"))
        yield found


@pytest.fixture(scope="module")
def agent(shared: Running) -> str:
    """The token of host h1."""
    with shared.client() as client:
        return client.create_token(NewToken(name="agent", role="hypervisor", host="h1")).secret


@pytest.fixture
def now() -> float:
    return float(int(time.time()))


_SEQUENCE = iter(range(1_000_000))


def sample(now: float, columns: dict[str, list[float | None]], *subjects: str) -> Batch:
    times = [now] * len(subjects)
    return batch(next(_SEQUENCE), times, columns, subjects=subjects, sent_at=time.time())


def post(served: Running, sent: Batch | bytes, **more: Any) -> Answer:
    body = sent if isinstance(sent, bytes) else to_msgpack_body(sent)
    return served.call("POST", "/v1/samples", body, **{"media": MSGPACK, **more})


def refused(answer: Answer) -> dict[str, int]:
    assert answer.status == 200, answer.raw
    return {refusal["reason"]: refusal["count"] for refusal in answer.body["refused"]}


def test_samples_come_in_and_are_told(shared: Running, now: float) -> None:
    with shared.client() as client:
        told = client.send_samples(
            SampleBatch(
                sender="a",
                sequence=1,
                sent_at=time.time(),
                subjects=("vm5",) * 3,
                times=(now - 120, now - 60, now),
                metrics={"cpu": (0.1, None, 0.3), "net_rx_total": (0, 6_000, 18_000)},
            )
        )
        assert (told.outcome, told.accepted, told.refused) == ("taken", 5, ())
        assert told.clock_offset_s is not None
        assert abs(told.clock_offset_s) < 5
        found = client.history("vm5", ("cpu", "net_rx"), now - 600, now + 60)
        assert found.times == (now - 120, now - 60, now)
        assert found.metrics == {"cpu": (0.1, None, 0.3), "net_rx": (None, 100.0, 200.0)}
        grid = client.history("vm5", ["cpu"], now - 180, now + 60, step=60)
        assert [value for value in grid.metrics["cpu"] if value is not None] == [0.1, 0.3]
        assert None in grid.metrics["cpu"]
        one = shared.call("GET", f"/v1/history/vm5/cpu?start={now}&end={now + 1}").body
        assert (one["times"], one["metrics"]) == ([now], {"cpu": [0.3]})
        assert {metric.name for metric in client.metrics().items} == set(METRICS)
        status = client.history_status()
        assert (status.engine, status.trouble) == ("duckdb", None)


@pytest.mark.parametrize(
    ("coding", "compress"),
    [
        ("gzip", gzip.compress),
        ("zstd", lambda raw: bytes(cramjam.zstd.compress(raw))),
        ("snappy", lambda raw: bytes(cramjam.snappy.compress_raw(raw))),
        ("identity", bytes),
    ],
)
def test_bodies_may_be_compressed(shared: Running, now: float, coding: str, compress: Any) -> None:
    sent = sample(now, {"cpu": [0.5]}, "vm3")
    assert post(shared, compress(to_msgpack_body(sent)), content_encoding=coding).status == 200
    as_json = json.dumps(to_json_document(sample(now, {"cpu": [0.5]}, "vm3"))).encode()
    answer = post(shared, compress(as_json), content_encoding=coding, media="application/json")
    assert answer.body["accepted"] == 1
    if coding != "identity":
        broken = post(shared, compress(as_json)[:-3], content_encoding=coding)
        assert (broken.status, broken.type) == (400, "malformed")


@pytest.mark.parametrize(
    ("coding", "compress"),
    [
        ("gzip", gzip.compress),
        ("zstd", lambda raw: bytes(cramjam.zstd.compress(raw))),
        ("snappy", lambda raw: bytes(cramjam.snappy.compress_raw(raw))),
    ],
)
def test_a_body_that_grows_without_end_is_refused(
    shared: Running, coding: str, compress: Any
) -> None:
    bomb = compress(bytes(20 << 20))
    assert len(bomb) < 1 << 20
    for media in (MSGPACK, "application/json"):
        answer = post(shared, bomb, content_encoding=coding, media=media)
        assert (answer.status, answer.type) == (413, "too-large")


def test_what_is_no_body_of_samples_is_told(shared: Running, now: float) -> None:
    sent = to_msgpack_body(sample(now, {"cpu": [0.5]}, "vm3"))
    assert post(shared, sent, content_encoding="br").type == "media-type"
    assert post(shared, sent, media="text/csv").type == "media-type"
    assert post(shared, b"\xc1").type == "malformed"
    answer = post(shared, msgpack.packb({**msgpack.unpackb(sent), "sequence": -1}))
    assert (answer.status, answer.body["faults"][0]["pointer"]) == (422, "/sequence")


def test_what_is_bad_costs_only_itself(shared: Running, now: float) -> None:
    columns: dict[str, list[float | None]] = {
        "cpu": [0.5, -0.5, float("nan"), 77.0, None],
        "memory": [None, 1e9, 1e9, None, 1e9],
        "flux": [1.0, None, None, None, None],
    }
    answer = post(shared, sample(now, columns, "vm3", "vm3", "vm4", "vm4", "ghost"))
    assert answer.body["accepted"] == 3
    assert refused(answer) == {
        "unknown-metric": 1,
        "negative": 1,
        "not-finite": 1,
        "implausible": 1,
        "unknown-subject": 1,
    }
    counts = shared.call("GET", "/v1/history").body["refused"]
    assert counts["negative"] >= 1


def test_a_clock_that_is_off_is_noticed(shared: Running, now: float) -> None:
    ahead = batch(1, [now + 3_600], {"cpu": [0.5]}, subjects=["vm3"], sender="ahead")
    sent = msgpack.unpackb(to_msgpack_body(ahead)) | {"sent_at": time.time() + 3_600}
    answer = post(shared, msgpack.packb(sent))
    assert refused(answer) == {"in-the-future": 1}
    assert "now is" in answer.body["refused"][0]["detail"]
    assert answer.body["clock_offset_s"] == pytest.approx(3_600, abs=10)


def test_what_is_sent_again_is_taken_once(shared: Running, now: float) -> None:
    sent = replace(sample(now, {"cpu": [0.25]}, "vm4"), sender="again")
    assert post(shared, sent).body["outcome"] == "taken"
    assert post(shared, sent).body["outcome"] == "duplicate"
    assert post(shared, replace(sent, sequence=1 << 40)).body["outcome"] == "taken"
    answer = post(shared, sent)
    assert (answer.status, answer.type) == (409, "conflict")


def test_a_hypervisor_tells_of_what_is_its_own(shared: Running, agent: str, now: float) -> None:
    columns: dict[str, list[float | None]] = {
        "cpu": [0.1, 0.2, 0.3, None, None, None, None, None],
        "host_cpu": [None, None, None, 0.4, 0.5, 0.6, None, None],
        "port_rx": [None, None, None, None, None, None, 1e6, 2e6],
    }
    ports = [f"{EDGES['h1']}:1", f"{EDGES['h2']}:2"]
    subjects = ("vm0", "vm1", "vm2", "h1", "h2", "h9", *ports)

    def told() -> dict[str, int]:
        answer = post(shared, sample(now, columns, *subjects), token=agent)
        assert answer.body["accepted"] == 3
        return refused(answer)

    wait = time.monotonic() + 20
    while True:  # the ports were discovered by another process
        answer = post(shared, sample(now, columns, *subjects), token=agent)
        if answer.body["accepted"] == 3 or time.monotonic() > wait:
            break
        time.sleep(0.05)
    assert told() == {"not-yours": 4, "unknown-subject": 1}


def test_a_vm_that_moved_may_still_be_told_of(shared: Running, agent: str, now: float) -> None:
    def accepted() -> int:
        answer = post(shared, sample(now, {"cpu": [0.5]}, "vm2"), token=agent)
        return int(answer.body["accepted"])

    with shared.client() as client:
        revision = client.place("vm2", "h2", ["p2"]).revision
        client.vm("vm2", revision=revision)
        assert accepted() == 0
        client.start_migration("m1", "vm2", "h2", "h1", ["p3"])
        client.vm("vm2")
        assert accepted() == 1  # it is on its way here
        client.fail_migration("m1", "vm2")
        client.vm("vm2")
        assert accepted() == 1  # what waited here is of that time


def test_others_read_but_do_not_tell(shared: Running, now: float) -> None:
    with shared.client() as client:
        viewer = client.create_token(NewToken(name="viewer", role="viewer")).secret
    answer = post(shared, sample(now, {"cpu": [0.5]}, "vm0"), token=viewer)
    assert (answer.status, answer.type) == (403, "forbidden")
    assert post(shared, sample(now, {"cpu": [0.5]}, "vm0"), token="").status == 401
    path = f"/v1/history/vm0?start={now - 60}&end={now}"
    assert shared.call("GET", path, token=viewer).status == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/history/vm0/nothing?start=0&end=1", 404),
        ("/v1/history/vm0?metric=nothing&start=0&end=1", 404),
        ("/v1/history/vm0/cpu?start=2&end=1", 422),
        ("/v1/history/vm0/cpu?start=0", 422),
        ("/v1/history/vm0/cpu?start=0&end=1&step=0", 422),
        ("/v1/history/vm0/cpu?start=0&end=1e10&step=1", 422),
        ("/v1/history/vm0/cpu?start=0&end=1&how=median", 422),
        ("/v1/history/vm0?metric=cpu&metric=host_cpu&start=0&end=1", 422),
    ],
)
def test_what_cannot_be_asked_is_told(shared: Running, path: str, status: int) -> None:
    answer = shared.call("GET", path)
    assert answer.status == status
    assert answer.type in ("invalid", "not-found")


def test_a_subject_that_is_not_there_is_no_empty_answer(shared: Running, now: float) -> None:
    span = f"start={now - 7_200}&end={now - 3_600}"  # before any sample
    answers = [
        shared.call("GET", f"/v1/history/ghost{rest}{span}")
        for rest in ("/cpu?", "/cpu?step=10&", "?")
    ]
    assert [answer.type for answer in answers] == ["not-found"] * 3
    assert "no vm, host or port ghost" in answers[0].body["detail"]
    with other_store(shared) as store, store.transaction() as transaction:
        port = transaction.all(Port)[0].key
    for there, metric in (("vm2", "cpu"), ("h3", "host_cpu"), (port, "port_rx")):
        answer = shared.call("GET", f"/v1/history/{there}/{metric}?{span}&step=30")
        assert (answer.status, set(answer.body["metrics"][metric])) == (200, {None})


def test_what_is_gone_has_its_history_still(shared: Running, now: float) -> None:
    with shared.client() as client:
        client.put(vm(7))
        assert post(shared, sample(now, {"cpu": [0.5]}, "vm7")).body["accepted"] == 1
        client.delete(Vm, "vm7")
        assert client.history("vm7", ["cpu"], now, now + 1).metrics == {"cpu": (0.5,)}
        with pytest.raises(Problem, match="no vm, host or port vm7"):
            client.history("vm7", ["cpu"], now - 60, now)


def test_ten_times_what_is_agreed_is_refused(tmp_path: Path, now: float) -> None:
    agreed = {**ROOM, "values_per_s": 10, "burst_values": 100}
    with running(tmp_path / "state", history=agreed) as served:
        define(served)
        answers = [post(served, sample(now, {"cpu": [0.5] * 10}, *["vm0"] * 10)) for _ in range(30)]
        assert {answer.status for answer in answers} == {200, 429}
        turned_away = next(answer for answer in answers if answer.status == 429)
        assert turned_away.type == "too-many-requests"
        assert int(turned_away.headers["retry-after"]) >= 1
        assert served.call("GET", "/v1/tenants").status == 200  # that is no reason to stop others


def test_a_batch_of_json_has_its_bound(tmp_path: Path, now: float) -> None:
    with running(tmp_path / "state", history={**ROOM, "max_json_bytes": 1_024}) as served:
        define(served)
        sent = sample(now, {"cpu": [0.5] * 200}, *["vm0"] * 200)
        document = json.dumps(to_json_document(sent)).encode()
        answer = post(served, document, media="application/json")
        assert (answer.status, answer.type) == (413, "too-large")
        assert MSGPACK in answer.body["mend"]
        assert post(served, sent).status == 200


def test_no_room_is_told_and_reading_goes_on(tmp_path: Path, now: float) -> None:
    with running(tmp_path / "state", history={"min_free_bytes": 1 << 60}) as served:
        define(served)
        answer = post(served, sample(now, {"cpu": [0.5]}, "vm0"))
        assert (answer.status, answer.type) == (507, "store-full")
        assert "min_free_bytes" in answer.body["mend"]
        assert "retry-after" in answer.headers
        path = f"/v1/history/vm0?start={now - 60}&end={now}"
        assert served.call("GET", path).status == 200


def test_events_go_on_where_the_history_cannot_be_used(tmp_path: Path, now: float) -> None:
    place = tmp_path / "nowhere"
    place.write_text("a file where a directory should be")
    with running(tmp_path / "state", history={"url": f"duckdb://{place}"}) as served:
        define(served)
        answer = post(served, sample(now, {"cpu": [0.5]}, "vm0"))
        assert (answer.status, answer.type) == (503, "unavailable")
        assert str(place) in answer.body["detail"]
        with served.client() as client:
            assert client.place("vm0", "h1", ["p0"]).outcome == "applied"


def test_a_picture_has_the_time_that_was_asked_for(
    shared: Running, tmp_path: Path, now: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib import dates, pyplot

    assert post(shared, sample(now, {"cpu": [0.625]}, "vm5")).body["accepted"] == 1
    monkeypatch.setenv("PLEACH_URL", shared.url)
    monkeypatch.setenv("PLEACH_TOKEN", shared.token)
    with monkeypatch.context() as patched:
        patched.setattr(pyplot, "close", lambda _: None)
        words = ["history", "vm5", "cpu", "--last", "24h", "--plot", str(tmp_path / "vm5.svg")]
        assert CliRunner().invoke(app, words).exit_code == 0
    left, right = pyplot.gcf().axes[0].get_xlim()
    pyplot.close("all")
    assert right - left == pytest.approx(1.0)  # days
    assert dates.num2date(right).timestamp() == pytest.approx(now, abs=60)


def test_the_command_shows_draws_and_checks(
    shared: Running, tmp_path: Path, now: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = post(shared, sample(now, {"cpu": [0.625], "memory": [2e9]}, "vm5"))
    assert answer.body["accepted"] == 2
    with shared.client() as client:
        client.put(vm(6))
    monkeypatch.setenv("PLEACH_URL", shared.url)
    monkeypatch.setenv("PLEACH_TOKEN", shared.token)
    monkeypatch.setenv("PLEACH_STATE_DIR", str(shared.settings.state_dir))

    def run(*words: str) -> Any:
        return CliRunner().invoke(app, ["history", *words])

    shown = run("vm5", "cpu", "memory", "--last", "10m", "--max").stdout
    assert "cpu (share)" in shown
    assert "0.625" in shown
    assert json.loads(run("vm5", "cpu", "--json").stdout)["subject"] == "vm5"
    picture = tmp_path / "vm5.png"
    assert run("vm5", "cpu", "memory", "--plot", str(picture)).exit_code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    nothing = run("vm6", "cpu", "memory", "--last", "10m", "--plot", str(tmp_path / "vm6.svg"))
    assert str(nothing.exception).endswith("no sample of cpu or memory of vm6 in the last 10m")
    assert not (tmp_path / "vm6.svg").exists()
    assert "no sample of cpu of vm6" in str(run("vm6", "cpu").exception)
    assert set(json.loads(run("vm6", "cpu", "--json").stdout)["metrics"]["cpu"]) == {None}
    for wrong in (["vm5"], ["vm5", "cpu", "--last", "soon"], ["vm5", "cpu", "--plot", "x.nothing"]):
        assert run(*wrong).exception is not None
    busy: Any = run("check").exception
    assert "another process" in str(busy)
    assert busy.mend.startswith("stop Pleach first")
    monkeypatch.setenv("PLEACH_STATE_DIR", str(tmp_path / "empty"))
    assert "nothing was kept here" in str(run("check").exception)
