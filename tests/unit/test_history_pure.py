"""What is decided of samples: which are taken, what a count means, which files answer."""

from __future__ import annotations

import json
from collections.abc import Mapping

import cramjam
import msgpack
import numpy as np
import pytest
from history_world import DAY, batch, everything
from hypothesis import given
from hypothesis import strategies as st

from controller.history.counters import LONGEST_MS, NEVER, rates
from controller.history.errors import BadBatch
from controller.history.plan import (
    DAY_MS,
    HOUR_MS,
    SPAN_MS,
    Keep,
    Kind,
    Part,
    expired,
    preference,
    sources,
    to_join,
)
from controller.history.record import Books, Record, pack, unpack
from controller.history.remote_write import body, labels, samples
from controller.history.samples import (
    Batch,
    from_json_body,
    from_msgpack_body,
    to_json_document,
    to_msgpack_body,
)
from controller.history.screen import Counted, Limits, Reason, Screened, screen
from controller.history.senders import WINDOW, Offsets, Seen, seen
from controller.history.series import Points, Query, in_memory
from controller.model.metrics import COUNTERS, METRICS, Scope

NOW = DAY + 3_600
LIMITS = Limits(30_000, 86_400_000)


def judged(
    found: Batch,
    rights: Mapping[Scope, list[Reason | None]] | None = None,
    standing: Mapping[str, Mapping[str, tuple[int, float, str]]] | None = None,
    caller: str = "op",
) -> Screened:
    chosen = rights if rights is not None else everything(found)
    return screen(found, chosen, standing or {}, caller, round(NOW * 1000), LIMITS)


def reasons(found: Screened) -> dict[Reason, int]:
    return {refusal.reason: refusal.count for refusal in found.refused}


# Metrics


def test_metrics_have_names_of_their_own() -> None:
    assert len(set(METRICS) | set(COUNTERS)) == len(METRICS) + len(COUNTERS)
    assert all(name.endswith("_total") for name in COUNTERS)
    assert all(metric.most > 0 for metric in METRICS.values())


# Counters


def one_vm(times: list[int], counts: list[float]) -> list[float]:
    """Rates of one counter from nothing."""
    n = len(times)
    return rates(
        np.zeros(n, np.int32),
        np.array(times, np.int64) * 1000,
        np.array(counts),
        np.array([NEVER]),
        np.array([np.nan]),
    ).values.tolist()


def test_a_rate_belongs_to_the_end_of_its_interval() -> None:
    np.testing.assert_equal(one_vm([0, 10, 30], [5, 25, 65]), [np.nan, 2.0, 2.0])


@pytest.mark.parametrize(
    "counts",
    [
        [2**32 - 10, 90, 190],  # wrapped at 32 bits
        [2.0**64 - 4096, 4096, 4196],  # at 64
        [3.9e9, 0, 100],  # began anew
        [5e12, 4.999e12, 4.999e12 + 100],  # jumped back by a little
    ],
)
def test_a_count_that_falls_leaves_a_gap_and_never_a_spike(counts: list[float]) -> None:
    np.testing.assert_allclose(one_vm([0, 10, 20], counts), [np.nan, np.nan, 10.0])


def test_two_counts_far_apart_tell_nothing() -> None:
    long = LONGEST_MS // 1000
    assert one_vm([0, long], [0, 1_000])[1] == 1_000 / long
    assert np.isnan(one_vm([0, long + 1], [0, 1_000])[1])


STEPS = st.lists(st.tuples(st.integers(1, 300), st.integers(0, 10**9)), min_size=1, max_size=20)


@given(STEPS, st.randoms(use_true_random=False), st.integers(0, 20))
def test_counts_in_any_order_and_in_parts_give_the_same_rates(
    steps: list[tuple[int, int]], random: object, cut: int
) -> None:
    times = np.cumsum([span for span, _ in steps]) * 1000
    counts = np.cumsum([count for _, count in steps]).astype(np.float64)
    none = np.array([NEVER]), np.array([np.nan])
    order = list(range(len(steps)))
    random.shuffle(order)  # type: ignore[attr-defined]
    codes = np.zeros(len(steps), np.int32)
    whole = rates(codes, times, counts, *none)
    mixed = rates(codes, times[order], counts[order], *none)
    np.testing.assert_array_equal(mixed.values, whole.values[order])
    first = rates(codes[:cut], times[:cut], counts[:cut], *none)
    second = rates(codes[cut:], times[cut:], counts[cut:], first.last_times, first.last_counts)
    np.testing.assert_array_equal(np.concatenate([first.values, second.values]), whole.values)
    # No rate is above the steepest step, and none is below zero.
    steepest = max(count / span for span, count in steps)
    told = whole.values[~np.isnan(whole.values)]
    assert (told >= 0).all()
    assert (told <= steepest * (1 + 1e-9)).all()


