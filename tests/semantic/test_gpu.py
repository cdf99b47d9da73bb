"""The GPU stage with NumPy in the place of cuML, NCCL and CuPy: everything but the libraries themselves."""

import re
import types

import numpy as np
import pyarrow as pa
import pytest
from sessions import needs_classic
from sklearn.datasets import make_blobs
from spark_4 import needs_spark_4

from spark_dedup.errors import InputError
from spark_dedup.kernels import cuml
from spark_dedup.kernels.arrays import normalise
from spark_dedup.semantic import gpu
from spark_dedup.semantic.embeddings import from_matrix
from spark_dedup.semantic.fit import FitOptions, fit_task
from spark_dedup.semantic.kmeans import fit_kmeans
from spark_dedup.semantic.peers import Alone
from spark_dedup.semantic.progress import Reporter


def numpy_calls(log=None, device_bytes=1 << 40, fail=False):
    """Stand-ins by the names of the table; arguments are checked against the table as the real call does."""

    def call(name, *args, **kwargs):
        from types import SimpleNamespace

        import numpy as np
        from pyspark import BarrierTaskContext

        from spark_dedup.kernels import cuml
        from spark_dedup.semantic.lloyd import lloyd
        from spark_dedup.semantic.peers import Alone, Gathering

        entry = cuml.CALLS[name]
        assert len(args) == entry.positional, name
        assert set(kwargs) == set(entry.keywords), name
        if log is not None:
            log.append(name)

        def fit(model, parts, peers):
            x = np.concatenate(parts)
            squares = sum(peers.gather(float((x.astype(np.float64) ** 2).sum())))
            o = model.options
            # The stand-in scales tol by the variance, the real one does not: undo it.
            found = peers.from_root(
                lloyd(
                    x, o["init"], peers, squares=squares, max_iter=o["max_iter"], tol=0, report=lambda _: None
                )
            )
            if fail:
                raise RuntimeError("out of device memory")
            distance = ((x[:, None] - found.centroids) ** 2).sum(axis=2)
            model.labels_, model.inertia_ = distance.argmin(axis=1), distance.min(axis=1).sum()
            model.cluster_centers_, model.n_iter_ = found.centroids, found.n_iter

        simple = {
            "device_count": lambda: 2,
            "set_device": lambda index: None,
            "memory": lambda: (device_bytes, device_bytes),
            "to_device": lambda array: array,
            "to_host": np.asarray,
            "kmeans": lambda **o: SimpleNamespace(options=o),
            "kmeans_mg": lambda **o: SimpleNamespace(options=o),
            "kmeans_fit": lambda model, x: fit(model, [x], Alone()),
            "kmeans_mg_fit": lambda model, parts: fit(model, parts, Gathering(BarrierTaskContext.get())),
            "handle": lambda n_streams: SimpleNamespace(),
            "nccl": SimpleNamespace,
            "nccl_unique_id": lambda: b"u" * 127,
            "nccl_init": lambda comm, size, uid, rank: setattr(comm, "seen", (size, uid, rank)),
            "nccl_destroy": lambda comm: None,
            "nccl_abort": lambda comm: None,
            "inject": lambda handle, comm, size, rank, verbose: None,
        }
        return simple[name](*args, **kwargs)

    return call


@pytest.fixture(scope="module")
def unit():
    return normalise(make_blobs([100, 200, 300], 4, random_state=1)[0].astype(np.float32))


def frame(spark, x):
    table = pa.table({"id": np.arange(len(x)), "embeddings": from_matrix(x)})
    return spark.createDataFrame(table.to_pandas())  # Spark 3 takes no Arrow table


def on_gpu(monkeypatch, tasks, calls):
    from spark_dedup.semantic import kmeans

    def options(*args, **kwargs):
        return FitOptions(*args, **kwargs, calls=calls)

    monkeypatch.setattr(kmeans, "fit_device", lambda spark, device: "gpu")
    monkeypatch.setattr(kmeans, "gpu_tasks", lambda spark: (tasks, None))
    monkeypatch.setattr(kmeans, "FitOptions", options)


