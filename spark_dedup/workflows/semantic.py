"""Semantic deduplication as one job: clusters, similarities inside them, ids to remove."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from spark_dedup.datasets import read_dataset
from spark_dedup.errors import InputError, named_errors
from spark_dedup.exact import check_text
from spark_dedup.held import holding
from spark_dedup.ledger import check_ledger
from spark_dedup.limits import check_limits
from spark_dedup.outputs import exclusive
from spark_dedup.parts import Parts
from spark_dedup.paths import Location, aside_of, delete, exists, normalise_path
from spark_dedup.rules import TEXT_LENGTH, check_source_rules, with_text_length
from spark_dedup.semantic.embeddings import embedding_width
from spark_dedup.semantic.identify import check_eps
from spark_dedup.semantic.ranking import (
    COSINE_DIST_TO_CENT_COL,
    L2_DIST_TO_CENT_COL,
    RankingStrategy,
    check_ranking,
    require_order,
    require_ranking,
)
from spark_dedup.session import active_or_build
from spark_dedup.settings import parquet_as_it_is
from spark_dedup.workflows.arguments import check_compression, check_count
from spark_dedup.workflows.clusters import KMEANS_FOLDER, KMeansStage
from spark_dedup.workflows.inputs import JobInput
from spark_dedup.workflows.planning import plan_of
from spark_dedup.workflows.result import WorkflowResult
from spark_dedup.workflows.semantic_matching import (
    DUPLICATES_FOLDER,
    PAIRWISE_FOLDER,
    REMOVED_FOLDER,
    compare,
    identify,
    ledger_rows,
    record,
    remove,
    safety_stop,
)

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


__all__ = ["KMeansStage", "SemanticDeduplicationWorkflow"]

logger = logging.getLogger(__name__)

OLD_KEYS = {
    "total_execution_time": "total_time",
    "kmeans_execution_time": "kmeans_time",
    "pairwise_execution_time": "pairwise_time",
    "total_duplicates_identified": "num_duplicates",
}


@dataclass(eq=False)
class SemanticDeduplicationWorkflow(KMeansStage):
    """Find records whose embeddings are nearly equal, and write the ids of all but one of each chain.

    Written: ``kmeans_results/`` (see :class:`KMeansStage`) and ``pairwise_results/*.parquet`` (``id``, ``max_id``,
    ``cosine_sim_score``) below ``cache_path`` or else ``output_path``; with ``eps``, ``duplicates/*.parquet``
    (``id``, each once, sorted in a file) below ``output_path``. A killed job that is run again with the same
    arguments goes on after its last finished step, also with another ``eps``; a finished one starts over.

    Args:
        cache_path: folder for the intermediate results; default ``output_path``.
        distance_metric: ``"cosine"`` or ``"l2"``: the distance to the centroid that ranks.
        which_to_keep: ``"hard"`` keeps the record farthest from its centroid, ``"easy"`` the nearest, ``"random"``
            any (by a seeded hash of the id).
        ranking_strategy: wins over ``which_to_keep``; columns it needs are kept in ``kmeans_results``.
        pairwise_batch_size: rows multiplied at once; bounds the memory of a task.
        eps: similarities of ``1 - eps`` and above are duplicates; None stops after the similarities.
        cache_kwargs: options for the writers of the intermediate results; the clusters know ``compression``.
        n_probe: clusters each record is compared in; more find pairs that a cluster border divides.
        source_field: column that names each record's source, for the ledger and the rules below; it is kept in
            ``kmeans_results``.
        source_priority: sources that rank first, before all else.
        protected_sources: sources that lose nothing: they rank before all others, and stand for them.
        keep_longest: column of texts; of records of one source rank, the longest text ranks first. Its length is
            kept in ``kmeans_results``, as ``_text_length``.
        drop_all_copies: remove the survivors too, but for those of protected sources.
        max_removed_fraction: stop, with what was found kept for review, when more than this would be removed; a
            mapping limits single sources, ``"*"`` the whole.
        max_cluster_fraction: stop likewise when one k-means cluster holds more of the records than this.
        ledger: folder or schema of a ledger to write the duplicates to, with their survivors.
        perform_removal: also write the records that remain, to ``deduplicated`` below ``output_path``, as
            ``input_filetype`` says.

    The other arguments are those of :class:`KMeansStage`; ``write_kwargs`` are for ``duplicates``.
    """

    cache_path: Location | None = None
    _: KW_ONLY
    distance_metric: str = "cosine"
    which_to_keep: str = "hard"
    ranking_strategy: RankingStrategy | None = None
    pairwise_batch_size: int = 1024
    eps: float | None = None
    _duplicates_num_row_groups_hint: int | None = None
    cache_kwargs: Mapping[str, Any] | None = None
    n_probe: int = 1
    ledger: Location | None = None
    source_field: str | None = None
    source_priority: Sequence[str] = ()
    protected_sources: Sequence[str] = ()
    keep_longest: str | None = None
    drop_all_copies: bool = False
    max_removed_fraction: float | Mapping[str, float] | None = None
    max_cluster_fraction: float | None = None
    perform_removal: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_limits(self.max_removed_fraction, self.max_cluster_fraction)
        check_ranking(self.which_to_keep, self.distance_metric)
        check_compression(self.write_kwargs, argument="write_kwargs")
        if not isinstance(self.ranking_strategy, RankingStrategy | None):
            raise InputError(f"ranking_strategy must be a RankingStrategy, not {self.ranking_strategy!r}")
        if self.eps is not None:
            check_eps(self.eps)
        if self.ledger is not None and self.eps is None:
            raise InputError("ledger needs eps: without it there are no duplicates to write")
        for name in ("drop_all_copies", "perform_removal"):
            if getattr(self, name) and self.eps is None:
                raise InputError(f"{name} needs eps: without it there are no duplicates to drop")
        check_source_rules(
            self.source_field,
            priority=self.source_priority,
            protected=self.protected_sources,
            max_removed_fraction=self.max_removed_fraction,
        )
        if self.keep_longest is not None and TEXT_LENGTH in (*self._named_fields(), self.embedding_field):
            raise _text_length_refused()
        for name in ("pairwise_batch_size", "n_probe", "_duplicates_num_row_groups_hint"):
            if name != "_duplicates_num_row_groups_hint" or self._duplicates_num_row_groups_hint is not None:
                check_count(name, getattr(self, name))

    def run(self, spark: SparkSession | None = None) -> WorkflowResult:
        """Run the job, from its last finished step."""
        started = time.monotonic()
        session = active_or_build(spark, device=self.device)
        metadata = self._at_version(session)._do_all(session)
        took = time.monotonic() - started
        return WorkflowResult("semantic_deduplication", {"total_time": took, **metadata}, OLD_KEYS)

    def _do_all(self, session: SparkSession) -> dict[str, Any]:
        began = datetime.now(UTC)
        output = normalise_path(self.output_path)
        cache = normalise_path(self.cache_path) if self.cache_path is not None else output
        duplicates = f"{output}/{DUPLICATES_FOLDER}"
        final = [DUPLICATES_FOLDER, *([REMOVED_FOLDER] if self.perform_removal else [])]
        owned = [KMEANS_FOLDER, PAIRWISE_FOLDER, *(final if cache == output else [])]
        with ExitStack() as held:
            held.enter_context(named_errors())
            held.enter_context(parquet_as_it_is(session))
            found = self._inspect(session, self._folders())
            for folder in dict.fromkeys([output, cache]):
                held.enter_context(exclusive(folder))
            steps = held.enter_context(self._steps(session, cache, found, owned))
            there = [f"{output}/{name}" for name in final if exists(f"{output}/{name}")]
            if there and not (self.clear_output or steps.resumed):
                raise FileExistsError(f"output {there[0]} exists: choose another folder or clear_output=True")
            metadata: dict[str, Any] = {"num_duplicates": 0}
            metadata |= self._clustered(session, steps, found, cache, self.cache_kwargs)
            compared = steps.result("pairwise")
            if compared is None:
                compared = steps.finish("pairwise", self._compare(session, cache), wrote=[PAIRWISE_FOLDER])
            metadata |= compared
            if self.eps is None:
                delete(duplicates)
            else:
                wrote = [DUPLICATES_FOLDER]
                metadata |= steps.finish("identify", identify(self, session, cache, duplicates), wrote=wrote)
            stop = safety_stop(self, session, cache, duplicates, metadata)
            if self.ledger is not None:
                with holding(session, f"{aside_of(duplicates)}.held") as hold:
                    rows = ledger_rows(self, session, cache, hold)
                    identity = self._identity()
                    metadata |= record(
                        self, session, rows, metadata, began=began, stop=stop, identity=identity
                    )
            if stop is not None:
                raise stop
            if not self.perform_removal and exists(f"{output}/{REMOVED_FOLDER}"):
                logger.warning("%s/%s is not of this run: it is left as it was", output, REMOVED_FOLDER)
            if self.perform_removal:
                self._check_unchanged(found, or_more=True)
                removed = remove(self, session, output)
                self._check_unchanged(found)
                metadata |= steps.finish("remove", removed, wrote=[REMOVED_FOLDER])
            steps.close()
        return {**metadata, "output_path": output}

    def plan(self, spark: SparkSession | None = None) -> WorkflowResult:
        """Say what would be read, compared and written, how large it is and where it runs; write nothing."""
        session = active_or_build(spark, device=self.device)
        folders = self._folders()
        with parquet_as_it_is(session):
            found = self._inspect(session, folders)
            df = self._read(session, found.parts)
            dim = embedding_width(df, self.embedding_field, self.embedding_dim)
        rows = found.num_rows or 0
        sizes = [-(-rows // self.n_clusters)] * self.n_clusters
        known = exists(folders[0])
        if known:
            counts = read_dataset(session, folders[0]).groupBy("centroid").count().collect()
            sizes = [int(row["count"]) for row in counts]
        return plan_of(
            session,
            "semantic_deduplication",
            found,
            work={
                "dimensions": dim,
                # Rows are laid out by cluster once: float32 embeddings, an id, and Spark's row header.
                "shuffle_bytes": rows * (4 * dim + 40),
                "largest_cluster": max(sizes, default=0),
                "largest_cluster_is": "of the clusters that lie there" if known else "if all were even",
                "pairwise_multiplications": self.n_probe**2 * sum(n * (n - 1) // 2 for n in sizes) * dim,
            },
            device=self.device,
            writes=folders if self.eps is not None else folders[:2],
            settings={"max_iter": self.max_iter, "pairwise_batch_size": self.pairwise_batch_size},
        )

    def _inspect(self, spark: SparkSession, folders: Sequence[str]) -> JobInput:
        found = super()._inspect(spark, folders)
        if self.ledger is not None:
            check_ledger(spark, self.ledger, dict(self._read(spark, found.parts).dtypes)[self.id_field])
        return found

    def _folders(self) -> list[str]:
        """Return the folders that are replaced; no input may lie in them."""
        output = normalise_path(self.output_path)
        cache = normalise_path(self.cache_path) if self.cache_path is not None else output
        removed = [f"{output}/{REMOVED_FOLDER}"] if self.perform_removal else []
        between = [f"{cache}/{KMEANS_FOLDER}", f"{cache}/{PAIRWISE_FOLDER}"]
        return [*between, f"{output}/{DUPLICATES_FOLDER}", *removed]

    def _identity(self) -> dict[str, Any]:
        names = ("which_to_keep", "distance_metric", "n_probe", "source_field", "keep_longest")
        return {
            **super()._identity(),
            **{name: getattr(self, name) for name in names},
            "source_priority": list(self.source_priority),
            "protected_sources": list(self.protected_sources),
            "ranking": repr(self.ranking_strategy),
        }

    def _kept_fields(self) -> list[str]:
        length = [] if self.keep_longest is None else [TEXT_LENGTH]
        return [*self._named_fields(), *length]

    def _named_fields(self) -> list[str]:
        """Return the columns to keep that the arguments name."""
        ranked = [] if self.ranking_strategy is None else self.ranking_strategy.metadata_cols
        source = [] if self.source_field is None else [self.source_field]
        made = (self.id_field, COSINE_DIST_TO_CENT_COL, L2_DIST_TO_CENT_COL)
        kept = super()._kept_fields()
        return [*kept, *(n for n in dict.fromkeys([*ranked, *source]) if n not in made and n not in kept)]

    def _input_fields(self) -> list[str]:
        if self.keep_longest is None:
            return super()._input_fields()
        fields = [name for name in super()._input_fields() if name != TEXT_LENGTH]
        return list(dict.fromkeys([*fields, self.keep_longest]))

    def _require(self, df: DataFrame, columns: Sequence[str], *, where: str) -> None:
        if self.ranking_strategy is not None:
            made = (COSINE_DIST_TO_CENT_COL, L2_DIST_TO_CENT_COL)
            ranked = [name for name in self.ranking_strategy.metadata_cols if name not in made]
            require_ranking(df, ranked, where=f"{where}; it has")
            if self.embedding_field in ranked:
                raise InputError(f"column '{self.embedding_field}' holds the embeddings, which do not rank")
            require_order(df, ranked)
        super()._require(df, columns, where=where)

    def _read(self, spark: SparkSession, parts: Parts) -> DataFrame:
        df = super()._read(spark, parts)
        if self.keep_longest is None:
            return df
        if TEXT_LENGTH in map(str.lower, df.columns):
            raise _text_length_refused()
        check_text(df, self.keep_longest, argument="keep_longest")
        return with_text_length(df, text_field=self.keep_longest)

    def _compare(self, spark: SparkSession, cache: str) -> dict[str, Any]:
        return compare(self, spark, cache)


def _text_length_refused() -> InputError:
    return InputError(f"column {TEXT_LENGTH!r} would be replaced by keep_longest; rename it first")