@given(st.lists(st.integers(0, 2**40), min_size=2, max_size=30))
def test_no_rate_is_made_of_a_fall(counts: list[int]) -> None:
    found = one_vm(list(range(0, 10 * len(counts), 10)), [float(c) for c in counts])
    for before, count, rate in zip(counts, counts[1:], found[1:], strict=False):
        assert np.isnan(rate) if count < before else rate == (count - before) / 10


def test_counts_that_come_late_are_told_apart() -> None:
    found = rates(
        np.array([0, 0, 1, 1], np.int32),
        np.array([5_000, 20_000, 1_000, 1_000]),
        np.array([1.0, 300.0, 5.0, 5.0]),
        np.array([10_000, NEVER]),
        np.array([100.0, np.nan]),
    )
    assert found.late.tolist() == [True, False, False, True]
    np.testing.assert_equal(found.values, [np.nan, 20.0, np.nan, np.nan])
    assert found.last_times.tolist() == [20_000, 1_000]


# Screening


def test_each_bad_sample_is_refused_and_the_good_ones_are_taken() -> None:
    found = judged(
        batch(
            1,
            [NOW, NOW - 1, NOW + 31, NOW - 86_401, NOW - 2],
            {
                "cpu": [0.5, float("nan"), 0.5, 0.5, 0.25],
                "memory": [-1.0, 1e9, 1e9, 1e9, float("inf")],
                "net_rx": [1e18, 5.0, None, None, None],
                "swap": [1.0, 1.0, None, None, None],
            },
        )
    )
    assert reasons(found) == {
        Reason.UNKNOWN_METRIC: 2,
        Reason.FUTURE: 2,
        Reason.TOO_OLD: 2,
        Reason.NOT_FINITE: 2,
        Reason.NEGATIVE: 1,
        Reason.IMPLAUSIBLE: 1,
    }
    assert found.accepted == 4
    (rows,) = found.rows
    assert rows.metrics == ("cpu", "memory", "net_rx")
    nan = np.nan
    np.testing.assert_equal(rows.values, [[0.5, nan, nan], [nan, 1e9, 5.0], [0.25, nan, nan]])
    told = {refusal.reason: refusal.detail for refusal in found.refused}
    assert told[Reason.NEGATIVE] == f"memory of web at {NOW:.3f}: -1"
    assert "now is" in told[Reason.FUTURE]


def test_a_subject_that_is_not_the_senders_costs_only_its_own_samples() -> None:
    taken = batch(1, [NOW] * 3, {"cpu": [0.1, 0.2, 0.3]}, subjects=["a", "b", "c"])
    rights = {Scope.VM: [None, Reason.NOT_YOURS, Reason.UNKNOWN_SUBJECT]}
    found = judged(taken, rights)
    assert reasons(found) == {Reason.NOT_YOURS: 1, Reason.UNKNOWN_SUBJECT: 1}
    assert [taken.subjects[code] for code in found.rows[0].codes] == ["a"]


def test_rights_are_judged_by_what_a_metric_is_about() -> None:
    columns = {"cpu": [0.1, None], "host_cpu": [None, 0.9]}
    taken = batch(1, [NOW] * 2, columns, subjects=["web", "hv1"])
    rights = {
        Scope.VM: [None, Reason.UNKNOWN_SUBJECT],
        Scope.HOST: [Reason.UNKNOWN_SUBJECT, None],
    }
    found = judged(taken, rights)
    assert found.refused == ()
    assert {rows.scope for rows in found.rows} == {Scope.VM, Scope.HOST}


def test_counters_are_stored_as_rates() -> None:
    taken = batch(1, [NOW - 20, NOW - 10, NOW], {"net_rx_total": [50.0, 150.0, 100.0]})
    before = {"net_rx": {"web": (round((NOW - 30) * 1000), 0.0, "op")}}
    found = judged(taken, standing=before)
    assert (found.accepted, found.resets, found.refused) == (3, 1, ())
    assert found.rows[0].metrics == ("net_rx",)
    assert found.rows[0].values[:, 0].tolist() == [5.0, 10.0]
    assert found.counted == (Counted("net_rx", {"web": (round(NOW * 1000), 100.0)}),)


