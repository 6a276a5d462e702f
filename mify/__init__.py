"""mify: from raw code to a small code model that runs.

Importing it has no effect: no GPU is touched and torch is not imported until something that needs it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mify.errors import MifyError

if TYPE_CHECKING:
    from mify.config import ModelConfig
    from mify.loading import load
    from mify.model import Model
    from mify.tokenizer import Tokenizer

__version__ = "0.1.0"
__all__ = ["MifyError", "Model", "ModelConfig", "Tokenizer", "__version__", "load"]

_LAZY = {
    "Model": "mify.model",
    "ModelConfig": "mify.config",
    "Tokenizer": "mify.tokenizer",
    "load": "mify.loading",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'mify' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
