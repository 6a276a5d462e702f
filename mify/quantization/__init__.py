"""Quantized weights: schemes, activation-aware scaling, and the pass that writes them."""
