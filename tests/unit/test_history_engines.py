"""The same history on both engines: what is taken is told again, raw and on a grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from history_world import HOUR, Victoria, batch, handed_on, history_in, take, victoria

from controller.history.errors import BadQuery
from controller.history.history import History

#: The span in which the tests have samples: settled long ago, as a day of years to come is not.
T = 1_600_000_200.0 // HOUR * HOUR
NOW = T + 2 * HOUR


@pytest.fixture(scope="module", params=["duckdb", "victoriametrics"])
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, module_port: int
) -> Iterator[Victoria | None]:
    if request.param == "duckdb":
        yield None
        return
    with victoria(tmp_path_factory.mktemp("victoria"), module_port) as server:
        yield server


@pytest.fixture(scope="module")
def module_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def names(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Names of VMs that no other test has: a VictoriaMetrics is shared."""
    prefix = request.node.name.partition("[")[0].replace("_", "-")
    return lambda name: f"{prefix}.{name}"


@pytest.fixture
def history(engine: Victoria | None, tmp_path: Path) -> Iterator[History]:
    url = engine.url if engine is not None else f"duckdb://{tmp_path}/series"
    with history_in(tmp_path / "state", url=url) as found:
        yield found


@pytest.fixture
def settled(history: History) -> Callable[[], None]:
    """Returns once what was taken is with the engine."""
    return lambda: handed_on(history)


def test_samples_are_told_as_they_came(
    history: History, settled: Callable[[], None], names: Callable[[str], str]
) -> None:
    vm = names("a")
    times = [T + 10, T + 70, T + 130.5]
    taken = batch(
        1, times, {"cpu": [0.1, None, 0.3], "memory": [1e9, 2e9, None]}, subjects=[vm] * 3
    )
    assert take(history, taken, NOW).accepted == 4
    for _ in range(2):  # while it waits, and once the engine has it
        found = history.read_metrics(vm, ("cpu", "memory"), T, T + HOUR)
        assert found["cpu"].times.tolist() == [T + 10, T + 130.5]
        assert found["cpu"].values.tolist() == [0.1, 0.3]
        assert found["memory"].times.tolist() == [T + 10, T + 70]
        assert found["memory"].values.tolist() == [1e9, 2e9]
        settled()


def test_a_span_has_its_start_and_not_its_end(
    history: History, settled: Callable[[], None], names: Callable[[str], str]
) -> None:
    vm = names("a")
    take(history, batch(1, [T, T + 60], {"cpu": [0.1, 0.2]}, subjects=[vm] * 2), NOW)
    for _ in range(2):
        assert history.read(vm, "cpu", T, T + 60).values.tolist() == [0.1]
        assert history.read(vm, "cpu", T + 60, T + 61).values.tolist() == [0.2]
        assert history.read(vm, "cpu", T + 0.001, T + 60).values.tolist() == []
        settled()


