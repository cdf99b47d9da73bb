"""Stable ids for documents: a batch of files gets a range, a row the range's start plus its place in the file."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spark_dedup.ids.assign import read_documents
    from spark_dedup.ids.batches import StaleBatchError
    from spark_dedup.ids.generator import IdGenerator
    from spark_dedup.ids.registry import IdRegistry

__all__ = ["IdGenerator", "IdRegistry", "StaleBatchError", "read_documents"]

_MODULES = {
    "IdGenerator": "generator",
    "IdRegistry": "registry",
    "StaleBatchError": "batches",
    "read_documents": "assign",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that the plain generator needs no Spark."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
