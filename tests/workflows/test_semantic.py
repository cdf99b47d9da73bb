import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import functions as F
from sklearn.datasets import make_blobs

from spark_dedup import (
    KMeansStage,
    RankingStrategy,
    SemanticDeduplicationWorkflow,
    TextDuplicatesRemovalWorkflow,
)
from spark_dedup.errors import InputError
from spark_dedup.semantic.kmeans import _SAMPLE_OF, fit_kmeans
from spark_dedup.settings import settings
from spark_dedup.workflows import semantic_matching
from spark_dedup.workflows.steps import Steps


def write(folder, x, ids=None, files=1, **columns):
    folder.mkdir(parents=True, exist_ok=True)
    ids = list(range(len(x))) if ids is None else ids
    table = pa.table({"id": ids, "embeddings": [v.astype(np.float32) for v in x], **columns})
    for i, part in enumerate(np.array_split(np.arange(len(x)), files)):
        pq.write_table(table.take(part), folder / f"part-{i}.parquet")
    return folder


def ids_in(folder):
    return sorted(i for f in folder.glob("*.parquet") for i in pq.read_table(f)["id"].to_pylist())


def near_copies(n=60, dim=8, seed=0):
    """Ten distant groups of six near-equal vectors."""
    rng = np.random.default_rng(seed)
    base = np.repeat(rng.standard_normal((n // 6, dim)), 6, axis=0)
    return base + 1e-4 * rng.standard_normal((n, dim))


@pytest.fixture(scope="module")
def blobs(tmp_path_factory):
    sizes = [100, 200, 300, 400, 500]
    x, _ = make_blobs(n_samples=sizes, n_features=3, random_state=42)
    return write(tmp_path_factory.mktemp("blobs"), x, files=2)


@pytest.mark.parametrize(("keep", "removed"), [("hard", 1471), ("easy", 1495)])
def test_blobs_layout_and_metadata(spark, blobs, tmp_path, keep, removed):
    out, cache = tmp_path / "out", tmp_path / "cache"
    ran = SemanticDeduplicationWorkflow(blobs, out, 5, cache_path=cache, eps=0.01, which_to_keep=keep).run(
        spark
    )
    assert ran["num_duplicates"] == ran["total_duplicates_identified"] == removed
    assert ran["num_documents"] == 1500
    assert ran["largest_cluster"] >= 300
    assert ran["inertia"] == pytest.approx(22.083, abs=0.01)
    assert {"total_time", "kmeans_time", "pairwise_time", "n_iter"} <= set(ran.metadata)
    assert ran["total_execution_time"] == ran["total_time"]
    assert len(ids_in(out / "duplicates")) == len(set(ids_in(out / "duplicates"))) == removed
    for file in (out / "duplicates").glob("*.parquet"):
        table = pq.read_table(file)
        assert table.column_names == ["id"]
        assert table["id"].to_pylist() == sorted(table["id"].to_pylist())
    clusters = sorted(p.name for p in (cache / "kmeans_results").glob("centroid=*"))
    assert clusters == [f"centroid={k}" for k in range(5)]
    assert np.load(cache / "kmeans_results" / "kmeans_centroids.npy").shape == (5, 3)
    kept = [pq.ParquetFile(f).read() for f in (cache / "kmeans_results").glob("centroid=*/*.parquet")]
    assert len(kept) == 5
    assert kept[0].column_names == ["id", "embeddings", "l2_dist_to_cent", "cosine_dist_to_cent"]
    pairs = pq.read_table(next((cache / "pairwise_results").glob("*.parquet"))).schema
    assert pairs.names == ["id", "max_id", "cosine_sim_score"]
    assert pairs.field("cosine_sim_score").type == pa.float32()


def test_a_killed_run_goes_on_and_changed_parameters_start_over(spark, tmp_path, monkeypatch, caplog):
    data, out = write(tmp_path / "in", near_copies()), tmp_path / "out"
    fitted = []
    job = SemanticDeduplicationWorkflow
    fit, compare = job._cluster, job._compare

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "_cluster", lambda *a: fitted.append(1) or fit(*a))
    monkeypatch.setattr(job, "_compare", killed)
    with pytest.raises(KeyboardInterrupt):
        job(data, out, 4, eps=0.01).run(spark)
    assert not (out / "duplicates").exists()
    monkeypatch.setattr(job, "_compare", compare)
    assert job(data, out, 4, eps=0.01).run(spark)["num_duplicates"] == 50
    assert len(fitted) == 1

    record = json.loads((out / ".spark_dedup_steps.json").read_text())
    (out / ".spark_dedup_steps.json").write_text(json.dumps({**record, "finished": False}))
    assert job(data, out, 4, eps=0.01, random_state=7).run(spark)["num_duplicates"] == 50
    assert len(fitted) == 2
    assert "starting over" in caplog.text
    with pytest.raises(FileExistsError):
        job(data, out, 4, eps=0.01, clear_output=False).run(spark)


def test_a_table_that_grew_since_the_killed_run_is_clustered_anew(spark, tmp_path, monkeypatch, caplog):
    table, out = str(tmp_path / "in"), tmp_path / "out"
    data = write(tmp_path / "files", near_copies())
    spark.read.parquet(str(data)).write.format("delta").save(table)
    job = SemanticDeduplicationWorkflow
    compare = job._compare

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "_compare", killed)
    with pytest.raises(KeyboardInterrupt):
        job(table, out, 4, eps=0.01).run(spark)
    monkeypatch.setattr(job, "_compare", compare)
    more = spark.read.parquet(str(data)).where("id < 6").selectExpr("id + 100 AS id", "embeddings")
    more.write.format("delta").mode("append").save(table)
    found = job(table, out, 4, eps=0.01).run(spark)
    assert "starting over" in caplog.text
    assert (found["num_documents"], found["num_duplicates"]) == (66, 56)


def test_a_file_that_is_replaced_while_the_clusters_are_made(spark, tmp_path, monkeypatch):
    data, out = write(tmp_path / "in", near_copies(), files=2), tmp_path / "out"
    job = SemanticDeduplicationWorkflow
    cluster = job._cluster

    def meanwhile(*args):
        done = cluster(*args)
        write(tmp_path / "in", near_copies(120), files=2)
        return done

    monkeypatch.setattr(job, "_cluster", meanwhile)
    with pytest.raises(InputError, match=r"the input changed while the job ran: .*parquet"):
        job(data, out, 4, eps=0.01).run(spark)
    assert not out.exists()


def test_a_view_that_grows_after_its_ids_were_checked(spark, tmp_path, monkeypatch, views):
    table, out = str(tmp_path / "in"), tmp_path / "out"
    rows = spark.read.parquet(str(write(tmp_path / "files", near_copies())))
    rows.write.format("delta").save(table)
    spark.sql(f"CREATE TEMPORARY VIEW growing AS SELECT * FROM delta.`{table}`")
    views.append("growing")
    job = SemanticDeduplicationWorkflow
    cluster = job._cluster

    def meanwhile(*args):
        rows.where("id < 6").write.format("delta").mode("append").save(table)
        return cluster(*args)

    monkeypatch.setattr(job, "_cluster", meanwhile)
    with pytest.raises(
        InputError, match=r"growing.* had 60 rows when its ids were checked and 66 when .* nobody writes"
    ):
        job("growing", out, 4, eps=0.01).run(spark)
    assert not out.exists()


def test_a_column_that_no_task_can_take_is_named_before_any_work(spark, tmp_path, views):
    data = str(write(tmp_path / "in", near_copies()))
    age = F.expr("make_ym_interval(1, cast(id AS int))")
    spark.read.parquet(data).withColumn("age", age).write.parquet(str(tmp_path / "aged"))
    spark.read.parquet(data).withColumn("tags", F.expr("array(struct())")).createOrReplaceTempView("tagged")
    views.append("tagged")
    with pytest.raises(InputError, match="column 'tags' has type array<struct<>>, which parquet does not"):
        KMeansStage("tagged", tmp_path / "out", 4, metadata_fields=["tags"]).run(spark)
    stage = KMeansStage(tmp_path / "aged", tmp_path / "out", 4, metadata_fields=["age"])
    with pytest.raises(
        InputError, match="column 'age' has type interval year to month, which Arrow does not"
    ):
        stage.run(spark)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("cache", "at"), [("out", (TextDuplicatesRemovalWorkflow, "run")), ("cache", (Steps, "close"))]
)
def test_a_run_killed_at_its_end_goes_on_without_clearing(spark, tmp_path, monkeypatch, cache, at):
    data, out = write(tmp_path / "in", near_copies()), tmp_path / "out"

    def run():
        job = SemanticDeduplicationWorkflow(
            data, out, 4, eps=0.01, clear_output=False, cache_path=tmp_path / cache, perform_removal=True
        )
        return job.run(spark)["num_duplicates"]

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(*at, killed)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert (out / "duplicates").exists()
    assert not json.loads((tmp_path / cache / ".spark_dedup_steps.json").read_text())["finished"]
    assert run() == 50
    assert pq.read_table(out / "deduplicated").num_rows == 10
    with pytest.raises(FileExistsError):
        run()


