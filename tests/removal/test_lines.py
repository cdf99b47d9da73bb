"""JSON lines as text: escapes and added fields; expected values from Python's json."""

import json
import random
import re

from pyspark.sql import functions as F

from spark_dedup.removal.lines import unescaped, with_field

PIECES = [*'a"\\\n\x00\x1f\x7fé\u2028\ufffe😀\ud83d\ude00/u}{ \t', "00e9", "\\u00e9", "\\ud83d"]
MAY_STAY = re.compile(r"00[01].|0022|005c|d[89a-f]..", re.I)
PAIR = re.compile(r"\\ud[89ab]..\\ud[c-f]..", re.I)


def random_text(rng):
    return "".join(rng.choices(PIECES, k=rng.randrange(9)))


def test_lines_mean_the_same_unescaped(spark):
    rng = random.Random(42)
    rows = [{random_text(rng): rng.choice([random_text(rng), {}]) for _ in range(3)} for _ in range(5000)]
    lines = [json.dumps(row, ensure_ascii=True) for row in rows]
    lines += [re.sub(r"\\u00e9", r"\\u00E9", line) for line in lines[:500]]
    line = unescaped(F.col("line"))
    df = spark.createDataFrame([(line,) for line in lines], "line string")
    for row in df.select(
        "line", line.alias("plain"), with_field(line, "n", F.lit(7)).alias("more")
    ).collect():
        meant = json.loads(row.line)
        assert json.loads(row.plain) == meant
        assert json.loads(row.more) == {**meant, "n": 7}
        escapes = re.sub(r"\\\\", " ", row.plain)
        assert all(map(MAY_STAY.match, re.findall(r"\\u(....)", escapes)))
        assert not PAIR.search(escapes)


def test_a_line_without_escapes_is_left_alone(spark):
    lines = ['{"b" : 1e5 ,"a":{ } }  ', '{"a":"\\n \\\\u"}', "{ }"]
    df = spark.createDataFrame([(line,) for line in lines], "line string")
    assert [row[0] for row in df.select(unescaped(F.col("line"))).collect()] == lines
    fields = [row[0] for row in df.select(with_field(F.col("line"), "id", F.lit(1))).collect()]
    assert fields == ['{"b" : 1e5 ,"a":{ } ,"id":1}', '{"a":"\\n \\\\u","id":1}', '{ "id":1}']
