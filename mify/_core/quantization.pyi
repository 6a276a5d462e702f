"""Weights to 8 bits, over raw pointers to dense matrices. Call it through mify.quantization, which checks."""

from __future__ import annotations

def fp8_rows(values: int, bf16: bool, rows: int, columns: int, codes: int, scales: int, threads: int, /) -> bool: ...