@pytest.mark.parametrize("tasks", [1, 2])
def test_barrier_stage_gives_the_cpus_result(spark, unit, monkeypatch, tasks):
    df = frame(spark, unit)
    cpu = fit_kmeans(df, n_clusters=3, id_field="id", tol=0)
    on_gpu(monkeypatch, tasks, numpy_calls())
    found = fit_kmeans(df, n_clusters=3, id_field="id", tol=0)
    np.testing.assert_array_equal(found.centroids, cpu.centroids)
    np.testing.assert_array_equal(found.cluster_sizes, cpu.cluster_sizes)
    assert found.inertia == pytest.approx(cpu.inertia, rel=1e-5)
    assert found.n_iter == cpu.n_iter


def test_a_failing_gpu_fails_the_job(spark, unit, monkeypatch):
    on_gpu(monkeypatch, 2, numpy_calls(fail=True))
    with pytest.raises(Exception, match="out of device memory"):
        fit_kmeans(frame(spark, unit), n_clusters=3, id_field="id")


def alone(unit, calls, **options):
    given = {
        "n_clusters": 3, "dim": 4, "max_iter": 20, "tol": 1e-4, "random_state": 0, "init": "random", "n_init": 2,
        "oversampling_factor": 2.0, "max_samples_per_batch": 256, "max_points_per_centroid": None,
        "drop_invalid": False, "device": "gpu", "calls": calls,
    }  # fmt: skip
    batch = pa.RecordBatch.from_pydict(
        {
            "key": np.arange(len(unit)),
            "id": pa.array([str(i) for i in range(len(unit))]),
            "e": from_matrix(unit),
        }
    )
    batches = options.pop("batches", [batch])
    return next(fit_task(batches, Alone(), FitOptions(**given | options), Reporter()))


def test_a_task_that_cannot_read_says_why(unit):
    def broken():
        raise OSError(28, "No space left on device")
        yield

    with pytest.raises(RuntimeError, match=r"task 0 cannot read its rows: OSError\(28, 'No space left"):
        alone(unit, numpy_calls(), batches=broken())


def test_one_gpu_uses_plain_kmeans_and_no_communicator(unit):
    log = []
    alone(unit, numpy_calls(log))
    assert log.count("kmeans_fit") == 2
    assert not {"nccl", "handle", "kmeans_mg"} & set(log)


def test_rows_beyond_device_memory_stay_on_the_host(unit):
    x, buffer = cuml.place(unit, 3, 16, numpy_calls())
    assert buffer == 0
    log = []
    x, buffer = cuml.place(unit, 3, 16, numpy_calls(log, device_bytes=unit.nbytes))
    assert x is unit
    assert buffer >= 1024
    assert "to_device" not in log


def test_communicator_is_destroyed_or_aborted():
    log = []
    with cuml.communicator(0, 2, lambda value: value, numpy_calls(log)):
        pass
    assert log == ["nccl_unique_id", "nccl", "nccl_init", "handle", "inject", "nccl_destroy"]
    log.clear()
    with pytest.raises(ValueError, match="boom"), cuml.communicator(1, 2, lambda _: b"u", numpy_calls(log)):
        raise ValueError("boom")
    assert log == ["nccl", "nccl_init", "handle", "inject", "nccl_abort"]


def test_a_call_that_the_table_does_not_know_is_refused():
    with pytest.raises(TypeError, match="otherwise than the table"):
        cuml.call("to_device", np.zeros(1), dtype="float32")
    with pytest.raises(KeyError):
        cuml.call("ucx")


