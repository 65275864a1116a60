"""How does a body become a batch, and of what may its sender tell?"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

from controller.api import MSGPACK, Role
from controller.history.errors import BadBatch
from controller.history.samples import Batch, from_json_body, from_msgpack_body
from controller.history.screen import Reason, Rights
from controller.model.metrics import COUNTERS, METRICS, Scope
from controller.model.state import State
from controller.northbound.auth import Principal
from controller.northbound.problems import MEDIA_TYPE, TOO_LARGE, Problem
from controller.settings import HistorySettings

#: The content codings that are understood; snappy as in Prometheus' remote-write, one block.
CODINGS = ("gzip", "zstd", "snappy")
_PIECE = 1 << 20


def decode(body: bytes, media: str, coding: str, settings: HistorySettings) -> Batch:
    """The batch in a body of the media type `media`, compressed by `coding` ("" for not).
    Raises BadBatch, and Problem where it is too large or the coding is not known."""
    packed = media == MSGPACK
    limit = settings.max_batch_bytes if packed else settings.max_json_bytes
    plain = _unpacked(body, coding, limit)
    if len(plain) > limit:
        raise _too_large(limit, packed)
    return from_msgpack_body(plain) if packed else from_json_body(plain)


def _too_large(limit: int, packed: bool) -> Problem:
    setting = "history.max_batch_bytes" if packed else "history.max_json_bytes"
    mend = "Send fewer rows at once" if packed else f"Send fewer rows at once, or {MSGPACK}"
    return Problem(
        TOO_LARGE,
        f"a batch has at most {limit} bytes, uncompressed",
        f"{mend}, or raise {setting}.",
    )


def _unpacked(body: bytes, coding: str, limit: int) -> bytes:
    """`body` uncompressed; no more than a little over `limit`, whatever it would grow to."""
    if coding in ("", "identity"):
        return body
    if coding not in CODINGS:
        raise Problem(
            MEDIA_TYPE,
            f"the body is compressed by {coding}",
            f"Send Content-Encoding: {' or '.join(CODINGS)}, or none.",
        )
    # Here, because both are slow to import, and most who import this compress nothing.
    import cramjam
    import pyarrow as pa

    try:
        if coding == "snappy":
            if cramjam.snappy.decompress_raw_len(body) > limit:
                return bytes(limit + 1)
            return bytes(cramjam.snappy.decompress_raw(body))
        out = io.BytesIO()
        with pa.CompressedInputStream(pa.BufferReader(body), coding) as stream:
            while out.tell() <= limit and (piece := stream.read(_PIECE)):
                out.write(piece)
        return out.getvalue()
    except (OSError, ValueError, cramjam.DecompressionError) as error:
        raise BadBatch(f"the body is not {coding}: {error}", "compress it as it says") from None


class Movers:
    """Which VMs were on the way from or to a host of late? Made anew for a new revision."""

    def __init__(self) -> None:
        self._made_for: tuple[int, float] = (-1, 0.0)
        self._pairs: frozenset[tuple[str, str]] = frozenset()

    def has(self, state: State, vm: str, host: str, now: float, late_s: float) -> bool:
        """Whether what `host` tells of `vm` may be of the time before it moved away, or after
        it came."""
        if self._made_for[0] != state.revision or now - self._made_for[1] > late_s / 10:
            self._made_for = (state.revision, now)
            self._pairs = frozenset(
                (move.vm, place)
                for move in state.migrations.values()
                if move.ended_at is None or move.ended_at > now - late_s
                for place in (move.source, move.target)
            )
        return (vm, host) in self._pairs


def rights(
    batch: Batch, state: State, who: Principal, movers: Movers, now: float, late_s: float
) -> Rights:
    """What of `batch` its sender may not tell: only an operator may tell of everything; a
    hypervisor of the VMs that are placed at its host, or moved from or to it within `late_s`
    seconds, of its host, and of the ports of its datapath."""
    names = batch.subjects
    host = who.host if who.role is not Role.OPERATOR else None
    if who.role is not Role.OPERATOR and host is None:
        return dict.fromkeys(Scope, [Reason.NOT_YOURS] * len(names))

    def about_vm(vm: str) -> Reason | None:
        if vm not in state.vms:
            return Reason.UNKNOWN_SUBJECT
        placed = state.placements.get(vm)
        if host is None or (placed is not None and placed.host == host):
            return None
        return None if movers.has(state, vm, host, now, late_s) else Reason.NOT_YOURS

    def about_host(name: str) -> Reason | None:
        if name not in state.hosts:
            return Reason.UNKNOWN_SUBJECT
        return None if host in (None, name) else Reason.NOT_YOURS

    def about_port(key: str) -> Reason | None:
        port = state.ports.get(key)
        if port is None:
            return Reason.UNKNOWN_SUBJECT
        mine = state.hosts.get(host) if host is not None else None
        if host is None or (mine is not None and mine.datapath == port.datapath):
            return None
        return Reason.NOT_YOURS

    asked: dict[Scope, Callable[[str], Reason | None]] = {
        Scope.VM: about_vm,
        Scope.HOST: about_host,
        Scope.PORT: about_port,
    }
    return {scope: [asked[scope](name) for name in names] for scope in scopes_of(batch.columns)}


def scopes_of(columns: Sequence[str]) -> set[Scope]:
    """What the metrics and counters among `columns` are about."""
    found = (METRICS.get(name) or COUNTERS.get(name) for name in columns)
    return {metric.scope for metric in found if metric is not None}
