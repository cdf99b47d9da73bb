"""The exact job: files, metadata, ids, survivors, resuming; numbers from a plain hash table."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from sessions import child_environment

from spark_dedup import CURATOR_DEDUP_ID_STR as ID
from spark_dedup import ExactDeduplicationWorkflow, IdGenerator, IdRegistry
from spark_dedup.errors import InputError
from spark_dedup.removal import passes
from spark_dedup.workflows import exact_matching
from spark_dedup.workflows.steps import Steps

TEXTS = ["a", "b", None, "a", "", "c", "ä\u0000", "a", "b", "ä\u0000", "A", "a "]
"""Groups: a = 0, 3, 7; b = 1, 8; null and empty = 2, 4; ä = 6, 9."""
REMOVED = [3, 4, 7, 8, 9]


def write(folder, texts, ids=None, parts=3, **columns):
    """Write texts in order into ``parts`` files named so that listing keeps the order."""
    os.makedirs(folder, exist_ok=True)
    data = {**({"id": ids} if ids is not None else {}), "text": pa.array(texts, pa.string()), **columns}
    table = pa.table(data)
    step = -(-len(texts) // parts)
    for i in range(parts):
        pq.write_table(table.slice(i * step, step), f"{folder}/part-{i}.parquet")
    return str(folder)


def expected(texts, ids):
    """Return the ids to remove, by a hash table: all but the smallest of each text."""
    first, removed = {}, []
    for key, text in sorted(zip(ids, texts, strict=True)):
        if (text or "") in first:
            removed.append(key)
        else:
            first[text or ""] = key
    return sorted(removed)


def listed(folder):
    return sorted(
        ds.dataset(f"{folder}/ExactDuplicateIds", format="parquet").to_table().column(0).to_pylist()
    )


def state(folder):
    """Return hashes of all files below a folder."""
    return {
        os.path.relpath(os.path.join(root, name), folder): hashlib.sha256(
            open(os.path.join(root, name), "rb").read()
        ).hexdigest()
        for root, _, names in os.walk(folder)
        for name in names
    }


@pytest.fixture(scope="module")
def assigned(spark, tmp_path_factory):
    """Output of a job with assigned ids and removal."""
    folder = tmp_path_factory.mktemp("assigned")
    source = write(folder / "in", TEXTS)
    before = state(source)
    result = ExactDeduplicationWorkflow(
        input_path=source, output_path=folder / "out", perform_removal=True
    ).run(spark)
    assert state(source) == before
    return folder, result


def test_metadata(assigned):
    folder, result = assigned
    counts = {key: result[key] for key in ("num_documents", "num_duplicates", "num_groups")}
    assert counts == {"num_documents": 12, "num_duplicates": 5, "num_groups": 4}
    assert result["id_generator_path"] == f"{folder}/out/exact_id_generator.json"
    assert (result["num_duplicates_removed"], result["num_documents_written"]) == (5, 7)
    for key in ("total_time", "identification_time", "removal_time"):
        assert result[key] > 0
    assert "num_duplicates" in repr(result)


def test_files(assigned):
    folder, _ = assigned
    out = folder / "out"
    assert listed(out) == REMOVED == expected(TEXTS, range(12))
    for path in (out / "ExactDuplicateIds").glob("*.parquet"):
        table = pq.read_table(path)
        assert table.schema.names == [ID]
        assert table.schema.field(ID).type == pa.int64()
        assert table.column(0).to_pylist() == sorted(table.column(0).to_pylist())
    names = {name for name in os.listdir(out) if not name.startswith(".")}
    assert names == {"ExactDuplicateIds", "exact_id_generator.json", "id_registry", "deduplicated"}
    assert {name for name in os.listdir(out) if name.startswith(".")} == {".spark_dedup_steps.json"}
    assert sorted(os.listdir(folder)) == ["in", "out"]


def test_generator_in_curators_form(assigned):
    folder, _ = assigned
    state = json.loads((folder / "out" / "exact_id_generator.json").read_text())
    files = [str(folder / "in" / f"part-{i}.parquet") for i in range(3)]
    ranges = {IdGenerator.hash_files(f): [4 * i, 4 * i + 3] for i, f in enumerate(files)}
    assert state == {"next_id": 12, "batch_registry": ranges}


def test_removal_keeps_order_and_columns(assigned):
    folder, _ = assigned
    rows = ds.dataset(str(folder / "out" / "deduplicated"), format="parquet").to_table().to_pylist()
    assert sorted((r[ID], r["text"]) for r in rows) == [(i, TEXTS[i]) for i in range(12) if i not in REMOVED]


def test_a_finished_output_is_refused_and_stays(spark, assigned):
    folder, _ = assigned
    before = state(folder)
    job = {"input_path": folder / "in", "output_path": folder / "out"}
    with pytest.raises(FileExistsError, match="of a finished run: choose another output folder"):
        ExactDeduplicationWorkflow(**job).run(spark)
    with pytest.raises(FileExistsError):
        ExactDeduplicationWorkflow(**job).plan(spark)
    assert state(folder) == before


def test_overwriting_gives_the_same_ids(spark, assigned, tmp_path):
    folder, _ = assigned
    before = state(folder / "out" / "ExactDuplicateIds")
    source = write(folder / "more", TEXTS[:2], parts=1)
    result = ExactDeduplicationWorkflow(
        input_path=[folder / "in", source],
        output_path=tmp_path / "out",
        registry=folder / "out" / "id_registry",
        output_mode="overwrite",
    ).run(spark)
    assert before
    assert listed(tmp_path / "out") == [*REMOVED, 12, 13]
    assert result["num_documents"] == 14


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("kind", ["string", "int32"])
def test_id_column_of_any_type_and_partitioning(spark, tmp_path, parts, kind):
    ids = [f"r{99 - i:02}" for i in range(12)] if kind == "string" else [i * 1000 - 5 for i in range(12)]
    column = pa.array(ids, pa.string() if kind == "string" else pa.int32())
    source = write(tmp_path / "in", TEXTS, column, parts=parts)
    result = ExactDeduplicationWorkflow(
        input_path=source, output_path=tmp_path / "out", assign_id=False, id_field="id", total_nparts=3
    ).run(spark)
    assert listed(tmp_path / "out") == expected(TEXTS, ids)
    schema = ds.dataset(str(tmp_path / "out" / "ExactDuplicateIds"), format="parquet").schema
    assert schema.names == ["id"]
    assert schema.field("id").type == column.type
    assert result["id_generator_path"] is None
    assert not (tmp_path / "out" / "exact_id_generator.json").exists()
    assert not (tmp_path / "out" / "id_registry").exists()


def test_no_duplicates_gives_a_readable_empty_list(spark, tmp_path):
    source = write(tmp_path / "in", ["x", "y", "z"], pa.array([5, 6, 7], pa.int64()))
    result = ExactDeduplicationWorkflow(
        input_path=source, output_path=tmp_path / "out", assign_id=False, id_field="id", perform_removal=True
    ).run(spark)
    table = ds.dataset(str(tmp_path / "out" / "ExactDuplicateIds"), format="parquet").to_table()
    assert table.schema == pa.schema([("id", pa.int64())])
    assert (table.num_rows, result["num_duplicates"], result["num_groups"]) == (0, 0, 0)
    assert result["num_documents_written"] == 3
    assert spark.read.parquet(str(tmp_path / "out" / "ExactDuplicateIds")).count() == 0


def test_keep_and_verify(spark, tmp_path):
    rows = {"id": [1, 2, 3, 4, 5], "quality": [1.0, 9.0, 9.0, None, 2.0], "date": ["b", "b", "a", "a", "z"]}
    table = pa.table({**rows, "text": ["t", "t", "t", "t", "u"]})
    os.makedirs(tmp_path / "in")
    pq.write_table(table, tmp_path / "in" / "a.parquet")
    ExactDeduplicationWorkflow(
        input_path=tmp_path / "in",
        output_path=tmp_path / "out",
        assign_id=False,
        id_field="id",
        keep=[("quality", "desc"), "date"],
        verify=True,
    ).run(spark)
    assert listed(tmp_path / "out") == [1, 2, 4]  # 3 has the best quality and the earlier date


def test_xxhash64_writes_the_same_ids_and_is_a_result_of_its_own(spark, tmp_path):
    os.makedirs(tmp_path / "in")
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "in" / "a.parquet")
    results = {}
    for name in ("md5", "xxhash64"):
        job = ExactDeduplicationWorkflow(
            input_path=tmp_path / "in",
            output_path=tmp_path / name,
            hash_method=name,
            ledger=tmp_path / "ledger",
        )
        results[name] = (job.run(spark)["num_groups"], listed(tmp_path / name))
    assert results["md5"] == results["xxhash64"]
    groups = (
        spark.read.format("delta").load(str(tmp_path / "ledger" / "duplicates")).select("run_id", "group_id")
    )
    assert {len(row.group_id) for row in groups.collect()} == {32}
    assert len({row.run_id for row in groups.collect()}) == 2
    with pytest.raises(FileExistsError, match="of a finished run"):
        ExactDeduplicationWorkflow(
            input_path=tmp_path / "in", output_path=tmp_path / "md5", hash_method="xxhash64"
        ).run(spark)


def test_jsonl_gz_and_blank_lines_with_removal(spark, tmp_path):
    import gzip

    (tmp_path / "in").mkdir()
    lines = [{"text": t, "n": {"k": i}, "big": i + 0.5} for i, t in enumerate(TEXTS)]
    dumped = [json.dumps(line, ensure_ascii=False) for line in lines]
    (tmp_path / "in" / "a.jsonl").write_text("\n\n".join(dumped[:6]) + "\n", encoding="utf-8")
    with gzip.open(tmp_path / "in" / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(dumped[6:]))
    result = ExactDeduplicationWorkflow(
        input_path=str(tmp_path / "in"),
        output_path=tmp_path / "out",
        input_filetype="jsonl",
        perform_removal=True,
    ).run(spark)
    assert listed(tmp_path / "out") == REMOVED
    assert result["num_documents"] == 12
    files = sorted((tmp_path / "out" / "deduplicated").glob("*.jsonl"))
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    kept = [{**line, ID: i} for i, line in enumerate(lines) if i not in REMOVED]
    assert sorted(map(json.loads, text.splitlines()), key=lambda r: r[ID]) == kept
    assert '"ä' in text


def test_delta_and_table_names(spark, tmp_path):
    path = str(tmp_path / "docs")
    df = spark.createDataFrame(list(enumerate(TEXTS)), "id int, text string").coalesce(1)
    df.write.format("delta").option("delta.enableDeletionVectors", "true").save(path)
    spark.sql(f"DELETE FROM delta.`{path}` WHERE id IN (0, 5)")
    spark.sql(f"CREATE TABLE default.`1exact_docs` USING delta LOCATION '{path}'")
    try:
        for number, source in enumerate((path, ["default.`1exact_docs`"])):
            out = tmp_path / f"out{number}"
            result = ExactDeduplicationWorkflow(input_path=source, output_path=out, perform_removal=True).run(
                spark
            )
            # Ids are the places in the file, of deleted rows too; of a's group 3 survives now.
            assert listed(out) == [4, 7, 8, 9]
            assert (result["num_documents"], result["num_documents_written"]) == (10, 6)
    finally:
        spark.sql("DROP TABLE default.`1exact_docs`")


def test_partition_folders_are_columns(spark, tmp_path):
    for lang, part in (("de", TEXTS[:6]), ("en", TEXTS[6:])):
        write(tmp_path / "in" / f"lang={lang}", part, parts=1)
    ExactDeduplicationWorkflow(
        input_path=tmp_path / "in",
        output_path=tmp_path / "out",
        keep=[("lang", "desc")],
        perform_removal=True,
    ).run(spark)
    assert listed(tmp_path / "out") == [0, 1, 3, 4, 9]
    kept = spark.read.parquet(str(tmp_path / "out" / "deduplicated"))
    assert {r["lang"] for r in kept.collect()} == {"de", "en"}


def test_settings_reach_spark_or_warn(spark, tmp_path, caplog):
    source = write(tmp_path / "in", TEXTS, parts=1)
    before = spark.conf.get("spark.sql.files.maxPartitionBytes")
    ExactDeduplicationWorkflow(
        input_path=source,
        output_path=tmp_path / "out",
        input_blocksize="64MiB",
        identification_batchsize=2,
        rmm_pool_size=123,
        write_kwargs={"compression": "gzip"},
    ).run(spark)
    assert "spark.rapids.memory.gpu.allocSize=123" in caplog.text
    assert spark.conf.get("spark.sql.files.maxPartitionBytes") == before
    assert all(".gz.parquet" in p.name for p in (tmp_path / "out" / "ExactDuplicateIds").glob("*.parquet"))


def test_plan_touches_nothing(spark, tmp_path):
    source = write(tmp_path / "in", TEXTS)
    plan = ExactDeduplicationWorkflow(
        input_path=source, output_path=tmp_path / "out", perform_removal=True
    ).plan(spark)
    assert (plan["rows"], plan["files"], plan["shuffle_bytes"]) == (12, 3, 12 * 40)
    with_rows = ExactDeduplicationWorkflow(
        input_path=source, output_path=tmp_path / "out", ledger=tmp_path / "ledger"
    ).plan(spark)
    assert with_rows["shuffle_bytes"] == 12 * 80  # the ledger has the md5
    assert "ExactDuplicateIds" in plan["writes"]
    assert sorted(os.listdir(tmp_path)) == ["in"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"assign_id": False}, "id_field must be provided if assign_id is False"),
        ({"id_field": "id"}, "id_field must be None if assign_id is True"),
        ({"input_path": None}, "input_path is missing"),
        ({"output_mode": "append"}, "output_mode must be"),
        ({"keep": [("a", "up")]}, "keep takes columns"),
        ({"input_blocksize": "much"}, "not a size"),
        ({"total_nparts": 0}, "total_nparts must be a whole number of at least 1"),
        ({"total_nparts": "8"}, "total_nparts must be a whole number of at least 1, not .8."),
        (
            {"write_kwargs": {"compression": "zip"}},
            "write_kwargs: compression 'zip' is not one of none, uncompressed, snappy",
        ),
        ({"rmm_pool_size": "much"}, "not a size in bytes: 'much'"),
    ],
)
def test_arguments(arguments, says):
    with pytest.raises(ValueError, match=says):
        ExactDeduplicationWorkflow(**{"output_path": "out", "input_path": "in", **arguments})


KILLED = """
import sys, time
from spark_dedup import build_session, ExactDeduplicationWorkflow
from spark_dedup.workflows import {module} as module
from spark_dedup import outputs
conf = {{"spark.sql.shuffle.partitions": "2", "spark.driver.memory": "1g"}}
spark = build_session(device="cpu", master="local[2]", conf=conf)
def stop(*args, **kwargs):
    print("HERE", flush=True)
    time.sleep(300)
