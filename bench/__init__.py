"""Micro-benchmarks with targets, rooflines and rivals in the same run."""
