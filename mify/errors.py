"""The one error a user's mistake raises: it names the thing and the remedy, and no traceback is printed for it."""

from __future__ import annotations


class MifyError(Exception):
    """A mistake the user can mend: a bad file, an unknown key, a mismatch between two artefacts.

    Args:
        problem: what is wrong, naming the file, key or value.
        remedy: what to do about it, in the imperative.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem}\n  -> {remedy}" if remedy else problem)
