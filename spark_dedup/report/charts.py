"""The report's sections of counts: group sizes, sources, similarities, thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spark_dedup.report.figures import Figures
from spark_dedup.report.marks import percent, safe

__all__ = ["similarity_section", "sizes_section", "sources_section"]

_MATRIX, _LISTED = 16, 30
Overlaps = Mapping[tuple[str, str], tuple[int, float | None]]
"""Two sources → records of the first with a copy in the second, and their share of it."""


def sizes_section(figures: Figures) -> str:
    """Return how many groups have which size; nothing when there are no groups."""
    if not figures.sizes:
        return ""
    most = max(groups for _, _, groups, _ in figures.sizes)
    rows = "".join(
        f"<tr><th>{low if low == high else f'{low:,} to {high:,}'}</th>{_bar(groups, most)}"
        f'<td class="n">{groups:,}</td><td class="n">{records:,}</td></tr>'
        for low, high, groups, records in figures.sizes
    )
    return (
        "<h2>Group sizes</h2><p>Most duplicates come in small groups. A few very large ones are often boilerplate, "
        "error pages or empty records.</p>"
        '<table><thead><tr><th>Records in the group</th><th></th><th class="n">Groups</th>'
        f'<th class="n">Records</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def sources_section(figures: Figures) -> str:
    """Return what each source loses, and how much of it is in another; nothing where sources are unknown."""
    if not figures.removed_by_source:
        return ""
    most = max(removed for _, removed, _ in figures.removed_by_source) or 1
    rows = "".join(
        f'<tr><th>{safe(name)}</th>{_bar(removed, most, "g")}<td class="n">{removed:,}</td>'
        f'<td class="n">{"" if not total else percent(removed / total)}</td></tr>'
        for name, removed, total in figures.removed_by_source
    )
    return (
        "<h2>Sources</h2><p>How many records each source loses.</p>"
        '<table><thead><tr><th>Source</th><th></th><th class="n">Removed</th><th class="n">Of the source</th></tr>'
        f"</thead><tbody>{rows}</tbody></table>{_overlap(figures)}"
    )


def _overlap(figures: Figures) -> str:
    """Return how much of each source is in another: a matrix of shares, or a list when they are many or unknown."""
    found = {(a, b): (n, share) for a, b, n, share in figures.pairs}
    if not found:
        return ""
    names = [name for name, _, _ in figures.removed_by_source if any(name in pair for pair in found)]
    is_list = len(names) > _MATRIX or any(share is None for _, share in found.values())
    table = _list_of(found) if is_list else _matrix_of(found, names)
    return (
        "<h3>How much of one is in another</h3><p>Share of a row's records that have a copy in the column.</p>"
        f"{table}"
    )


def _list_of(found: Overlaps) -> str:
    rows = "".join(
        f'<tr><th>{safe(a)}</th><td>{safe(b)}</td><td class="n">{n:,}</td>'
        f'<td class="n">{"" if share is None else percent(share)}</td></tr>'
        for (a, b), (n, share) in list(found.items())[:_LISTED]
    )
    titles = '<th>Records of</th><th>have a copy in</th><th class="n">Records</th><th class="n">Share</th>'
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table></div>'


def _matrix_of(found: Overlaps, names: Sequence[str]) -> str:
    columns = "".join(f'<th class="n" scope="col">{safe(b)}</th>' for b in names)
    rows = "".join(
        f'<tr><th scope="row">{safe(a)}</th>{"".join(_cell(found.get((a, b))) for b in names)}</tr>'
        for a in names
    )
    return (
        f'<div class="scroll" tabindex="0"><table class="matrix"><thead><tr><th></th>{columns}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _cell(found: tuple[int, float | None] | None) -> str:
    if not found or not found[1]:
        return '<td class="n"></td>'
    records, share = found[0], min(found[1], 1.0)
    title = f"{records:,} record{'s' * (records != 1)}"
    text = f"{share:.0%}" if share >= 0.005 else "&lt;1%"
    return f'<td class="n" style="--p:{share:.3f}" title="{title}">{text}</td>'


def _bar(value: int, most: int, kind: str = "") -> str:
    return f'<td class="bar"><i class="{kind}" style="width:{100 * value / (most or 1):.2f}%"></i></td>'


def similarity_section(figures: Figures) -> str:
    """Return similarities and what each threshold removes; nothing for exact runs."""
    if not figures.scores or not any(n for _, _, n in figures.scores):
        return ""
    counts = [n for _, _, n in figures.scores]
    most, width = max(counts), 100 / len(counts)
    own = float(_parameter(figures.run, "eps") or 1.0)
    columns = "".join(
        f'<rect class="cols{" g" * (low >= 1 - own - width / 200)}" x="{i * width:.2f}" '
        f'y="{100 - 100 * n / most:.2f}" width="{width * 0.86:.2f}" height="{100 * n / most:.2f}">'
        f"<title>{low:.3f} to {high:.3f}: {n:,}</title></rect>"
        for i, (low, high, n) in enumerate(figures.scores)
        if n
    )
    low = figures.scores[0][0]
    marks = [low + (1 - low) * part for part in (0, 0.25, 0.5, 0.75, 1)]
    axis = "".join(f"<span>{mark:.3f}</span>" for mark in marks)
    return (
        "<h2>Similarity</h2><p>Cosine similarity of each record to the one it matched. A threshold is well chosen "
        "where few records lie near it.</p>"
        '<div class="two"><figure><figcaption>'
        f"Records by similarity, at most {most:,} in a column; to remove in orange</figcaption>"
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="Records by similarity">'
        f'{columns}</svg><div class="axis" aria-hidden="true">{axis}</div></figure>{_sweep(figures)}</div>'
    )


def _sweep(figures: Figures) -> str:
    total = figures.run["num_documents"] or 1
    if len(figures.sweep) < 2:
        return ""
    most = max(n for _, n in figures.sweep) or 1
    step = 100 / (len(figures.sweep) - 1)
    points = " ".join(f"{i * step:.2f},{100 - 100 * n / most:.2f}" for i, (_, n) in enumerate(figures.sweep))
    rows = "".join(
        f'<tr><th>{eps:g}</th><td class="n">{round(1 - eps, 6):g}</td><td class="n">{n:,}</td>'
        f'<td class="n">{percent(n / total)} of all records</td></tr>'
        for eps, n in figures.sweep
    )
    own = float(_parameter(figures.run, "eps") or figures.sweep[-1][0])
    at = min(range(len(figures.sweep)), key=lambda i: abs(figures.sweep[i][0] - own))
    reach = "" if figures.sweep_is_whole else " Looser ones need the pairwise results."
    return (
        f"<figure><figcaption>Records removed by threshold, up to {most:,}.{reach}</figcaption>"
        '<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" '
        'aria-label="Records removed by threshold">'
        f'<polygon class="area" points="0,100 {points} 100,100"/><polyline class="curve" points="{points}"/>'
        '<line id="sweep-mark" class="mark" x1="0" x2="0" y1="0" y2="100"/></svg>'
        f'<div class="axis" aria-hidden="true"><span>eps {figures.sweep[0][0]:g}</span>'
        f"<span>eps {figures.sweep[-1][0]:g}</span></div>"
        f'<div class="slide"><input id="eps" type="range" min="0" max="{len(figures.sweep) - 1}" value="{at}" '
        'aria-label="Threshold"><output id="eps-says" for="eps"></output></div>'
        '<details><summary>As a table</summary><table id="sweep"><thead><tr><th>eps</th>'
        '<th class="n">Similarity</th><th class="n">Removed</th><th class="n">Share</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></details></figure>"
    )


def _parameter(run: dict[str, Any], name: str) -> str | None:
    value: str | None = (run["parameters"] or {}).get(name)
    return None if value in (None, "null") else value
