"""A Delta table over parquet files as they lie, its listed rows hidden by deletion vectors, in a single commit.

The log is written as the Delta protocol has it (PROTOCOL.md: *Deletion Vectors*, *Deletion Vector Format*, *Column
Mapping*), because Delta's own commands take some fifty jobs for the same: clone, statistics, merge, cleaning up.
"""

from __future__ import annotations

import base64
import json
import re
import struct
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

import spark_dedup
from spark_dedup.footers import parquet_footers
from spark_dedup.ids.files import path_of
from spark_dedup.listing import FileInfo
from spark_dedup.partitions import are_partitioned, partition_values
from spark_dedup.paths import filesystem, make_folder
from spark_dedup.removal.hidden import Hidden

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem
    from pyspark.sql.types import StructType

    from spark_dedup.sources import Source

__all__ = ["NAMES_TO_MAP", "clone_files", "nested_names"]

NAMES_TO_MAP = re.compile(r"[ ,;{}()\n\t=]")
"""Characters that Delta takes in column names only with column mapping."""

_MAGIC = 1681511377
_FILE_BYTES = 1 << 30
"""After which vectors go to a new file: Delta's offsets are 32-bit integers."""
_Z85 = bytes.maketrans(
    b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~",
    b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#",
)
"""From the alphabet of RFC 1924, which Python has, to that of ZeroMQ, which Delta names files in."""


def clone_files(
    files: Sequence[FileInfo],
    source: Source,
    target: str,
    *,
    schema: StructType,
    urls: Mapping[str, str],
    hidden: Iterable[Hidden],
) -> tuple[int, int]:
    """Make a Delta table of parquet files that lie elsewhere, without the hidden rows.

    Args:
        files: the files.
        source: where they lie.
        target: folder of the table; the caller publishes it.
        schema: columns of the files.
        urls: path → the URI that Spark reads it by.
        hidden: what ``hidden_by_id`` or ``hidden_by_range`` found.

    Returns:
        Rows of the files by their footers, and rows hidden.

    Raises:
        RuntimeError: a file has fewer rows than are hidden, so it changed meanwhile.
    """
    rows = {file.path: footer.num_rows for file, footer in zip(files, parquet_footers(files), strict=True)}
    fs, inner = filesystem(target)
    make_folder(f"{target}/_delta_log")
    vectors = _write_vectors(fs, inner, ((path_of(uri, rows) or uri, places) for uri, places in hidden))
    for path, vector in vectors.items():
        if vector["cardinality"] > rows.get(path, 0):
            raise RuntimeError(f"{path} has fewer rows than were matched: did the input change meanwhile?")
    partitioned = are_partitioned(files, source.names)
    partitions = [partition_values(file, source.names) if partitioned else {} for file in files]
    with fs.open(f"{inner}/_delta_log/{0:020d}.json", "wb") as log:
        for action in _table_actions(schema, partitions[0], source):
            log.write(_line(action))
        for file, partition in zip(files, partitions, strict=True):
            hides = vectors.get(file.path)
            if rows[file.path] > (hides["cardinality"] if hides else 0):
                # Delta looks files up by the URI that Java makes of a path, where Spark lists file:///.
                uri = urls[file.path].replace("file:///", "file:/", 1)
                log.write(_line(_add(file, uri, partition, rows[file.path], hides)))
    return sum(rows.values()), sum(vector["cardinality"] for vector in vectors.values())


def _write_vectors(
    fs: AbstractFileSystem, folder: str, found: Iterable[tuple[str, np.ndarray]]
) -> dict[str, dict[str, Any]]:
    """Write deletion vectors one after the other; return by path how a commit names each."""
    from pyroaring import BitMap64

    named: dict[str, dict[str, Any]] = {}
    offset, code = 0, ""
    with ExitStack() as opened:
        for path, places in found:
            if not named or offset >= _FILE_BYTES:
                opened.close()
                name = uuid.uuid4()
                code = base64.b85encode(name.bytes).translate(_Z85).decode()
                file = opened.enter_context(fs.open(f"{folder}/deletion_vector_{name}.bin", "wb"))
                offset = file.write(b"\x01")
            data = struct.pack("<i", _MAGIC) + BitMap64(places).serialize()
            file.write(struct.pack(">i", len(data)) + data + struct.pack(">I", zlib.crc32(data)))
            named[path] = {
                "storageType": "u",
                "pathOrInlineDv": code,
                "offset": offset,
                "sizeInBytes": len(data),
                "cardinality": len(places),
            }
            offset += len(data) + 8
    return named


def _table_actions(
    schema: StructType, partition_columns: Iterable[str], source: Source
) -> Iterator[dict[str, Any]]:
    """Yield the actions that make the table."""
    now = int(time.time() * 1000)
    features = ["deletionVectors"]
    configuration = {"delta.enableDeletionVectors": "true"}
    described = json.loads(schema.json())
    if NAMES_TO_MAP.search("".join(nested_names(schema))):
        features.append("columnMapping")
        numbers = count(1)
        _map_names(described, numbers)
        configuration |= {
            "delta.columnMapping.mode": "name",
            "delta.columnMapping.maxColumnId": str(next(numbers) - 1),
        }
    if "timestamp_ntz" in schema.simpleString():
        features.append("timestampNtz")
    yield {
        "commitInfo": {
            "timestamp": now,
            "operation": "CLONE",
            "operationParameters": {"source": str(source), "isShallow": "true"},
            "engineInfo": f"spark_dedup/{spark_dedup.__version__}",
        }
    }
    yield {
        "protocol": {
            "minReaderVersion": 3,
            "minWriterVersion": 7,
            "readerFeatures": features,
            "writerFeatures": [*features, "appendOnly", "invariants"],
        }
    }
    yield {
        "metaData": {
            "id": str(uuid.uuid4()),
            "format": {"provider": "parquet", "options": {}},
            "schemaString": json.dumps(described),
            "partitionColumns": list(partition_columns),
            "configuration": configuration,
            "createdTime": now,
        }
    }


def _map_names(kind: Any, numbers: Iterator[int]) -> None:
    """Give every field of a schema, nested ones too, its number and its own name as the physical one."""
    if not isinstance(kind, dict):
        return
    for field in kind.get("fields", []):
        field["metadata"] = {
            **field["metadata"],
            "delta.columnMapping.id": next(numbers),
            "delta.columnMapping.physicalName": field["name"],
        }
        _map_names(field["type"], numbers)
    for part in ("elementType", "keyType", "valueType"):
        _map_names(kind.get(part), numbers)


def _add(
    file: FileInfo,
    uri: str,
    partition: Mapping[str, str | None],
    num_rows: int,
    vector: Mapping[str, Any] | None,
) -> dict[str, Any]:
    stats: dict[str, Any] = {"numRecords": num_rows}
    return {
        "add": {
            "path": uri,
            "partitionValues": dict(partition),
            "size": file.size,
            "modificationTime": file.modified_ms,
            "dataChange": True,
            "stats": json.dumps(stats | ({"tightBounds": False} if vector else {})),
            **({"deletionVector": dict(vector)} if vector else {}),
        }
    }


def _line(action: Mapping[str, Any]) -> bytes:
    return json.dumps(action, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def nested_names(kind: Any) -> list[str]:
    """Return the names of all fields of a Spark type, nested ones too."""
    inner = [getattr(kind, part) for part in ("elementType", "keyType", "valueType") if hasattr(kind, part)]
    below = [(f.name, f.dataType) for f in getattr(kind, "fields", [])]
    return [n for name, child in below for n in (name, *nested_names(child))] + [
        n for c in inner for n in nested_names(c)
    ]
