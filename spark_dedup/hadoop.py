"""What this process's session knows of Hadoop: clients of stores, codecs, and what it is told of S3."""

from __future__ import annotations

import contextlib
import re
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from spark_dedup.errors import InputError
from spark_dedup.paths import is_local
from spark_dedup.settings import conf_of

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["default_store", "has_class", "instantiated_session", "require_client", "s3_settings"]

_S3_NAMES = (
    "access.key",
    "secret.key",
    "session.token",
    "aws.credentials.provider",
    "endpoint",
    "endpoint.region",
    "path.style.access",
    "connection.ssl.enabled",
)
_S3_SETTINGS = rf"^fs\.s3a\.(bucket\..+\.)?({'|'.join(map(re.escape, _S3_NAMES))})$"


def require_client(path: str) -> None:
    """Check that the process's session has a client for the store of a path, before Java says so in its own words.

    A path without a scheme is one of this machine here, so a session that takes it for another store's is refused.
    A Spark Connect session is not asked for clients: it tells no such thing.

    Raises:
        InputError: saying what to add.
    """
    if is_local(path):
        store = default_store()
        if urlsplit(store).scheme not in ("", "file", "dbfs"):
            raise InputError(
                f"this Spark session takes {path} for one of {store}: write {store}{path}, or, for files of this "
                "machine, start it with spark.hadoop.fs.defaultFS=file:///"
            )
        return
    context = _active_context()
    if context is None:
        return
    hadoop, scheme = context._jvm.org.apache.hadoop, path.partition("://")[0]
    try:
        hadoop.fs.FileSystem.getFileSystemClass(scheme, context._jsc.hadoopConfiguration())
    except Exception as error:  # py4j's own, whatever Java raised
        if not re.search(r"UnsupportedFileSystemException|ClassNotFoundException", str(error)):
            return
        if scheme in ("s3", "s3a", "s3n"):
            version = hadoop.util.VersionInfo.getVersion()
            how = f"start it with --packages org.apache.hadoop:hadoop-aws:{version} and write s3a://"
        else:
            how = "start it with the Hadoop client of that store, as --packages"
        raise InputError(
            f"this Spark session has no client for {scheme}://, so it cannot reach {path}: {how}"
        ) from error


def default_store() -> str:
    """Return the store, as ``hdfs://host:port``, that paths without a scheme are of to the process's session."""
    context = _active_context()
    store = ""
    with contextlib.suppress(Exception):  # a JVM that is gone, or that tells nothing, as on shared clusters
        if context is not None:
            store = context._jsc.hadoopConfiguration().get("fs.defaultFS") or ""
        elif (session := instantiated_session()) is not None:
            store = conf_of(session, "spark.hadoop.fs.defaultFS")
    return store.rstrip("/")


def has_class(name: str) -> bool:
    """Return whether the process's session has a Java class; a Spark Connect session, which does not tell, has."""
    context = _active_context()
    if context is None:
        return True
    try:
        context._jvm.java.lang.Thread.currentThread().getContextClassLoader().loadClass(name)
    except Exception as error:  # py4j's own, whatever Java raised
        return "ClassNotFoundException" not in str(error)
    return True


def _active_context() -> Any:
    if sys.modules.get("pyspark") is None:
        return None
    from pyspark import SparkContext

    context = SparkContext._active_spark_context
    return None if context is None or context._jsc is None or context._jvm is None else context


def s3_settings() -> dict[str, str]:
    """Return what the process's session is told of S3 (``fs.s3a.*``), by Hadoop's files too; empty without one."""
    if sys.modules.get("pyspark") is None:
        return {}
    from pyspark import SparkContext

    found: dict[str, str] = {}
    context = SparkContext._active_spark_context
    with contextlib.suppress(Exception):  # a JVM that is gone, or that tells nothing, as on shared clusters
        if context is not None and context._jsc is not None:
            found |= dict(context._jsc.hadoopConfiguration().getValByRegex(_S3_SETTINGS))
    session = instantiated_session()
    if session is not None:
        for name in _S3_NAMES:
            value = conf_of(session, f"fs.s3a.{name}") or conf_of(session, f"spark.hadoop.fs.s3a.{name}")
            found |= {f"fs.s3a.{name}": value} if value else {}
    return found


def instantiated_session() -> SparkSession | None:
    """Return the session that the process has, whatever thread asks; None without one, or when it was stopped."""
    if sys.modules.get("pyspark") is None:
        return None
    from pyspark.sql import SparkSession

    module = sys.modules.get("pyspark.sql.connect.session")
    remote = getattr(getattr(module, "SparkSession", None), "_default_session", None)
    if remote is not None and not getattr(remote, "is_stopped", False):
        return remote  # type: ignore[no-any-return]
    classic: SparkSession | None = getattr(SparkSession, "_instantiatedSession", None)
    return None if classic is None or classic.sparkContext._jsc is None else classic
