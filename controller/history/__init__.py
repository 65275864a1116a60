"""What was: the time series of VMs, hosts and ports, written once and read by every floor.

`series.Reader` is how they are read; `history.History` also takes new samples.
"""