def test_what_two_hosts_count_of_a_vm_that_moves_makes_no_rate() -> None:
    before = {"net_rx": {"web": (round((NOW - 10) * 1000), 1e6, "hv1")}}
    taken = batch(1, [NOW - 5, NOW], {"net_rx_total": [1e9, 1e9 + 500]})
    found = judged(taken, standing=before, caller="hv2")
    assert (found.accepted, found.refused) == (2, ())
    assert found.rows[0].values[:, 0].tolist() == [100.0]  # of its own two counts alone
    assert judged(taken, standing=before, caller="hv1").rows[0].values[0, 0] == (1e9 - 1e6) / 5


def test_a_counter_that_leaps_is_refused_and_counts_from_there() -> None:
    taken = batch(1, [NOW - 20, NOW - 10, NOW], {"net_rx_total": [0.0, 1e17, 1e17 + 1_000]})
    found = judged(taken)
    assert reasons(found) == {Reason.IMPLAUSIBLE: 1}
    assert found.rows[0].values[:, 0].tolist() == [pytest.approx(100.0, rel=0.05)]


def test_counts_that_come_late_are_refused() -> None:
    taken = batch(1, [NOW - 20], {"net_rx_total": [10.0]})
    found = judged(taken, standing={"net_rx": {"web": (round(NOW * 1000), 50.0, "op")}})
    assert reasons(found) == {Reason.OUT_OF_ORDER: 1}
    assert found.counted == (Counted("net_rx", {}),)


def test_a_metric_is_sent_in_one_way() -> None:
    with pytest.raises(BadBatch, match="both as a count and as a rate"):
        judged(batch(1, [NOW], {"net_rx": [1.0], "net_rx_total": [1.0]}))


VALUE = st.none() | st.floats() | st.floats(0, 1)


@given(st.lists(st.tuples(st.floats(NOW - 2e5, NOW + 1e3), VALUE, VALUE), max_size=20))
def test_what_is_taken_and_what_is_refused_is_all_that_was_sent(
    rows: list[tuple[float, float | None, float | None]],
) -> None:
    columns = {"cpu": [c for _, c, _ in rows], "host_cpu": [h for _, _, h in rows]}
    taken = batch(1, [t for t, _, _ in rows], columns)
    found = judged(taken)
    refused = sum(refusal.count for refusal in found.refused)
    assert found.accepted + refused == sum(v is not None for c in columns.values() for v in c)
    for part in found.rows:
        there = part.values[~np.isnan(part.values)]
        assert ((there >= 0) & (there <= 1.5)).all()
    assert sum(np.count_nonzero(~np.isnan(p.values)) for p in found.rows) == found.accepted


# Bodies

TEXT = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=5)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    rows = draw(st.integers(0, 6))
    columns = draw(st.lists(TEXT, max_size=4, unique=True))
    number = st.none() | st.floats(allow_nan=False)
    return batch(
        draw(st.integers(0, 2**63 - 1)),
        draw(st.lists(st.integers(0, 2**33), min_size=rows, max_size=rows)),
        {n: draw(st.lists(number, min_size=rows, max_size=rows)) for n in columns},
        subjects=draw(st.lists(TEXT, min_size=rows, max_size=rows)),
        sent_at=draw(st.none() | st.floats(-1e10, 1e10)),
    )


def same(one: Batch, other: Batch) -> bool:
    assert (one.sender, one.sequence, one.sent_at) == (other.sender, other.sequence, other.sent_at)
    assert one.columns == other.columns
    names = [[b.subjects[code] for code in b.codes.tolist()] for b in (one, other)]
    assert names[0] == names[1]
    np.testing.assert_array_equal(one.times, other.times)
    np.testing.assert_array_equal(one.given, other.given)
    np.testing.assert_array_equal(one.values[one.given], other.values[other.given])
    return True


@given(batches())
def test_both_forms_say_the_same(sent: Batch) -> None:
    assert same(from_msgpack_body(to_msgpack_body(sent)), sent)
    assert same(from_json_body(json.dumps(to_json_document(sent)).encode()), sent)