def test_device_without_gpu(spark):
    assert gpu.fit_device(spark, "cpu") == "cpu"
    from spark_dedup.runtime import has_gpu

    if not has_gpu():
        assert gpu.fit_device(spark, "auto") == "cpu"
        with pytest.raises(InputError, match="finds no GPU"):
            gpu.fit_device(spark, "gpu")


def test_gpu_without_cuml(spark, monkeypatch):
    monkeypatch.setattr(gpu, "resolve_device", lambda device, master: "gpu")
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    assert gpu.fit_device(spark, "auto") == "cpu"
    with pytest.raises(InputError, match="needs cuML"):
        gpu.fit_device(spark, "gpu")


SHARES = needs_spark_4("a stage of as many tasks as there are GPUs (mapInArrow with a resource profile)")


class Cluster:
    """A session of executors with GPUs, as far as it is asked about them."""

    def __init__(self, **conf):
        self.conf = conf


@pytest.mark.parametrize(
    ("share", "each", "executors", "slots", "expected"),
    [
        ("1", "1", 4, 4, 4),
        pytest.param("0.25", "1", 4, 16, 4, marks=SHARES),
        pytest.param("0.5", "2", 1, 3, 2, marks=SHARES),  # three cores, two GPUs
        pytest.param("0.1", "1", 4, 32, 4, marks=SHARES),  # eight cores: a GPU could serve ten tasks
        pytest.param("0.0625", "1", 10, 80, 10, marks=SHARES),
        pytest.param("0.25", "4", 1, 2, 2, marks=SHARES),  # two cores cannot feed four GPUs
        pytest.param("0.25", "1", 2, 0, 0, marks=SHARES),  # dynamic allocation: no barrier stage
    ],
)
def test_tasks_are_one_per_gpu_of_the_cluster(monkeypatch, share, each, executors, slots, expected):
    monkeypatch.setattr(gpu, "barrier_slots", lambda _: slots)
    monkeypatch.setattr(gpu, "count_executors", lambda _: executors)
    conf = {"spark.task.resource.gpu.amount": share, "spark.executor.resource.gpu.amount": each}
    count, profile = gpu.gpu_tasks(Cluster(**conf))
    assert count == expected
    assert (profile is None) == (share == "1")


def test_tasks_that_share_a_gpu_cannot_fit_on_spark_3(monkeypatch):
    monkeypatch.setattr(gpu, "barrier_slots", lambda _: 4)
    monkeypatch.setattr(gpu, "count_executors", lambda _: 1)
    monkeypatch.setattr("pyspark.__version__", "3.5.9")
    with pytest.raises(InputError, match=r"needs Spark 4.0 or newer, this is 3.5.9"):
        gpu.gpu_tasks(Cluster(**{"spark.task.resource.gpu.amount": "0.25"}))
    assert gpu.gpu_tasks(Cluster(**{"spark.task.resource.gpu.amount": "1"})) == (4, None)


@needs_classic("list of executors")
def test_executors_are_counted_without_the_driver(spark):
    cluster = re.match(r"local-cluster\[(\d+)", spark.conf.get("spark.master"))
    assert gpu.count_executors(spark) == (int(cluster[1]) if cluster else 0)


@pytest.mark.parametrize(
    ("visible", "slots", "expected"),
    [(None, 8, 2), ("", 8, 1), ("1", 8, 1), ("0, 1,2,3", 8, 2), ("-1", 8, 1), (None, 1, 1), (None, 0, 0)],
)
def test_tasks_are_one_per_gpu_that_a_local_session_sees(monkeypatch, visible, slots, expected):
    listed = "GPU 0: NVIDIA GeForce RTX 3080 Laptop GPU (UUID: GPU-1a)\nGPU 1: NVIDIA H100 (UUID: GPU-2b)\n"
    monkeypatch.setattr(gpu.subprocess, "run", lambda *a, **k: types.SimpleNamespace(stdout=listed))
    monkeypatch.setattr(gpu, "barrier_slots", lambda _: slots)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu.gpu_tasks(Cluster()) == (expected, None)
