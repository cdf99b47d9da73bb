"""The records that a report shows: texts or images of a few hundred ids, cut in Spark."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spark_dedup.errors import InputError
from spark_dedup.tables import ID, col, require_columns

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["Record", "Records"]

TEXT_CHARS = 1200
IMAGE_BYTES = 300_000


@dataclass(frozen=True)
class Record:
    """One record as shown: its id and, where they are known, source, text, characters cut off, and image."""

    id: str
    source: str | None = None
    text: str | None = None
    cut: int = 0
    image: bytes | None = None


class Records:
    """The documents of a run, to fetch single records from."""

    def __init__(
        self,
        spark: SparkSession,
        run: dict[str, Any],
        documents: Any = None,
        *,
        id_field: str | None,
        text_field: str | None,
        image_field: str | None,
        filetype: str,
    ) -> None:
        """Find the documents and check their columns.

        Raises:
            InputError, FileNotFoundError: documents or columns that are not there.
        """
        self.id_field = id_field or run["id_field"]
        self.text_field = text_field or (run["parameters"] or {}).get("text_field")
        self.image_field = image_field
        self._df = _open(spark, run, documents, self.id_field, filetype)
        if not self.text_field and "text" in self._df.columns:
            self.text_field = "text"
        if not (self.text_field or image_field):
            raise InputError("no text_field or image_field was named")
        names = [image_field] if image_field else [self.text_field]
        require_columns(
            self._df, [self.id_field, *(n for n in names if n)], where="the documents of the report"
        )

    def fetch(self, ids: Iterable[Any]) -> dict[Any, Record]:
        """Return the records of some ids; texts and images that are too large come shortened or not at all."""
        from pyspark.sql import functions as F

        wanted = list(ids)
        if not wanted:
            return {}
        chosen = self._df.where(col(self.id_field).isin(wanted))
        if self.image_field:
            image = col(self.image_field)
            small = F.when(F.octet_length(image) <= IMAGE_BYTES, image)
            shown = chosen.select(col(self.id_field), F.lit(None).cast("string"), F.lit(0), small)
        else:
            shown = chosen.select(col(self.id_field), *self._text(), F.lit(None).cast("binary"))
        return {r[0]: Record(str(r[0]), None, r[1], r[2], r[3] and bytes(r[3])) for r in shown.collect()}

    def shortest(self, groups: DataFrame, n: int) -> list[tuple[Any, int]]:
        """Return ids of the survivors with the shortest texts, and group sizes: the matches that say least."""
        from pyspark.sql import functions as F

        sizes = groups.select(F.col("kept_id").alias("__kept"), F.col("count").alias("__removed"))
        # The length is taken before the join, so that no text is shuffled.
        length = F.coalesce(F.length(col(self.text_field or "").cast("string")), F.lit(0))
        lengths = self._df.select(col(self.id_field).alias("__id"), length.alias("__length"))
        joined = lengths.join(sizes, F.col("__id") == F.col("__kept"))
        rows = joined.orderBy("__length", F.col("__removed").desc(), "__id").limit(n)
        return [(r[0], r[1] + 1) for r in rows.select("__id", "__removed").collect()]

    def _text(self) -> list[Any]:
        from pyspark.sql import functions as F

        text = F.coalesce(col(self.text_field or "").cast("string"), F.lit(""))
        cut = F.greatest(F.length(text) - F.lit(TEXT_CHARS), F.lit(0))
        return [F.substring(text, 1, TEXT_CHARS), cut]


def _open(
    spark: SparkSession, run: dict[str, Any], documents: Any, id_field: str, filetype: str
) -> DataFrame:
    import json

    from spark_dedup.datasets import read_dataset
    from spark_dedup.ids.assign import documents as with_ids

    source = documents if documents is not None else run["input"]
    if isinstance(source, str) and source.startswith("["):
        source = json.loads(source)
    filetype = (run["parameters"] or {}).get("input_filetype", filetype) if documents is None else filetype
    if id_field == ID and run["registry"]:
        # A report only looks: a file that the registry does not know is an error here.
        return with_ids(spark, source, filetype=filetype, registry=run["registry"], register_new=False).df
    return read_dataset(spark, source, filetype=filetype)
