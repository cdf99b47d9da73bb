"""Marks of tests that use what Spark has from 4.0 on; most of the package works on 3.5, too."""

import pyspark
import pytest

OLD = int(pyspark.__version__.split(".")[0]) < 4


def needs_spark_4(what):
    """Skip a test on Spark 3 for want of ``what``."""
    return pytest.mark.skipif(OLD, reason=f"{what} needs Spark 4.0 or newer; this is {pyspark.__version__}")


ARROW_FRAMES = needs_spark_4("createDataFrame from an Arrow table")
TO_ARROW = needs_spark_4("DataFrame.toArrow")