@pytest.mark.parametrize("source", ["files", "delta"])
def test_an_unusable_embedding_outside_the_sample(spark, tmp_path, source):
    x = np.concatenate([near_copies(600), np.zeros((30, 8))])
    data = write(tmp_path / "in", x, files=2)
    if source == "delta":
        spark.read.parquet(str(data)).write.format("delta").save(str(tmp_path / "table"))
        data = tmp_path / "table"
    options = {"fit_data_fraction": 0.3, "eps": 0.01}
    stage = SemanticDeduplicationWorkflow(data, tmp_path / "out", 4, invalid_embeddings="drop", **options)
    found = stage.run(spark)
    assert (found["num_documents"], found["num_invalid_embeddings"]) == (600, 30)
    # A start that is given needs no usable rows but those of the sample.
    one = write(tmp_path / "one", np.concatenate([near_copies(600), np.zeros((1, 8))]))
    fit = fit_kmeans(spark.read.parquet(str(one)), n_clusters=4, id_field="id", invalid_embeddings="drop",
                     fit_data_fraction=0.3)  # fmt: skip
    seed = next(s for s in range(9) if not _samples(spark, s, 600, 0.3))
    stage = KMeansStage(one, tmp_path / "b", 4, init=fit.centroids, random_state=seed, fit_data_fraction=0.3)
    with pytest.raises(InputError, match=r"1 all zero .*ids 600"):
        stage.run(spark)


