"""The curation in shards: see `run.py` for its steps."""
