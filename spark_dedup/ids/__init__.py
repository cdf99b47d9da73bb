"""Stable ids for documents: batches of files get ranges, rows get the range's start plus their place in the file."""

from spark_dedup.ids.assign import read_documents
from spark_dedup.ids.generator import IdGenerator, StaleBatchError
from spark_dedup.ids.registry import IdRegistry

__all__ = ["IdGenerator", "IdRegistry", "StaleBatchError", "read_documents"]
