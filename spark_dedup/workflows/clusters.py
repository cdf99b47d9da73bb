"""The k-means part of semantic deduplication as a job of its own: fit, assign, write clusters and centroids."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import KW_ONLY, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from spark_dedup.datasets import read_dataset
from spark_dedup.errors import InputError, named_errors
from spark_dedup.listing import FileInfo, Named
from spark_dedup.outputs import check_output, exclusive
from spark_dedup.parts import Parts
from spark_dedup.paths import Location, normalise_path
from spark_dedup.progress import job_progress
from spark_dedup.semantic.assign import check_kept, require_arrow
from spark_dedup.semantic.cluster_files import parquet_codec, require_parquet
from spark_dedup.semantic.embedding_files import EmbeddingFiles, find_embedding_files
from spark_dedup.semantic.embeddings import array_column, check_dim, check_invalid_option
from spark_dedup.semantic.kmeans import check_init, check_parameters
from spark_dedup.semantic.ranking import check_seed
from spark_dedup.session import active_or_build
from spark_dedup.settings import parquet_as_it_is
from spark_dedup.tables import col, require_columns
from spark_dedup.workflows.inputs import (
    JobInput,
    at_version,
    check_unchanged,
    inspect_input,
    plain_files,
    read_input,
    table_version,
)
from spark_dedup.workflows.result import WorkflowResult
from spark_dedup.workflows.semantic_clustering import cluster
from spark_dedup.workflows.steps import Steps, fingerprint, steps_of
from spark_dedup.workflows.unique_ids import check_unique_ids

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["KMEANS_FOLDER", "KMeansStage"]

KMEANS_FOLDER = "kmeans_results"


@dataclass(eq=False)
class KMeansStage:
    """Cluster embeddings and write them by cluster.

    Written below ``output_path``: ``kmeans_results/centroid=N/*.parquet`` (id, unit embedding, metadata,
    ``l2_dist_to_cent``, ``cosine_dist_to_cent``) and ``kmeans_results/kmeans_centroids.npy``. A killed job that is
    run again with the same arguments goes on after its last finished step.

    Args:
        input_path: path, paths, Delta path or table name.
        output_path: folder for the results.
        n_clusters: number of clusters.
        id_field: column of unique ids, of any type.
        embedding_field: array of numbers, Spark ML vector or packed binary.
        embedding_dim: length of an embedding; None takes the commonest among the first rows.
        metadata_fields: columns to keep in the results, for ranking or for reading them.
        input_filetype: ``parquet``, ``jsonl`` or ``delta``.
        input_file_extensions: endings of files to take instead of the filetype's own.
        max_iter: most k-means iterations.
        tol: stop when centroids move less, relative to the mean variance.
        random_state: seed.
        init: ``"k-means||"``, ``"scalable-k-means++"``, ``"random"`` or an (n_clusters, dim) array.
        n_init: fits from as many starts; the best is kept.
        oversampling_factor: rows drawn by a round of k-means||, over ``n_clusters``.
        max_samples_per_batch: rows that a GPU works on at once.
        fit_data_fraction: fit on this share of the rows, in (0, 1); all rows are assigned and written.
        read_kwargs: options for Spark's reader.
        write_kwargs: ``compression`` of the clusters' files.
        clear_output: replace the results of an earlier run; only the folders named above are ever cleared.
            Without it, finished results are a ``FileExistsError``.
        verbose: log the outcome of each step.
        invalid_embeddings: ``"error"``, or ``"drop"`` to leave out null, ragged, non-finite and zero ones.
        max_points_per_centroid: fit on at most this many rows per centroid.
        device: ``"auto"``, ``"cpu"`` or ``"gpu"``.

    Raises:
        InputError: arguments, columns or embeddings that cannot be used; before any work where possible.
    """

    input_path: Named
    output_path: Location
    n_clusters: int
    _: KW_ONLY
    id_field: str = "id"
    embedding_field: str = "embeddings"
    embedding_dim: int | None = None
    metadata_fields: Sequence[str] | None = None
    input_filetype: str = "parquet"
    input_file_extensions: Sequence[str] | None = None
    max_iter: int = 300
    tol: float = 1e-4
    random_state: int = 42
    init: str | NDArray[Any] = "k-means||"
    n_init: int = 1
    oversampling_factor: float = 2.0
    max_samples_per_batch: int = 1 << 15
    fit_data_fraction: float | None = None
    read_kwargs: Mapping[str, Any] | None = None
    write_kwargs: Mapping[str, Any] | None = None
    clear_output: bool = True
    verbose: bool = True
    invalid_embeddings: Literal["error", "drop"] = "error"
    max_points_per_centroid: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        check_parameters(
            n_clusters=self.n_clusters,
            max_iter=self.max_iter,
            n_init=self.n_init,
            max_samples_per_batch=self.max_samples_per_batch,
            max_points_per_centroid=self.max_points_per_centroid,
            tol=self.tol,
            oversampling_factor=self.oversampling_factor,
            fit_data_fraction=self.fit_data_fraction,
        )
        check_invalid_option(self.invalid_embeddings)
        if self.id_field == self.embedding_field:
            raise InputError(f"id_field and embedding_field are both {self.id_field!r}: name two columns")
        check_dim(self.embedding_dim)
        self.random_state = check_seed(self.random_state)
        try:
            start = self.init if isinstance(self.init, str) else np.asarray(self.init, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise InputError(f"init is no array of numbers: {error}") from error
        width = 1 if isinstance(start, str) else start.shape[-1] if start.ndim else 1
        check_init(start, self.n_clusters, width)

    def run(self, spark: SparkSession | None = None) -> WorkflowResult:
        """Run the job; its metadata has ``kmeans_time``, ``n_iter``, ``inertia`` and the counts."""
        started = time.monotonic()
        session = active_or_build(spark, device=self.device)
        done = self._at_version(session)._do_all(session)
        return WorkflowResult("kmeans", {"total_time": time.monotonic() - started, **done})

    def _at_version(self, session: SparkSession) -> Self:
        """Return the job with a Delta table held at its newest version."""
        options = at_version(
            session, self.input_path, filetype=self.input_filetype, read_kwargs=self.read_kwargs
        )
        return replace(self, read_kwargs=options)

    def _do_all(self, session: SparkSession) -> dict[str, Any]:
        output = normalise_path(self.output_path)
        with ExitStack() as held:
            held.enter_context(named_errors())
            held.enter_context(parquet_as_it_is(session))
            found = self._inspect(session, self._folders())
            held.enter_context(exclusive(output))
            steps = held.enter_context(self._steps(session, output, found, [KMEANS_FOLDER]))
            done = self._clustered(session, steps, found, output, self.write_kwargs)
            steps.close()
        return done

    def _folders(self) -> list[str]:
        """Return the folders that are replaced; no input may lie in them."""
        return [f"{normalise_path(self.output_path)}/{KMEANS_FOLDER}"]

    def _steps(
        self, spark: SparkSession, folder: str, found: JobInput, owned: Sequence[str]
    ) -> AbstractContextManager[Steps]:
        mode = "overwrite" if self.clear_output else "error"
        version = table_version(
            spark, self.input_path, filetype=self.input_filetype, read_kwargs=self.read_kwargs
        )
        digest = fingerprint({**self._identity(), "version": version}, found.files)
        return steps_of(folder, digest, owned=owned, mode=mode)

    def _clustered(
        self,
        spark: SparkSession,
        steps: Steps,
        found: JobInput,
        folder: str,
        options: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        """Return the outcome of the k-means step, which runs unless it is finished."""
        done = steps.result("kmeans")
        if done is None:
            done = self._cluster(spark, found, folder, options)
            self._check_unchanged(found)
            steps.finish("kmeans", done, wrote=[KMEANS_FOLDER])
        return done

    def _check_unchanged(self, found: JobInput, *, or_more: bool = False) -> None:
        extensions = self.input_file_extensions
        check_unchanged(found, filetype=self.input_filetype, extensions=extensions, or_more=or_more)

    def _identity(self) -> dict[str, Any]:
        """Return what decides the clusters, beside the input's files."""
        names = (
            "n_clusters id_field embedding_field embedding_dim input_filetype max_iter tol random_state n_init "
            "oversampling_factor fit_data_fraction invalid_embeddings max_points_per_centroid read_kwargs"
        )
        start = self.init
        if not isinstance(start, str):
            start = hashlib.sha256(np.ascontiguousarray(start, dtype=np.float32).tobytes()).hexdigest()
        identity = {name: getattr(self, name) for name in names.split()}
        return {**identity, "init": start, "input": str(self.input_path), "kept": self._kept_fields()}

    def _kept_fields(self) -> list[str]:
        """Return the columns written beside the id and the embedding."""
        return [name for name in dict.fromkeys(self.metadata_fields or ()) if name != self.id_field]

    def _input_fields(self) -> list[str]:
        """Return the columns that the input must have."""
        return list(dict.fromkeys([self.id_field, self.embedding_field, *self._kept_fields()]))

    def _read(self, spark: SparkSession, parts: Parts) -> DataFrame:
        return read_dataset(
            spark,
            self.input_path,
            filetype=self.input_filetype,
            read_kwargs=self.read_kwargs,
            extensions=self.input_file_extensions,
            parts=parts,
        )

    def _require(self, df: DataFrame, columns: Sequence[str], *, where: str) -> None:
        require_columns(df, columns, where=where)

    def _inspect(self, spark: SparkSession, folders: Sequence[str]) -> JobInput:
        """Check input and outputs before any work."""
        check_kept([self.id_field, self.embedding_field, *self._kept_fields()])
        columns = self._input_fields()
        found = inspect_input(
            spark,
            self.input_path,
            filetype=self.input_filetype,
            extensions=self.input_file_extensions,
            columns=columns,
            nulls_fit=True,
            by_spark=False,
        )
        for folder in folders:
            check_output(folder, inputs=found.paths, mode="overwrite")
        if self.input_filetype == "jsonl":  # looks for malformed lines, in a pass of its own
            read_input(
                spark,
                self.input_path,
                filetype="jsonl",
                read_kwargs=self.read_kwargs,
                extensions=self.input_file_extensions,
            )
        df = self._read(spark, found.parts)
        self._require(df, columns, where=str(found.source))
        array_column(df, self.embedding_field)
        require_arrow(df, [self.id_field, *self._kept_fields()])
        require_parquet(df, [self.id_field, *self._kept_fields()])
        with job_progress(spark, "checking that ids are unique"):
            rows = check_unique_ids(spark, df, self.id_field, files=self._plain_files(found))
        if not rows:
            raise InputError(f"{found.source} holds no rows")
        if rows < self.n_clusters:
            raise InputError(
                f"n_clusters is {self.n_clusters:,}, but {found.source} has {rows:,} rows: ask for fewer clusters"
            )
        return JobInput(found.source, found.files, rows, parts=found.parts)

    def _cluster(
        self, spark: SparkSession, found: JobInput, output: str, options: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """Fit, assign and write; return counts, quality and time."""
        started = time.monotonic()
        codec = parquet_codec(spark, options)
        kept = self._kept_fields()
        # Columns that nobody asked for need not travel.
        df = self._read(spark, found.parts).select(
            *map(col, dict.fromkeys([self.id_field, self.embedding_field, *kept]))
        )
        files, folder = self._embedding_files(df, found), f"{output}/{KMEANS_FOLDER}"
        done = cluster(self, spark, df, found, folder, kept=kept, files=files, codec=codec)
        return {"kmeans_time": time.monotonic() - started, **done}

    def _embedding_files(self, df: DataFrame, found: JobInput) -> EmbeddingFiles | None:
        """Return the input's files where tasks can read them as Spark would."""
        plain = self._plain_files(found)
        if not plain:
            return None
        names = {"id_field": self.id_field, "embedding_field": self.embedding_field}
        return find_embedding_files(df, plain, **names)

    def _plain_files(self, found: JobInput) -> list[FileInfo]:
        return plain_files(found, filetype=self.input_filetype, read_kwargs=self.read_kwargs)
