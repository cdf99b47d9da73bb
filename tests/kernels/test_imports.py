"""Kernels take and give arrays: no Spark, no data frames, no Arrow, no other part of the library."""

import ast
from pathlib import Path

import pytest

import spark_dedup

KERNELS = sorted((Path(spark_dedup.__file__).parent / "kernels").glob("*.py"))
ALLOWED = {"__future__", "numpy", "cupy", "cuml", "pylibraft", "raft_dask"}
STANDARD = {"collections", "contextlib", "dataclasses", "importlib", "math", "types", "typing", "functools"}


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


@pytest.mark.parametrize("path", KERNELS, ids=lambda p: p.name)
def test_kernel_imports_arrays_only(path):
    for name in imported(ast.parse(path.read_text("utf-8"))):
        inside = name.startswith("spark_dedup.kernels.")
        assert inside or name.partition(".")[0] in ALLOWED | STANDARD, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", KERNELS, ids=lambda p: p.name)
def test_kernel_has_no_branch_on_the_device(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.If | ast.IfExp):
            assert "gpu" not in ast.unparse(node.test).lower(), f"{path.name}: {ast.unparse(node.test)}"
