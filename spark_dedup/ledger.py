"""The ledger: which records are duplicates, of what, found when and how: Delta tables ``runs``, ``duplicates``.

A run's rows are written first, in one commit, in a partition of their own; then its row in ``runs``, which makes
them count: readers go through ``runs``. A run that died in between is invisible, and is replaced when repeated.
Later matchers add their word in ``method``.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from spark_dedup.errors import HeldError, InputError
from spark_dedup.ledger_runs import DONE, STOPPED, Run, run_row
from spark_dedup.ledger_tables import (
    DUPLICATE_COLUMNS,
    Ledger,
    check_ids,
    check_layout,
    create,
    locate,
)
from spark_dedup.outputs import check_output, exclusive
from spark_dedup.rules import check_survivors
from spark_dedup.session import require_delta
from spark_dedup.stores import is_s3
from spark_dedup.tables import LEDGER_COLUMNS, col, require_columns

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, Row, SparkSession

__all__ = [
    "DONE",
    "STOPPED",
    "Ledger",
    "Run",
    "check_ledger",
    "find_run",
    "open_ledger",
    "read_duplicates",
    "write_run",
]

PATIENCE_S, TRIES = 600.0, 5


def open_ledger(spark: SparkSession, location: str | os.PathLike[str]) -> Ledger:
    """Return an existing ledger.

    Raises:
        InputError: nothing there, another layout, or tables that are no ledger.
    """
    require_delta(spark)
    ledger = locate(location, spark)
    for role, relation in (("duplicates", ledger.duplicates), ("runs", ledger.runs)):
        if not check_layout(spark, relation, role):
            raise InputError(
                f"no ledger at {ledger.location}: {relation} does not exist; run a job with ledger="
            )
    return ledger


def check_ledger(spark: SparkSession, location: str | os.PathLike[str], id_kind: str) -> None:
    """Check, before a job works for it, that a ledger can be made or added to.

    Args:
        spark: the session.
        location: folder or schema.
        id_kind: Spark's name of the type of the ids to come.

    Raises:
        InputError: no Delta, no such schema, tables that are no ledger or of another layout, ids of another type.
        OSError: a folder that cannot be written.
    """
    require_delta(spark)
    id_type = _id_type(id_kind)
    ledger = locate(location, spark)
    check_layout(spark, ledger.runs, "runs")
    if check_layout(spark, ledger.duplicates, "duplicates"):
        check_ids(spark, ledger, id_type)
    if "/" in ledger.location:
        check_output(ledger.location, mode="overwrite", replaced=False)


def write_run(
    spark: SparkSession, location: str | os.PathLike[str], run: Run, duplicates: DataFrame
) -> Ledger:
    """Write a finished run; a repeated one replaces itself. One commit for its rows, one that makes them count.

    Args:
        spark: a session with Delta.
        location: folder or schema; the tables are made when missing.
        run: what is known of the run.
        duplicates: columns of the contract (``LEDGER_COLUMNS``), and ``source``, ``kept_source`` where known.

    Raises:
        InputError: ids of another type than the ledger's, another layout, or another job that would not let go.
        RuntimeError: a group without exactly one survivor; a fault of the matcher, where ``drop_all_copies`` is not
            among the run's parameters.
    """
    from pyspark.sql import functions as F

    require_delta(spark)
    require_columns(duplicates, LEDGER_COLUMNS, where="the ledger rows")
    ledger = locate(location, spark)
    id_type = _id_type(dict(duplicates.dtypes)["id"])
    rows = _as_table(run, duplicates, id_type)
    mine = F.col("run_id") == F.lit(run.run_id)
    with _held(ledger):
        create(spark, ledger, id_type)
        check_ids(spark, ledger, id_type)
        _commit(lambda: rows.writeTo(ledger.duplicates).overwrite(mine), ledger)
        # Of what was written, so that nothing is computed twice; without a row in runs it does not count yet.
        drop_all = bool(run.parameters.get("drop_all_copies"))
        check_survivors(spark.table(ledger.duplicates).where(mine), drop_all=drop_all)
        _commit(partial(_publish, spark, ledger, run, mine, uuid.uuid4().hex), ledger)
    return ledger


def _as_table(run: Run, duplicates: DataFrame, id_type: str) -> DataFrame:
    """Return the rows of a run in the columns and types of the table ``duplicates``."""
    from pyspark.sql import functions as F

    types = {name: kind or id_type for name, (kind, _) in DUPLICATE_COLUMNS.items()}
    own = {name: col(name) for name in DUPLICATE_COLUMNS if name in duplicates.columns}
    own["run_id"] = F.lit(run.run_id)
    return duplicates.select(*[own.get(n, F.lit(None)).cast(types[n]).alias(n) for n in DUPLICATE_COLUMNS])


def _publish(spark: SparkSession, ledger: Ledger, run: Run, mine: Column, token: str) -> None:
    """Write the row that makes a run count, in the place of its own from before."""
    writer = run_row(spark, run).writeTo(ledger.runs)
    if _is_there(spark, ledger.runs, mine):
        writer.overwrite(mine)
        return
    # A blind append never meets another run's commit; the transaction name keeps a twin from adding it twice.
    name = f"spark_dedup-{run.run_id}"
    writer.option("txnAppId", name).option("txnVersion", "1").append()
    # Delta skips a name it knows, though the row was deleted since.
    if not _is_there(spark, ledger.runs, mine):
        writer.option("txnAppId", f"{name}-{token}").append()


def find_run(spark: SparkSession, ledger: Ledger, run_id: str | None = None) -> Row:
    """Return a run's row: the named one, else the newest good one.

    Raises:
        InputError: no such run, naming those there are.
    """
    from pyspark.sql import functions as F

    runs = spark.table(ledger.runs)
    wanted = F.col("run_id") == F.lit(run_id) if run_id is not None else F.col("status") == F.lit(DONE)
    newest = [F.col("finished_at").desc(), F.col("run_id").desc()]
    found: Row | None = runs.where(wanted).orderBy(*newest).first()
    if found is None:
        known = [row[0] for row in runs.orderBy(*newest).select("run_id").limit(5).collect()]
        what = f"no run {run_id!r}" if run_id is not None else "no finished run"
        raise InputError(
            f"{what} in the ledger {ledger.location}; it has {', '.join(known) or 'none at all'}"
        )
    return found


def read_duplicates(spark: SparkSession, ledger: Ledger, run_id: str | None = None) -> DataFrame:
    """Return the rows of a run: the named one, else the newest good one.

    Raises:
        InputError: no such run.
    """
    from pyspark.sql import functions as F

    run = find_run(spark, ledger, run_id)
    return spark.table(ledger.duplicates).where(F.col("run_id") == F.lit(run["run_id"]))


def _is_there(spark: SparkSession, relation: str, wanted: Column) -> bool:
    return bool(spark.table(relation).where(wanted).limit(1).count())


def _id_type(kind: str) -> str:
    kind = kind.upper()
    if kind in ("TINYINT", "SMALLINT", "INT", "BIGINT"):
        return "BIGINT"
    if kind == "STRING" or kind.startswith(("DECIMAL", "BINARY")):
        return kind
    raise InputError(f"ids of type {kind.lower()} cannot be kept in a ledger: use integers or strings")


@contextmanager
def _held(ledger: Ledger) -> Iterator[None]:
    """Hold a ledger in a folder of this machine or on S3, waiting for the job that does.

    There Delta settles conflicts inside one JVM only: two would replace each other's commits.
    """
    deadline = time.monotonic() + PATIENCE_S
    with ExitStack() as stack:
        while os.path.isabs(ledger.location) or is_s3(ledger.location):
            try:
                stack.enter_context(exclusive(f"{ledger.location}/runs"))
                break
            except HeldError as error:
                if time.monotonic() > deadline:
                    raise _busy(ledger) from error
                time.sleep(0.1)
        yield


def _busy(ledger: Ledger) -> InputError:
    return InputError(
        f"another job keeps writing the ledger {ledger.location}: nothing of this run counts there; run it again"
    )


def _commit(write: Callable[[], None], ledger: Ledger) -> None:
    for attempt in range(1, TRIES + 1):
        try:
            write()
            return
        except Exception as error:
            # Delta's classes differ between classic and Connect sessions; its error classes do not.
            conflict = any(
                w in str(error) for w in ("DELTA_CONCURRENT", "DELTA_METADATA_CHANGED", "Concurrent")
            )
            if not conflict:
                raise
            if attempt == TRIES:
                raise _busy(ledger) from error
            time.sleep(attempt * 0.5)
