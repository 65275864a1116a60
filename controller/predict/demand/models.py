"""What every model of demand is: something that tells quantiles of a target from a past."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from controller.predict.demand.series import Array, Panel
from controller.predict.demand.targets import Target


class Model(Protocol):
    """A model that can forecast. It keeps nothing between two forecasts, so that any past can
    be asked about, and a forecast of yesterday can be made again."""

    @property
    def name(self) -> str:
        """Under which it is chosen and scored."""
        ...

    def quantiles(self, past: Panel, target: Target, steps: int) -> Array:
        """[series, steps, len(QUANTILES)] in the metric's unit for the first `steps` steps
        after the panel's end; NaN where the model can say nothing of a series. Neither order
        nor sign of the quantiles is promised: `forecast.sane` sees to that."""
        ...


@runtime_checkable
class Joint(Protocol):
    """A model that tells several targets of one past more quickly together."""

    def many(self, past: Panel, steps: Mapping[Target, int]) -> dict[Target, Array]:
        """What `quantiles` tells of each target, for its number of steps."""
        ...


@runtime_checkable
class Explaining(Protocol):
    """A model that can say what its forecasts are made of."""

    def explained(
        self, past: Panel, steps: Mapping[Target, int]
    ) -> tuple[dict[Target, Array], dict[Target, list[str]]]:
        """What `Joint.many` tells, and of each target a note for each series."""
        ...


def ask(model: Model, past: Panel, steps: Mapping[Target, int]) -> dict[Target, Array]:
    """What `model` tells of several targets."""
    if isinstance(model, Joint):
        return model.many(past, steps)
    return {target: model.quantiles(past, target, count) for target, count in steps.items()}
