import struct

import numpy as np
import pyarrow as pa
import pytest
from pyspark.ml.linalg import SparseVector, Vectors, VectorUDT
from pyspark.sql import types as T

from spark_dedup import fit_kmeans
from spark_dedup.errors import InputError
from spark_dedup.semantic.embeddings import (
    array_column,
    as_lists,
    check_of,
    embedding_width,
    from_matrix,
    packed_matrix,
    to_matrix,
    unit_matrix,
)

ROWS = [[3.0, 4.0, 5.0], [1.0, 2.0, 2.0]]
UNIT = [[0.42426407, 0.56568542, 0.70710678], [1 / 3, 2 / 3, 2 / 3]]


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.float32()), pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float32(), 3)],
    ids=str,
)
def test_lists_become_a_matrix_and_back(kind):
    x = to_matrix(pa.array(ROWS, kind), 3)
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, ROWS)
    assert from_matrix(x).to_pylist() == ROWS


def test_packed_rows_become_lists_whatever_their_width():
    packed = packed_matrix(np.array(ROWS, np.float32))
    for kind in (pa.binary(), pa.large_binary()):
        assert as_lists(packed.cast(kind)).to_pylist() == ROWS


def test_float32_lists_are_not_copied():
    column = pa.array(ROWS * 10, pa.list_(pa.float32()))
    x = to_matrix(column, 3)
    assert x.ctypes.data == column.values.buffers()[1].address
    assert from_matrix(x).values.buffers()[1].address == x.ctypes.data


def test_slices_and_chunks():
    column = pa.array(ROWS * 3, pa.list_(pa.float32()))
    np.testing.assert_array_equal(to_matrix(column.slice(1, 2), 3), [ROWS[1], ROWS[0]])
    np.testing.assert_array_equal(to_matrix(pa.chunked_array([column, column]), 3), ROWS * 6)
    assert to_matrix(column.slice(0, 0), 3).shape == (0, 3)


@pytest.mark.parametrize("code", ["e", "f", "d"])
def test_packed_binary(code):
    packed = [struct.pack(f"<3{code}", *row) for row in ROWS]
    np.testing.assert_array_equal(to_matrix(pa.array(packed), 3), ROWS)


def test_unusable_rows_are_told_apart():
    rows = [
        [3, 4, 5],
        None,
        [1, 2],
        [],
        [0, 0, 0],
        [1, None, 2],
        [1, float("nan"), 2],
        [float("inf"), 1, 1],
        [1, 2, 2],
    ]
    unit, codes = unit_matrix(pa.array(rows, pa.list_(pa.float32())), 3)
    np.testing.assert_array_equal(codes, [0, 1, 2, 2, 4, 3, 3, 3, 0])
    np.testing.assert_allclose(unit, UNIT, rtol=1e-6)
    check = check_of(codes, 3, [f"id{i}" for i in range(9)])
    assert check.invalid == 7
    assert check.counts == {
        "null": 1,
        "of another length": 2,
        "all zero": 1,
        "with a null, NaN or infinite value": 3,
    }
    assert check.examples == ("id1", "id2", "id3", "id4", "id5")


def test_unusable_binary_and_too_large_float64():
    packed = [struct.pack("<2f", 1, 1), None, b"", b"12345", struct.pack("<2d", 1e300, 1)]
    np.testing.assert_array_equal(unit_matrix(pa.array(packed), 2)[1], [0, 1, 2, 2, 3])


def test_to_matrix_refuses_ragged_rows():
    with pytest.raises(ValueError, match="1 embeddings are null or not of length 3"):
        to_matrix(pa.array([[1.0, 2.0, 3.0], [1.0]]), 3)


def frame(spark, rows, kind=None, name="embeddings"):
    kind = kind or T.ArrayType(T.FloatType())
    return spark.createDataFrame(
        list(enumerate(rows)), T.StructType([T.StructField("id", T.LongType()), T.StructField(name, kind)])
    )


