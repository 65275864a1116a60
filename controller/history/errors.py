"""What can go wrong with the history: each error names the place, the cause and the mend."""

# ruff: noqa: N818 - the names say what is so, as their messages do

from __future__ import annotations


class HistoryError(Exception):
    """Something that the history refused or could not do."""

    def __init__(self, cause: str, mend: str, place: str = "history") -> None:
        super().__init__(f"{place}: {cause}: {mend}")
        self.place = place
        self.cause = cause
        self.mend = mend


class BadQuery(HistoryError):
    """What was asked for cannot be told."""


class BadBatch(HistoryError):
    """A batch of samples that is not well formed; `pointer` says where."""

    def __init__(self, cause: str, mend: str, pointer: str = "") -> None:
        super().__init__(cause, mend, f"samples{pointer}")
        self.pointer = pointer


class StaleSequence(HistoryError):
    """A batch whose number lies further back than what is remembered of its sender."""


class HistoryFull(HistoryError):
    """No room on the disk. Works again once there is room; what was acknowledged is kept."""


class HistoryBusy(HistoryError):
    """Too much waits to be stored. Works again in a while; nothing acknowledged is lost."""


class HistoryUnavailable(HistoryError):
    """The engine cannot be reached or used at the moment."""


class HistoryCorrupt(HistoryError):
    """What lies on the disk is damaged. It is left as it was found."""