real = outputs.publish
def publish(aside, path, mode="error"):
    stop() if path.endswith({at!r}) else real(aside, path, mode=mode)
outputs.publish = publish
ExactDeduplicationWorkflow(input_path=sys.argv[1], output_path=sys.argv[2], perform_removal=True).run(spark)
"""


@pytest.mark.parametrize("at", ["ExactDuplicateIds", "deduplicated"])
def test_a_killed_job_goes_on_with_the_same_ids(spark, tmp_path, at):
    """A real process, killed when all is written aside and nothing published, in each of the two steps."""
    source, out = write(tmp_path / "in", TEXTS), tmp_path / "out"
    script = KILLED.format(module="exact", at=at)
    started = subprocess.Popen(
        [sys.executable, "-c", script, source, str(out)],
        stdout=subprocess.PIPE,
        env=child_environment(),
        text=True,
        start_new_session=True,
    )
    try:
        assert started.stdout.readline().strip() == "HERE"
        with pytest.raises(InputError, match="another job is writing"):
            ExactDeduplicationWorkflow(input_path=source, output_path=out).run(spark)
    finally:
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()
    time.sleep(0.2)
    left = [name for _, folders, _ in os.walk(tmp_path) for name in folders if name.endswith(".tmp")]
    assert len(left) == 1
    if at == "ExactDuplicateIds":  # as if it had been killed a little earlier, too
        (out / ".exact_id_generator.json.0123456789ab.tmp").write_text('{"next')
    result = ExactDeduplicationWorkflow(input_path=source, output_path=out, perform_removal=True).run(spark)
    assert listed(out) == REMOVED
    assert (result["num_duplicates"], result["num_documents_written"]) == (5, 7)
    left = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")]
    left = [name for name in left if "id_registry" not in name and name.endswith((".tmp", ".lock", ".old"))]
    assert left == []


@pytest.mark.parametrize("what", ["changed", "more"])
def test_an_input_that_changes_while_the_job_runs(spark, tmp_path, monkeypatch, what):
    """Else a document that is no duplicate by now would be removed, or one that nobody compared be kept."""
    source, out = write(tmp_path / "in", TEXTS, ids=range(len(TEXTS))), tmp_path / "out"
    real = exact_matching.safety_stop

    def meanwhile(*args):
        if what == "changed":
            write(source, [f"new {text}" for text in range(12)], ids=range(12))
        else:
            pq.write_table(pa.table({"id": [99], "text": ["a"]}), f"{source}/part-9.parquet")
        return real(*args)

    def run():
        return ExactDeduplicationWorkflow(
            input_path=source, output_path=out, assign_id=False, id_field="id", perform_removal=True
        ).run(spark)

    with monkeypatch.context() as patched:
        patched.setattr("spark_dedup.workflows.exact.safety_stop", meanwhile)
        with pytest.raises(InputError, match=r"input changed while the job ran: .*part-"):
            run()
    assert not (out / "deduplicated").exists()
    assert run()["num_duplicates_removed"] == {"changed": 0, "more": 6}[what]


@pytest.mark.parametrize("is_long", [False, True])
def test_rows_that_a_delta_table_gains_meanwhile_are_not_looked_at(spark, tmp_path, monkeypatch, is_long):
    """Removal would keep them without comparing them."""
    table, out = str(tmp_path / "table"), tmp_path / "out"
    rows = [(number, text) for number, text in enumerate(TEXTS)]
    spark.createDataFrame(rows, "id long, text string").write.format("delta").save(table)
    if is_long:
        monkeypatch.setattr(passes, "IDS_PER_PASS", 1)
    real = exact_matching.safety_stop

    def meanwhile(*args):
        more = spark.createDataFrame([(99, TEXTS[0]), (100, "new")], "id long, text string")
        more.write.format("delta").mode("append").save(table)
        return real(*args)

    monkeypatch.setattr("spark_dedup.workflows.exact.safety_stop", meanwhile)
    job = ExactDeduplicationWorkflow(
        input_path=table, output_path=out, assign_id=False, id_field="id", perform_removal=True
    )
    done = job.run(spark)
    kept = spark.read.parquet(str(out / "deduplicated")).collect()
    first = {text or "": number for number, text in reversed(rows)}
    assert sorted(row["id"] for row in kept) == sorted(first.values())
    assert done["num_documents_written"] + done["num_duplicates_removed"] == len(TEXTS)


def test_a_failed_job_leaves_no_rows_in_a_folder_of_the_users(spark, tmp_path, monkeypatch):
    source, out = write(tmp_path / "in", TEXTS), tmp_path / "out"
    (out / "mine").mkdir(parents=True)

    def fails(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(exact_matching, "write_ids", fails)
    with pytest.raises(OSError, match="disk full"):
        ExactDeduplicationWorkflow(input_path=source, output_path=out, max_cluster_fraction=0.9).run(spark)
    assert os.listdir(out) == ["mine"]


def test_a_job_killed_while_it_closes_is_finished_or_goes_on(spark, tmp_path, monkeypatch):
    """Until the run counts as finished, a rerun reads the rows behind the ids."""
    source, out = write(tmp_path / "in", TEXTS), tmp_path / "out"

    def run():
        return ExactDeduplicationWorkflow(
            input_path=source, output_path=out, perform_removal=True, max_cluster_fraction=0.9
        ).run(spark)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Steps, "close", killed)
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.undo()
    assert run()["num_duplicates"] == len(REMOVED)
    assert listed(out) == REMOVED
    assert not (out / ".ledger_rows").exists()
    with pytest.raises(FileExistsError, match="finished run"):
        run()


@pytest.mark.parametrize("used", [True, False])
def test_a_failed_job_leaves_a_registry_that_another_uses(spark, tmp_path, monkeypatch, used):
    """Else the other's ids would be given out again."""
    source, out = write(tmp_path / "in", TEXTS, parts=2), tmp_path / "out"

    def fails(*_, **__):
        if used:
            registry = IdRegistry.open(spark, out / "id_registry")
            assert registry.register_batch("/data/other.parquet", 5) == len(TEXTS)
        raise OSError("disk full")

    monkeypatch.setattr(exact_matching, "write_ids", fails)
    with pytest.raises(OSError, match="disk full"):
        ExactDeduplicationWorkflow(input_path=source, output_path=out).run(spark)
    assert out.exists() == used
    monkeypatch.undo()
    ExactDeduplicationWorkflow(input_path=source, output_path=out).run(spark)
    assert listed(out) == REMOVED
    assert IdRegistry.open(spark, out / "id_registry").next_id == len(TEXTS) + 5 * used


def test_real_counts(spark, shared_data, tmp_path):
    """2,929 surplus copies in 1,078 groups, counted outside this project."""
    source = shared_data / "cve_descriptions"
    texts = pq.read_table(source / "cve.parquet", columns=["id", "text"]).to_pydict()
    assert len(expected(texts["text"], texts["id"])) == 2929
    result = ExactDeduplicationWorkflow(
        input_path=source, output_path=tmp_path / "out", assign_id=False, id_field="id", perform_removal=True
    ).run(spark)
    assert (result["num_duplicates"], result["num_groups"]) == (2929, 1078)
    assert listed(tmp_path / "out") == expected(texts["text"], texts["id"])
    kept = ds.dataset(str(tmp_path / "out" / "deduplicated"), format="parquet").to_table()
    whole = pq.read_table(source / "cve.parquet")
    gone = set(listed(tmp_path / "out"))
    want = [row for row in whole.to_pylist() if row["id"] not in gone]
    assert kept.to_pylist() == want