@given(st.binary(max_size=200))
def test_no_body_ends_in_another_error(raw: bytes) -> None:
    for read in (from_json_body, from_msgpack_body):
        with pytest.raises(BadBatch):
            read(raw)


GOOD: dict[str, object] = {
    "sender": "a",
    "sequence": 1,
    "subjects": ["web"],
    "times": [1.0],
    "metrics": {"cpu": [0.5]},
}


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"sender": ""}, "/sender"),
        ({"sender": None}, "/sender"),
        ({"sender": "x" * 129}, "/sender"),
        ({"sender": "a\nb"}, "/sender"),
        ({"sequence": -1}, "/sequence"),
        ({"sequence": 1.5}, "/sequence"),
        ({"sequence": True}, "/sequence"),
        ({"sequence": 1 << 63}, "/sequence"),
        ({"sent_at": "now"}, "/sent_at"),
        ({"sent_at": 1e12}, "/sent_at"),
        ({"subjects": "web"}, "/subjects"),
        ({"subjects": [1]}, "/subjects"),
        ({"subjects": ["web", "db"]}, "/times"),
        ({"times": [None]}, "/times"),
        ({"times": [1e300]}, "/times"),
        ({"times": []}, "/times"),
        ({"metrics": []}, "/metrics"),
        ({"metrics": {"cpu": [0.1, 0.2]}}, "/metrics/cpu"),
        ({"metrics": {"cpu": ["0.1"]}}, "/metrics/cpu"),
        ({"metrics": {"cpu": [True]}}, "/metrics/cpu"),
        ({"metrics": {"cpu": [10**400]}}, "/metrics/cpu"),
        ({"metrics": {"cpu": 0.5}}, "/metrics/cpu"),
        ({"metrics": {f"m{n}": [1] for n in range(300)}}, "/metrics"),
        ({"nonsense": 1}, "/nonsense"),
    ],
)
def test_a_body_that_is_wrong_is_told_with_its_place(
    change: dict[str, object], pointer: str
) -> None:
    assert from_json_body(json.dumps(GOOD).encode()).sender == "a"
    with pytest.raises(BadBatch) as caught:
        from_json_body(json.dumps({**GOOD, **change}).encode())
    assert caught.value.pointer == pointer


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"codes": np.array([1], "<i4").tobytes()}, "/codes"),
        ({"codes": np.array([-1], "<i4").tobytes()}, "/codes"),
        ({"codes": b"abc"}, "/codes"),
        ({"codes": [0]}, "/codes"),
        ({"subjects": ["web", "web"]}, "/subjects"),
        ({"times": np.array([np.nan]).tobytes()}, "/times"),
        ({"metrics": {"cpu": np.zeros(2).tobytes()}}, "/metrics/cpu"),
        ({"metrics": {"cpu": [np.zeros(1).tobytes(), b"\x01\x01"]}}, "/metrics/cpu"),
        ({"metrics": {f"m{n}": b"" for n in range(256)}, "codes": bytes(40_000)}, ""),
    ],
)
def test_a_packed_body_that_is_wrong_is_told_with_its_place(
    change: dict[str, object], pointer: str
) -> None:
    good = msgpack.unpackb(to_msgpack_body(batch(1, [1.0], {"cpu": [0.5]})))
    with pytest.raises(BadBatch) as caught:
        from_msgpack_body(msgpack.packb({**good, **change}))
    assert caught.value.pointer.startswith(pointer)


def test_nan_in_json_is_a_bad_sample_and_not_a_bad_body() -> None:
    found = from_json_body(json.dumps({**GOOD, "metrics": {"cpu": [float("nan")]}}).encode())
    assert found.given.all()
    assert np.isnan(found.values).all()


# Senders


@given(st.lists(st.integers(0, 3 * WINDOW), max_size=60))
def test_no_sequence_number_is_taken_twice(numbers: list[int]) -> None:
    known: Seen | None = None
    taken: set[int] = set()
    for number in numbers:
        had = known.has(number) if known is not None else False
        if known is not None and number <= known.last - WINDOW:
            assert had is None
            continue
        assert had == (number in taken)
        known = seen(known, number, 0)
        taken.add(number)


def test_the_clock_offset_is_that_of_the_quickest_batch() -> None:
    offsets = Offsets()
    found = [offsets.note("a", 100 + n + 7.0, 100 + n + delay) for n, delay in enumerate((3, 1, 9))]
    assert found == [4.0, 6.0, 6.0]
    offsets.forget(set())
    assert offsets.note("a", 5.0, 10.0) == -5.0


