"""Start of every Spark Connect snippet: a local Connect server with Delta."""

import os
import socket
import sys
import warnings

import pyspark
from pyspark.sql import SparkSession
from pyspark.sql.connect.client.core import DefaultChannelBuilder

from spark_dedup import runtime
from spark_dedup.session import DELTA_CONF

os.environ["PYSPARK_PYTHON"] = sys.executable
runtime.ensure_java()
# A port of its own: on the default one, snippets that run side by side meet each other's servers.
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
DefaultChannelBuilder.default_port = staticmethod(lambda: port)
# The server's static settings are offered to the client session too, which warns of each.
warnings.filterwarnings("ignore", message="Failed to set", module=r"pyspark\.sql\.connect")
builder = SparkSession.builder.remote("local[2]")
settings = {
    "spark.jars": ",".join(map(str, runtime.fetch_jars(pyspark.__version__))),
    "spark.connect.grpc.binding.port": str(port),
    "spark.driver.memory": "1g",
    "spark.sql.shuffle.partitions": "2",
    "spark.databricks.delta.snapshotPartitions": "1",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.warehouse.dir": os.path.join(os.getcwd(), "warehouse"),
    **DELTA_CONF,
}
for key, value in settings.items():
    builder = builder.config(key, value)
spark = builder.getOrCreate()
