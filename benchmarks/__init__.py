"""Measurements of milepost on the machine at hand: `make bench`, or `python -m benchmarks`. See README.md."""
