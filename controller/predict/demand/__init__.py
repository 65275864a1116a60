"""How much will each VM need? Forecasts of CPU, memory, network and disk, 1 to 24 hours ahead.

`forecaster.Forecaster` is how they are made; `forecast.Forecast` is what is told.
"""
