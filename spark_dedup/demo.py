"""``make demo``: the main job on text that every machine has - the Python installation and its packages."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spark_dedup.errors import InputError
from spark_dedup.listing import EXTENSIONS

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["main"]

TEXT_NAMES = ("license", "licence", "copying", "notice", "authors", "readme", "metadata", "record", "wheel")
TEXT_ENDINGS = (
    ".py",
    ".pyi",
    ".txt",
    ".md",
    ".rst",
    ".toml",
    ".cfg",
    ".json",
    ".h",
    ".c",
    ".js",
    ".css",
    ".html",
)
SHARD_BYTES = 16 << 20
MAX_FILE_BYTES = 1 << 20
EPS = 0.03


def find_texts(roots: list[Path]) -> Iterator[Path]:
    """Yield the text files below folders, in a fixed order."""
    for root in roots:
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(n for n in folders if n not in ("__pycache__", ".git", "node_modules"))
            for name in sorted(names):
                plain = name.lower()
                if plain.endswith(TEXT_ENDINGS) or plain.split(".")[0] in TEXT_NAMES:
                    yield Path(folder) / name


def gather(roots: list[Path], target: Path) -> int:
    """Write the text files below ``roots`` to parquet shards (path, kind, text); return how many."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    target.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    total = shard = held = 0

    def flush() -> None:
        nonlocal rows, shard, held
        if rows:
            pq.write_table(
                pa.Table.from_pylist(rows), target / f"shard-{shard:05d}.parquet", compression="zstd"
            )
        rows, shard, held = [], shard + 1, 0

    for path in find_texts(roots):
        try:
            if path.is_symlink() or not 0 < path.stat().st_size <= MAX_FILE_BYTES:
                continue
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        kind = path.suffix.lstrip(".") if path.suffix in TEXT_ENDINGS else "licence or metadata"
        rows.append({"path": str(path), "kind": kind, "text": text})
        total, held = total + 1, held + len(text)
        if held > SHARD_BYTES:
            flush()
    flush()
    return total


def documents_of(given: str | None, output: Path) -> tuple[str, str, str]:
    """Return (path, filetype, what it is) of the demo's input, gathering texts where it is not a dataset yet."""
    found = None if given is None else Path(given).expanduser()
    if found is not None:
        if not found.exists():
            raise InputError(f"INPUT {given} does not exist")
        for filetype, endings in (
            ("parquet", ("*.parquet",)),
            ("jsonl", tuple(f"*{ending}" for ending in EXTENSIONS["jsonl"])),
        ):
            if any(found.match(e) or (found.is_dir() and any(found.rglob(e))) for e in endings):
                return str(found), filetype, f"the {filetype} files in {found}"
    roots = _python_folders() if found is None else [found]
    documents = output / "documents"
    for folder in (documents, output / "exact" / "id_registry"):  # texts that are gathered anew get new ids
        shutil.rmtree(folder, ignore_errors=True)
    total = gather(roots, documents)
    if not total:
        raise InputError(f"{given} holds no parquet, jsonl or text files")
    return str(documents), "parquet", f"{total:,} text files below {', '.join(map(str, roots))}"


