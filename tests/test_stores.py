"""What Spark is told of S3 is told to Python, and a store that lets nobody in is named."""

import fsspec
import hostless
import pyarrow.fs
import pytest
from fsspec.implementations.arrow import ArrowFSWrapper
from sessions import CONNECT, needs_classic

from spark_dedup import outputs, stores
from spark_dedup.errors import InputError
from spark_dedup.hadoop import require_client, s3_settings
from spark_dedup.ids.registry import IdRegistry
from spark_dedup.leases import leased
from spark_dedup.ledger_tables import _clear_torn
from spark_dedup.listing import check_there, list_files
from spark_dedup.outputs import check_output
from spark_dedup.paths import exists, filesystem, make_folder, normalise_path
from spark_dedup.semantic.cluster_reading import files_below
from spark_dedup.settings import settings
from spark_dedup.sources import find_source
from spark_dedup.workers import in_worker

SIMPLE = "org.apache.hadoop.fs.s3a.SimpleAWSCredentialsProvider"
KEYS = {"access.key": "K", "secret.key": "S"}


@pytest.mark.parametrize(
    ("told", "options"),
    [
        ({}, {}),
        (KEYS, {"key": "K", "secret": "S"}),
        ({**KEYS, "session.token": "T"}, {"key": "K", "secret": "S", "token": "T"}),
        ({**KEYS, "bucket.b.access.key": "own"}, {"key": "own", "secret": "S"}),
        ({**KEYS, "bucket.other.access.key": "own"}, {"key": "K", "secret": "S"}),
        ({"access.key": "K"}, {}),
        ({**KEYS, "aws.credentials.provider": SIMPLE}, {"key": "K", "secret": "S"}),
        ({**KEYS, "aws.credentials.provider": "com.amazonaws.auth.InstanceProfileCredentialsProvider"}, {}),
        (
            {"aws.credentials.provider": "org.apache.hadoop.fs.s3a.AnonymousAWSCredentialsProvider"},
            {"anon": True},
        ),
        ({"endpoint": "http://host:9000"}, {"client_kwargs": {"endpoint_url": "http://host:9000"}}),
        ({"endpoint": "host:9000"}, {"client_kwargs": {"endpoint_url": "https://host:9000"}}),
        (
            {"endpoint": "host:9000", "connection.ssl.enabled": "false"},
            {"client_kwargs": {"endpoint_url": "http://host:9000"}},
        ),
        # AWS's own endpoints say no more than the region, and signing needs that.
        ({"endpoint": "s3.amazonaws.com"}, {}),
        ({"endpoint": "s3.eu-west-1.amazonaws.com"}, {"client_kwargs": {"region_name": "eu-west-1"}}),
        ({"endpoint.region": "eu-west-3"}, {"client_kwargs": {"region_name": "eu-west-3"}}),
        ({"path.style.access": "true"}, {"config_kwargs": {"s3": {"addressing_style": "path"}}}),
        ({"path.style.access": "false"}, {}),
    ],
)
def test_settings_of_s3a_become_options_of_s3fs(told, options):
    assert stores.s3_options({f"fs.s3a.{name}": value for name, value in told.items()}, "b") == options


@pytest.fixture
def fresh():
    """Settings that are asked for anew; else an answer holds for some seconds."""
    stores._session_settings.cache_clear()
    yield
    stores._session_settings.cache_clear()


@needs_classic("Hadoop configuration to set")
def test_hadoops_settings_of_s3(spark, fresh):
    hadoop = spark.sparkContext._jsc.hadoopConfiguration()
    given = {"fs.s3a.endpoint": "http://host:9000", "fs.s3a.bucket.a.b.access.key": "own"}
    for name, value in {**given, "fs.s3a.retry.limit": "3"}.items():
        hadoop.set(name, value)
    try:
        found = s3_settings()
        assert found.items() >= given.items()
        assert "fs.s3a.retry.limit" not in found
    finally:
        for name in (*given, "fs.s3a.retry.limit"):
            hadoop.unset(name)


