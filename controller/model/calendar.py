"""What is known to come: batch runs, campaigns and maintenance that change what VMs need."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

#: The most that anything is believed to grow, by one event or by several at once.
MOST = 100.0

#: What demand is forecast of (`controller.model.metrics`).
Demanded = Literal["cpu", "memory", "net_rx", "net_tx", "disk_read", "disk_write"]


class Cause(StrEnum):
    """Why demand changes."""

    BATCH = "batch"
    CAMPAIGN = "campaign"
    MAINTENANCE = "maintenance"


class Repeats(StrEnum):
    """How often an event comes again."""

    DAILY = "daily"
    WEEKLY = "weekly"

    @property
    def seconds(self) -> int:
        """From one time to the next."""
        return 86_400 if self is Repeats.DAILY else 604_800


class Occurrence(BaseModel):
    """Something that multiplies the demand of some VMs by `factor` while it lasts."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    cause: Cause
    #: VMs by id, and by role or flavour; neither means all.
    vms: Annotated[tuple[str, ...], Field(max_length=10_000)] = ()
    groups: Annotated[tuple[str, ...], Field(max_length=1_000)] = ()
    #: None means all.
    metrics: tuple[Demanded, ...] = ()
    starts: AwareDatetime
    lasts: Annotated[timedelta, Field(gt=timedelta(0), le=timedelta(days=92))]
    repeats: Repeats | None = None
    #: After which it does not come again.
    until: AwareDatetime | None = None
    #: Expected demand over demand without it; maintenance stops a VM unless it says otherwise.
    factor: Annotated[float, Field(ge=0, le=MOST)]

    @model_validator(mode="before")
    @classmethod
    def _maintenance_stops(cls, data: object) -> object:
        if isinstance(data, dict) and data.get("cause") == "maintenance":
            return {"factor": 0.0, **data}
        return data

    @model_validator(mode="after")
    def _sense(self) -> Self:
        if self.factor == 0 and self.cause is not Cause.MAINTENANCE:
            raise ValueError("factor 0 means that nothing runs: that is cause: maintenance")
        if self.repeats is not None and self.lasts.total_seconds() > self.repeats.seconds:
            raise ValueError(f"lasts longer than it takes to come again ({self.repeats})")
        if self.until is not None and self.until <= self.starts:
            raise ValueError("until must be after starts")
        return self
