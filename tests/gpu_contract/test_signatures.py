"""Every call of the table binds to the installed cuML, RAFT, NCCL and CuPy: the wheels import without a GPU."""

import ast
import inspect
import re
from pathlib import Path

import pytest

pytest.importorskip("cuml", reason="make test-gpu-contract installs the GPU libraries")

import cupy

import spark_dedup
from spark_dedup.kernels.cuml import CALLS, resolve

pytestmark = pytest.mark.gpu_contract


def outline(entry):
    return (None,) * entry.positional, dict.fromkeys(entry.keywords)


@pytest.mark.parametrize("name", CALLS)
def test_call_binds(name):
    found = resolve(CALLS[name])
    assert callable(found)
    args, kwargs = outline(CALLS[name])
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        tried_without_device(found, args, kwargs)
        return
    signature.bind(*args, **kwargs)
    # A **kwargs swallows any name: then the class it hands them to must know them.
    if any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        explicit = {k for c in found.__mro__[1:2] for k in inspect.signature(c).parameters} | set(
            signature.parameters
        )
        assert set(kwargs) <= explicit


def tried_without_device(found, args, kwargs):
    """Compiled functions that hide their signature refuse a wrong argument before they look for a device."""
    args, kwargs = [0 for _ in args], dict.fromkeys(kwargs, 0)
    if kwargs:
        with pytest.raises(TypeError):
            found(*args, **kwargs, no_such_argument=1)
    try:
        found(*args, **kwargs)
    except Exception as error:
        if "cuda" not in type(error).__name__.lower() + str(error).lower():
            raise


def array_calls():
    """Every `xp.name(…)` of the kernels, with its file and line."""
    for path in sorted((Path(spark_dedup.__file__).parent / "kernels").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and re.fullmatch(r"xp(\.\w+)+", ast.unparse(node.func)):
                yield pytest.param(node, id=f"{path.name}:{node.lineno}:{ast.unparse(node.func)}")


@pytest.mark.parametrize("node", list(array_calls()))
def test_kernel_call_binds_to_cupy(node):
    found = cupy
    for part in ast.unparse(node.func).split(".")[1:]:
        found = getattr(found, part)
    if isinstance(found, cupy.ufunc | type):  # a ufunc or a dtype: neither tells its signature
        return
    assert not any(isinstance(a, ast.Starred) for a in node.args)
    inspect.signature(found).bind(*node.args, **{k.arg: k.value for k in node.keywords})


@pytest.mark.parametrize("attribute", ["labels_", "cluster_centers_", "inertia_", "n_iter_"])
def test_fitted_attributes_are_set_by_every_fit(attribute):
    import cuml.cluster

    source = (Path(cuml.cluster.__file__).parent / "kmeans.pyx").read_text("utf-8")
    assert source.count(f"self.{attribute} = ") >= 2


def test_renamed_arguments_are_noticed():
    signature = inspect.signature(resolve(CALLS["kmeans"]))
    with pytest.raises(TypeError):
        signature.bind(number_of_clusters=3)
