"""Benchmarks: one module a figure or a family of them, each a command of its own; `python -m infra.bench` runs them all."""
