"""Every notebook runs from top to bottom, and stands in git without outputs."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from sessions import child_environment

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def test_all_are_there():
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_outputs_in_git(path):
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert code
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder for all, as on Databricks; the last notebook matches the documents of the first again."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, folder, tmp_path, monkeypatch):
    for name in os.environ.keys() - child_environment().keys():
        monkeypatch.delenv(name)
    monkeypatch.setenv("SPARK_DEDUP_FOLDER", str(folder))
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(path.parents[1]), os.environ.get("PYTHONPATH", "")])
    )
    book = nbformat.read(path, as_version=4)
    client = NotebookClient(
        book, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    shown = [o for cell in book.cells if cell.cell_type == "code" for o in cell.outputs]
    assert any("data" in output for output in shown)
    if path.stem[:2] in ("03", "04"):
        assert any("<iframe" in output.get("data", {}).get("text/html", "") for output in shown)
