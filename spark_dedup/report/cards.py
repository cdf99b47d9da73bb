"""The report's sections of records: the largest groups, and the removals to look at twice."""

from __future__ import annotations

import base64

from spark_dedup.report.figures import Doubt, Figures, Group
from spark_dedup.report.marks import diff, safe, unified
from spark_dedup.report.records import Record

__all__ = ["doubts_section", "groups_section"]

_OPEN_GROUPS = 3
_MAGIC = ((b"\x89PNG", "png"), (b"\xff\xd8", "jpeg"), (b"GIF8", "gif"), (b"RIFF", "webp"), (b"BM", "bmp"))


def groups_section(figures: Figures) -> str:
    """Return the largest groups, survivor beside removed records; nothing when there are none."""
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
    more = group.size - len(group.members) - (group.kept is not None)
    if exact:
        removed = ", ".join(_name(m) for m, _ in group.members)
        rest = f" and {more:,} more" if more > 0 else ""
        who = _who("Stays", "k", group.kept) if group.kept else ""
        body = f'<div class="rec">{who}{_content(first)}</div><p class="more">To remove: {removed}{rest}</p>'
    else:
        members = "".join(
            f'<div class="rec">{_who("To remove", "g", member, score)}{_against(group.kept, member)}</div>'
            for member, score in group.members
        )
        members += f'<p class="more">and {more:,} more</p>' if more > 0 else ""
        stays = f"{_who('Stays', 'k', group.kept)}{_content(group.kept)}" if group.kept else ""
        body = (
            f'<div class="pair"><div class="rec stays">{stays}</div><div class="rest">{members}</div></div>'
        )
    return (
        f'<details class="group"{" open" if is_open else ""}><summary>{head}{peek}</summary>'
        f'<div class="body">{body}</div></details>'
    )


def doubts_section(figures: Figures) -> str:
    """Return the removals to look at twice: weakest similarity, or shortest text."""
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
