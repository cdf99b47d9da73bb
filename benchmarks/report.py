"""The report of a large run: ``python -m benchmarks.report [--groups 100000] [--rounds 3]``.

A ledger of as many groups, two and a half removed records each in a dozen sources, beside documents of about 500
characters; once as an exact run, once as a semantic one with its pairwise results. Says how long the report takes,
how large the page is, and, where there is a Chromium, how long it needs to load it: the page in a frame, from
setting its address to its load event, so that starting the browser does not count.
"""

import argparse
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from spark_dedup import build_session
from spark_dedup.ledger import Run, write_run
from spark_dedup.report import make_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SOURCE = "concat('source ', pmod(hash({0}), 12))"
SCORE = "0.95D + 0.05D * pmod(hash(id, 1), 10000) / 10000"


def documents(spark, folder, groups):
    """Write the survivors, ids below ``groups``, their 2.5 copies each, and as many records that stand alone."""
    words = "concat_ws(' ', transform(sequence(1, 16), i -> md5(concat({0}, '-', i))))"
    key = f"if(id < {groups * 35 // 10}, id % {groups}, id)"
    rows = spark.range(groups * 45 // 10).selectExpr(
        "id", f"{words.format(key)} AS text", f"{SOURCE.format('id')} AS source"
    )
    rows.repartition(4).write.parquet(str(folder / "docs"))
    return {r[0]: r[1] for r in rows.groupBy("source").count().collect()}


def ledger(spark, folder, groups, method, by_source):
    """Write the run; of a semantic one also its pairwise results."""
    removed = spark.range(groups, groups * 35 // 10).selectExpr("id", f"id % {groups} AS kept")
    score = "1.0D" if method == "exact" else SCORE
    group = "md5(string(kept))" if method == "exact" else "string(kept % 500)"
    rows = removed.selectExpr(
        "id",
        "kept AS matched_id",
        "kept AS kept_id",
        f"{group} AS group_id",
        f"'{method}' AS method",
        f"{score} AS score",
        f"{SOURCE.format('id')} AS source",
        f"{SOURCE.format('kept')} AS kept_source",
    )
    run = Run(
        method=method,
        input=str(folder / "docs"),
        input_version="1",
        id_field="id",
        num_documents=sum(by_source.values()),
        num_groups=groups,
        num_duplicates=groups * 25 // 10,
        started_at=datetime.now(UTC),
        parameters={"text_field": "text", "eps": 0.05},
        documents_by_source=by_source,
    )
    write_run(spark, folder / method, run, rows)
    if method == "semantic":
        loose = removed.selectExpr(
            "id", "kept AS max_id", f"float({SCORE} - 0.3D * (id % 2)) AS cosine_sim_score"
        )
        loose.write.parquet(str(folder / "pairs"))


def load_ms(page):
    """Return the milliseconds in which Chromium loads a page, None without one."""
    if CHROMIUM is None:
        return None
    frame = page.with_name(f"frame-{page.name}")
    frame.write_text(
        '<iframe id="f" style="width:1280px;height:900px"></iframe><script>const t = performance.now();'
        "f.onload = () => { document.title = Math.round(performance.now() - t) };"
        f'f.src = "{page.as_uri()}"</script>'
    )
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--window-size=1400,1000"]
    ran = subprocess.run(
        [CHROMIUM, *flags, frame.as_uri()], capture_output=True, text=True, timeout=300, check=True
    )
    return int(re.search(r"<title>(\d+)</title>", ran.stdout)[1])


def measured(spark, folder, method, rounds):
    """Return median seconds to make the report, its megabytes, and milliseconds to load it."""
    pairs = folder / "pairs" if method == "semantic" else None
    seconds, loads = [], []
    page = folder / f"{method}.html"
    for _ in range(rounds):
        started = time.perf_counter()
        make_report(spark, ledger=folder / method, pairs=pairs).save(page)
        seconds.append(time.perf_counter() - started)
        loads.append(load_ms(page))
    loaded = None if None in loads else statistics.median(loads)
    return statistics.median(seconds), page.stat().st_size / 1e6, loaded


def main():
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    spark = build_session("benchmark", device="cpu")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        by_source = documents(spark, folder, options.groups)
        print(f"\n| report of {options.groups:,} groups | made in s | MB | loaded in ms |\n|---|---|---|---|")
        for method in ("exact", "semantic"):
            ledger(spark, folder, options.groups, method, by_source)
            seconds, size, loaded = measured(spark, folder, method, options.rounds)
            shown = "no Chromium" if loaded is None else f"{loaded:.0f}"
            print(f"| {method} | {seconds:.1f} | {size:.2f} | {shown} |")


if __name__ == "__main__":
    main()
