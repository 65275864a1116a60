"""What does a sender say? A batch of samples, decoded from columnar JSON or MessagePack.

Both have a row for each subject (VM, host or port) and time, and a column for each metric:

    {"sender": "agent-7c1f", "sequence": 42, "sent_at": 1700000060.2,
     "subjects": ["web1", "db1"], "times": [1700000060, 1700000060],
     "metrics": {"cpu": [0.31, 0.07], "net_rx_total": [88213345, null]}}

Null is no sample. In MessagePack, numbers are byte strings, little-endian: `subjects` names
each once and `codes` (int32) has the index of each row's; `times` and each metric are float64.
A metric with gaps is a pair: its numbers, and a byte for each row, 0 where there is no sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt
from pydantic_core import from_json

from controller.history.errors import BadBatch
from controller.history.series import Codes, Floats, Millis
from controller.model.metrics import Scope

#: Longest name of a sender.
MAX_SENDER = 128
#: The largest sequence number.
MAX_SEQUENCE = (1 << 63) - 1
#: Columns of one batch.
MAX_COLUMNS = 256
#: Values of one batch.
MAX_VALUES = 1_000_000
_FIELDS = frozenset({"sender", "sequence", "sent_at", "subjects", "times", "metrics"})


@dataclass(frozen=True, slots=True)
class Rows:
    """Samples as they are stored: row i is of `subjects[codes[i]]` at `times[i]` (Unix
    milliseconds); `values[i, j]` is that of `metrics[j]`, NaN where there is none."""

    scope: Scope
    subjects: tuple[str, ...]
    codes: Codes
    times: Millis
    metrics: tuple[str, ...]
    values: Floats

    @property
    def count(self) -> int:
        """How many values there are room for: what the rows cost in memory."""
        return int(self.values.size)


@dataclass(frozen=True, slots=True)
class Batch:
    """What was sent, not yet judged: `columns` may be counters or unknown, `given[i, j]` is
    whether there is a value. `sequence` numbers the sender's batches, so that one that is
    sent again is known; `sent_at` is the sender's clock in Unix seconds."""

    sender: str
    sequence: int
    sent_at: float | None
    subjects: tuple[str, ...]
    codes: Codes
    times: Millis
    columns: tuple[str, ...]
    values: Floats
    given: npt.NDArray[np.bool_]


def from_json_body(body: bytes) -> Batch:
    """The batch in a JSON body. Raises BadBatch."""
    try:
        # NaN is no JSON, but some write it: such values are refused one by one.
        data = from_json(body, allow_inf_nan=True)
    except ValueError as error:
        raise BadBatch(f"the body is no JSON: {error}", "send JSON") from None
    _check_fields(data, _FIELDS)
    names = _list(data, "subjects")
    _check_texts(names)
    rows = len(names)
    times, dated = _numbers(_list(data, "times"), "/times", rows)
    if not dated.all():
        raise BadBatch("a time is missing", "send Unix seconds for each row", "/times")
    metrics = _metrics(data)
    values, given = _room(rows, len(metrics))
    for column, (name, numbers) in enumerate(metrics.items()):
        pointer = f"/metrics/{name}"
        if not isinstance(numbers, list):
            raise BadBatch("a metric is an array", "send an array of numbers and null", pointer)
        values[:, column], given[:, column] = _numbers(numbers, pointer, rows)
    subjects = tuple(dict.fromkeys(names))
    code = {name: number for number, name in enumerate(subjects)}
    codes = np.fromiter(map(code.__getitem__, names), np.int32, rows)
    return _batch(data, subjects, codes, times, tuple(metrics), values, given)


def from_msgpack_body(body: bytes) -> Batch:
    """The batch in a MessagePack body. Raises BadBatch."""
    try:
        data = msgpack.unpackb(body)
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        cause = str(error) or type(error).__name__
        raise BadBatch(f"the body is no MessagePack: {cause}", "send MessagePack") from None
    _check_fields(data, _FIELDS | {"codes"})
    subjects = tuple(_list(data, "subjects"))
    _check_texts(subjects)
    if len(set(subjects)) != len(subjects):
        raise BadBatch("a subject is named twice", "name each once", "/subjects")
    codes = _array(data.get("codes"), np.int32, "/codes")
    rows = len(codes)
    if rows and not 0 <= int(codes.min()) <= int(codes.max()) < len(subjects):
        raise BadBatch("a code is no index of subjects", "number them from 0", "/codes")
    times = _array(data.get("times"), np.float64, "/times", rows)
    metrics = _metrics(data)
    values, given = _room(rows, len(metrics))
    for column, (name, packed) in enumerate(metrics.items()):
        pointer = f"/metrics/{name}"
        if isinstance(packed, list) and len(packed) == 2:
            packed, there = packed
            given[:, column] = _array(there, np.uint8, pointer, rows) != 0
        else:
            given[:, column] = True
        values[:, column] = _array(packed, np.float64, pointer, rows)
    return _batch(data, subjects, codes, times, tuple(metrics), values, given)


def to_json_document(batch: Batch) -> dict[str, object]:
    """`batch` as the object that `from_json_body` reads."""
    return {
        "sender": batch.sender,
        "sequence": batch.sequence,
        "sent_at": batch.sent_at,
        "subjects": [batch.subjects[code] for code in batch.codes.tolist()],
        "times": (batch.times / 1000).tolist(),
        "metrics": {
            name: [
                value if there else None
                for value, there in zip(
                    batch.values[:, column].tolist(), batch.given[:, column].tolist(), strict=True
                )
            ]
            for column, name in enumerate(batch.columns)
        },
    }


