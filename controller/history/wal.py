"""How is nothing lost that was acknowledged? A log on the disk, flushed before the reply.

Records have positions 1, 2, 3 … and lie in segments, files named after the first position in
them. A record: length and CRC-32 of what follows (4 bytes each), then the payload. What stands
behind the last whole record of the last segment was never acknowledged: it is cut off.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from controller.history.errors import HistoryCorrupt, HistoryError, HistoryFull, HistoryUnavailable

log = logging.getLogger(__name__)

_MAGIC = b"pleachw1"
_HEAD = struct.Struct("<II")
#: Bytes beyond which a new segment is begun.
SEGMENT_BYTES = 64 << 20
#: The longest record: a batch has at most a million values.
_LONGEST = 1 << 30
_SUFFIX = ".wal"


class Wal:
    """The log in `directory`. One thread appends; `replay` comes before that."""

    def __init__(self, directory: Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.directory = directory
        self._segment_bytes = segment_bytes
        directory.mkdir(parents=True, exist_ok=True)
        self._file: int | None = None
        self._size = 0
        #: Position of the last record that is on the disk.
        self.position = 0

    def replay(self, after: int) -> Iterator[tuple[int, bytes]]:
        """Every record behind position `after`; must be exhausted before `append`.

        Raises HistoryCorrupt where a record is damaged that others follow."""
        self.position = after
        files = segments(self.directory)
        for index, (first, file) in enumerate(files):
            last = index == len(files) - 1
            if not last and files[index + 1][0] <= after + 1:
                continue
            if first > self.position + 1:
                raise HistoryCorrupt(
                    f"records {self.position + 1} to {first - 1} are missing",
                    "restore the file that held them, or move the later files away",
                    str(file),
                )
            position = first - 1
            for payload in _records(file, cut=last):
                position += 1
                if position > after:
                    self.position = position
                    yield position, payload

    def append(self, payloads: Sequence[bytes]) -> int:
        """Write records and flush them to the disk; returns the position of the last.

        Raises HistoryFull where there is no room and HistoryUnavailable where the disk fails;
        none of them is kept then."""
        try:
            if self._file is None or self._size >= self._segment_bytes:
                self._begin()
            assert self._file is not None
            data = b"".join(
                part
                for payload in payloads
                for part in (_HEAD.pack(len(payload), zlib.crc32(payload)), payload)
            )
            _write(self._file, data)
            os.fdatasync(self._file)
        except OSError as error:
            self._give_up()
            raise of_os(error, str(self.directory)) from error
        self._size += len(data)
        self.position += len(payloads)
        return self.position

    def forget(self, upto: int) -> None:
        """Remove segments that hold no record behind position `upto`."""
        files = segments(self.directory)
        for (_, file), (following, _) in itertools.pairwise(files):
            if following <= upto + 1:
                file.unlink()

    def bytes(self) -> int:
        """How much of the disk it takes."""
        return sum(file.stat().st_size for _, file in segments(self.directory))

    def close(self) -> None:
        """Append no more."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _begin(self) -> None:
        self.close()
        # Created anew even where one of that name is left: it holds nothing acknowledged.
        file = self.directory / f"{self.position + 1:020d}{_SUFFIX}"
        self._file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        self._size = len(_MAGIC)
        _write(self._file, _MAGIC)
        sync_directory(self.directory)

    def _give_up(self) -> None:
        """Take back what could not be flushed, and begin a new segment next time: after a
        failed flush nobody knows which pages of the file are on the disk."""
        if self._file is None:
            return
        try:
            os.ftruncate(self._file, self._size)
            os.fdatasync(self._file)
        except OSError as error:
            log.error("the log cannot be cut", extra={"cause": str(error)})
        self.close()


def check(directory: Path) -> int:
    """Read every record; returns how many there are. Raises HistoryCorrupt."""
    files = segments(directory)
    return sum(
        sum(1 for _ in _records(file, cut=False, torn=index == len(files) - 1))
        for index, (_, file) in enumerate(files)
    )


def segments(directory: Path) -> list[tuple[int, Path]]:
    """The segments by their first position."""
    return sorted(
        (int(file.stem), file) for file in directory.glob(f"*{_SUFFIX}") if file.stem.isdecimal()
    )


def sync_directory(directory: Path) -> None:
    """Make what was created, renamed or removed in `directory` last."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(file: Path, data: bytes) -> None:
    """Replace `file` by one that holds `data`, at once or not at all. Raises HistoryError."""
    beside = file.with_name(f"{file.name}.tmp")
    try:
        with beside.open("wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        beside.replace(file)
        sync_directory(file.parent)
    except OSError as error:
        raise of_os(error, str(file)) from error


def of_os(error: OSError, place: str) -> HistoryError:
    """An error of the disk as one of the history's."""
    cause = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return HistoryFull(cause, "make room on this disk, or lower history.max_bytes", place)
    return HistoryUnavailable(cause, "see to the disk and to who may write to it", place)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _records(file: Path, *, cut: bool, torn: bool = False) -> Iterator[bytes]:
    """The payloads in `file`. With `cut`, what stands behind the last whole one is cut off;
    with `torn`, it is passed over."""
    with file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        good = len(_MAGIC)
        whole = stream.read(good) == _MAGIC
        while whole and good < size:
            head = stream.read(_HEAD.size)
            length, crc = _HEAD.unpack(head) if len(head) == _HEAD.size else (_LONGEST, 0)
            whole = length < min(_LONGEST, size - good)
            if whole:
                payload = stream.read(length)
                whole = len(payload) == length and zlib.crc32(payload) == crc
            if whole:
                good += _HEAD.size + length
                yield payload
    if whole or torn:
        return
    if not cut:
        raise HistoryCorrupt(
            f"the record at byte {good} is damaged",
            "restore the file from a copy; to go on without what follows in it, move it away",
            str(file),
        )
    log.warning(
        "unfinished record cut off", extra={"file": str(file), "at": good, "bytes": size - good}
    )
    if good == len(_MAGIC):
        file.unlink()
    else:
        os.truncate(file, good)
