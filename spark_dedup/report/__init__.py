"""A run's figures as one HTML file that people look at, and inline in a notebook."""

from __future__ import annotations

import os
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from spark_dedup.ledger import open_ledger
from spark_dedup.paths import filesystem, make_folder, normalise_path
from spark_dedup.report.figures import Figures, collect_figures
from spark_dedup.report.page import render

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["Report", "make_report"]


@dataclass(frozen=True)
class Report:
    """A report: ``save`` it, or leave it as a notebook cell's last value to see it there."""

    html: str
    figures: Figures

    def save(self, path: str | os.PathLike[str]) -> str:
        """Write the page; return its path."""
        final = normalise_path(path)
        fs, inner = filesystem(final)
        if "/" in final:
            make_folder(final.rsplit("/", 1)[0])
        fs.pipe_file(inner, self.html.encode("utf-8"))
        return final

    def _repr_html_(self) -> str:
        # A frame keeps the page's styles and the notebook's apart.
        return (
            f'<iframe title="Deduplication report" srcdoc="{escape(self.html, quote=True)}" '
            'style="width:100%;height:40rem;border:1px solid #8884;border-radius:4px"></iframe>'
        )

    def __repr__(self) -> str:
        return f"Report of {self.figures.run['run_id']}, {len(self.html):,} characters; .save(path) writes it"


def make_report(
    spark: SparkSession,
    *,
    ledger: str | os.PathLike[str],
    run_id: str | None = None,
    documents: Any = None,
    id_field: str | None = None,
    text_field: str | None = None,
    image_field: str | None = None,
    filetype: str = "parquet",
    pairs: DataFrame | str | os.PathLike[str] | None = None,
    n_groups: int = 20,
) -> Report:
    """Make the report of a run in a ledger.

    Args:
        spark: a session with Delta.
        ledger: folder or schema.
        run_id: the newest good run by default.
        documents: path or table of the records to show; the run's own input by default.
        id_field: id column of the documents; the run's own by default.
        text_field: text column; the run's own by default.
        image_field: column of encoded images, shown in place of texts.
        filetype: of a ``documents`` path: ``parquet``, ``jsonl`` or ``delta``.
        pairs: pairwise results, as a DataFrame or its folder, for thresholds looser than the run's own.
        n_groups: largest groups, and most doubtful removals, to show.

    Raises:
        InputError: no ledger, no such run, or documents without a column that was named.
    """
    from spark_dedup.datasets import read_dataset

    found = open_ledger(spark, ledger)
    figures = collect_figures(
        spark,
        found,
        run_id,
        documents=documents,
        id_field=id_field,
        text_field=text_field,
        image_field=image_field,
        filetype=filetype,
        pairs=read_dataset(spark, pairs) if isinstance(pairs, str | os.PathLike) else pairs,
        n_groups=n_groups,
    )
    return Report(render(figures), figures)
