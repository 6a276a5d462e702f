"""Checks of paths that a user names."""

from __future__ import annotations

from pathlib import Path

from mify.errors import MifyError


def not_the_source(out: Path, source: Path) -> None:
    """Raises MifyError where writing to `out` would replace what is read."""
    if source.exists() and source.resolve().is_relative_to(out.resolve()):
        what = "is the source itself" if source.resolve() == out.resolve() else f"holds the source {source}"
        raise MifyError(f"--out {out} {what}", "name another place")
