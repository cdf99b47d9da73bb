"""Every call of the table binds to the installed cuML, RAFT, NCCL and CuPy: the wheels import without a GPU."""

import inspect
from pathlib import Path

import pytest

pytest.importorskip("cuml", reason="make test-gpu-contract installs the GPU libraries")

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


@pytest.mark.parametrize("attribute", ["labels_", "cluster_centers_", "inertia_", "n_iter_"])
def test_fitted_attributes_are_set_by_every_fit(attribute):
    import cuml.cluster

    source = (Path(cuml.cluster.__file__).parent / "kmeans.pyx").read_text("utf-8")
    assert source.count(f"self.{attribute} = ") >= 2


def test_renamed_arguments_are_noticed():
    signature = inspect.signature(resolve(CALLS["kmeans"]))
    with pytest.raises(TypeError):
        signature.bind(number_of_clusters=3)
