"""Commands beside the jobs: ids, views, report, plan, sweep, audit."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from spark_dedup.cli import cli
from spark_dedup.cli_options import common, filetype

__all__: list[str] = []


@cli.group()
def ids() -> None:
    """Look at an id registry; export it to JSON, import one."""


@ids.command("show")
@click.argument("registry")
@click.option("--limit", type=click.IntRange(min=0), default=20, show_default=True)
@common
def show_ids(registry: str, limit: int, device: str) -> dict[str, Any]:
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
        shown = {"next_id": opened.next_id, "batches": int(df.count())}
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
def export_ids(registry: str, path: str, device: str) -> dict[str, Any]:
    """Write REGISTRY as JSON to PATH, as NeMo Curator reads it."""
    opened = _registry(registry, device)
    opened.to_disk(path)
    return {"next_id": opened.next_id, "path": path}


@ids.command("import")
@click.argument("path")
@click.argument("registry")
@common
def import_ids(path: str, registry: str, device: str) -> dict[str, Any]:
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
@filetype("filetype")
@common
def views(device: str, **options: Any) -> dict[str, Any]:
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
@filetype("filetype")
@click.option("--pairs", help="Pairwise results, for thresholds looser than the run's own.")
@click.option("--groups", "n_groups", default=20, show_default=True, help="Groups to show.")
@common
def report(output: str, device: str, **options: Any) -> dict[str, Any]:
    """Write a run's figures, groups and doubtful removals as one HTML file."""
    from spark_dedup import build_session
    from spark_dedup.report import make_report

    made = make_report(build_session(device=device), **options)
    return {"run_id": made.figures.run["run_id"], "path": made.save(output)}


@cli.command(context_settings={"allow_interspersed_args": False})  # options after JOB are its own, --help too
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
    from spark_dedup.sources import find_source

    session = build_session(device=device)
    find_source(session, location, filetype="delta")
    return IdRegistry.open(session, location)


@cli.command()
@click.option("--pairs", required=True, help="The folder pairwise_results of a semantic job.")
@click.option("--eps", multiple=True, type=float, help="Threshold; may be repeated. Default: a usual range.")
@click.option("--fraction", type=float, help="Also say which eps removes this share of the records.")
@click.option("--plot", help="PNG or SVG file of eps against the share removed.")
@common
def sweep(
    pairs: str,
    eps: tuple[float, ...],
    fraction: float | None,
    plot: str | None,
    device: str,
) -> dict[str, Any]:
    """Show what each threshold would remove, from stored similarities; nothing is computed again."""
    from spark_dedup import build_session
    from spark_dedup.datasets import read_dataset
    from spark_dedup.semantic.sweep import DEFAULT_EPS
    from spark_dedup.semantic.sweep import sweep as run_sweep

    swept = run_sweep(read_dataset(build_session(device=device), pairs), eps=eps or DEFAULT_EPS)
    click.echo(swept.table)
    for pair in swept.samples:
        click.echo(f"  eps {pair.eps:g} {pair.side}: {pair.id} ~ {pair.max_id}  {pair.score:.6f}")
    shown: dict[str, Any] = {"num_documents": swept.num_documents}
    shown |= {f"removed at eps {row.eps:g}": row.removed for row in swept.rows}
    if fraction is not None:
        shown[f"eps for {fraction:g}"] = swept.eps_for(fraction)
    if plot is not None:
        swept.plot(plot)
        shown["plot"] = plot
    return shown


@cli.command()
@click.option(
    "--results", required=True, help="The folder kmeans_results of a semantic job, or a table of it."
)
@click.option("--centroids", help="The .npy file of centroids; the one in the folder by default.")
@click.option("--eps", multiple=True, type=float, required=True, help="Threshold; may be repeated.")
@click.option(
    "--n-probe", default=1, show_default=True, help="Report recall for 1 to this many probed clusters."
)
@click.option("--sample-size", default=1000, show_default=True)
@click.option("--id-field", default="id", show_default=True)
@click.option("--embedding-field", default="embeddings", show_default=True)
@common
def audit(
    results: str,
    centroids: str | None,
    eps: tuple[float, ...],
    n_probe: int,
    device: str,
    **options: Any,
) -> dict[str, Any]:
    """Estimate what share of the true pairs the clustering found, by brute force on a sample."""
    from spark_dedup import build_session
    from spark_dedup.datasets import read_dataset
    from spark_dedup.semantic.audit import audit_recall

    # First of all: a process cannot start Spark's Java any more once Hadoop's library has one in it.
    session = build_session(device=device)
    means = None if n_probe == 1 else _centroids(results, centroids)
    assigned = read_dataset(session, results)
    found = audit_recall(assigned, eps=eps, centroids=means, n_probe=n_probe, **options)
    click.echo(found.table)
    # JSON has no NaN, the recall without pairs.
    rows = [{k: None if v != v else v for k, v in asdict(row).items()} for row in found.rows]
    missed = [asdict(pair) for pair in found.missed]
    return {
        "sample_size": found.sample_size,
        "num_documents": found.num_documents,
        "confidence": found.confidence,
        "recall": rows,
        "missed": missed,
    }


def _centroids(results: str, given: str | None) -> Any:
    """Load the centroids that lie with the results, or those that were named."""
    import numpy as np

    from spark_dedup.errors import InputError
    from spark_dedup.names import is_table_name
    from spark_dedup.paths import exists, filesystem, normalise_path

    path = None if given is None and is_table_name(results) else normalise_path(given or results)
    if given is None and path is not None:
        path = f"{path}/kmeans_centroids.npy"
    if path is None or not exists(path):
        where = path or f"the table {results}"
        raise InputError(
            f"no centroids at {where}: more than one probe needs them, name the .npy as --centroids"
        )
    fs, inner = filesystem(path)
    with fs.open(inner) as file:
        try:
            return np.load(file)
        except ValueError as error:
            raise InputError(f"{path} is no .npy file of centroids: {error}") from error
