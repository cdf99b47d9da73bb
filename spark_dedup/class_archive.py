"""An archive of Spark's loaded classes, which a JVM maps instead of reading jars (JEP 350): start-up by a third.

Java checks by itself that an archive fits its version and the jars, and does without one that does not.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spark_dedup.errors import InputError
from spark_dedup.java import java_options, joined
from spark_dedup.runtime import GIVEN_SESSION, cache_dir, ensure_java, ensure_pyspark

__all__ = ["archive_options", "make_archive"]

logger = logging.getLogger(__name__)

_KEPT = 4
_SECONDS = 300


def archive_options(java: Path) -> list[str]:
    """Return the options of a JVM that uses the archive of this Java and Spark, none where there is no archive."""
    archive = _archive(java)
    if not archive.is_file():
        return []
    # Without these a jar that has changed since would be a warning at every start.
    return [f"-XX:SharedArchiveFile={archive}", "-Xlog:cds=off", "-Xlog:cds+dynamic=off"]


def make_archive() -> Path | None:
    """Run a small job in a process of its own and keep the classes it loads; return the archive.

    None, with the reason in the log, where this Java makes no archives.
    """
    java = ensure_java()
    archive = _archive(java)
    if archive.is_file():
        return archive
    if not _can_make(java):
        logger.info("no archive of Spark's classes was made: this Java, a part of a JDK, makes none")
        return None
    archive.parent.mkdir(parents=True, exist_ok=True)
    logger.info("making an archive of Spark's classes (once; about a minute)")
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".make-") as aside:
        made = Path(aside) / archive.name
        command = [sys.executable, "-m", "spark_dedup.class_archive", str(made)]
        # The training needs a JVM of its own, also where sessions belong to somebody else.
        env = {name: value for name, value in os.environ.items() if name not in GIVEN_SESSION}
        try:
            ran = subprocess.run(
                command, capture_output=True, text=True, timeout=_SECONDS, check=False, env=env
            )
            reason = "" if ran.returncode == 0 else ran.stderr.strip().rpartition("\n")[2]
        except subprocess.TimeoutExpired:
            reason = f"it took more than {_SECONDS} s"
        if reason or not made.is_file():
            logger.warning("no archive of Spark's classes was made: %s", reason or "Java wrote none")
            return None
        os.replace(made, archive)
    for old in sorted(archive.parent.glob("*.jsa"), key=lambda path: path.stat().st_mtime)[:-_KEPT]:
        old.unlink(missing_ok=True)
    return archive


def _can_make(java: Path) -> bool:
    """Return whether a Java has the archive of its own classes, which one of Spark's builds upon."""
    with tempfile.TemporaryDirectory() as folder:
        command = [str(java), f"-XX:ArchiveClassesAtExit={folder}/probe.jsa", "-version"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _archive(java: Path) -> Path:
    """Return where the archive of a Java and this Spark lies."""
    version = ensure_pyspark()
    import pyspark

    home = os.environ.get("SPARK_HOME") or str(Path(pyspark.__file__).parent)
    names = "\n".join([version, os.path.realpath(home), os.path.realpath(java)])
    return cache_dir() / "classes" / f"{hashlib.sha256(names.encode()).hexdigest()[:16]}.jsa"


def _train(archive: str) -> None:
    """Run exact matching on a few rows in a JVM that writes the archive when it exits."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from spark_dedup import ExactDeduplicationWorkflow, TextDuplicatesRemovalWorkflow, build_session

    options = joined([*java_options(), f"-XX:ArchiveClassesAtExit={archive}"])
    spark = build_session("class archive", device="cpu", conf={"spark.driver.extraJavaOptions": options})
    with tempfile.TemporaryDirectory() as folder:
        rows = f"{folder}/rows.parquet"
        pq.write_table(pa.table({"id": [0, 1], "text": ["a", "a"]}), rows)
        ExactDeduplicationWorkflow(
            input_path=rows, output_path=f"{folder}/found", assign_id=False, id_field="id"
        ).run(spark)
        TextDuplicatesRemovalWorkflow(
            input_path=rows,
            ids_to_remove_path=f"{folder}/found/ExactDuplicateIds",
            output_path=f"{folder}/rest",
            input_id_field="id",
            ids_to_remove_duplicate_id_field="id",
        ).run(spark)
    gateway: Any = spark.sparkContext._gateway
    spark.stop()
    gateway.shutdown()
    gateway.proc.stdin.close()
    gateway.proc.wait()


def main(argv: Sequence[str] | None = None) -> int:
    """Make the archive, unless it is there: ``python -m spark_dedup.class_archive``."""
    given = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if given:
        _train(given[0])
        return 0
    try:
        made = make_archive()
    except InputError as error:
        logger.error("error: %s", error)
        return 2
    if made is not None:
        logger.info("%s", made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
