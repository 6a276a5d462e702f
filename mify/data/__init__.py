"""Tokens to batches: shards, FIM plans, packing plans, the deterministic stream."""