def _samples(spark, seed, number, fraction):
    """Return whether a sample holds an id, by Spark's hash, with the steps that the fit documents."""
    key = "xxhash64(cast(id AS bigint))"
    row = (
        spark.range(number, number + 1)
        .selectExpr(f"pmod(xxhash64({seed}, {key}), {_SAMPLE_OF}) AS n")
        .first()
    )
    return row.n < int(fraction * _SAMPLE_OF)


def test_string_ids_metadata_ranking_and_no_eps(spark, tmp_path):
    x = near_copies()
    names = [f"doc é {i:02}" for i in range(len(x))]
    data = write(tmp_path / "in put", x, names, quality=list(np.arange(len(x)) % 6), source=["s"] * len(x))
    common = {
        "metadata_fields": ["source"],
        "ranking_strategy": RankingStrategy(["quality"], ascending=False),
    }
    first = SemanticDeduplicationWorkflow(data, tmp_path / "a", 4, **common).run(spark)
    assert first["num_duplicates"] == 0
    assert not (tmp_path / "a" / "duplicates").exists()
    file = next((tmp_path / "a" / "kmeans_results").glob("centroid=*/*.parquet"))
    assert {"source", "quality"} <= set(pq.ParquetFile(file).schema_arrow.names)
    SemanticDeduplicationWorkflow(data, tmp_path / "b", 4, eps=0.01, **common).run(spark)
    # The best of each group of six has quality 5.
    assert ids_in(tmp_path / "b" / "duplicates") == [n for i, n in enumerate(names) if i % 6 != 5]


def test_kmeans_stage(spark, tmp_path):
    data = write(tmp_path / "in", near_copies())
    ran = KMeansStage(data, tmp_path / "out", 4, metadata_fields=[]).run(spark)
    assert ran["num_documents"] == 60
    assert (tmp_path / "out" / "kmeans_results" / "kmeans_centroids.npy").exists()


