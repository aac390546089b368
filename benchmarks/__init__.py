"""Benchmarks of replikv, run from the root of a checkout: ``python -m benchmarks puts``. Not part of the package."""
