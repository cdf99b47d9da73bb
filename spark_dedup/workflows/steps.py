"""Which steps of a job are finished, so that a killed job goes on and a finished one is not overwritten."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from spark_dedup.datasets import FileInfo
from spark_dedup.paths import Location, delete, exists, filesystem, normalise_path

__all__ = ["Steps", "fingerprint"]

logger = logging.getLogger(__name__)

_FILE = ".spark_dedup_steps.json"


def fingerprint(parameters: Mapping[str, Any], files: Sequence[FileInfo] = ()) -> str:
    """Return a digest of what a step's result depends on: parameters, and the input's files, sizes and times."""
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True, default=str).encode())
    for file in files:
        digest.update(f"\n{file.path}\t{file.size}\t{file.modified_ms}".encode())
    return digest.hexdigest()


class Steps:
    """The record of finished steps beside a job's output.

    Opening it settles what is there: a finished output is an error unless ``mode`` is ``"overwrite"``; steps of
    a killed run with the same fingerprint stand; anything else the job wrote is cleared.

    Args:
        output: the job's output folder.
        digest: ``fingerprint`` of this run.
        owned: folders and files below ``output`` that the job writes; nothing else is ever cleared.
        mode: ``"error"`` or ``"overwrite"``.

    Raises:
        FileExistsError: when the output is finished, or holds one of ``owned`` that no run of ours accounts for.
    """

    def __init__(self, output: Location, digest: str, *, owned: Sequence[str], mode: str = "error") -> None:
        self.output = normalise_path(output)
        self._path = f"{self.output}/{_FILE}"
        record = self._read()
        self._digest = digest
        self._done: dict[str, dict[str, Any]] = {}
        there = [name for name in owned if exists(f"{self.output}/{name}")]
        finished = record is None or record.get("finished")
        if there and finished and mode == "error":
            raise FileExistsError(
                f"output {self.output} holds {', '.join(there)} of a finished run: choose another output folder "
                "or ask for overwriting"
            )
        if record is not None and not finished and record.get("fingerprint") == digest:
            self._done = record["steps"]
            if self._done:
                logger.info("going on after the finished steps: %s", ", ".join(self._done))
            return
        if record is not None and not finished:
            logger.warning(
                "parameters or input changed since the unfinished run in %s: starting over", self.output
            )
        for name in there:
            delete(f"{self.output}/{name}")
        delete(self._path)

    def result(self, step: str) -> dict[str, Any] | None:
        """Return what a finished step recorded, or None when it has to run."""
        return self._done.get(step)

    def finish(self, step: str, result: dict[str, Any]) -> dict[str, Any]:
        """Record a step as finished, with plain values that a later run needs from it."""
        self._done[step] = result
        self._write(finished=False)
        return result

    def close(self) -> None:
        """Record the whole job as finished."""
        self._write(finished=True)

    def _read(self) -> dict[str, Any] | None:
        if not exists(self._path):
            return None
        fs, inner = filesystem(self._path)
        try:
            loaded: dict[str, Any] = json.loads(fs.cat_file(inner))
        except ValueError:  # killed while writing: the steps before it count as not done
            return {"finished": False, "fingerprint": None, "steps": {}}
        return loaded

    def _write(self, *, finished: bool) -> None:
        fs, inner = filesystem(self._path)
        fs.makedirs(inner.rsplit("/", 1)[0], exist_ok=True)
        record = {"fingerprint": self._digest, "finished": finished, "steps": self._done}
        fs.pipe_file(f"{inner}.tmp", json.dumps(record, indent=1).encode())
        fs.mv(f"{inner}.tmp", inner)
