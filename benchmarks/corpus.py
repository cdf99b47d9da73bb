"""A corpus for measuring: documents of log-normal length, one in five an exact copy, in 16 zstd parquet files."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FILES = 16
COPIES = 0.2


def make_corpus(folder: Path, n_documents: int, *, mean_chars: int = 560, seed: int = 7) -> Path:
    """Write the corpus once; columns id (int64), text (string), source (int32)."""
    target = folder / f"docs-{n_documents}-{mean_chars}"
    if (target / "_done").exists():
        return target
    target.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    words = np.array(["".join(map(chr, rng.integers(97, 123, rng.integers(2, 10)))) for _ in range(20_000)])
    pool = " ".join(words[rng.zipf(1.3, size=4_000_000) % 20_000])
    n_unique = int(n_documents * (1 - COPIES))
    lengths = np.maximum(20, rng.lognormal(np.log(mean_chars), 0.6, n_unique)).astype(int)
    starts = rng.integers(0, len(pool) - 50_000, n_unique)
    origin = np.concatenate([np.arange(n_unique), rng.integers(0, n_unique, n_documents - n_unique)])
    rng.shuffle(origin)
    for number in range(FILES):
        ids = np.arange(number * n_documents // FILES, (number + 1) * n_documents // FILES)
        texts = [f"{o} {pool[starts[o] : starts[o] + min(lengths[o], 40_000)]}" for o in origin[ids]]
        table = pa.table({"id": pa.array(ids), "text": texts, "source": pa.array((ids % 5).astype("int32"))})
        pq.write_table(
            table, target / f"part-{number:05d}.parquet", compression="zstd", row_group_size=1 << 16
        )
    (target / "_done").touch()
    return target