# Records


@given(batches())
def test_a_record_is_read_as_it_was_written(sent: Batch) -> None:
    found = judged(sent)
    record = Record("op/a", sent.sequence, 5, found.rows, found.counted)
    again = unpack(pack(record))
    assert (again.sender, again.sequence, again.at) == ("op/a", sent.sequence, 5)
    assert again.counted == record.counted
    for one, other in zip(again.rows, record.rows, strict=True):
        assert (one.scope, one.subjects, one.metrics) == (
            other.scope,
            other.subjects,
            other.metrics,
        )
        np.testing.assert_array_equal(one.codes, other.codes)
        np.testing.assert_array_equal(one.times, other.times)
        np.testing.assert_array_equal(one.values, other.values)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("ab"), st.integers(0, 9)), max_size=9))
def test_what_is_entered_can_be_taken_back(entries: list[tuple[int, str, int]]) -> None:
    books = Books()
    for number, vm, count in entries:
        before = (dict(books.senders), {m: dict(at) for m, at in books.standing.items() if at})
        record = Record("op/a", number, 1, (), (Counted("net_rx", {vm: (number, float(count))}),))
        undo = books.enter(record)
        books.take_back(undo)
        after = (dict(books.senders), {m: dict(at) for m, at in books.standing.items() if at})
        assert after == before
        books.enter(record)
    if entries:
        _, vm, count = entries[-1]
        assert books.standing["net_rx"][vm][1] == count


# Remote-write


def varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, at


def fields(data: bytes) -> list[tuple[int, bytes]]:
    """Field numbers and contents of a protobuf message; a varint as eight bytes."""
    out = []
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        if tag & 7 == 0:
            number, at = varint(data, at)
            out.append((tag >> 3, number.to_bytes(8, "little")))
            continue
        size, at = varint(data, at) if tag & 7 == 2 else (8, at)
        out.append((tag >> 3, data[at : at + size]))
        at += size
    assert at == len(data)
    return out


@given(
    st.lists(
        st.tuples(st.integers(1 << 35, (1 << 42) - 1), st.floats(allow_nan=False)), max_size=9
    ),
    st.dictionaries(TEXT, st.text(max_size=200), max_size=3),
)
def test_remote_write_says_what_it_should(
    told: list[tuple[int, float]], pairs: dict[str, str]
) -> None:
    times = np.array([at for at, _ in told], np.int64)
    request = body([(labels(pairs), samples(times, np.array([v for _, v in told])))] * 2)
    series = fields(bytes(cramjam.snappy.decompress_raw(request)))
    assert [number for number, _ in series] == [1, 1]
    parts = fields(series[0][1])
    named = [dict(fields(part)) for number, part in parts if number == 1]
    assert [(n[1].decode(), n[2].decode()) for n in named] == sorted(pairs.items())
    points = [dict(fields(part)) for number, part in parts if number == 2]
    assert [int.from_bytes(p[2], "little") for p in points] == times.tolist()
    assert [np.frombuffer(p[1], "<f8")[0] for p in points] == [value for _, value in told]


@pytest.mark.parametrize("at", [(1 << 35) - 1, 1 << 42])
def test_times_that_do_not_fit_are_refused(at: int) -> None:
    with pytest.raises(ValueError, match="between 1971 and 2109"):
        samples(np.array([at]), np.array([1.0]))


# Grids


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 99), st.floats(0, 1)),
        min_size=1,
        max_size=40,
    ),
    st.sampled_from([1, 7, 60, 100]),
)
def test_a_grid_is_what_one_would_compute_by_hand(
    rows: list[tuple[int, int, float]], step: int
) -> None:
    points = Points(
        ("a", "b", "c"),
        np.array([code for code, _, _ in rows], np.int32),
        np.array([at * 1000 for _, at, _ in rows]),
        np.array([[value] for _, _, value in rows]),
    )
    found = in_memory(Scope.VM, ["cpu"], [points]).read_many("cpu", 0, 100, step)
    for row, name in enumerate(found.subjects):
        for cell, at in enumerate(found.times.tolist()):
            inside = [v for code, t, v in rows if "abc"[code] == name and at <= t < at + step]
            expected = np.mean(inside) if inside else np.nan
            np.testing.assert_allclose(found.values[row, cell], expected, atol=1e-12)


