"""Start of every Spark Connect snippet: a local Connect server with Delta."""

import os
import sys

import pyspark
from pyspark.sql import SparkSession

from spark_dedup import runtime
from spark_dedup.session import DELTA_CONF

os.environ["PYSPARK_PYTHON"] = sys.executable
runtime.ensure_java()
builder = SparkSession.builder.remote("local[2]")
settings = {
    "spark.jars": ",".join(map(str, runtime.fetch_jars(pyspark.__version__))),
    "spark.sql.shuffle.partitions": "2",
    "spark.databricks.delta.snapshotPartitions": "1",
    "spark.ui.enabled": "false",
    "spark.sql.warehouse.dir": os.path.join(os.getcwd(), "warehouse"),
    **DELTA_CONF,
}
for key, value in settings.items():
    builder = builder.config(key, value)
spark = builder.getOrCreate()