def test_bad_input_before_any_work(spark, tmp_path):
    x = near_copies()
    data, out = write(tmp_path / "in", x), tmp_path / "out"
    job = SemanticDeduplicationWorkflow
    for kwargs, message in [
        ({"n_clusters": 0}, "n_clusters"),
        ({"n_clusters": -1}, "n_clusters"),
        ({"n_clusters": 61}, "60 rows"),
        ({"eps": 1.0}, "eps"),
        ({"eps": -0.1}, "eps"),
        ({"metadata_fields": ["absent"]}, "absent"),
        ({"id_field": "key"}, "key"),
        ({"embedding_field": "id"}, "embedding"),
        ({"init": np.zeros((3, 8))}, "init"),
        ({"which_to_keep": "best"}, "which_to_keep"),
        ({"distance_metric": "l1"}, "distance_metric"),
        ({"n_probe": 0}, "n_probe"),
        (
            {"ranking_strategy": RankingStrategy(["absent"])},
            r"Required columns \['absent'\] not found in .*in; it has",
        ),
        ({"ranking_strategy": "hard"}, "ranking_strategy must be a RankingStrategy, not 'hard'"),
        ({"id_field": "embeddings"}, "id_field and embedding_field are both 'embeddings'"),
        ({"random_state": -1}, "random_state must be a whole number"),
        (
            {"write_kwargs": {"compression": "zip"}},
            "write_kwargs: compression 'zip' is not one of none, uncompressed, snappy",
        ),
        ({"eps": np.float32(1.5)}, "eps must be at least 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            job(**{"input_path": data, "output_path": out, "n_clusters": 4, "eps": 0.1, **kwargs}).run(spark)
    with pytest.raises(FileNotFoundError):
        job(tmp_path / "absent", out, 4).run(spark)
    with pytest.raises(InputError, match="duplicate ids, such as 7"):
        job(write(tmp_path / "twice", x, [7, *range(1, 60)]), out, 4).run(spark)
    with pytest.raises(InputError, match="input"):
        job(data, data, 4).run(spark)
    lines = [json.dumps({"id": i, "embeddings": v.tolist()}) for i, v in enumerate(x)]
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "a.jsonl").write_text("\n".join([*lines[:9], lines[9][:30], *lines[10:]]))
    with pytest.raises(InputError, match=r"a\.jsonl.*line 10"):
        job(tmp_path / "lines", out, 4, input_filetype="jsonl").run(spark)
    half = pa.table({"id": range(60), "embeddings": pa.array(list(x.astype("f2")), pa.list_(pa.float16()))})
    (tmp_path / "half").mkdir()
    pq.write_table(half, tmp_path / "half" / "a.parquet")
    with pytest.raises(
        InputError, match=r"a\.parquet: column 'embeddings' has floats of 16 bits.*write float32"
    ):
        job(tmp_path / "half", out, 4).run(spark)
    assert not list(tmp_path.glob("out/*"))


def test_columns_that_cannot_be_kept_or_ranked_by_are_named_before_the_fit(spark, tmp_path, monkeypatch):
    maps = pa.array([[("a", 1)]] * 60, pa.map_(pa.string(), pa.int32()))
    data, out = write(tmp_path / "in", near_copies(), Centroid=range(60), m=maps), tmp_path / "out"

    def fitted(*_, **__):
        pytest.fail("k-means was fitted")

    monkeypatch.setattr("spark_dedup.workflows.semantic_clustering.fit_kmeans", fitted)
    for kwargs, message in [
        ({"metadata_fields": ["Centroid"]}, "column 'Centroid' would be replaced by the result"),
        ({"ranking_strategy": RankingStrategy(["Centroid"])}, "'Centroid' would be replaced"),
        (
            {"ranking_strategy": RankingStrategy(["m"])},
            "column 'm' has type map<string,int>, which has no order",
        ),
        ({"ranking_strategy": RankingStrategy(["embeddings"])}, "'embeddings' holds the embeddings"),
        ({"embedding_dim": "8"}, "embedding_dim must be a whole number of at least 1, not '8'"),
        ({"init": [[1, 2], [3]]}, "init is no array of numbers"),
    ]:
        with pytest.raises(InputError, match=message):
            SemanticDeduplicationWorkflow(data, out, 4, **kwargs).run(spark)
    assert not out.exists()


def test_input_in_a_folder_that_would_be_cleared_is_refused(spark, tmp_path):
    data = write(tmp_path / "duplicates", near_copies())
    with pytest.raises(InputError, match="input"):
        SemanticDeduplicationWorkflow(data, tmp_path, 4, eps=0.1).run(spark)
    assert len(list(data.glob("*.parquet"))) == 1


def test_input_beside_the_results_stays(spark, tmp_path):
    data = write(tmp_path / "embeddings", near_copies())
    assert SemanticDeduplicationWorkflow(data, tmp_path, 4, eps=0.01).run(spark)["num_duplicates"] == 50
    assert len(list(data.glob("*.parquet"))) == 1


def test_unusable_embeddings_are_named_or_left_out(spark, tmp_path):
    x = near_copies()
    x[3] = 0
    x[5, 1] = np.nan
    data, out = write(tmp_path / "in", x), tmp_path / "out"
    with pytest.raises(ValueError, match="2 of 60 embeddings cannot be used"):
        SemanticDeduplicationWorkflow(data, out, 4, eps=0.01).run(spark)
    ran = SemanticDeduplicationWorkflow(data, out, 4, eps=0.01, invalid_embeddings="drop").run(spark)
    assert (ran["num_documents"], ran["num_duplicates"], ran["num_invalid_embeddings"]) == (58, 48, 2)


def test_floats_split_into_byte_streams_are_read(spark, tmp_path):
    data = write(tmp_path / "in", near_copies())
    file = data / "part-0.parquet"
    pq.write_table(
        pq.read_table(file), file, use_dictionary=False,
        column_encoding={"id": "PLAIN", "embeddings.list.element": "BYTE_STREAM_SPLIT"},
    )  # fmt: skip
    before = spark.conf.get("spark.sql.parquet.enableVectorizedReader")
    ran = SemanticDeduplicationWorkflow(data, tmp_path / "out", 4, eps=0.01).run(spark)
    assert ran["num_duplicates"] == 50
    assert spark.conf.get("spark.sql.parquet.enableVectorizedReader") == before


def test_plan_touches_nothing(spark, tmp_path):
    data = write(tmp_path / "in", near_copies())
    planned = SemanticDeduplicationWorkflow(data, tmp_path / "out", 4, eps=0.01).plan(spark)
    assert (planned["rows"], planned["dimensions"]) == (60, 8)
    assert planned["pairwise_multiplications"] == 4 * (15 * 14 // 2) * 8
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_ledger(spark, held, tmp_path):
    data, ledger = write(tmp_path / "in", near_copies()), tmp_path / "ledger"
    SemanticDeduplicationWorkflow(data, tmp_path / "out", 4, eps=0.01, ledger=ledger).run(spark)
    rows = spark.read.format("delta").load(str(ledger / "duplicates")).collect()
    assert len(rows) == 50
    removed = {int(r["id"]) for r in rows}
    assert all(int(r["kept_id"]) not in removed and int(r["kept_id"]) // 6 == int(r["id"]) // 6 for r in rows)
    folders = sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_dir())
    assert folders == ["duplicates", "kmeans_results", "pairwise_results"]


@pytest.mark.parametrize("what", ["changed", "more"])
def test_an_input_that_changes_while_the_job_runs(spark, tmp_path, monkeypatch, what):
    """Else a record would be removed for what its file held before, or one that nobody compared be kept."""
    data, out = write(tmp_path / "in", near_copies(), files=2), tmp_path / "out"
    real = semantic_matching.identify

    def meanwhile(*args):
        done = real(*args)
        name = {"changed": "part-0.parquet", "more": "part-9.parquet"}[what]
        pq.write_table(pa.table({"id": [99], "embeddings": [np.ones(8, np.float32)]}), data / name)
        return done

    monkeypatch.setattr("spark_dedup.workflows.semantic.identify", meanwhile)
    with pytest.raises(InputError, match=r"input changed while the job ran: .*part-"):
        SemanticDeduplicationWorkflow(data, out, 4, eps=0.01, perform_removal=True).run(spark)
    assert not (out / "deduplicated").exists()


def test_rows_that_a_delta_table_gains_meanwhile_are_not_looked_at(spark, tmp_path, monkeypatch):
    data, table, out = write(tmp_path / "in", near_copies()), str(tmp_path / "table"), tmp_path / "out"
    spark.read.parquet(str(data)).write.format("delta").save(table)
    real = semantic_matching.compare

    def meanwhile(*args):
        more = spark.createDataFrame([(99, [1.0] * 8)], "id long, embeddings array<float>")
        more.write.format("delta").mode("append").save(table)
        return real(*args)

    monkeypatch.setattr("spark_dedup.workflows.semantic.compare", meanwhile)
    job = SemanticDeduplicationWorkflow(table, out, 4, input_filetype="delta", eps=0.01, perform_removal=True)
    done = job.run(spark)
    assert (done["num_documents"], done["num_documents_written"]) == (60, 10)
    assert 99 not in ids_in(out / "deduplicated")


def test_what_an_earlier_run_removed_is_said_to_be_old(spark, tmp_path, caplog):
    data, out = write(tmp_path / "in", near_copies()), tmp_path / "out"
    SemanticDeduplicationWorkflow(data, out, 4, eps=0.01, perform_removal=True).run(spark)
    assert "is not of this run" not in caplog.text
    SemanticDeduplicationWorkflow(data, out, 4, eps=0.02).run(spark)
    assert "out/deduplicated is not of this run: it is left as it was" in caplog.text


def test_a_broken_file_is_named_before_anything_else(spark, tmp_path):
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / "0.parquet"
    pq.write_table(pa.table({"id": [1, 2], "embeddings": [[1.0, 0.0], [0.0, 1.0]]}), file)
    file.write_bytes(file.read_bytes()[:-20])
    for ledger in (None, tmp_path / "ledger"):
        job = SemanticDeduplicationWorkflow(tmp_path / "in", tmp_path / "out", 1, eps=0.1, ledger=ledger)
        with pytest.raises(InputError, match=r"1 unreadable parquet file.*0\.parquet"):
            job.run(spark)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_on_spark_connect(spark, tmp_path, run_connect):
    """Clusters that one task compares, and with small blocks clusters that are cut: as in a classic session."""
    folder = write(tmp_path / "in", make_blobs([100, 200, 300], 3, random_state=42)[0])
    out = run_connect(f"""
from spark_dedup import SemanticDeduplicationWorkflow
for batch in (1024, 8):
    output = f"{tmp_path}/{{batch}}"
    job = SemanticDeduplicationWorkflow({str(folder)!r}, output, 3, eps=1e-3, pairwise_batch_size=batch)
    print(batch, job.run(spark)["num_duplicates"])
from spark_dedup.semantic.ranking import require_order
require_order(spark.range(1), ["id"])
try:
    require_order(spark.sql("SELECT map(1, 2) AS m"), ["m"])
except ValueError as error:
    print(error)
""")
    job = SemanticDeduplicationWorkflow(folder, tmp_path / "classic", 3, eps=1e-3)
    count = job.run(spark)["num_duplicates"]
    assert 0 < count < 600
    assert out.splitlines()[-3:-1] == [f"1024 {count}", f"8 {count}"]
    assert "column 'm' has type map<int,int>, which has no order to rank by" in out
    removed = [ids_in(tmp_path / name / "duplicates") for name in ("classic", "1024", "8")]
    assert removed[0] == removed[1] == removed[2]


def test_a_session_that_takes_folders_names_for_strings(spark, tmp_path):
    data = write(tmp_path / "in", near_copies())
    with settings(spark, {"spark.sql.sources.partitionColumnTypeInference.enabled": "false"}):
        job = SemanticDeduplicationWorkflow(data, tmp_path / "out", 4, eps=0.01, pairwise_batch_size=2)
        assert job.run(spark)["num_duplicates"] == 50


def test_sessions_with_wide_arrow_types_and_tiny_batches(spark, tmp_path):
    data = write(tmp_path / "in", near_copies(), text=["x" * i for i in range(60)])
    odd = {"useLargeVarTypes": "true", "maxRecordsPerBatch": "7"}
    with settings(spark, {f"spark.sql.execution.arrow.{key}": value for key, value in odd.items()}):
        ran = SemanticDeduplicationWorkflow(
            data, tmp_path / "out", 4, eps=0.01, metadata_fields=["text"]
        ).run(spark)
    assert (ran["num_documents"], ran["num_duplicates"]) == (60, 50)
    file = next((tmp_path / "out" / "kmeans_results").glob("centroid=*/*.parquet"))
    assert pq.read_schema(file).field("embeddings").type.value_type == pa.float32()
