"""What the store keeps beside the nouns: progress, event receipts, tokens, audit."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a datapath has come, as the southbound process reports it. Derived: it may be
    lost with the power, and no feed entry tells of it."""

    datapath: str
    #: The newest revision of which the switch confirmed every rule by a barrier.
    revision: int
    #: Unix seconds, UTC.
    confirmed_at: float
    connected: bool
    #: Messages sent to the switch and not yet confirmed.
    pending: int
    error: str | None = None


@dataclass(frozen=True, slots=True)
class EventReceipt:
    """That an event was taken, so that its repetition is answered and not acted upon."""

    source: str
    event_id: str
    #: SHA-256 (hex) of the event in canonical form: the same id with another is no repetition.
    fingerprint: str
    outcome: str
    #: Revision of the store when the event had been acted upon.
    revision: int
    #: Unix seconds, UTC.
    received_at: float


@dataclass(frozen=True, slots=True)
class Token:
    """A right to call. Only `digest`, the SHA-256 (hex) of the secret, is ever stored."""

    name: str
    role: str
    #: The only host that a hypervisor's token may speak for.
    host: str | None
    digest: str
    #: Unix seconds, UTC.
    created_at: float
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Who did what to what, and when (Unix seconds, UTC). `id` ascends."""

    id: int
    at: float
    actor: str
    action: str
    subject: str
    detail: dict[str, object] = field(default_factory=dict)
