"""Options of the Java machine that a local session starts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

__all__ = ["compile_quickly", "java_options", "joined", "process_options"]

_PROCESS_OPTIONS: list[str] = []


def java_options() -> list[str]:
    """Return the options of a local session's JVM: quiet logs, and on stderr what the JVM itself says."""
    logs = f"-Dlog4j2.configurationFile=file:{Path(__file__).resolve().parent / 'log4j2.properties'}"
    return [logs, "-XX:+DisplayVMOutputToStderr"]


def compile_quickly() -> None:
    """Have this process's JVM, when it starts, compile quickly rather than well.

    For a process that ends with its job, where that is over before good code pays.
    """
    _PROCESS_OPTIONS[:] = ["-XX:TieredStopAtLevel=1"]


def process_options() -> list[str]:
    """Return the options that this process asked for."""
    return list(_PROCESS_OPTIONS)


def joined(options: Sequence[str]) -> str:
    """Join options of a JVM as Spark takes them apart again, whatever their paths hold."""
    return " ".join('"' + re.sub(r'(["\\])', r"\\\1", option) + '"' for option in options)