@pytest.mark.parametrize("step", [60, 300, 1_800])
def test_a_grid_has_means_and_maxima_and_gaps(
    history: History, settled: Callable[[], None], names: Callable[[str], str], step: int
) -> None:
    vm = names(str(step))
    at = np.array([0, 59.999, 60, 299, 301, 1_200, 2_000, 3_599])
    values = np.array([0.1, 0.3, 0.4, 0.2, 0.6, 0.5, 0.0, 0.9])
    taken = batch(1, (T + at).tolist(), {"cpu": values.tolist()}, subjects=[vm] * len(at))
    take(history, taken, NOW)
    cells = (at // step).astype(int)
    count = int(HOUR) // step
    mean, most = np.full(count, np.nan), np.full(count, np.nan)
    for cell in set(cells.tolist()):
        mean[cell] = values[cells == cell].mean()
        most[cell] = values[cells == cell].max()
    for _ in range(2):
        found = history.read(vm, "cpu", T, T + HOUR, step)
        assert found.times.tolist() == [T + step * n for n in range(count)]
        np.testing.assert_allclose(found.values, mean, rtol=1e-9)
        found = history.read(vm, "cpu", T, T + HOUR, step, "max")
        np.testing.assert_allclose(found.values, most, rtol=1e-9)
        settled()


@pytest.mark.parametrize("step", [60, 600])
def test_many_at_once(
    history: History, settled: Callable[[], None], names: Callable[[str], str], step: int
) -> None:
    vms = [names(f"{step}-{n}") for n in range(3)]
    subjects = [vm for vm in vms for _ in range(2)]
    times = [T + 30, T + 630] * 3
    cpu = [0.1, 0.2, 0.3, 0.4, 0.5, None]
    take(history, batch(1, times, {"cpu": cpu}, subjects=subjects), NOW)
    cells = [0, 600 // step]
    for _ in range(2):
        asked = [vms[2], "nobody", vms[0]]
        found = history.read_many("cpu", T, T + 1_200, step, subjects=asked)
        assert found.subjects == tuple(asked)
        told = found.values[:, cells]
        np.testing.assert_allclose(told[0], [0.5, np.nan])
        assert np.isnan(told[1]).all()
        np.testing.assert_allclose(told[2], [0.1, 0.2])
        everyone = history.read_many("cpu", T, T + 1_200, step)
        assert list(everyone.subjects) == sorted(everyone.subjects)
        row = everyone.values[everyone.subjects.index(vms[1])]
        np.testing.assert_allclose(row[cells], [0.3, 0.4])
        assert int(np.isnan(row).sum()) == 1_200 // step - 2
        settled()


def test_a_batch_that_is_sent_again_is_taken_once(
    history: History, settled: Callable[[], None], names: Callable[[str], str]
) -> None:
    vm = names("a")
    taken = batch(7, [T, T + 1], {"cpu": [0.2, 0.4]}, subjects=[vm] * 2)
    assert take(history, taken, NOW).outcome == "taken"
    assert take(history, taken, NOW).outcome == "duplicate"
    settled()
    assert take(history, taken, NOW).outcome == "duplicate"
    assert take(history, taken, NOW, caller="another").outcome == "taken"  # no business of op's
    settled()
    assert history.read(vm, "cpu", T, T + 10).values.tolist() == [0.2, 0.4]


def test_late_samples_find_their_place(
    history: History, settled: Callable[[], None], names: Callable[[str], str]
) -> None:
    vm = names("a")
    for sequence, at in enumerate((T + 120, T + 60, T + 180, T)):
        take(history, batch(sequence, [at], {"cpu": [0.1 * sequence]}, subjects=[vm]), NOW)
        settled()
    found = history.read(vm, "cpu", T, T + HOUR)
    assert found.times.tolist() == [T, T + 60, T + 120, T + 180]
    np.testing.assert_allclose(found.values, [0.3, 0.1, 0.0, 0.2])


def test_hosts_and_ports_have_series_too(
    history: History, settled: Callable[[], None], names: Callable[[str], str]
) -> None:
    host, port = names("hv"), "000000000000000a:3"
    columns = {"host_cpu": [0.5, None], "port_rx": [None, 1e6]}
    take(history, batch(1, [T, T], columns, subjects=[host, port]), NOW)
    for _ in range(2):
        assert history.read(host, "host_cpu", T, T + 1).values.tolist() == [0.5]
        assert history.read(port, "port_rx", T, T + 1).values.tolist() == [1e6]
        assert len(history.read(host, "port_rx", T, T + 1).times) == 0
        settled()


def test_nothing_known_is_no_error(history: History) -> None:
    assert len(history.read("nobody-at-all", "cpu", T, T + HOUR).times) == 0
    grid = history.read("nobody-at-all", "cpu", T, T + HOUR, 300)
    assert len(grid.times) == 12
    assert np.isnan(grid.values).all()


@pytest.mark.parametrize(
    ("metrics", "start", "end", "step", "how"),
    [
        (("nothing",), T, T + 1, None, "mean"),
        ((), T, T + 1, None, "mean"),
        (("cpu", "host_cpu"), T, T + 1, None, "mean"),
        (("cpu",), T + 1, T, None, "mean"),
        (("cpu",), float("nan"), T, None, "mean"),
        (("cpu",), T, T + 1, 0.0, "mean"),
        (("cpu",), T, T + 1, 60, "median"),
        (("cpu",), T - 1e9, T, 1, "mean"),
    ],
)
def test_what_cannot_be_asked(
    history: History, metrics: tuple[str, ...], start: float, end: float, step: float, how: str
) -> None:
    with pytest.raises(BadQuery):
        history.read_metrics("web", metrics, start, end, step, how)  # type: ignore[arg-type]


def test_the_status_tells_the_engine(history: History, engine: Victoria | None) -> None:
    status = history.status()
    assert status.engine.engine == ("duckdb" if engine is None else "victoriametrics")
    assert status.trouble is None


def test_everything_is_told_after_a_restart(
    engine: Victoria | None, tmp_path: Path, names: Callable[[str], str]
) -> None:
    vm = names("a")
    url = engine.url if engine is not None else f"duckdb://{tmp_path}/series"
    with history_in(tmp_path / "state", url=url) as history:
        columns = {"cpu": [0.1, 0.2], "net_rx_total": [1_000.0, 7_000.0]}
        take(history, batch(1, [T, T + 60], columns, subjects=[vm] * 2), NOW)
    with history_in(tmp_path / "state", url=url) as history:
        assert history.read(vm, "cpu", T, T + HOUR).values.tolist() == [0.1, 0.2]
        again = batch(1, [T, T + 60], columns, subjects=[vm] * 2)
        assert take(history, again, NOW).outcome == "duplicate"
        more = batch(2, [T + 120], {"net_rx_total": [19_000.0]}, subjects=[vm])
        take(history, more, NOW)  # the count before is known still
        handed_on(history)
        assert history.read(vm, "net_rx", T, T + HOUR).values.tolist() == [100.0, 200.0]
