"""The benchmark that docs/benchmarks.md quotes: `python -m bench`."""
