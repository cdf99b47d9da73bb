"""What keeps the package at work on Spark 3.5, which many clusters still have, as on Spark 4."""

import ast
import inspect
import re
from pathlib import Path

from pyspark.sql import (
    Catalog,
    Column,
    DataFrame,
    DataFrameReader,
    DataFrameWriter,
    DataFrameWriterV2,
    GroupedData,
    SparkSession,
)
from pyspark.sql import functions as F

import spark_dedup

CLASSES = (Catalog, Column, DataFrame, DataFrameReader, DataFrameWriter, DataFrameWriterV2, GroupedData)
OF_OTHERS = {"exists", "plot", "scalar"}  # names that fsspec, our charts and Arrow have too


def since_spark_4(member):
    added = re.search(r"versionadded:: (\d+)", inspect.getdoc(member) or "")
    return added is not None and int(added[1]) >= 4


def test_nothing_is_called_that_only_spark_4_has():
    methods = {
        name
        for owner in (*CLASSES, SparkSession)
        for name, member in inspect.getmembers(owner)
        if not name.startswith("_") and since_spark_4(member)
    } - OF_OTHERS
    functions = {name for name, member in vars(F).items() if callable(member) and since_spark_4(member)}
    found = [
        f"{place}: {ast.unparse(node)}"
        for place, node in nodes()
        if isinstance(node, ast.Attribute)
        and node.attr in (functions if ast.unparse(node.value) == "F" else methods)
    ]
    assert found == []


def test_counts_are_made_ints():
    """A Connect session of 3.5 counts in NumPy's integers, which JSON does not take."""
    every = list(nodes())
    made = {id(node.args[0]) for _, node in every if is_call_of(node, "int", "bool") and node.args}
    found = [
        f"{place}: {ast.unparse(node)}"
        for place, node in every
        if is_call_of(node, "count") and not node.args and "groupBy" not in ast.unparse(node)
        if id(node) not in made
    ]
    assert found == []


def nodes():
    """Yield where each node of the package's syntax trees stands, and the node."""
    folder = Path(spark_dedup.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            yield f"{path.relative_to(folder)}:{getattr(node, 'lineno', 0)}", node


def is_call_of(node, *names):
    called = getattr(node, "func", None)
    return getattr(called, "id", getattr(called, "attr", None)) in names


def test_substrings_by_columns_are_methods():
    """The function takes columns as place and length from Spark 4 on, ``Column.substr`` always."""
    found = [
        f"{place}: {ast.unparse(node)}"
        for place, node in nodes()
        if is_call_of(node, "substring") and any("F." in ast.unparse(given) for given in node.args[1:])
    ]
    assert found == []
