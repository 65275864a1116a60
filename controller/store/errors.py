"""What can go wrong in the store: each error names the place, the cause and the mend."""

# ruff: noqa: N818 - the names say what is so, as their messages do

from __future__ import annotations


class StoreError(Exception):
    """Something the store refused or could not do. Nothing of the transaction is kept."""

    def __init__(self, place: str, cause: str, mend: str) -> None:
        super().__init__(f"{place}: {cause}: {mend}")
        self.place = place
        self.cause = cause
        self.mend = mend


class Duplicate(StoreError):
    """A value that must be unique belongs to another record. `holder` is "kind key"."""

    def __init__(self, kind: str, field: str, value: str, holder: str) -> None:
        super().__init__(
            f"{kind} {field}",
            f"{value} already belongs to {holder}",
            f"choose another {field}, or take it from {holder} first",
        )
        self.kind = kind
        self.field = field
        self.value = value
        self.holder = holder


class Missing(StoreError):
    """A record refers to one that is not there. `wanted_by` is "kind key"."""

    def __init__(self, kind: str, key: str, wanted_by: str) -> None:
        super().__init__(wanted_by, f"there is no {kind} {key}", f"make {kind} {key} first")
        self.kind = kind
        self.key = key
        self.wanted_by = wanted_by


class InUse(StoreError):
    """A record cannot go while another refers to it. `used_by` is "kind key"."""

    def __init__(self, kind: str, key: str, used_by: str) -> None:
        super().__init__(f"{kind} {key}", f"{used_by} refers to it", f"remove {used_by} first")
        self.kind = kind
        self.key = key
        self.used_by = used_by


class NumbersExhausted(StoreError):
    """Every number that a kind of record can have is taken."""

    def __init__(self, kind: str, most: int) -> None:
        super().__init__(
            kind, f"all {most} numbers are taken", f"remove a {kind} that is no longer needed"
        )
        self.kind = kind
        self.most = most


class FeedCompacted(StoreError):
    """The feed no longer has every change after `after`; `oldest` is the first it has."""

    def __init__(self, after: int, oldest: int) -> None:
        super().__init__(
            "change feed",
            f"the changes after revision {after} cannot be told (the oldest kept is {oldest})",
            "take a snapshot and go on from its revision",
        )
        self.after = after
        self.oldest = oldest


class StoreBusy(StoreError):
    """Others kept the store locked for longer than the busy timeout."""


class StoreFull(StoreError):
    """No room on the disk, or a quota is used up. Works again once there is room."""


class StoreReadOnly(StoreError):
    """The database, or the place where it lies, cannot be written to."""


class StoreCorrupt(StoreError):
    """What lies in the database is damaged. The file is left as it was found."""


class StoreUnavailable(StoreError):
    """The database cannot be reached, or its disk reports errors."""


class OutcomeUnknown(StoreUnavailable):
    """The connection broke during a commit, which was either kept wholly or not at all."""


class SchemaTooNew(StoreError):
    """The database was written by a newer Pleach."""