def test_a_session_tells_its_settings_of_s3_and_tasks_get_them(spark, fresh):
    given = {"fs.s3a.endpoint": "http://host:9000", "fs.s3a.secret.key": "S"}

    def ask(batches):
        import pyarrow as pa

        for batch in batches:
            told = stores.spark_settings().get("fs.s3a.endpoint", "")
            yield pa.record_batch([pa.array([told] * batch.num_rows)], ["told"])

    with settings(spark, given):
        assert s3_settings().items() >= given.items()
        rows = spark.range(0, 2, 1, 2).mapInArrow(in_worker(ask), "told string").collect()
        assert {row.told for row in rows} == {"http://host:9000"}


def test_what_fsspec_is_configured_with_stands_alone(monkeypatch):
    monkeypatch.setattr(stores, "spark_settings", lambda: {"fs.s3a.endpoint": "http://host:9000"})
    assert stores.store_options("s3a://b/x") == {"client_kwargs": {"endpoint_url": "http://host:9000"}}
    assert stores.store_options("gs://b/x") == {}
    monkeypatch.setitem(fsspec.config.conf, "s3", {"anon": True})
    assert stores.store_options("s3a://b/x") == {}


def test_a_store_that_lets_nobody_in_is_named_in_one_line():
    class Refusing(fsspec.AbstractFileSystem):
        protocol = "refusing"

        def info(self, path, **_):
            raise PermissionError("Forbidden")

        def exists(self, path, **_):
            raise PermissionError("Forbidden")

    fsspec.register_implementation("refusing", Refusing, clobber=True)
    with pytest.raises(
        InputError, match=r"^cannot reach refusing://b/x from Python \(Forbidden\): set .*FSSPEC"
    ):
        exists("refusing://b/x")


def test_an_output_in_a_bucket_that_is_not_there_is_refused(monkeypatch):
    fs = fsspec.filesystem("memory")

    def ask(*_, **__):
        raise FileNotFoundError(answer)

    monkeypatch.setattr(outputs, "filesystem", lambda path: (fs, path))
    monkeypatch.setattr(outputs, "exists", lambda path: False)
    monkeypatch.setattr(type(fs), "ls", ask)
    answer = "b/out"
    assert check_output("s3a://b/out", by_spark=False) == "s3a://b/out"
    answer = "The specified bucket does not exist"
    with pytest.raises(InputError, match="output s3a://b/out: no such bucket"):
        check_output("s3a://b/out", by_spark=False)


def test_no_bucket_is_made_on_the_way():
    """Of s3fs and gcsfs, a folder's first part is a bucket, which they make when it is not there."""
    fs = filesystem("memory://nobucket")[0]
    make_folder("memory://nobucket/out")
    assert not fs.exists("/nobucket")


@pytest.mark.parametrize("path", ["s3a://b/x", "s3://b/x"])
def test_a_session_without_the_stores_client_is_told_what_to_add(spark, path):
    says = r"no client for s3a?://.* --packages org.apache.hadoop:hadoop-aws:\d+\.\d+\.\d+ and write s3a://"
    with pytest.raises(InputError, match=says):
        require_client(path)
    with pytest.raises(InputError, match=says):
        find_source(spark, path)
    with pytest.raises(InputError, match=says):
        check_output(f"{path}/out")
    require_client("hdfs://host/x")
    require_client("/data")


class Down(ArrowFSWrapper):
    """A stand-in for pyarrow's HDFS without a server: told of anything, it says that it is not there."""

    protocol = "down"
    answer = OSError(255, "HDFS list directory failed")

    def __init__(self, **_):
        super().__init__(fs=pyarrow.fs.LocalFileSystem())

    def info(self, path, **_):
        raise FileNotFoundError(path)

    def ls(self, path, detail=False, **_):
        raise self.answer


def test_a_server_that_does_not_answer_is_no_path_that_is_missing(monkeypatch):
    fsspec.register_implementation("down", Down, clobber=True)
    with pytest.raises(InputError, match=r"cannot reach down://host/x from Python .*list directory failed"):
        exists("down://host/x")
    monkeypatch.setattr(Down, "answer", FileNotFoundError(2, "No such file or directory"))
    assert not exists("down://host/x")


