"""The tests' session, classic or Spark Connect: what only one has, and what is asked of each in its own way."""

import contextlib
import io
import os

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

CONNECT = os.environ.get("SPARK_DEDUP_TEST_MASTER") == "connect"


def needs_classic(what):
    """Skip a test on Spark Connect for want of ``what``."""
    return pytest.mark.skipif(CONNECT, reason=f"a Spark Connect session has no {what}")


def plan_of(df, kind="Physical"):
    """Return a plan as Spark explains it: ``Parsed Logical``, ``Optimized Logical`` or ``Physical``."""
    with contextlib.redirect_stdout(io.StringIO()) as told:
        df.explain(mode="extended")
    return told.getvalue().partition(f"== {kind} Plan ==\n")[2].partition("\n== ")[0].strip()


def partitions(df):
    """Return how many partitions have rows."""
    return df.select(F.spark_partition_id()).distinct().count()


def another(spark):
    """Return a second session, which shares tables and lasting views with the first."""
    return SparkSession.builder.remote("sc://localhost").create() if CONNECT else spark.newSession()


def child_environment():
    """Return what a process with a session of its own is started with: a Connect session marks the variables."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("SPARK_CONNECT_", "SPARK_LOCAL_REMOTE"))}
