import decimal
import os

import pytest

from spark_dedup.errors import InputError
from spark_dedup.held import holding, on_executors

SCHEMA = "id binary, kept_id binary, score double, price decimal(9,2), flag boolean"
ROWS = [(b"\xff\x00", b"", 0.5, decimal.Decimal("1.50"), True), (b"a", None, float("nan"), None, None)]


@pytest.mark.parametrize("rows", [ROWS, []])
def test_rows_come_back_as_they_were(spark, held, rows, tmp_path):
    df = spark.createDataFrame(rows, SCHEMA)
    with holding(spark, f"{tmp_path}/.held [1]") as hold:
        once = hold(df)
        again = hold(once.where("id IS NOT NULL"))
        assert once.schema == again.schema == df.schema
        assert sorted(map(repr, again.collect())) == sorted(map(repr, df.collect()))
    assert os.listdir(tmp_path) == []


def test_rows_are_computed_once(spark, held, tmp_path):
    df = spark.range(100).selectExpr("id", "uuid() AS drawn")
    with holding(spark, f"{tmp_path}/held") as hold:
        rows = hold(df)
        assert rows.collect() == rows.collect()


def test_what_is_held_goes_when_work_fails(spark, held, tmp_path):
    with pytest.raises(ZeroDivisionError), holding(spark, f"{tmp_path}/held") as hold:
        hold(spark.range(1)).where(f"id = {1 / 0}")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("held", ["files"], indirect=True)
def test_a_session_that_refuses_is_named(spark, held):
    with pytest.raises(InputError, match="this session holds no rows between steps"):
        on_executors(spark.range(1))
