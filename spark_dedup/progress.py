"""How far Spark's jobs are: a bar on terminals and in notebooks, log lines elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from spark_dedup.session import job_context

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["job_progress"]

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def job_progress(spark: SparkSession, description: str) -> Iterator[None]:
    """Name the Spark jobs started inside the block, and show how far their tasks are.

    A bar on a terminal or in a notebook, a log line every half minute elsewhere. On Spark Connect, whose
    client draws its own bar, only the start and the end are logged.
    """
    logger.info("%s", description)
    started = time.monotonic()
    context = job_context(spark)
    if context is None:
        yield
    else:
        before = context.getLocalProperty("spark.job.description")
        context.setJobDescription(description)
        done = threading.Event()
        watcher = threading.Thread(target=_watch, args=(context, description, done), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join(timeout=5)
            context.setLocalProperty("spark.job.description", before)  # type: ignore[arg-type]
    logger.info("%s: %.1f s", description, time.monotonic() - started)


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    asked = getattr(ipython, "get_ipython", None)  # absent while another thread still imports IPython
    shell = asked() if asked else None
    return shell is not None and hasattr(shell, "kernel")


def _watch(context: Any, description: str, done: threading.Event) -> None:
    from tqdm.auto import tqdm

    tracker = context.statusTracker()
    shown = sys.stderr.isatty() or _in_notebook()
    logged = time.monotonic()
    layout = "{desc} {bar:30} {n_fmt}/{total_fmt} tasks {elapsed}"
    with tqdm(desc=description, total=1, leave=False, disable=not shown, delay=1, bar_format=layout) as bar:
        while not done.wait(0.5):
            try:
                stages = [
                    s for i in tracker.getActiveStageIds() if (s := tracker.getStageInfo(i)) is not None
                ]
            except Exception:  # the session was stopped under us: there is nothing left to show
                return
            finished, total = sum(s.numCompletedTasks for s in stages), sum(s.numTasks for s in stages)
            bar.total, bar.n = max(total, 1), finished
            bar.refresh()
            if not shown and total and time.monotonic() - logged > 30:
                logged = time.monotonic()
                logger.info("%s: %d of %d tasks", description, finished, total)
