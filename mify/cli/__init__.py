"""The command line: `mify --help`."""

from __future__ import annotations

import os


def main() -> None:
    """The entry point of the console script `mify`."""
    # Threads that wait for each other by spinning burn the cores that others would use: on two cores with four more
    # busy processes a training step took 5.0 CPU seconds so, and 2.1 with threads that sleep. Read when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from mify.cli.app import app

    app()
