"""The command line: `mify --help`."""

from __future__ import annotations

import os


def main() -> None:
    """The entry point of the console script `mify`."""
    # How long torch's threads spin before they sleep; read when torch loads. Training mify-tiny on two cores, libgomp's
    # default burns 0.79 CPU seconds a step and collapses (to 280 tokens/s) where others want the cores; threads
    # that sleep at once (OMP_WAIT_POLICY=PASSIVE) halve the speed; this keeps 3,700 of 4,050 tokens/s at 0.65 s a step.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    from mify.cli.app import app

    app()
