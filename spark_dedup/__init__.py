"""Deduplication of LLM and ML training data on Apache Spark, accelerated by RAPIDS."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_NAMES = {
    "spark_dedup.session": ("build_session",),
    "spark_dedup.ids": ("IdGenerator", "IdRegistry", "StaleBatchError", "read_documents"),
    "spark_dedup.exact": ("identify_exact",),
    "spark_dedup.semantic.assign": ("assign_clusters",),
    "spark_dedup.semantic.kmeans": ("fit_kmeans",),
    "spark_dedup.semantic.pairwise": ("pairwise_similarity",),
    "spark_dedup.semantic.identify": ("identify_semantic",),
    "spark_dedup.semantic.ranking": ("RankingStrategy",),
    "spark_dedup.removal.text": ("remove_duplicates",),
    "spark_dedup.removal.images": ("ImageDuplicatesRemovalStage",),
    "spark_dedup.workflows.exact": ("ExactDeduplicationWorkflow",),
    "spark_dedup.workflows.removal": ("TextDuplicatesRemovalWorkflow",),
    "spark_dedup.workflows.semantic": ("KMeansStage", "SemanticDeduplicationWorkflow"),
    "spark_dedup.sql": ("create_views",),
    "spark_dedup.sql_functions": ("register",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

_PLAIN = ("IdGenerator", "IdRegistry", "StaleBatchError")
"""What works without Spark: the registry does in a local path."""

CURATOR_DEDUP_ID_STR = "_curator_dedup_id"
L2_DIST_TO_CENT_COL = "l2_dist_to_cent"
COSINE_DIST_TO_CENT_COL = "cosine_dist_to_cent"

__all__ = [
    "ExactDeduplicationWorkflow",
    "IdGenerator",
    "IdRegistry",
    "ImageDuplicatesRemovalStage",
    "KMeansStage",
    "RankingStrategy",
    "SemanticDeduplicationWorkflow",
    "StaleBatchError",
    "TextDuplicatesRemovalWorkflow",
    "assign_clusters",
    "build_session",
    "create_views",
    "fit_kmeans",
    "identify_exact",
    "identify_semantic",
    "pairwise_similarity",
    "read_documents",
    "register",
    "remove_duplicates",
    "COSINE_DIST_TO_CENT_COL",
    "CURATOR_DEDUP_ID_STR",
    "L2_DIST_TO_CENT_COL",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: importing the package must not need Spark."""
    if name not in _HOME:
        raise AttributeError(f"module 'spark_dedup' has no attribute {name!r}")
    if name not in _PLAIN:
        # Imported here, so that `python -m spark_dedup.runtime` does not find itself imported already.
        from spark_dedup import runtime

        runtime.ensure_pyspark()
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from spark_dedup.exact import identify_exact
    from spark_dedup.ids import IdGenerator, IdRegistry, StaleBatchError, read_documents
    from spark_dedup.removal.images import ImageDuplicatesRemovalStage
    from spark_dedup.removal.text import remove_duplicates
    from spark_dedup.semantic.assign import assign_clusters
    from spark_dedup.semantic.identify import identify_semantic
    from spark_dedup.semantic.kmeans import fit_kmeans
    from spark_dedup.semantic.pairwise import pairwise_similarity
    from spark_dedup.semantic.ranking import RankingStrategy
    from spark_dedup.session import build_session
    from spark_dedup.sql import create_views
    from spark_dedup.sql_functions import register
    from spark_dedup.workflows.exact import ExactDeduplicationWorkflow
    from spark_dedup.workflows.removal import TextDuplicatesRemovalWorkflow
    from spark_dedup.workflows.semantic import KMeansStage, SemanticDeduplicationWorkflow
