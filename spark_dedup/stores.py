"""How Python reaches the object stores that Spark is set up for.

Spark reads and writes ``s3a://`` by settings of Hadoop's client (``fs.s3a.*``), Python by fsspec's s3fs. What Spark
is told of endpoint, region and keys is told to s3fs too, in the driver and in the tasks. What it is not told both
look up in the environment: ``AWS_*``, profiles, the machine's role. Other stores take theirs from there or from
fsspec's own configuration.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from spark_dedup.errors import InputError, first_line

__all__ = ["adopt", "is_s3", "named_refusal", "refusal", "s3_options", "spark_settings", "store_options"]

_S3 = ("s3", "s3a")
_AWS = re.compile(r"(?:https?://)?s3(?:[.-](?P<region>[a-z]{2}(?:-[a-z]+)+-\d))?\.amazonaws\.com/?")
_adopted: Mapping[str, str] | None = None


def is_s3(path: str) -> bool:
    """Return whether a path lies on S3, as Spark or as others spell it."""
    return urlsplit(path).scheme in _S3


def store_options(path: str) -> dict[str, Any]:
    """Return fsspec's options for a path: none but for S3, and none where fsspec is configured for that."""
    from fsspec.config import conf

    if not is_s3(path) or any(conf.get(scheme) for scheme in _S3):
        return {}
    return s3_options(spark_settings(), urlsplit(path).netloc)


def s3_options(settings: Mapping[str, str], bucket: str) -> dict[str, Any]:
    """Return settings of Hadoop's S3A as s3fs takes them.

    Args:
        settings: ``fs.s3a.*``; one of ``fs.s3a.bucket.NAME.*`` wins.
        bucket: the bucket to reach.
    """

    def said(name: str) -> str:
        return (
            settings.get(f"fs.s3a.bucket.{bucket}.{name}") or settings.get(f"fs.s3a.{name}") or ""
        ).strip()

    options = _credentials(said)
    if client := _client(said):
        options["client_kwargs"] = client
    if said("path.style.access").lower() == "true":
        options["config_kwargs"] = {"s3": {"addressing_style": "path"}}
    return options


def _credentials(said: Callable[[str], str]) -> dict[str, Any]:
    providers, key, secret = said("aws.credentials.provider"), said("access.key"), said("secret.key")
    if key and secret and (not providers or re.search("Simple|Temporary", providers)):
        token = said("session.token")
        return {"key": key, "secret": secret, **({"token": token} if token else {})}
    return {"anon": True} if re.search(r"Anonymous\w*$", providers) else {}


def _client(said: Callable[[str], str]) -> dict[str, str]:
    """Return endpoint and region; an endpoint of AWS itself only tells the region."""
    endpoint = said("endpoint")
    aws = _AWS.fullmatch(endpoint)
    client = {}
    if endpoint and not aws:
        scheme = "http" if said("connection.ssl.enabled").lower() == "false" else "https"
        client["endpoint_url"] = endpoint if "://" in endpoint else f"{scheme}://{endpoint}"
    region = said("endpoint.region") or (aws["region"] if aws else None)
    if region:
        client["region_name"] = region
    return client


def spark_settings() -> Mapping[str, str]:
    """Return what Spark is told of S3: in the driver by its session, in a task as the driver found it."""
    return _adopted if _adopted is not None else _session_settings(int(time.monotonic() / 5))


def adopt(settings: Mapping[str, str]) -> None:
    """Take the driver's settings over in a task."""
    global _adopted
    _adopted = settings


@lru_cache(maxsize=1)  # asked for every file, and each answer is some calls to the JVM
def _session_settings(_now: int) -> Mapping[str, str]:
    from spark_dedup.hadoop import s3_settings

    return s3_settings()


@contextlib.contextmanager
def named_refusal(path: str) -> Iterator[None]:
    """Turn what a store's library raises when it is not let in, or finds no store, into one line.

    Raises:
        InputError: saying what to set.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:  # the libraries' classes have nothing in common
        raise refusal(path, error) from error


def refusal(path: str, error: Exception) -> InputError:
    """Return the error of a store that a library could not reach, saying what to set."""
    return InputError(f"cannot reach {path} from Python ({first_line(error)}): {_how_to_reach(path, error)}")


def _how_to_reach(path: str, error: Exception) -> str:
    if is_s3(path):
        return (
            "set AWS_* variables, or spark.hadoop.fs.s3a.access.key, .secret.key and .endpoint, "
            "which it uses too"
        )
    scheme = urlsplit(path).scheme
    if scheme != "hdfs":
        return f"set the store's environment variables, or FSSPEC_{scheme.upper()}_*"
    if isinstance(error, PermissionError):
        return "name a path that this user may use, or be another (HADOOP_USER_NAME, kinit)"
    return (
        "it needs JAVA_HOME, libhdfs.so in ARROW_LIBHDFS_DIR or HADOOP_HOME/lib/native, and in CLASSPATH Hadoop's "
        "jars and the folder of its settings; if it has them, HDFS does not answer"
    )
