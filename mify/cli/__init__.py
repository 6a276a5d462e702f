"""The command line: `mify --help`."""

from __future__ import annotations


def main() -> None:
    """The entry point of the console script `mify`."""
    from mify.cli.app import app

    app()
