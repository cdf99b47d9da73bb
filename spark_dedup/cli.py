"""The command line: ``spark-dedup …``, and the same file under ``spark-submit``."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

import spark_dedup
from spark_dedup.errors import InputError

__all__ = ["cli", "main"]

_BAD_INPUT = (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError, KeyError)


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options every job has."""
    for option in (
        click.option(
            "--device", type=click.Choice(["auto", "cpu", "gpu"]), default="auto", show_default=True
        ),
        click.option("--json", "as_json", is_flag=True, help="Print the metadata as the last line, as JSON."),
        click.option("--debug", is_flag=True, help="Show tracebacks."),
        click.option("--quiet", is_flag=True, help="Log warnings only."),
    ):
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


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(spark_dedup.__version__, prog_name="spark-dedup")
def cli() -> None:
    """Find and remove duplicates in training data, on Apache Spark."""


@cli.command()
@click.option("--input", "input_path", required=True, multiple=True, help="Path or table; may be repeated.")
@click.option("--output", "output_path", required=True, help="Folder for the results.")
@click.option("--text-field", default="text", show_default=True)
@click.option("--id-field", help="Column of unique ids; without it ids are assigned.")
@click.option(
    "--filetype", type=click.Choice(["parquet", "jsonl", "delta"]), default="parquet", show_default=True
)
@click.option("--remove", "perform_removal", is_flag=True, help="Also write the documents that remain.")
@click.option(
    "--keep", multiple=True, help="Column that chooses the survivor, as quality:desc; may be repeated."
)
@click.option("--verify", is_flag=True, help="Compare the texts themselves inside each hash group.")
@click.option("--registry", help="Where the id registry lies; default OUTPUT/id_registry.")
@click.option("--on-bad-lines", type=click.Choice(["error", "skip"]), default="error", show_default=True)
@click.option("--ledger", help="Folder or schema of a ledger that gets this run.")
@writes
@common
def exact(input_path: tuple[str, ...], keep: tuple[str, ...], overwrite: bool, **options: Any) -> Any:
    """Find documents whose text is equal."""
    from spark_dedup import ExactDeduplicationWorkflow

    id_field = options.get("id_field")
    return _run(
        ExactDeduplicationWorkflow,
        options,
        input_path=_one_or_many(input_path),
        input_filetype=options.pop("filetype"),
        assign_id=id_field is None,
        keep=[_order(item) for item in keep] or None,
        output_mode="overwrite" if overwrite else "error",
    )


@cli.command()
@click.option("--input", "input_path", required=True, multiple=True, help="Path or table; may be repeated.")
@click.option(
    "--duplicates", "ids_to_remove_path", required=True, help="Parquet files or table of ids to remove."
)
@click.option("--output", "output_path", required=True, help="Folder, or a table or view name.")
@click.option("--id-field", default=spark_dedup.CURATOR_DEDUP_ID_STR, show_default=True)
@click.option("--duplicate-id-field", default="id", show_default=True)
@click.option("--id-generator", "id_generator_path", help="JSON of assigned ids, ours or NeMo Curator's.")
@click.option("--registry", help="Id registry, instead of --id-generator.")
@click.option(
    "--filetype", type=click.Choice(["parquet", "jsonl", "delta"]), default="parquet", show_default=True
)
@click.option(
    "--format",
    "output_filetype",
    type=click.Choice(["parquet", "jsonl", "delta", "view", "delta-clone"]),
    default="parquet",
    show_default=True,
)
@click.option("--drop-id-field", is_flag=True, help="Leave the id column out.")
@click.option("--on-bad-lines", type=click.Choice(["error", "skip"]), default="error", show_default=True)
@writes
@common
def remove(input_path: tuple[str, ...], overwrite: bool, **options: Any) -> Any:
    """Write the documents that are not listed."""
    from spark_dedup import TextDuplicatesRemovalWorkflow

    return _run(
        TextDuplicatesRemovalWorkflow,
        options,
        input_path=_one_or_many(input_path),
        input_filetype=options.pop("filetype"),
        output_mode="overwrite" if overwrite else "error",
    )


