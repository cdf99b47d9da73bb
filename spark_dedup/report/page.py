"""Figures as one HTML page that needs nothing else: no network, no fonts, styles and script inside."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from spark_dedup.report.figures import Doubt, Figures, Group
from spark_dedup.report.marks import diff, safe, unified
from spark_dedup.report.records import Record

__all__ = ["render"]

_OPEN_GROUPS = 3
_MATRIX, _LISTED = 16, 30
_MAGIC = ((b"\x89PNG", "png"), (b"\xff\xd8", "jpeg"), (b"GIF8", "gif"), (b"RIFF", "webp"), (b"BM", "bmp"))


def render(figures: Figures) -> str:
    """Return the whole page."""
    sections = [
        ("sources", "Sources", _sources(figures)),
        ("sizes", "Group sizes", _sizes(figures)),
        ("similarity", "Similarity", _similarity(figures)),
        ("largest", "Largest groups", _groups(figures)),
        ("doubtful", "Most doubtful", _doubts(figures)),
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
        f'<div class="split" role="img" aria-label="{_percent(share)} to remove">'
        f'<i class="k" style="flex:{max(total - gone, 0)}"></i><i class="g" style="flex:{gone}"></i></div>'
        f'<ul class="legend"><li><i style="background:var(--kept)"></i><b>{total - gone:,}</b> remain</li>'
        f'<li><i style="background:var(--gone)"></i><b>{gone:,}</b> to remove, {_percent(share)}</li></ul></header>'
    )


def _sizes(figures: Figures) -> str:
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


def _sources(figures: Figures) -> str:
    if not figures.removed_by_source:
        return ""
    most = max(removed for _, removed, _ in figures.removed_by_source) or 1
    rows = "".join(
        f'<tr><th>{safe(name)}</th>{_bar(removed, most, "g")}<td class="n">{removed:,}</td>'
        f'<td class="n">{"" if not total else _percent(removed / total)}</td></tr>'
        for name, removed, total in figures.removed_by_source
    )
    return (
        "<h2>Sources</h2><p>How many records each source loses.</p>"
        '<table><thead><tr><th>Source</th><th></th><th class="n">Removed</th><th class="n">Of the source</th></tr>'
        f"</thead><tbody>{rows}</tbody></table>{_overlap(figures)}"
    )


def _overlap(figures: Figures) -> str:
    """How much of each source is in another: a matrix of shares, or a list when they are many or unknown."""
    found = {(a, b): (n, share) for a, b, n, share in figures.pairs}
    names = [name for name, _, _ in figures.removed_by_source if any(name in pair for pair in found)]
    if not found:
        return ""
    head = "<h3>How much of one is in another</h3><p>Share of a row's records that have a copy in the column.</p>"
    if len(names) > _MATRIX or any(share is None for _, share in found.values()):
        rows = "".join(
            f'<tr><th>{safe(a)}</th><td>{safe(b)}</td><td class="n">{n:,}</td>'
            f'<td class="n">{"" if share is None else _percent(share)}</td></tr>'
            for (a, b), (n, share) in list(found.items())[:_LISTED]
        )
        titles = (
            '<th>Records of</th><th>have a copy in</th><th class="n">Records</th><th class="n">Share</th>'
        )
        table = f"<table><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table>"
        return f'{head}<div class="scroll">{table}</div>'
    columns = "".join(f'<th class="n" scope="col">{safe(b)}</th>' for b in names)
    rows = "".join(
        f'<tr><th scope="row">{safe(a)}</th>{"".join(_cell(found.get((a, b))) for b in names)}</tr>'
        for a in names
    )
    return (
        f'{head}<div class="scroll" tabindex="0"><table class="matrix"><thead><tr><th></th>{columns}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _cell(found: tuple[int, float | None] | None) -> str:
    if not found or not found[1]:
        return '<td class="n"></td>'
    records, share = found[0], min(found[1], 1.0)
    title = f"{records:,} record{'s' * (records != 1)}"
    text = f"{share:.0%}" if share >= 0.005 else "&lt;1%"
    return f'<td class="n" style="--p:{share:.3f}" title="{title}">{text}</td>'


def _similarity(figures: Figures) -> str:
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
        f'<td class="n">{_percent(n / total)} of all records</td></tr>'
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


def _groups(figures: Figures) -> str:
    if not figures.groups:
        return ""
    note = f'<p class="stop">Records are not shown: {safe(figures.note)}</p>' if figures.note else ""
    exact = figures.run["method"] == "exact"
    how = "The text is the same in all of a group." if exact else ""
    if not exact and any(record.text for group in figures.groups for record, _ in group.members):
        how = "Words that it adds are underlined, words that it lacks are struck out."
    cards = "".join(_group(g, exact, at < _OPEN_GROUPS) for at, g in enumerate(figures.groups))
    return f"<h2>Largest groups</h2><p>The survivor beside records that it stands for. {how}</p>{note}{cards}"


def _group(group: Group, exact: bool, is_open: bool) -> str:
    first = group.kept or group.members[0][0]
    head = f"<b>{group.size:,} records</b>"
    peek = f'<span class="peek">{safe((first.text or "").strip()[:160])}</span>' if first.text else ""
    if exact:
        removed = ", ".join(_name(m) for m, _ in group.members)
        more = group.size - len(group.members) - (group.kept is not None)
        rest = f" and {more:,} more" if more > 0 else ""
        who = _who("Stays", "k", group.kept) if group.kept else ""
        body = f'<div class="rec">{who}{_content(first)}</div><p class="more">To remove: {removed}{rest}</p>'
    else:
        members = "".join(
            f'<div class="rec">{_who("To remove", "g", member, score)}{_against(group.kept, member)}</div>'
            for member, score in group.members
        )
        more = group.size - len(group.members) - (group.kept is not None)
        members += f'<p class="more">and {more:,} more</p>' if more > 0 else ""
        stays = f"{_who('Stays', 'k', group.kept)}{_content(group.kept)}" if group.kept else ""
        body = (
            f'<div class="pair"><div class="rec stays">{stays}</div><div class="rest">{members}</div></div>'
        )
    return (
        f'<details class="group"{" open" if is_open else ""}><summary>{head}{peek}</summary>'
        f'<div class="body">{body}</div></details>'
    )


def _doubts(figures: Figures) -> str:
    if figures.doubts:
        cards = "".join(_doubt(d, at < _OPEN_GROUPS) for at, d in enumerate(figures.doubts))
        return (
            "<h2>Most doubtful</h2><p>The removals with the lowest similarity. If these are no duplicates, "
            f"lower eps.</p>{cards}"
        )
    if not figures.shortest:
        return ""
    rows = "".join(
        f'<tr><td class="n">{size:,}</td><td>{_short(record)}</td><td>{safe(record.id)}</td></tr>'
        for record, size in figures.shortest
    )
    return (
        "<h2>Most doubtful</h2><p>The shortest texts that are repeated. Equal text says least here: these records "
        "may differ in their other columns.</p>"
        '<div class="scroll"><table><thead><tr><th class="n">Records</th><th>Text</th><th>Stays</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _doubt(doubt: Doubt, is_open: bool) -> str:
    peek = f'<span class="peek">{safe((doubt.removed.text or "").strip()[:160])}</span>'
    body = _pair(doubt.matched, doubt.removed, "Matched", doubt.score)
    return (
        f'<details class="group"{" open" if is_open else ""}><summary><b>{doubt.score:.4f}</b>{peek}</summary>'
        f'<div class="body">{body}</div></details>'
    )


def _pair(left: Record, right: Record, left_word: str, score: float) -> str:
    if left.text and right.text:
        one, two = diff(left.text, right.text)
        contents = [_text(one, left.cut), _text(two, right.cut)]
    else:
        contents = [_content(left), _content(right)]
    return (
        f'<div class="pair"><div class="rec">{_who(left_word, "k", left)}{contents[0]}</div>'
        f'<div class="rec">{_who("To remove", "g", right, score)}{contents[1]}</div></div>'
    )


def _against(kept: Record | None, member: Record) -> str:
    if kept and kept.text and member.text:
        return _text(unified(kept.text, member.text), member.cut)
    return _content(member)


def _who(word: str, kind: str, record: Record, score: float | None = None) -> str:
    parts = [f'<b class="{kind}">{word}</b>', f"<span>{_name(record)}</span>"]
    parts += [f"<span>similarity {score:.4f}</span>"] if score is not None else []
    return f'<p class="who">{"".join(parts)}</p>'


def _name(record: Record) -> str:
    return safe(record.id) + (f" ({safe(record.source)})" if record.source else "")


def _content(record: Record) -> str:
    if record.image is not None:
        kind = next((name for magic, name in _MAGIC if record.image.startswith(magic)), None)
        if kind:
            data = base64.b64encode(record.image).decode()
            return f'<img alt="{safe(record.id)}" loading="lazy" src="data:image/{kind};base64,{data}">'
        return '<p class="text none">This image format cannot be shown</p>'
    if record.text:
        return _text(safe(record.text), record.cut)
    empty = "Empty text" if record.text == "" else "Not in the documents, or too large to show"
    return f'<p class="text none">{empty}</p>'


def _text(html: str, cut: int) -> str:
    more = f'<p class="more">{cut:,} more characters</p>' if cut else ""
    return f'<p class="text" dir="auto" tabindex="0">{html}</p>{more}'


def _short(record: Record) -> str:
    text = (record.text or "")[:120]
    return f"<bdi>{safe(text)}</bdi>" if text.strip() else "<em>empty or blank</em>"


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


def _parameter(run: dict[str, Any], name: str) -> str | None:
    value: str | None = (run["parameters"] or {}).get(name)
    return None if value in (None, "null") else value


def _bar(value: int, most: int, kind: str = "") -> str:
    return f'<td class="bar"><i class="{kind}" style="width:{100 * value / (most or 1):.2f}%"></i></td>'


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 or share == 0 else "under 0.1%"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _moment(at: datetime) -> str:
    return at.astimezone().strftime("%Y-%m-%d %H:%M %Z")
