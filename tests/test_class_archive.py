"""The archive of Spark's classes: used where it lies, never in the way."""

import logging
import shlex
import subprocess
from pathlib import Path

import pytest
from sessions import needs_classic

from spark_dedup import class_archive
from spark_dedup.class_archive import archive_options, make_archive
from spark_dedup.java import joined
from spark_dedup.runtime import ensure_java


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARK_DEDUP_CACHE", str(tmp_path / "my cache"))
    return tmp_path / "my cache" / "classes"


def answer(returncode, content=None):
    """What stands in for the training process: it writes its archive, and ends."""

    def run(command, **_):
        if command[-1] == "-version":
            return subprocess.CompletedProcess(command, 0)
        if content is not None:
            Path(command[-1]).write_bytes(content)
        return subprocess.CompletedProcess(command, returncode, "", "Traceback\nValueError: no classes\n")

    return run


def test_no_archive_no_options(cache):
    assert archive_options(ensure_java()) == []


def test_what_was_made_is_used_by_a_jvm_even_when_it_is_damaged(cache, monkeypatch):
    java = ensure_java()
    monkeypatch.setattr(class_archive, "ensure_java", lambda: java)
    monkeypatch.setattr(class_archive.subprocess, "run", answer(0, b"damaged"))
    made = make_archive()
    monkeypatch.undo()
    monkeypatch.setenv("SPARK_DEDUP_CACHE", str(cache.parent))
    assert made is not None
    assert made.parent == cache
    options = archive_options(java)
    assert options[0] == f"-XX:SharedArchiveFile={made}"
    ran = subprocess.run([str(java), *options, "-version"], capture_output=True, text=True, check=True)
    assert ran.stdout == ""
    assert "cds" not in ran.stderr


@pytest.mark.parametrize(
    ("process", "reason"),
    [(answer(1, b"half"), "ValueError: no classes"), (answer(0), "Java wrote none")],
)
def test_a_failed_training_leaves_nothing_and_says_why(cache, monkeypatch, caplog, process, reason):
    monkeypatch.setattr(class_archive, "ensure_java", lambda: Path("/opt/java"))
    monkeypatch.setattr(class_archive.subprocess, "run", process)
    with caplog.at_level(logging.WARNING):
        assert make_archive() is None
    assert reason in caplog.text
    assert not list(cache.iterdir())


def test_a_java_without_an_archive_of_its_own_is_not_trained(cache, tmp_path, monkeypatch, caplog):
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho 'unsupported when base CDS archive is not loaded' >&2\nexit 1\n")
    java.chmod(0o755)
    monkeypatch.setattr(class_archive, "ensure_java", lambda: java)
    with caplog.at_level(logging.INFO):
        assert make_archive() is None
    assert "this Java, a part of a JDK, makes none" in caplog.text
    assert not cache.exists()


def test_the_training_has_a_session_of_its_own(cache, monkeypatch):
    monkeypatch.setattr(class_archive, "ensure_java", lambda: Path("/opt/java"))
    monkeypatch.setenv("SPARK_REMOTE", "sc://elsewhere")
    given = []

    def run(command, **options):
        given.append(options.get("env"))
        return answer(0, b"new")(command)

    monkeypatch.setattr(class_archive.subprocess, "run", run)
    assert make_archive() is not None
    assert "SPARK_REMOTE" not in given[-1]
    assert "PATH" in given[-1]


def test_old_archives_go(cache, monkeypatch):
    cache.mkdir(parents=True)
    for number in range(9):
        (cache / f"{number}.jsa").write_bytes(b"old")
    monkeypatch.setattr(class_archive, "ensure_java", lambda: Path("/opt/java"))
    monkeypatch.setattr(class_archive.subprocess, "run", answer(0, b"new"))
    made = make_archive()
    assert made in set(cache.iterdir())
    assert len(list(cache.iterdir())) == 4


@needs_classic("JVM of this process")
def test_a_local_session_starts_with_the_archive_of_this_environment(spark):
    beans = spark.sparkContext._jvm.java.lang.management.ManagementFactory
    given = list(beans.getRuntimeMXBean().getInputArguments())
    wanted = archive_options(ensure_java())
    assert [option for option in given if option in wanted] == wanted


def test_options_keep_spaces_quotes_and_backslashes():
    options = ["-Da=/my dir/x", '-Db="q"', "-Dc=back\\slash", "-Dd=$HOME"]
    assert shlex.split(joined(options)) == options
