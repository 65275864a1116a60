"""How much may each VM send and receive, and how are classes of traffic told apart? Pure.

`allocate.decide` gives meters, `control.demands` is the rule for what nobody foresaw, `qos.parse`
reads the operator's policy.
"""
