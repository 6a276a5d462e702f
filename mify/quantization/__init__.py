"""Quantized weights: `quantize` writes them layer by layer, `scheme` says what each kind is, `linear` runs them."""
