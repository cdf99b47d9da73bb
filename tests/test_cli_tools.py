"""The commands beside the jobs, on results that lie where users put them."""

import json

import numpy as np
import pytest

from spark_dedup import cli_tools
from spark_dedup.cli import main
from spark_dedup.errors import InputError


def call(capsys, *args):
    """Exit code, stdout's lines and stderr."""
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, args), "--json"])
    out = capsys.readouterr()
    return stopped.value.code, out.out.splitlines(), out.err


class TestAudit:
    @pytest.fixture(scope="class")
    @classmethod
    def results(cls, spark, tmp_path_factory):
        """Two clusters in the layout of the job, in a folder of an odd name; one true pair lies across them."""
        folder = tmp_path_factory.mktemp("audit") / "k m`e'a[n]s %20 ü=1" / "kmeans_results"
        rows = [("a", [1.0, 0.0], 0), ("b", [1.0, 0.0], 0), ("c", [0.6, 0.8], 1), ("d", [0.8, 0.6], 0)]
        assigned = spark.createDataFrame(rows, "id string, embeddings array<float>, centroid int")
        assigned.write.partitionBy("centroid").parquet(str(folder))
        np.save(folder / "kmeans_centroids.npy", np.array([[1, 0], [0, 1]], np.float32))
        return folder

    def test_a_folder(self, results, capsys):
        # True pairs at similarity .96: a-b and c-d (.96); a-b shares a cluster, and two probes find both.
        code, lines, _ = call(capsys, "audit", "--results", results, "--eps", 0.04, "--n-probe", 2)
        assert code == 0
        assert [line.split()[2] for line in lines[1:3]] == ["0.500", "1.000"]
        assert not any("{" in line for line in lines[:-1])
        metadata = json.loads(lines[-1])
        assert (metadata["sample_size"], metadata["num_documents"]) == (4, 4)
        assert [(row["n_probe"], row["recall"]) for row in metadata["recall"]] == [(1, 0.5), (2, 1.0)]
        assert [{pair["id"], pair["other_id"]} for pair in metadata["missed"]] == [
            {"c", "d"},
            {"c", "d"},
        ]  # one by each end

    def test_a_table_and_a_delta_path(self, spark, results, tmp_path, capsys):
        rows = spark.createDataFrame(
            [("a", [1.0, 0.0], 0), ("b", [1.0, 0.0], 0), ("c", [0.0, 1.0], 1)],
            "id string, embeddings array<float>, centroid int",
        )
        rows.write.format("delta").save(str(tmp_path / "delta %20"))
        rows.write.format("delta").mode("overwrite").saveAsTable("audited")
        try:
            for place in (tmp_path / "delta %20", "audited", "default.`audited`"):
                code, lines, errors = call(capsys, "audit", "--results", place, "--eps", 0.1)
                assert (code, lines[1].split()[2]) == (0, "1.000"), errors
            with_centroids = ("--n-probe", 2, "--centroids", results / "kmeans_centroids.npy")
            code, lines, _ = call(capsys, "audit", "--results", "audited", "--eps", 0.1, *with_centroids)
            assert (code, [line.split()[2] for line in lines[1:3]]) == (0, ["1.000", "1.000"])
            code, _, errors = call(capsys, "audit", "--results", "audited", "--eps", 0.1, "--n-probe", 2)
            assert code == 2
            assert "no centroids at the table audited" in errors
            assert "--centroids" in errors
        finally:
            spark.sql("DROP TABLE audited")

    def test_nothing_there(self, spark, tmp_path, capsys):
        code, _, errors = call(capsys, "audit", "--results", tmp_path / "none", "--eps", 0.1)
        assert code == 2
        assert "no such path" in errors

    def test_the_session_starts_before_a_store_is_reached(self, monkeypatch, capsys):
        """Once Python has Java in its process, as for HDFS, the fork that starts Spark's never ends."""
        done = []

        def centroids(*_):
            done.append("centroids")
            raise InputError("enough")

        monkeypatch.setattr("spark_dedup.build_session", lambda **_: done.append("session"))
        monkeypatch.setattr(cli_tools, "_centroids", centroids)
        assert call(capsys, "audit", "--results", "hdfs://h/x", "--eps", 0.1, "--n-probe", 2)[0] == 2
        assert done == ["session", "centroids"]