@cli.command()
@click.option("--input", "input_path", required=True, multiple=True, help="Path or table; may be repeated.")
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
@click.option("--fit-data-fraction", type=float, help="Fit the centroids on a sample of this size.")
@click.option("--cache", "cache_path", help="Folder for what lies between the steps; default OUTPUT.")
@click.option(
    "--no-clear", "clear_output", is_flag=True, flag_value=False, default=True, help="Keep earlier results."
)
@click.option("--dry-run", is_flag=True, help="Say what would be read and written; touch nothing.")
@common
def semantic(input_path: tuple[str, ...], metadata_fields: tuple[str, ...], **options: Any) -> Any:
    """Find documents whose embeddings are close."""
    from spark_dedup import SemanticDeduplicationWorkflow

    return _run(
        SemanticDeduplicationWorkflow,
        options,
        input_path=_one_or_many(input_path),
        metadata_fields=list(metadata_fields) or None,
    )


@cli.group()
def ids() -> None:
    """Look at an id registry; export it to JSON, import one."""


@ids.command("show")
@click.argument("registry")
@click.option("--limit", default=20, show_default=True)
@common
def show_ids(
    registry: str, limit: int, device: str, as_json: bool, debug: bool, quiet: bool
) -> dict[str, Any]:
    """Show the next id and the first ranges of REGISTRY (a Delta registry or its JSON)."""
    if registry.endswith(".json"):
        from spark_dedup import IdGenerator

        state = IdGenerator.from_disk(registry)
        ranges = [
            (key, low, high) for key, (low, high) in sorted(state.batch_registry.items(), key=lambda b: b[1])
        ]
        shown: dict[str, Any] = {"next_id": state.next_id, "batches": len(ranges)}
        rows = [f"{low:>15,} {high:>15,}  {key}" for key, low, high in ranges[:limit]]
    else:
        opened = _registry(registry, device)
        df = opened.to_dataframe()
        shown = {"next_id": opened.next_id, "batches": df.count()}
        first = df.orderBy("min_id").limit(limit).collect()
        rows = [
            f"{row['min_id']:>15,} {row['max_id']:>15,}  {' '.join(row['files'] or [row['key']])}"
            for row in first
        ]
    click.echo("\n".join([f"{'first id':>15} {'last id':>15}  batch", *rows]))
    return shown


@ids.command("export")
@click.argument("registry")
@click.argument("path")
@common
def export_ids(
    registry: str, path: str, device: str, as_json: bool, debug: bool, quiet: bool
) -> dict[str, Any]:
    """Write REGISTRY as JSON to PATH, as NeMo Curator reads it."""
    opened = _registry(registry, device)
    opened.to_disk(path)
    return {"next_id": opened.next_id, "path": path}


@ids.command("import")
@click.argument("path")
@click.argument("registry")
@common
def import_ids(
    path: str, registry: str, device: str, as_json: bool, debug: bool, quiet: bool
) -> dict[str, Any]:
    """Load the JSON at PATH, ours or NeMo Curator's, into a new REGISTRY."""
    from spark_dedup import IdRegistry, build_session

    loaded = IdRegistry.from_disk(build_session(device=device), path, registry)
    return {"next_id": loaded.next_id, "registry": registry}


@cli.command()
@click.option("--ledger", required=True, help="Folder or schema of the ledger.")
@click.option("--documents", help="Path or table to show without its duplicates.")
@click.option("--prefix", default="dedup_", show_default=True, help="Start of the names, as main.text.dedup_")
@click.option("--id-field", help="Id column of the documents; the run's own by default.")
@click.option("--input", help="Dataset whose runs count, when it is not --documents.")
@click.option("--run-id", help="Count this run only, now and later.")
@click.option(
    "--filetype", type=click.Choice(["parquet", "jsonl", "delta"]), default="parquet", show_default=True
)
@common
def views(device: str, as_json: bool, debug: bool, quiet: bool, **options: Any) -> dict[str, Any]:
    """Create SQL views over a ledger; they follow new runs."""
    from spark_dedup import build_session, create_views

    return {"views": ", ".join(create_views(build_session(device=device), **options))}