def test_validation_names_count_reasons_and_ids(spark):
    df = frame(
        spark, [[1.0, 2.0], None, [1.0], [0.0, 0.0], [1.0, float("nan")], [2.0, 2.0]], name="my emb`s.x"
    )
    with pytest.raises(InputError) as error:
        fit_kmeans(df, n_clusters=1, embedding_field="my emb`s.x", id_field="id")
    text = str(error.value)
    assert "column 'my emb`s.x': 4 of 6 embeddings cannot be used" in text
    assert "ids 1, 2, 3, 4" in text
    assert "\n" not in text
    reasons = ("1 null", "1 of another length", "1 all zero", "1 with a null, NaN or infinite value")
    assert all(reason in text for reason in reasons)
    kept = fit_kmeans(
        df, n_clusters=1, embedding_field="my emb`s.x", id_field="id", invalid_embeddings="drop"
    )
    assert (kept.invalid, kept.cluster_sizes.tolist()) == (4, [2])


def test_validation_of_good_rows_and_a_given_length(spark):
    df = frame(spark, [[1.0, 2.0], [2.0, 2.0]])
    assert fit_kmeans(df, n_clusters=1).invalid == 0
    with pytest.raises(InputError, match="2 of 2 embeddings"):
        fit_kmeans(df, n_clusters=1, embedding_dim=3)


@pytest.mark.parametrize(
    "kind",
    [
        T.ArrayType(T.DoubleType()),
        T.ArrayType(T.IntegerType()),
        T.ArrayType(T.DecimalType(6, 2)),
        VectorUDT(),
    ],
    ids=str,
)
def test_other_types_are_converted(spark, kind):
    rows = [[3, 4, 5], [1, 2, 2]]
    if isinstance(kind, VectorUDT):
        rows = [Vectors.dense([3, 4, 5]), SparseVector(3, {0: 1.0, 1: 2.0, 2: 2.0})]
    elif isinstance(kind.elementType, T.DoubleType):
        rows = ROWS
    elif isinstance(kind.elementType, T.DecimalType):
        from decimal import Decimal

        rows = [[Decimal(v) for v in row] for row in rows]
    df = frame(spark, rows, kind)
    found = df.select(array_column(df, "embeddings").alias("e")).collect()
    np.testing.assert_allclose(unit_matrix(pa.array([row.e for row in found]), 3)[0], UNIT, rtol=1e-6)
    assert embedding_width(df, "embeddings") == 3


@pytest.mark.parametrize("kind", [T.StringType(), T.ArrayType(T.StringType()), T.FloatType()], ids=str)
def test_types_that_hold_no_embedding_are_named(spark, kind):
    df = spark.createDataFrame([], T.StructType([T.StructField("embeddings", kind)]))
    with pytest.raises(InputError, match=f"has type {kind.simpleString()}"):
        array_column(df, "embeddings")


def test_missing_column_empty_input_and_binary_without_a_length(spark):
    df = frame(spark, [])
    with pytest.raises(InputError, match="column 'nope' not found"):
        array_column(df, "nope")
    with pytest.raises(InputError, match="holds no embeddings"):
        embedding_width(df, "embeddings")
    with pytest.raises(InputError, match="give embedding_dim"):
        embedding_width(frame(spark, [b"1234"], T.BinaryType()), "embeddings")
    with pytest.raises(InputError, match="embedding_dim must be a whole number of at least 1"):
        embedding_width(df, "embeddings", 0)
    with pytest.raises(InputError, match="'error' or 'drop'"):
        fit_kmeans(df, n_clusters=1, invalid_embeddings="ignore")


def test_the_commonest_length_wins(spark):
    assert embedding_width(frame(spark, [[1.0], [1.0, 2.0], [2.0, 2.0], None]), "embeddings") == 2


def test_the_width_is_found_behind_rows_without_embeddings(spark):
    rows = "CASE WHEN id >= 1500 THEN array(1f, 2f, 3f) WHEN id % 2 = 0 THEN array() END AS embeddings"
    df = spark.range(0, 1600, 1, 1).selectExpr(rows)
    assert embedding_width(df, "embeddings") == 3
