"""What is out of the ordinary? Deviations from a VM's own pattern, its role, its signatures.

`bank.Bank` judges streams of samples, `signatures` who talks to whom, `roles` a VM among those
that behave alike; `alerts` makes of what they find alerts with a state, and `rendering` tells
those as CloudEvents and to an Alertmanager.
"""
