"""The command line: ``spark-dedup …``, and the same file under ``spark-submit``."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

import spark_dedup
from spark_dedup.cli_options import common, filetype, inputs, limits, on_bad_lines, rules, writes
from spark_dedup.errors import InputError, first_line, innermost_reason
from spark_dedup.java import compile_quickly
from spark_dedup.listing import check_there, is_small

__all__ = ["cli", "main"]

_BAD_PATH = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
_BAD_INPUT = (InputError, *_BAD_PATH)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(spark_dedup.__version__, prog_name="spark-dedup")
def cli() -> None:
    """Find and remove duplicates in training data, on Apache Spark."""


@cli.command()
@inputs
@click.option("--output", "output_path", required=True, help="Folder for the results.")
@click.option("--text-field", default="text", show_default=True)
@click.option("--id-field", help="Column of unique ids; without it ids are assigned.")
@filetype("input_filetype")
@click.option("--remove", "perform_removal", is_flag=True, help="Also write the documents that remain.")
@click.option(
    "--keep", multiple=True, help="Column that chooses the survivor, as quality:desc; may be repeated."
)
@rules
@click.option("--verify", is_flag=True, help="Compare the texts themselves inside each hash group.")
@click.option(
    "--hash-method",
    type=click.Choice(["md5", "xxhash64"]),
    default="md5",
    show_default=True,
    help="xxhash64 is faster; equal hashes can be forged.",
)
@click.option("--registry", help="Where the id registry lies; default OUTPUT/id_registry.")
@on_bad_lines
@click.option("--ledger", help="Folder or schema of a ledger that gets this run.")
@limits
@writes
@common
def exact(keep: tuple[str, ...], overwrite: bool, **options: Any) -> Any:
    """Find documents whose text is equal."""
    from spark_dedup import ExactDeduplicationWorkflow

    return _run(
        ExactDeduplicationWorkflow,
        options,
        assign_id=options["id_field"] is None,
        keep=[_order(item) for item in keep] or None,
        output_mode="overwrite" if overwrite else "error",
    )


@cli.command()
@inputs
@click.option(
    "--duplicates", "ids_to_remove_path", required=True, help="Parquet files or table of ids to remove."
)
@click.option("--output", "output_path", required=True, help="Folder, or a table or view name.")
@click.option("--id-field", default=spark_dedup.CURATOR_DEDUP_ID_STR, show_default=True)
@click.option("--duplicate-id-field", default="id", show_default=True)
@click.option("--id-generator", "id_generator_path", help="JSON of assigned ids, ours or NeMo Curator's.")
@click.option("--registry", help="Id registry, instead of --id-generator.")
@click.option("--input-blocksize", help="Size by which NeMo Curator grouped files when it gave the ids.")
@click.option("--input-files-per-partition", type=int, help="Likewise the number of files.")
@filetype("input_filetype")
@click.option(
    "--format",
    "output_filetype",
    type=click.Choice(["parquet", "jsonl", "delta", "view", "delta-clone"]),
    default="parquet",
    show_default=True,
)
@click.option("--drop-id-field", is_flag=True, help="Leave the id column out.")
@on_bad_lines
@writes
@common
def remove(overwrite: bool, **options: Any) -> Any:
    """Write the documents that are not listed."""
    from spark_dedup import TextDuplicatesRemovalWorkflow

    mode = "overwrite" if overwrite else "error"
    return _run(TextDuplicatesRemovalWorkflow, options, output_mode=mode)


@cli.command()
@inputs
@click.option("--output", "output_path", required=True, help="Folder for the results.")
@click.option("--n-clusters", type=int, required=True)
@click.option(
    "--eps", type=float, help="Remove where the similarity is at least 1 - eps; without it nothing is."
)
@click.option("--id-field", default="id", show_default=True)
@click.option("--embedding-field", default="embeddings", show_default=True)
@click.option(
    "--metadata-field", "metadata_fields", multiple=True, help="Column to carry along; may be repeated."
)
@click.option("--max-iter", type=int, default=300, show_default=True)
@click.option("--tol", type=float, default=1e-4, show_default=True)
@click.option("--random-state", type=int, default=42, show_default=True)
@click.option(
    "--which-to-keep", type=click.Choice(["hard", "easy", "random"]), default="hard", show_default=True
)
@click.option("--distance-metric", type=click.Choice(["cosine", "l2"]), default="cosine", show_default=True)
@click.option(
    "--invalid-embeddings", type=click.Choice(["error", "drop"]), default="error", show_default=True
)
@click.option("--fit-data-fraction", type=float, help="Fit the centroids on a sample of this size.")
@click.option("--n-probe", default=1, show_default=True, help="Clusters each record is compared in.")
@click.option("--pairwise-batch-size", default=1024, show_default=True, help="Rows multiplied at once.")
@filetype("input_filetype")
@click.option(
    "--remove", "perform_removal", is_flag=True, help="Also write the records that remain; needs --eps."
)
@rules
@click.option("--keep-longest", help="Column of texts: of copies, the longest text stays.")
@click.option("--ledger", help="Folder or schema of a ledger that gets this run.")
@click.option("--cache", "cache_path", help="Folder for what lies between the steps; default OUTPUT.")
@click.option(
    "--clear/--no-clear", "clear_output", default=True, show_default=True, help="Clear earlier results."
)
@limits
@click.option("--dry-run", is_flag=True, help="Say what would be read and written; touch nothing.")
@common
def semantic(metadata_fields: tuple[str, ...], **options: Any) -> Any:
    """Find records whose embeddings are close."""
    from spark_dedup import SemanticDeduplicationWorkflow

    if options["perform_removal"] and options["eps"] is None:
        raise InputError("--remove needs --eps: without a threshold nothing is a duplicate")
    return _run(SemanticDeduplicationWorkflow, options, metadata_fields=list(metadata_fields) or None)


def _order(item: str) -> str | tuple[str, str]:
    """Return ``quality:desc`` as a pair; a name with another colon, or none, as it is."""
    name, colon, direction = item.rpartition(":")
    return (name, direction) if colon and direction.lower() in ("asc", "desc") else item


def _run(workflow: Any, options: dict[str, Any], **arguments: Any) -> Any:
    """Build a job from options that carry its own parameter names, and run it or plan it."""
    dry_run = options.pop("dry_run")
    job = workflow(**{**options, **arguments})
    for named in (job.input_path, getattr(job, "ids_to_remove_path", [])):
        check_there(named)  # a JVM takes seconds to start
    if is_small(job.input_path):
        compile_quickly()
    return job.plan() if dry_run else job.run()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 bad arguments or input, 1 anything else."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug, as_json = "--debug" in args, "--json" in args
    level = logging.WARNING if "--quiet" in args else logging.INFO
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr
    )
    logging.getLogger("spark_dedup").setLevel(level)
    logging.getLogger("py4j").setLevel(logging.CRITICAL)  # it logs a traceback of what it then raises
    sys.exit(_exit_code(args, debug=debug, as_json=as_json))


def _exit_code(args: list[str], *, debug: bool, as_json: bool) -> int:
    try:
        result = cli.main(args=args, prog_name="spark-dedup", standalone_mode=False)
    except click.ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # click has it from 8.2 on
            error.show()
        else:
            click.echo(f"spark-dedup: {_usage_error(error)}", err=True)
        return 2
    except click.Abort:
        click.echo("stopped", err=True)
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        if _is_interrupt(error):
            click.echo("stopped", err=True)
            return 1
        line = _one_line(error)
        if isinstance(error, _BAD_INPUT):
            click.echo(f"spark-dedup: {line}", err=True)
            return 2
        reason = innermost_reason(error)
        click.echo(
            f"spark-dedup: {line}" + (f" ({reason})" if reason and reason not in line else ""), err=True
        )
        if not debug:
            click.echo("spark-dedup: run again with --debug for the traceback", err=True)
        return 1
    _show(result, as_json=as_json)
    return 0


def _is_interrupt(error: BaseException | None) -> bool:
    """Return whether Spark made an error of Ctrl-C: its handler calls Java in the midst of another call."""
    while error is not None:
        if any(
            frame.f_code.co_name == "signal_handler" for frame, _ in traceback.walk_tb(error.__traceback__)
        ):
            return True
        error = error.__context__
    return False


def _usage_error(error: click.ClickException) -> str:
    """Return what is wrong with the arguments, and where to look it up, on one line."""
    text = " ".join(error.format_message().split())
    context = error.ctx if isinstance(error, click.UsageError) else None
    end = "" if text.endswith((".", "?", ")")) else "."
    return f"{text}{end} See {context.command_path} --help" if context else text


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and not isinstance(error, InputError) and error.filename and error.strerror:
        return f"{error.strerror}: {error.filename}"
    return first_line(error)


def _show(result: Any, *, as_json: bool) -> None:
    if result is None or isinstance(result, int):  # --help, --version
        return
    if isinstance(result, dict):
        metadata, shown = result, [f"{k}: {v}" for k, v in result.items() if not isinstance(v, list)]
    else:
        metadata, shown = result.metadata, [repr(result)]
    click.echo("\n".join(shown))
    if as_json:
        click.echo(json.dumps(metadata, default=str))


# The tools add themselves to the group above.
from spark_dedup import cli_tools  # noqa: E402, F401

if __name__ == "__main__":
    # Run by its path, as spark-submit does: this file's folder must not shadow other packages, and the commands
    # belong to the module, not to this copy of it.
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent]
    from spark_dedup.cli import main as run_installed

    run_installed()
