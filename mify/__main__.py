"""`python -m mify` is `mify`, for interpreters whose scripts are not on PATH."""

from __future__ import annotations

from mify.cli import main

main()
