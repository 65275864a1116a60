"""The store: state of record with a change feed, shared by processes."""

from controller.store.bells import Bell
from controller.store.errors import (
    Duplicate,
    FeedCompacted,
    InUse,
    Missing,
    NumbersExhausted,
    OutcomeUnknown,
    SchemaTooNew,
    StoreBusy,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreReadOnly,
    StoreUnavailable,
)
from controller.store.records import AuditEntry, EventReceipt, Progress, Token
from controller.store.store import Store, backup, copy_store
from controller.store.transaction import Transaction

__all__ = [
    "AuditEntry",
    "Bell",
    "Duplicate",
    "EventReceipt",
    "FeedCompacted",
    "InUse",
    "Missing",
    "NumbersExhausted",
    "OutcomeUnknown",
    "Progress",
    "SchemaTooNew",
    "Store",
    "StoreBusy",
    "StoreCorrupt",
    "StoreError",
    "StoreFull",
    "StoreReadOnly",
    "StoreUnavailable",
    "Token",
    "Transaction",
    "backup",
    "copy_store",
]
