"""Figures as one HTML page that needs nothing else: no network, no fonts, styles and script inside."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from spark_dedup.report.cards import doubts_section, groups_section
from spark_dedup.report.charts import similarity_section, sizes_section, sources_section
from spark_dedup.report.figures import Figures
from spark_dedup.report.marks import percent, safe

__all__ = ["render"]


def render(figures: Figures) -> str:
    """Return the whole page."""
    sections = [
        ("sources", "Sources", sources_section(figures)),
        ("sizes", "Group sizes", sizes_section(figures)),
        ("similarity", "Similarity", similarity_section(figures)),
        ("largest", "Largest groups", groups_section(figures)),
        ("doubtful", "Most doubtful", doubts_section(figures)),
        ("run", "The run", _run(figures.run)),
    ]
    shown = [(key, title, body) for key, title, body in sections if body]
    links = "".join(f'<li><a href="#{key}">{title}</a></li>' for key, title, _ in shown)
    bodies = "".join(
        f'<section id="{key}" aria-label="{title}">{body}</section>' for key, title, body in shown
    )
    script = _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Texts are foreign: besides escaping them, the page may load nothing and run no script but its own.
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{safe(_title(figures.run))} · spark_dedup</title>"
        f'<link rel="icon" href="data:,"><style>{_asset("page.css")}</style></head><body>'
        f'{_header(figures)}<nav aria-label="Sections"><ul>{links}</ul></nav><main>{bodies}</main>'
        f"<footer>Made by spark_dedup {safe(str(figures.run['library_version']))} from its ledger. "
        f"This file is complete: it loads nothing.</footer><script>{script}</script></body></html>"
    )


@cache
def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text("utf-8")


def _title(run: dict[str, Any]) -> str:
    return f"{run['num_duplicates']:,} of {run['num_documents']:,} records are duplicates"


def _header(figures: Figures) -> str:
    run = figures.run
    total, gone = run["num_documents"], run["num_duplicates"]
    share = gone / total if total else 0.0
    what = {"exact": "Exact duplicates", "semantic": "Semantic duplicates"}.get(run["method"], run["method"])
    if gone:
        groups = f"{run['num_groups']:,} group{'s' * (run['num_groups'] != 1)}"
        lead = f"They form {groups}, the largest of {figures.largest:,}. "
        dropped = (run["parameters"] or {}).get("drop_all_copies") == "true"
        survivors = any(g.kept for g in figures.groups)
        lead += "All copies are dropped" if dropped or not survivors else "One record of each stays"
        lead += ", but for those of protected sources." if dropped and survivors else "."
        heading = f"<b>{gone:,}</b> of {total:,} records are duplicates"
    else:
        heading, lead = "No duplicates", f"All {total:,} records are different from each other."
    stop = f'<p class="stop" role="alert">{safe(run["message"] or "")}</p>' if run["status"] != "done" else ""
    return (
        f'<header><p class="over">{safe(what)} in {safe(run["input"])}</p><h1>{heading}</h1>'
        f'<p class="lead">{lead}</p>{stop}'
        f'<div class="split" role="img" aria-label="{percent(share)} to remove">'
        f'<i class="k" style="flex:{max(total - gone, 0)}"></i><i class="g" style="flex:{gone}"></i></div>'
        f'<ul class="legend"><li><i style="background:var(--kept)"></i><b>{total - gone:,}</b> remain</li>'
        f'<li><i style="background:var(--gone)"></i><b>{gone:,}</b> to remove, {percent(share)}</li></ul></header>'
    )


def _run(run: dict[str, Any]) -> str:
    rows: list[tuple[str, str]] = [
        ("Run", run["run_id"]),
        ("Input", run["input"]),
        ("Version of the input", run["input_version"] or "not known"),
        ("Id column", run["id_field"] + (f", given by {run['registry']}" if run["registry"] else "")),
        ("Finished", _moment(run["finished_at"])),
        *((f"Took ({_words(step)})", f"{seconds:,.1f} s") for step, seconds in (run["times"] or {}).items()),
        ("Device", run["device"]),
        *((_words(name).capitalize(), value) for name, value in sorted((run["parameters"] or {}).items())),
    ]
    return f"<h2>The run</h2><p>What was matched, when and how.</p><dl>{_definitions(rows)}</dl>"


def _definitions(rows: Iterable[tuple[str, str]]) -> str:
    return "".join(f"<dt>{safe(name)}</dt><dd>{safe(str(value))}</dd>" for name, value in rows)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _moment(at: datetime) -> str:
    return at.astimezone().strftime("%Y-%m-%d %H:%M %Z")
