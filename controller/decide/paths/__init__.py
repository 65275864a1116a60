"""Which ways traffic takes between edges, chosen from what is foreseen. Pure.

`plan.decide` is the entrance; `explain.explain` tells why a pair is routed as it is.
"""
