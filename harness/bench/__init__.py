"""Benchmarks that ship with the package: ``python -m harness bench reset``."""
