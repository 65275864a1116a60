"""What every model of demand is: something that tells quantiles of a target from a past."""

from __future__ import annotations

from typing import Protocol

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
