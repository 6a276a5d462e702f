"""The command line: `mify --help`."""

from __future__ import annotations

import sys


def main() -> None:
    """The entry point: a user's mistake ends in a message and exit code 2, Ctrl-C in 130, never in a traceback."""
    from mify.cli.app import run

    sys.exit(run(sys.argv[1:]))