@cli.command()
@click.option("--ledger", required=True, help="Folder or schema of the ledger.")
@click.option("--output", default="report.html", show_default=True, help="HTML file to write.")
@click.option("--run-id", help="Run to show; the newest good one by default.")
@click.option("--documents", help="Path or table of the records; the run's own input by default.")
@click.option("--id-field", help="Id column of the documents; the run's own by default.")
@click.option("--text-field", help="Text column; the run's own by default.")
@click.option("--image-field", help="Column of encoded images, shown in place of texts.")
@click.option(
    "--filetype", type=click.Choice(["parquet", "jsonl", "delta"]), default="parquet", show_default=True
)
@click.option("--pairs", help="Pairwise results, for thresholds looser than the run's own.")
@click.option("--groups", "n_groups", default=20, show_default=True, help="Groups to show.")
@common
def report(
    output: str, device: str, as_json: bool, debug: bool, quiet: bool, **options: Any
) -> dict[str, Any]:
    """Write a run's figures, groups and doubtful removals as one HTML file."""
    from spark_dedup import build_session
    from spark_dedup.report import make_report

    made = make_report(build_session(device=device), **options)
    return {"run_id": made.figures.run["run_id"], "path": made.save(output)}


@cli.command(context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("job", type=click.Choice(["exact", "remove", "semantic"]))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def plan(context: click.Context, job: str, arguments: tuple[str, ...]) -> Any:
    """Say what JOB with its ARGUMENTS would read and write, its size and settings; touch nothing."""
    command = cli.commands[job]
    with command.make_context(job, [*arguments, "--dry-run"], parent=context.parent) as inner:
        return command.invoke(inner)


def _registry(location: str, device: str) -> Any:
    from spark_dedup import IdRegistry, build_session
    from spark_dedup.datasets import find_source

    session = build_session(device=device)
    find_source(session, location, filetype="delta")
    return IdRegistry.open(session, location)


def _one_or_many(given: Sequence[str]) -> str | list[str]:
    return given[0] if len(given) == 1 else list(given)


def _order(item: str) -> str | tuple[str, str]:
    name, colon, direction = item.rpartition(":")
    return (name, direction) if colon and direction.lower() in ("asc", "desc") else item


def _run(workflow: Any, options: dict[str, Any], **arguments: Any) -> Any:
    """Build a job from options that carry its own parameter names, and run it or plan it."""
    for name in ("as_json", "debug", "quiet"):
        options.pop(name)
    dry_run = options.pop("dry_run")
    job = workflow(**{**options, **arguments})
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
    sys.exit(_exit_code(args, debug=debug, as_json=as_json))


def _exit_code(args: list[str], *, debug: bool, as_json: bool) -> int:
    try:
        result = cli.main(args=args, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return 2
    except click.Abort:
        click.echo("stopped", err=True)
        return 1
    except Exception as error:
        if debug:
            raise
        bad_input = isinstance(error, _BAD_INPUT)
        click.echo(f"spark-dedup: {_one_line(error)}", err=True)
        if not bad_input:
            click.echo("spark-dedup: run again with --debug for the traceback", err=True)
        return 2 if bad_input else 1
    _show(result, as_json=as_json)
    return 0


def _one_line(error: Exception) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if isinstance(error, OSError) and not isinstance(error, InputError) and error.filename and error.strerror:
        text = f"{error.strerror}: {error.filename}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _show(result: Any, *, as_json: bool) -> None:
    if result is None or isinstance(result, int):
        return
    metadata = result if isinstance(result, dict) else result.metadata
    click.echo(
        "\n".join(f"{k}: {v}" for k, v in result.items()) if isinstance(result, dict) else repr(result)
    )
    if as_json:
        click.echo(json.dumps(metadata, default=str))


if __name__ == "__main__":
    # Under spark-submit this file is run by its path; the package beside it must win over the folder of this file.
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent]
    main()
