"""Packages of the extra `curation`: asked for where they are installed, where they are required, or never."""

from __future__ import annotations

import functools
import importlib.util
from importlib import metadata
from typing import Literal

from mify.errors import MifyError

# "installed": used where it is there, and the report says whether it was; "required": an error without it.
Use = Literal["installed", "required", "off"]


@functools.lru_cache(maxsize=64)
def found(module: str) -> bool:
    """Whether a module can be imported."""
    return importlib.util.find_spec(module) is not None


def require(key: str, use: Use, modules: tuple[str, ...]) -> None:
    """Raises `MifyError` naming the key and the first package that it requires and that is not installed."""
    missing = [module for module in modules if not found(module)] if use == "required" else []
    if missing:
        name = missing[0].replace("_", "-")
        raise MifyError(f'{key} = "required", and {name} is not installed', "pip install 'mify[curation]'")


def versions(modules: set[str]) -> dict[str, str]:
    """Package → version of those that are installed: another version may judge otherwise."""
    names = sorted(module.replace("_", "-") for module in modules if found(module))
    return {name: metadata.version(name) for name in names}