# Plans


def part(kind: Kind, hour: int, hours: int = 1, size: int = 10) -> Part:
    start = hour * HOUR_MS
    return Part(f"{kind}-{hour}-{hours}", kind, Scope.VM, start, start + hours * HOUR_MS, 1, size)


def query(step: int | None = None, first: int = 0, last: int = 96) -> Query:
    return Query(Scope.VM, ("cpu",), first * HOUR_MS, last * HOUR_MS, None, step)


def test_means_stand_in_where_samples_are_no_longer_kept() -> None:
    parts = [
        part(Kind.HOUR, 0, 24),
        part(Kind.FIVE, 24, 24),
        part(Kind.RAW, 48),
        part(Kind.RAW, 49),
    ]
    found = sources(query(), parts, [72 * HOUR_MS])
    assert [p.kind for p in found.parts] == [Kind.HOUR, Kind.FIVE, Kind.RAW, Kind.RAW]
    assert found.hot == (72 * HOUR_MS,)


@pytest.mark.parametrize(
    ("step", "kind"), [(60_000, Kind.RAW), (600_000, Kind.FIVE), (2 * HOUR_MS, Kind.HOUR)]
)
def test_the_coarsest_files_that_answer_are_read(step: int, kind: Kind) -> None:
    parts = [part(Kind.RAW, 0, 6), part(Kind.FIVE, 0, 24), part(Kind.HOUR, 0, 24)]
    assert {p.kind for p in sources(query(step), parts, []).parts} == {kind}
    assert preference(step)[0] is kind


def test_only_what_the_span_meets_is_read() -> None:
    parts = [part(Kind.RAW, hour) for hour in range(24)]
    found = sources(query(first=5, last=7), parts, [20 * HOUR_MS])
    assert [p.start // HOUR_MS for p in found.parts] == [5, 6]
    assert found.hot == ()


def test_hours_of_a_span_are_joined_once_it_is_packed() -> None:
    parts = [part(Kind.RAW, hour) for hour in range(6)]
    assert to_join(parts, [], SPAN_MS) == parts
    assert to_join(parts, [], SPAN_MS - 1) == []
    assert to_join(parts, [(Scope.VM, 3 * HOUR_MS)], SPAN_MS) == []
    joined = [part(Kind.RAW, 0, 6)]
    late = [part(Kind.RAW, hour) for hour in range(3)]
    assert to_join([*joined, *late[:2]], [], SPAN_MS) == []
    assert to_join([*joined, *late], [], SPAN_MS) == [*joined, *late]


KEEP = Keep({Kind.RAW: 2 * DAY_MS, Kind.FIVE: 4 * DAY_MS, Kind.HOUR: 9 * DAY_MS}, 10**9)


def test_what_is_too_old_goes_once_there_are_means_of_it() -> None:
    raw = [part(Kind.RAW, 0, 6), part(Kind.RAW, 24, 6), part(Kind.RAW, 48, 6)]
    means = [part(Kind.FIVE, 0, 24), part(Kind.HOUR, 0, 24)]
    assert expired([*raw, *means], KEEP, 4 * DAY_MS) == raw[:1]
    assert expired([*raw, *means], KEEP, 6 * DAY_MS) == [raw[0], means[0]]
    assert expired([*raw, *means], KEEP, 12 * DAY_MS) == [raw[0], *means]


def test_what_is_too_much_goes_from_the_oldest_on_samples_first() -> None:
    days = range(3)
    raw = [part(Kind.RAW, 24 * day, 6, 100) for day in days]
    five = [part(Kind.FIVE, 24 * day, 24, 10) for day in days]
    hours = [part(Kind.HOUR, 24 * day, 24, 1) for day in days]
    whole = [*raw, *five, *hours]

    def gone(room: int) -> list[Part]:
        return expired(whole, Keep(KEEP.ages, room), 0)

    assert gone(333) == []
    assert gone(332) == raw[:1]
    assert gone(33) == raw
    assert gone(32) == [*raw, five[0]]
    assert gone(2) == [*raw, *five, hours[0]]


def test_samples_without_means_are_never_given_up() -> None:
    raw = [part(Kind.RAW, 0, 6, 100)]
    assert expired(raw, Keep(KEEP.ages, 1), 100 * DAY_MS) == []
