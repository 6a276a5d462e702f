"""Evaluation: the sandbox and the benchmarks."""