def test_a_folder_that_is_not_listed_is_not_an_empty_one(tmp_path, monkeypatch):
    fsspec.register_implementation("down", Down, clobber=True)
    for path in ("in/a.parquet", "in/locked/b.parquet", "ledger/runs/_delta_log/0.json"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("x")

    def listed(self, path, detail=False, **_):
        if path.rstrip("/").endswith(("locked", "_delta_log")):
            raise PermissionError("Permission denied")
        return ArrowFSWrapper.ls(self, path, detail)

    monkeypatch.setattr(Down, "info", ArrowFSWrapper.info)
    monkeypatch.setattr(Down, "ls", listed)
    root = f"down://host{tmp_path}"
    with pytest.raises(InputError, match=rf"cannot reach {root}/in from Python \(Permission denied\)"):
        list_files(f"{root}/in")
    with pytest.raises(PermissionError):
        files_below(f"{root}/in")
    with pytest.raises(PermissionError):
        _clear_torn(f"{root}/ledger/runs")
    assert (tmp_path / "ledger/runs/_delta_log/0.json").exists()
    assert [file.path for file in list_files(f"{root}/in/a.parquet")] == [f"{root}/in/a.parquet"]


def test_an_output_of_hdfs_that_is_not_permitted_is_named(monkeypatch):
    fs = hostless.store()

    def refuse(*_, **__):
        raise PermissionError(13, "HDFS create directory failed")

    monkeypatch.setattr(type(fs), "makedirs", refuse)
    monkeypatch.setattr("spark_dedup.leases.filesystem", lambda path: (fs, path))
    monkeypatch.setattr("spark_dedup.paths.filesystem", lambda path: (fs, path))
    with pytest.raises(InputError, match=r"cannot reach hdfs://host/out .*: name a path .*HADOOP_USER_NAME"):
        leased("hdfs://host/out", patience_s=0).__enter__()


def test_hdfs_without_hadoops_library_is_told_what_it_needs(monkeypatch):
    def refuse(*_, **__):
        raise OSError("Unable to load libhdfs")

    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    with pytest.raises(
        InputError, match=r"hdfs://host/x .*\(Unable to load libhdfs\): it needs JAVA_HOME.*CLASSPATH"
    ):
        exists("hdfs://host/x")


@pytest.fixture
def on_hdfs(spark):
    """A session whose paths without a scheme are those of HDFS."""
    given = "hdfs://nn:8020/"
    if CONNECT:
        with settings(spark, {"spark.hadoop.fs.defaultFS": given}):
            yield
        return
    hadoop = spark.sparkContext._jsc.hadoopConfiguration()
    before = hadoop.get("fs.defaultFS")
    hadoop.set("fs.defaultFS", given)
    yield
    hadoop.set("fs.defaultFS", before)


@pytest.mark.usefixtures("on_hdfs")
def test_paths_of_a_session_on_hdfs(spark, tmp_path):
    for given in ("hdfs:///x//y", "hdfs:/x/y", "hdfs://nn:8020/x/y/"):
        assert normalise_path(given) == "hdfs://nn:8020/x/y"
    assert normalise_path("hdfs://other/x") == "hdfs://other/x"
    says = rf"takes {tmp_path}\S* for one of hdfs://nn:8020: write hdfs://nn:8020{tmp_path}"
    with pytest.raises(InputError, match=says):
        find_source(spark, str(tmp_path))
    with pytest.raises(InputError, match=says):
        check_output(tmp_path / "out")
    with pytest.raises(InputError, match=says):
        IdRegistry.open(spark, tmp_path / "registry")


def test_where_hadoop_is_set_up_a_path_may_be_one_of_hdfs(monkeypatch):
    with pytest.raises(InputError, match="no such path: /no/such"):
        check_there("/no/such")
    monkeypatch.setenv("HADOOP_CONF_DIR", "/etc/hadoop/conf")
    check_there("/no/such")