def to_msgpack_body(batch: Batch) -> bytes:
    """`batch` as the body that `from_msgpack_body` reads."""
    metrics: dict[str, object] = {}
    for column, name in enumerate(batch.columns):
        numbers = batch.values[:, column].astype("<f8").tobytes()
        there = batch.given[:, column]
        metrics[name] = numbers if there.all() else [numbers, there.astype(np.uint8).tobytes()]
    document = {
        "sender": batch.sender,
        "sequence": batch.sequence,
        "sent_at": batch.sent_at,
        "subjects": batch.subjects,
        "codes": batch.codes.astype("<i4").tobytes(),
        "times": (batch.times / 1000).astype("<f8").tobytes(),
        "metrics": metrics,
    }
    return bytes(msgpack.packb(document))


def _batch(
    head: Mapping[str, object],
    subjects: tuple[str, ...],
    codes: Codes,
    times: Floats,
    columns: tuple[str, ...],
    values: Floats,
    given: npt.NDArray[np.bool_],
) -> Batch:
    sender, sequence, sent_at = head.get("sender"), head.get("sequence"), head.get("sent_at")
    if not isinstance(sender, str) or not 0 < len(sender) <= MAX_SENDER or not sender.isprintable():
        raise BadBatch(
            f"the sender has no name of 1 to {MAX_SENDER} characters",
            "name what numbers the batches, another whenever numbering starts anew",
            "/sender",
        )
    if type(sequence) is not int or not 0 <= sequence <= MAX_SEQUENCE:
        raise BadBatch("the sequence is no number of 0 or more", "number the batches", "/sequence")
    if sent_at is not None and (
        type(sent_at) not in (int, float) or not -1e11 < float(sent_at) < 1e11  # type: ignore[arg-type]
    ):
        raise BadBatch("this is no time", "send Unix seconds, or leave it out", "/sent_at")
    if not (np.abs(times) < 1e11).all():
        raise BadBatch("a time is no Unix time in seconds", "send seconds", "/times")
    return Batch(
        sender,
        sequence,
        None if sent_at is None else float(sent_at),  # type: ignore[arg-type]
        subjects,
        codes,
        np.round(times * 1000).astype(np.int64),
        columns,
        values,
        given,
    )


def _check_fields(data: object, fields: frozenset[str]) -> None:
    if not isinstance(data, dict):
        raise BadBatch("the body is no object", "send an object with sender and metrics")
    for strange in data.keys() - fields:
        mend = f"leave it out; there are {', '.join(sorted(fields))}"
        raise BadBatch("there is no such field", mend, f"/{strange}")


def _check_texts(names: Sequence[object]) -> None:
    if not set(map(type, names)) <= {str}:
        raise BadBatch("a subject is a text", "send ids of VMs, hosts or ports", "/subjects")


def _metrics(data: Mapping[str, object]) -> dict[str, Any]:
    metrics = data.get("metrics")
    if not isinstance(metrics, dict):
        raise BadBatch("an object of arrays is wanted here", "send metrics by name", "/metrics")
    if len(metrics) > MAX_COLUMNS:
        cause = f"there are {len(metrics)} metrics"
        raise BadBatch(cause, f"send {MAX_COLUMNS} at most", "/metrics")
    return metrics


def _room(rows: int, columns: int) -> tuple[Floats, npt.NDArray[np.bool_]]:
    if rows * columns > MAX_VALUES:
        cause = f"{rows} rows of {columns} metrics are more than {MAX_VALUES} values"
        raise BadBatch(cause, "send smaller batches")
    return np.empty((rows, columns), order="F"), np.empty((rows, columns), np.bool_, order="F")


def _list(data: Mapping[str, object], name: str) -> list[Any]:
    value = data.get(name)
    if not isinstance(value, list):
        raise BadBatch("an array is wanted here", "send one entry for each row", f"/{name}")
    return value


def _numbers(
    numbers: Sequence[Any], pointer: str, rows: int
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Numbers, and whether there is one."""
    _check_length(len(numbers), rows, pointer)
    kinds = set(map(type, numbers))
    if not kinds <= {int, float, type(None)}:
        raise BadBatch("something is no number", "send numbers and null", pointer)
    try:
        values = np.array(numbers, np.float64)
    except OverflowError:
        raise BadBatch("a number is too large", "send what fits a double", pointer) from None
    if type(None) in kinds:
        return values, np.array([number is not None for number in numbers], np.bool_)
    return values, np.ones(rows, np.bool_)


def _check_length(length: int, rows: int, pointer: str) -> None:
    if length != rows:
        raise BadBatch(f"there are {length} entries for {rows} rows", "send one a row", pointer)


def _array(
    packed: object, kind: type[np.generic], pointer: str, rows: int | None = None
) -> npt.NDArray[Any]:
    """The little-endian numbers in a byte string."""
    dtype = np.dtype(kind).newbyteorder("<")
    if not isinstance(packed, bytes) or len(packed) % dtype.itemsize:
        raise BadBatch(f"this is no byte string of {dtype.name}", "pack little-endian", pointer)
    if rows is not None:
        _check_length(len(packed) // dtype.itemsize, rows, pointer)
    return np.frombuffer(packed, dtype)
