"""The command line as a user calls it: in this process for arguments, as real processes for whole jobs."""

import json
import subprocess
import sys
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pyspark
import pytest
from sessions import child_environment

import spark_dedup.cli
from spark_dedup import runtime
from spark_dedup.cli import main
from spark_dedup.session import DELTA_CONF

TEXTS = ["a", "b", "a", None, "", "c", "d", "e", "f", "a"]


@pytest.fixture
def docs(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    pq.write_table(pa.table({"text": TEXTS, "n": range(len(TEXTS))}), folder / "t.parquet")
    return folder


def run(capsys, *args):
    """Exit code, stdout and stderr of the command line in this process."""
    with pytest.raises(SystemExit) as stopped:
        main(list(map(str, args)))
    out = capsys.readouterr()
    return stopped.value.code, out.out, out.err


def test_exact_remove_and_ids(spark, docs, tmp_path, capsys):
    out = tmp_path / "out"
    code, stdout, _ = run(capsys, "exact", "--input", docs, "--output", out, "--json")
    assert code == 0
    metadata = json.loads(stdout.splitlines()[-1])
    assert (metadata["num_documents"], metadata["num_duplicates"], metadata["num_groups"]) == (10, 3, 2)
    assert pq.read_table(out / "ExactDuplicateIds")["_curator_dedup_id"].to_pylist() == [2, 4, 9]

    code, stdout, _ = run(
        capsys, "remove", "--input", docs, "--duplicates", out / "ExactDuplicateIds", "--output", tmp_path / "kept",
        "--id-generator", out / "exact_id_generator.json", "--duplicate-id-field", "_curator_dedup_id", "--json",
    )  # fmt: skip
    assert code == 0
    assert json.loads(stdout.splitlines()[-1])["num_duplicates_removed"] == 3
    assert pq.read_table(tmp_path / "kept")["n"].to_pylist() == [0, 1, 3, 5, 6, 7, 8]

    code, stdout, _ = run(capsys, "ids", "show", out / "id_registry")
    assert code == 0
    assert "t.parquet" in stdout
    code, stdout, _ = run(capsys, "ids", "export", out / "id_registry", tmp_path / "ids.json")
    assert code == 0
    assert json.loads((tmp_path / "ids.json").read_text())["next_id"] == 10
    code, stdout, _ = run(capsys, "ids", "import", tmp_path / "ids.json", tmp_path / "registry")
    assert code == 0
    assert "next_id: 10" in stdout


@pytest.mark.parametrize("grouped", [("--input-files-per-partition", 2), ("--input-blocksize", "1MiB")])
def test_ids_of_curators_batches_of_files(spark, tmp_path, capsys, grouped):
    docs = tmp_path / "docs"
    docs.mkdir()
    files = [docs / name for name in ("a.parquet", "b.parquet")]
    for file, texts in zip(files, (["p", "q"], ["r" * 1000, "s"]), strict=True):  # in order of size, too
        pq.write_table(pa.table({"text": texts}), file, compression="none")
    key = str(uuid.uuid5(uuid.NAMESPACE_URL, ";".join(map(str, files))))
    (tmp_path / "ids.json").write_text(json.dumps({"next_id": 4, "batch_registry": {key: [0, 3]}}))
    pq.write_table(pa.table({"id": [1, 3]}), tmp_path / "list.parquet")
    asked = (
        "remove", "--input", docs, "--duplicates", tmp_path / "list.parquet", "--output", tmp_path / "kept",
        "--id-generator", tmp_path / "ids.json",
    )  # fmt: skip
    code, _, errors = run(capsys, *asked, "--quiet")
    assert code == 2
    assert "give its input_files_per_partition or input_blocksize" in errors
    code, _, errors = run(capsys, *asked, *grouped)
    assert code == 0, errors
    kept = pq.read_table(tmp_path / "kept").to_pydict()
    assert dict(zip(kept["text"], kept["_curator_dedup_id"], strict=True)) == {"p": 0, "r" * 1000: 2}


def test_rules_of_both_jobs(spark, tmp_path, capsys):
    # Three directions: two copies each of the first two, one of the last.
    made = {"id": [1, 2, 3, 4, 5], "v": [[1.0, 0], [1.0, 0], [0, 1.0], [0, 1.0], [-1.0, 0]]}
    made |= {"t": ["a", "aa", "b", "b", "c"], "s": ["web", "web", "web", "gold", "web"]}
    pq.write_table(pa.table(made), tmp_path / "in.parquet")
    rules = ("--source-field", "s", "--protected-source", "gold", "--drop-all-copies")
    exact = ("--id-field", "id", "--text-field", "t", *rules)
    semantic = ("--n-clusters", 1, "--eps", 0.01, "--embedding-field", "v", "--keep-longest", "t")
    for command, options, folder, removed in (
        ("exact", exact, "ExactDuplicateIds", [3]),
        ("semantic", (*semantic, *rules), "duplicates", [1, 2, 3]),
        ("semantic", semantic, "duplicates", [1, 3]),
    ):
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        code, _, errors = run(capsys, command, "--input", tmp_path / "in.parquet", "--output", out, *options)
        assert code == 0, errors
        assert sorted(pq.read_table(out / folder)["id"].to_pylist()) == removed
    code, _, errors = run(
        capsys, "semantic", "--input", tmp_path / "in.parquet", "--output", tmp_path / "x", *semantic[:4],
        "--protected-source", "gold",
    )  # fmt: skip
    assert (code, errors.strip()) == (2, "spark-dedup: rules by source need source_field")


def test_unusable_embeddings_are_left_out_when_asked(spark, tmp_path, capsys):
    made = {"id": [1, 2, 3], "embeddings": [[1.0, 0], [1.0, 0], [0.0, 0]]}
    pq.write_table(pa.table(made), tmp_path / "in.parquet")
    asked = ("semantic", "--input", tmp_path / "in.parquet", "--output", tmp_path / "out", "--n-clusters", 1)
    code, _, errors = run(capsys, *asked, "--quiet")
    assert code == 2
    assert "1 all zero" in errors
    assert "--invalid-embeddings drop" in errors
    code, stdout, errors = run(capsys, *asked, "--invalid-embeddings", "drop", "--json")
    assert code == 0, errors
    assert json.loads(stdout.splitlines()[-1])["num_invalid_embeddings"] == 1


def test_registry_in_a_schema_that_is_not_there(spark, tmp_path, capsys):
    (tmp_path / "ids.json").write_text('{"next_id": 0, "batch_registry": {}}')
    code, _, errors = run(capsys, "ids", "import", tmp_path / "ids.json", "no_such_schema.ids")
    assert code == 2, errors
    assert "the id registry no_such_schema.ids cannot be created" in errors
    assert "no_such_schema" in errors.partition("created:")[2]


def test_semantic_removal_from_a_delta_table(spark, tmp_path, capsys):
    rows = [(1, [1.0, 0.0], "a"), (2, [1.0, 0.0], "b"), (3, [0.0, 1.0], "c"), (4, [0.0, 1.0], "d")]
    source = str(tmp_path / "in put")
    given = spark.createDataFrame(rows, "id bigint, embeddings array<float>, text string")
    given.write.format("delta").save(source)
    spark.sql(f"DELETE FROM delta.`{source}` WHERE id = 4")
    code, stdout, errors = run(
        capsys, "semantic", "--input", source, "--filetype", "delta", "--output", tmp_path / "out",
        "--n-clusters", 1, "--eps", 0.01, "--which-to-keep", "easy", "--remove", "--json",
    )  # fmt: skip
    assert code == 0, errors
    metadata = json.loads(stdout.splitlines()[-1])
    assert (metadata["num_documents"], metadata["num_duplicates"]) == (3, 1)
    assert (metadata["num_duplicates_removed"], metadata["num_documents_written"]) == (1, 2)
    assert metadata["removal_time"] > 0
    remaining = spark.read.format("delta").load(str(tmp_path / "out" / "deduplicated")).orderBy("id")
    assert [(row.id, row.text) for row in remaining.collect()] == [(1, "a"), (3, "c")]


def test_an_interrupt_in_a_spark_job_is_no_error(docs, tmp_path, monkeypatch, capsys):
    """Spark's handler of Ctrl-C raises, out of the call that waits for Java, an error that does not tell of it."""

    def signal_handler():
        raise RuntimeError("An error occurred while calling o40.sc")

    def stopped(_):
        try:
            signal_handler()
        except RuntimeError:
            raise RuntimeError("An error occurred while calling o91.parquet")  # noqa: B904

    monkeypatch.setattr(spark_dedup.ExactDeduplicationWorkflow, "run", stopped)
    code, _, errors = run(capsys, "exact", "--input", docs, "--output", tmp_path / "out")
    assert (code, errors) == (1, "stopped\n")


def test_dry_run_touches_nothing(spark, docs, tmp_path, capsys):
    code, stdout, _ = run(capsys, "exact", "--input", docs, "--output", tmp_path / "out", "--dry-run")
    assert code == 0
    assert "10" in stdout
    assert "ExactDuplicateIds" in stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["exact", "--output", "x"], "--input"),
        (["exact", "--input", "{tmp}/absent", "--output", "{tmp}/x"], "no such path"),
        (["exact", "--input", "{docs}", "--output", "{tmp}/x", "--text-field", "body"], "'body' not found"),
        (["exact", "--input", "{docs}", "--output", "{tmp}/x", "--text-field", "n"], "not string"),
        (["exact", "--input", "{docs}", "--output", "{docs}/x"], "inside the input"),
        (["exact", "--input", "{docs}", "--output", "{tmp}/x", "--device", "gpu"], "GPU"),
        (["nonsense"], "No such command"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(spark, docs, tmp_path, capsys, monkeypatch, args, said):
    monkeypatch.setattr("spark_dedup.runtime.has_gpu", lambda: False)
    monkeypatch.setattr("spark_dedup.session._present_session", lambda: None if "gpu" in args else spark)
    code, _, stderr = run(capsys, *[a.format(tmp=tmp_path, docs=docs) for a in args])
    assert code == 2
    assert said in stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "args",
    [
        ["exact", "--input", "{tmp}/absent", "--output", "{tmp}/x"],
        ["remove", "--input", "{docs}", "--duplicates", "{tmp}/absent", "--output", "{tmp}/x"],
        [
            "semantic",
            "--input",
            "{docs}",
            "--input",
            "{tmp}/absent",
            "--output",
            "{tmp}/x",
            "--n-clusters",
            "2",
        ],
    ],
)
def test_absent_paths_are_told_before_a_session_starts(docs, tmp_path, capsys, monkeypatch, args):
    monkeypatch.setattr("spark_dedup.session._present_session", lambda: pytest.fail("a session is sought"))
    code, _, stderr = run(capsys, *[a.format(tmp=tmp_path, docs=docs) for a in args])
    assert (code, stderr) == (2, f"spark-dedup: no such path: {tmp_path}/absent\n")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["exact", "--input", "x"], "Missing option '--output'. See spark-dedup exact --help"),
        (["exact", "--input", "x", "--output", "y", "--filetype", "csv"], "'csv' is not one of"),
        (["semantic", "--input", "x", "--output", "y", "--n-clusters", "many"], "not a valid integer"),
        (["exact", "--no-such-thing"], "--no-such-thing"),
        (["frobnicate"], "No such command 'frobnicate'. See spark-dedup --help"),
        (["plan"], "Choose from: exact, remove, semantic. See spark-dedup plan --help"),
        (["plan", "exact", "--input", "x"], "Missing option '--output'. See spark-dedup exact --help"),
        (
            ["ids", "show", "x", "--limit", "-1"],
            "-1 is not in the range x>=0. See spark-dedup ids show --help",
        ),
        (["ids", "show", "{tmp}/folder.json"], "Is a directory: {tmp}/folder.json"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_2(tmp_path, capsys, args, said):
    (tmp_path / "folder.json").mkdir()
    code, _, stderr = run(capsys, *[arg.format(tmp=tmp_path) for arg in args])
    lines = stderr.splitlines()
    assert (code, len(lines)) == (2, 1)
    assert lines[0].startswith("spark-dedup: ")
    assert said.format(tmp=tmp_path) in lines[0]


def test_debug_shows_the_traceback_and_keeps_the_exit_code(docs, tmp_path, monkeypatch, capsys):
    asked = ("exact", "--input", tmp_path / "absent", "--output", tmp_path / "out", "--debug")
    code, _, stderr = run(capsys, *asked)
    assert code == 2
    assert stderr.startswith("Traceback")
    assert stderr.splitlines()[-1] == f"spark-dedup: no such path: {tmp_path / 'absent'}"

    for error, said in (
        (RuntimeError("disk full"), "disk full"),
        (KeyError("n"), "n"),
        (ValueError("odd"), "odd"),
    ):

        def broken(_, error=error):
            raise error

        monkeypatch.setattr(spark_dedup.ExactDeduplicationWorkflow, "run", broken)
        code, _, stderr = run(capsys, "exact", "--input", docs, "--output", tmp_path / "out", "--debug")
        assert (code, stderr.splitlines()[-1]) == (1, f"spark-dedup: {said}")


@pytest.mark.parametrize("command", [*spark_dedup.cli.cli.commands, "ids show", "ids export", "ids import"])
def test_every_command_has_help(capsys, command):
    for option in ("--help", "-h"):
        code, stdout, _ = run(capsys, *command.split(), option)
        assert (code, stdout.split()[:3]) == (0, ["Usage:", "spark-dedup", *command.split()][:3])
    if command == "plan":
        assert "--text-field" in run(capsys, command, "exact", "--help")[1]


def test_no_arguments_show_the_help(capsys):
    code, _, stderr = run(capsys)
    assert code == 2
    assert "Usage: spark-dedup [OPTIONS] COMMAND" in stderr


def test_spark_submit(docs, tmp_path):
    """The same file under a real spark-submit process, as the README documents it."""
    runtime.ensure_java()
    jars = ",".join(map(str, runtime.fetch_jars(pyspark.__version__)))
    submit = Path(pyspark.__file__).parent / "bin" / "spark-submit"
    settings = {**DELTA_CONF, "spark.ui.enabled": "false", "spark.sql.shuffle.partitions": "2"}
    confs = [part for key, value in settings.items() for part in ("--conf", f"{key}={value}")]
    ran = subprocess.run(
        [submit, "--master", "local[2]", "--driver-memory", "1g", "--jars", jars, *confs,
         spark_dedup.cli.__file__, "exact", "--input", docs, "--output", tmp_path / "out", "--remove", "--json"],
        capture_output=True, text=True, timeout=300, cwd=tmp_path,
        env={**child_environment(), "PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    metadata = json.loads(ran.stdout.splitlines()[-1])
    assert (metadata["num_duplicates"], metadata["num_documents_written"]) == (3, 7)
    assert sorted(pq.read_table(tmp_path / "out" / "deduplicated")["n"].to_pylist()) == [0, 1, 3, 5, 6, 7, 8]


@pytest.mark.parametrize("small", [True, False])
def test_small_input_is_compiled_quickly(spark, docs, tmp_path, monkeypatch, small):
    called = []
    monkeypatch.setattr("spark_dedup.cli.compile_quickly", lambda: called.append(True))
    if not small:
        monkeypatch.setattr("spark_dedup.listing._SMALL_BYTES", 0)
    with pytest.raises(SystemExit) as ended:
        main(["exact", "--input", str(docs), "--output", str(tmp_path / "o"), "--dry-run"])
    assert ended.value.code == 0
    assert called == ([True] if small else [])
