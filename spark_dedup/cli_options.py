"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

__all__ = ["common", "filetype", "inputs", "limits", "on_bad_lines", "rules", "writes"]


def _one_or_many(
    _context: click.Context, _option: click.Parameter, given: tuple[str, ...]
) -> str | list[str]:
    return given[0] if len(given) == 1 else list(given)


inputs = click.option(
    "--input",
    "input_path",
    required=True,
    multiple=True,
    callback=_one_or_many,
    help="Path or table; may be repeated.",
)
on_bad_lines = click.option(
    "--on-bad-lines", type=click.Choice(["error", "skip"]), default="error", show_default=True
)


def filetype(argument: str) -> Callable[..., Any]:
    """Return the option that says what the files are; ``argument`` is the parameter that takes it."""
    kinds = click.Choice(["parquet", "jsonl", "delta"])
    return click.option("--filetype", argument, type=kinds, default="parquet", show_default=True)


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that every command has; but for the device, ``main`` looks at them, not the command."""
    for option in (
        click.option(
            "--device", type=click.Choice(["auto", "cpu", "gpu"]), default="auto", show_default=True
        ),
        _flag("--json", help="Print the metadata as the last line, as JSON."),
        _flag("--debug", help="Show tracebacks."),
        _flag("--quiet", help="Log warnings only."),
    ):
        command = option(command)
    return command


def _flag(name: str, *, help: str) -> Callable[..., Any]:
    return click.option(name, is_flag=True, expose_value=False, help=help)


def rules(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of jobs that choose who survives."""
    for option in (
        click.option(
            "--drop-all-copies",
            is_flag=True,
            help="Remove survivors too, but for those of protected sources.",
        ),
        click.option(
            "--protected-source",
            "protected_sources",
            multiple=True,
            help="Source that loses nothing; may be repeated.",
        ),
        click.option(
            "--source-priority", multiple=True, help="Source whose copies stay first; may be repeated."
        ),
        click.option(
            "--source-field", help="Column that names each document's source, for the ledger and rules."
        ),
    ):
        command = option(command)
    return command


def limits(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of jobs that stop before they remove too much."""
    for name, what in (("removed", "this share of the records"), ("cluster", "a group of this share")):
        option = click.option(
            f"--max-{name}-fraction", type=float, help=f"Stop before removing more than {what}."
        )
        command = option(command)
    return command


def writes(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of jobs that write."""
    for option in (
        click.option("--dry-run", is_flag=True, help="Say what would be read and written; touch nothing."),
        click.option("--overwrite", is_flag=True, help="Replace a finished output."),
    ):
        command = option(command)
    return command
