"""Curation: sources, license, quality, exact and near duplicates, decontamination, mixture.

    from mify.curation import collect, curate
    collection = collect()                                    # this machine's own Python installation
    report = curate(collection.inputs(), "corpus", held_out=collection.held_out)

Importing this package loads nothing: each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mify.curation.config import CurationConfig, load_config
    from mify.curation.decontamination import NgramIndex, load_benchmark
    from mify.curation.documents import Document, Rejected, read_documents, read_rejected, write_documents
    from mify.curation.minhash import near_duplicates
    from mify.curation.pipeline import CurationReport, curate
    from mify.curation.python_installation import CollectionConfig, collect
    from mify.curation.readers import read_inputs

_HOMES = {
    "CollectionConfig": "python_installation",
    "CurationConfig": "config",
    "CurationReport": "pipeline",
    "Document": "documents",
    "NgramIndex": "decontamination",
    "Rejected": "documents",
    "collect": "python_installation",
    "curate": "pipeline",
    "load_benchmark": "decontamination",
    "load_config": "config",
    "near_duplicates": "minhash",
    "read_documents": "documents",
    "read_inputs": "readers",
    "read_rejected": "documents",
    "write_documents": "documents",
}
__all__ = [
    "CollectionConfig",
    "CurationConfig",
    "CurationReport",
    "Document",
    "NgramIndex",
    "Rejected",
    "collect",
    "curate",
    "load_benchmark",
    "load_config",
    "near_duplicates",
    "read_documents",
    "read_inputs",
    "read_rejected",
    "write_documents",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"mify.curation.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'mify.curation' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
