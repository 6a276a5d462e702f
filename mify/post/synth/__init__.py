"""Synthetic data: stages that generate, validate and judge samples, each a file of JSON lines that can be continued."""
