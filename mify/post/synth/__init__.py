"""Synthetic data: stages that generate, validate and judge samples, each a file of JSON lines that can be continued.

`run` goes through a `recipe`'s stages; a stage (`stage`) takes samples and gives samples, rejects with reasons, and
facts; `client` asks the models, `ledger` keeps every answer, `account` holds the ceiling on cost.
"""
