"""What is normal for a VM? Periods, features, neighbours and roles, as functions of arrays.

`features.features` tells a metric's behaviour as a vector, `neighbours` what behaves alike, and
`roles` which VMs behave and communicate alike, with names that stay from day to day.
"""
