"""How are samples told to a Prometheus-compatible store? Remote-write 1.0, encoded by hand.

The message is protobuf (https://prometheus.io/docs/specs/prw/remote_write_spec/):

    WriteRequest { repeated TimeSeries timeseries = 1; }
    TimeSeries   { repeated Label labels = 1; repeated Sample samples = 2; }
    Label        { string name = 1; string value = 2; }
    Sample       { double value = 1; int64 timestamp = 2; }   // Unix milliseconds

compressed as one block of Snappy. Times from 1971 to 2109 take six bytes as a varint, so a
sample always has 18 bytes, and those of many series are laid out at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import cramjam
import numpy as np

from controller.history.series import Floats, Millis

#: Times that a varint of six bytes holds (7 bits each), in Unix milliseconds: from February
#: 1971 to May 2109.
FIRST_MS, LAST_MS = 1 << 35, 1 << 42
SAMPLE_BYTES = 18


def labels(pairs: Mapping[str, str]) -> bytes:
    """The labels of a series; as the specification asks, sorted by name."""
    out = bytearray()
    for name, value in sorted(pairs.items()):
        label = _field(0x0A, name.encode()) + _field(0x12, value.encode())
        out += _field(0x0A, label)
    return bytes(out)


def samples(times: Millis, values: Floats) -> bytes:
    """Samples [n], SAMPLE_BYTES each. Raises ValueError for times before 1971 or after 2109."""
    if len(times) and not (FIRST_MS <= int(times.min()) <= int(times.max()) < LAST_MS):
        raise ValueError("times must lie between 1971 and 2109")
    out = np.empty((len(times), SAMPLE_BYTES), np.uint8)
    out[:, 0:2] = 0x12, SAMPLE_BYTES - 2
    out[:, 2] = 0x09
    out[:, 3:11] = values.astype("<f8").view(np.uint8).reshape(-1, 8)
    out[:, 11] = 0x10
    for index in range(6):
        more = 0x80 if index < 5 else 0
        out[:, 12 + index] = (times >> (7 * index)) & 0x7F | more
    return out.tobytes()


def body(series: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A compressed request of series, each its encoded labels and samples."""
    message = b"".join(_field(0x0A, names + told) for names, told in series)
    return bytes(cramjam.snappy.compress_raw(message))


def _field(tag: int, data: bytes) -> bytes:
    return bytes((tag,)) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
