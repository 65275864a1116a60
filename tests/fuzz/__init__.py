"""Everything that reads bytes of switches or guests, and bytes that nobody should send.

`tests/unit/test_fuzz.py` tries the same spoilt bytes in every run. To look for new ones for as long
as one likes, guided by coverage, install atheris and run `python -m tests.fuzz`.
"""
