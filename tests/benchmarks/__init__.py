"""Long measurements: `python -m tests.benchmarks NAME [--data DIR] [--quick]`."""