def _python_folders() -> list[Path]:
    folders = dict.fromkeys(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib"))
    return [f for f in folders if not any(f != other and f.is_relative_to(other) for other in folders)]


def show_groups(docs: DataFrame, *, id_field: str, label: str | None) -> None:
    """Print the largest groups of equal texts, each with a sample of the text and of where it lies."""
    from pyspark.sql import functions as F

    from spark_dedup import identify_exact
    from spark_dedup.tables import col

    rows = identify_exact(docs, id_field=id_field)
    groups = rows.groupBy("kept_id").agg(
        F.count("*").alias("n"), F.slice(F.sort_array(F.collect_list("id")), 1, 2)
    )
    largest = groups.orderBy(F.desc("n"), "kept_id").limit(5).collect()
    wanted = [i for row in largest for i in (row[0], *row[2])]
    picked = docs.where(col(id_field).isin(wanted)).select(
        col(id_field), F.substring(F.coalesce("text", F.lit("")), 1, 400), *([col(label)] if label else [])
    )
    texts = {row[0]: row for row in picked.collect()}
    for kept, n, copies in largest:
        first = texts[kept]
        sample = " ".join((first[1] or "(empty)").split())[:180] or "(only white space)"
        click.echo(f"\n  {n + 1:,} documents are equal; kept {_label(first, label)}")
        click.echo(textwrap.indent(textwrap.fill(sample, 100), "    | "))
        for copy in copies:
            click.echo(f"    copy: {_label(texts[copy], label)}")


def _label(row: Any, label: str | None) -> str:
    return str(row[2]) if label else f"id {row[0]}"


def run_exact(spark: SparkSession, path: str, filetype: str, output: Path) -> None:
    """Run ids, exact matching and removal, and print what was found."""
    from spark_dedup import ExactDeduplicationWorkflow, read_documents

    result = ExactDeduplicationWorkflow(
        output_path=output / "exact",
        input_path=path,
        input_filetype=filetype,
        perform_removal=True,
        output_mode="overwrite",
    ).run(spark)
    total, removed = result["num_documents"], result["num_duplicates"]
    click.echo(
        f"\nEXACT  {total:,} documents, {removed:,} of them surplus copies in {result['num_groups']:,} groups "
        f"({removed / max(total, 1):.1%}); {result['num_documents_written']:,} remain. {result['total_time']:.0f} s"
    )
    docs = read_documents(spark, path, filetype=filetype, registry=output / "exact" / "id_registry")
    if removed:
        show_groups(docs, id_field="_curator_dedup_id", label="path" if "path" in docs.columns else None)


def embed(texts: list[str]) -> Any:
    """Return (n, at most 128) float32 embeddings of texts by TF-IDF and truncated SVD: no language model."""
    import numpy as np
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(max_features=20_000, sublinear_tf=True, token_pattern=r"[A-Za-z_]{2,}", min_df=2)
    counts = words.fit_transform(texts)
    kept = min(128, counts.shape[1] - 1, len(texts) - 1)
    return TruncatedSVD(kept, random_state=0).fit_transform(counts).astype(np.float32)


def run_semantic(spark: SparkSession, kept: Path, output: Path, rows: int) -> None:
    """Embed a sample of what remains, find its near-duplicates, and print and plot them."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyspark.sql import functions as F

    from spark_dedup import SemanticDeduplicationWorkflow
    from spark_dedup.semantic.sweep import sweep

    docs = spark.read.parquet(str(kept))
    label = "path" if "path" in docs.columns else None
    long_enough = docs.where(F.length("text").between(400, 20_000)).orderBy(F.xxhash64("_curator_dedup_id"))
    columns = [F.col("_curator_dedup_id").alias("id"), F.col("text"), *([F.col(label)] if label else [])]
    sample: Any = long_enough.select(*columns).limit(rows).toPandas()
    if len(sample) < 50:
        click.echo("\nSEMANTIC  skipped: fewer than 50 documents of 400 to 20,000 characters remain")
        return
    vectors = embed(list(sample["text"]))
    usable = np.linalg.norm(vectors, axis=1) > 0
    sample, vectors = sample[usable], vectors[usable]
    embeddings = output / "embeddings" / "part-0.parquet"
    embeddings.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": sample["id"].to_numpy(), "embeddings": list(vectors)}), embeddings)
    result = SemanticDeduplicationWorkflow(
        input_path=str(embeddings.parent),
        output_path=str(output / "semantic"),
        n_clusters=max(2, len(sample) // 150),
        eps=EPS,
        max_iter=50,
    ).run(spark)
    found = result["num_duplicates"]
    click.echo(
        f"\nSEMANTIC  {len(sample):,} of the remaining documents, as TF-IDF + SVD vectors (no language model): "
        f"{found:,} near-duplicates at eps {EPS} ({found / len(sample):.1%}). {result['total_time']:.0f} s"
    )
    pairs = spark.read.parquet(str(output / "semantic" / "pairwise_results"))
    swept = sweep(pairs, samples=0)
    click.echo(textwrap.indent(swept.table, "  "))
    swept.plot(output / "similarity.png")
    show_pairs(pairs, dict(zip(sample["id"], sample["text"], strict=True)), _labels(sample, label))


def _labels(sample: Any, label: str | None) -> dict[int, str]:
    shown = sample[label] if label else [f"id {i}" for i in sample["id"]]
    return dict(zip(sample["id"], shown, strict=True))


def show_pairs(pairs: DataFrame, texts: dict[int, str], labels: dict[int, str]) -> None:
    """Print near-duplicates that are not quite equal, with the first line in which they differ."""
    from pyspark.sql import functions as F

    near = pairs.where(F.col("cosine_sim_score").between(1 - EPS, 0.9999) & (F.col("id") != F.col("max_id")))
    for row in near.orderBy(F.desc("cosine_sim_score"), "id").limit(3).collect():
        click.echo(
            f"\n  {row['cosine_sim_score']:.4f}  {labels[row['id']]}\n          {labels[row['max_id']]}"
        )
        for mark, line in _first_difference(texts[row["id"]], texts[row["max_id"]]):
            click.echo(f"    {mark} {line.strip()[:100]}")


def _first_difference(one: str, other: str) -> list[tuple[str, str]]:
    for a, b in zip(one.splitlines(), other.splitlines(), strict=False):
        if a.strip() != b.strip():
            return [("-", a), ("+", b)]
    return []


@click.command()
@click.option("--input", "given", help="Parquet or jsonl with a column `text`, or a folder of text files.")
@click.option("--output", default="demo-output", show_default=True)
@click.option("--rows", default=6000, show_default=True, help="Documents for the semantic part.")
def main(given: str | None, output: str, rows: int) -> None:
    """Deduplicate real text end to end, and say what was found."""
    from spark_dedup import build_session

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("spark_dedup").setLevel(logging.INFO)
    folder = Path(output).expanduser().resolve()
    try:
        path, filetype, what = documents_of(given, folder)
        click.echo(f"input: {what}")
        spark = build_session("spark-dedup demo")
        run_exact(spark, path, filetype, folder)
        run_semantic(spark, folder / "exact" / "deduplicated", folder, rows)
    except InputError as error:
        click.echo(f"demo: {error}", err=True)
        sys.exit(2)
    click.echo(f"""
RESULTS
  {folder}/exact/ExactDuplicateIds/   ids to remove (parquet)
  {folder}/exact/deduplicated/        the documents that remain
  {folder}/exact/id_registry/         which id stands for which file and row (Delta)
  {folder}/semantic/duplicates/       ids of near-duplicates (parquet)
  {folder}/similarity.png             what each threshold would remove

NEXT  {click.style("on your own data", bold=True)}
  make demo INPUT=/path/to/your/parquet OUTPUT=/path/to/results
  .venv/bin/spark-dedup exact --input /path/to/your/parquet --output /path/to/results --remove
""")


if __name__ == "__main__":
    main()
