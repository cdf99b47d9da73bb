import re
import shutil
import subprocess
import time
from html import escape

import pytest
from ledger_rows import ROWS, SOURCES, rows, run

from spark_dedup.errors import InputError
from spark_dedup.ledger import STOPPED, write_run
from spark_dedup.report import make_report
from spark_dedup.report.marks import diff, safe, unified

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)> \u202e & \"q\" \x00"
# A pixel of PNG: the smallest picture a browser shows.
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010804000000b51c0c020000000b4944415478da6364f80f00010501"
    "01275003a60000000049454e44ae426082"
)


@pytest.fixture(scope="module")
def home(spark, tmp_path_factory):
    home = tmp_path_factory.mktemp("report")
    texts = {**dict.fromkeys(SOURCES, "words"), 1: HOSTILE, 5: HOSTILE, 6: HOSTILE, 3: "long " * 1000}
    made = [(i, texts[i], bytearray(PIXEL), SOURCES[i]) for i in sorted(SOURCES)]
    docs = spark.createDataFrame(made, "id bigint, text string, png binary, source string")
    docs.coalesce(1).write.parquet(str(home / "docs"))
    write_run(spark, home / "exact", run(input=str(home / "docs")), rows(spark))
    scores = {5: 0.97, 6: 0.951, 7: 0.99, 8: 0.96, 9: 1.0, 10: 0.955}
    near = [(i, m, k, "0", "semantic", scores[i], s, t) for i, m, k, _, _, _, s, t in ROWS]
    semantic = run(method="semantic", input=str(home / "docs"), parameters={"eps": 0.05})
    write_run(spark, home / "semantic", semantic, rows(spark, near))
    return home


@pytest.fixture(scope="module")
def exact(spark, home):
    return make_report(spark, ledger=home / "exact")


@pytest.fixture(scope="module")
def semantic(spark, home):
    scores = [0.2, 0.6, 0.75, 0.85, 0.951, 0.97, 1.0, float("nan"), None]
    pairs = [(i, 1, s) for i, s in enumerate(scores, 100)] + [(1, 1, 0.0), (2, 2, 0.0)]
    given = spark.createDataFrame(pairs, "id int, max_id int, cosine_sim_score float")
    return make_report(spark, ledger=home / "semantic", text_field="text", pairs=given)


class TestFigures:
    def test_sizes(self, exact):
        assert exact.figures.sizes == [(2, 2, 1, 2), (3, 3, 1, 3), (4, 4, 1, 4)]
        assert exact.figures.largest == 4

    def test_sources(self, exact):
        assert sorted(exact.figures.removed_by_source) == [("books", 2, 3), ("news", 2, 4), ("web", 2, 5)]
        shares = {(a, b): (n, share) for a, b, n, share in exact.figures.pairs}
        assert shares["news", "web"] == (3, 0.75)
        assert len(shares) == 6

    def test_largest_groups_come_first(self, exact):
        assert [(g.kept.id, g.size, [m.id for m, _ in g.members]) for g in exact.figures.groups] == [
            ("3", 4, ["8", "9", "10"]),
            ("1", 3, ["5", "6"]),
            ("2", 2, ["7"]),
        ]

    def test_long_texts_are_cut(self, exact):
        kept = exact.figures.groups[0].kept
        assert len(kept.text) + kept.cut == 5000
        assert len(kept.text) == 1200

    def test_short_texts_are_doubtful(self, exact):
        assert [r.id for r, _ in exact.figures.shortest] == ["2", "1", "3"]

    def test_weak_matches_are_doubtful(self, semantic):
        assert [(d.removed.id, d.score) for d in semantic.figures.doubts[:3]] == [
            ("6", 0.951),
            ("10", 0.955),
            ("8", 0.96),
        ]

    def test_sweep_counts_pairs_at_the_threshold(self, semantic):
        sweep = dict(semantic.figures.sweep)
        assert (sweep[0.001], sweep[0.03], sweep[0.05], sweep[0.15], sweep[0.3]) == (1, 2, 3, 4, 5)
        assert sum(n for _, _, n in semantic.figures.scores) == 7

    def test_sweep_without_pairs_goes_no_further_than_the_run(self, spark, home):
        alone = make_report(spark, ledger=home / "semantic", text_field="text").figures
        assert max(eps for eps, _ in alone.sweep) == 0.03
        assert dict(alone.sweep)[0.03] == 3

    def test_scores_that_are_no_numbers_are_not_drawn(self, spark, home, tmp_path):
        near = [(i, m, k, "0", "semantic", float("nan"), s, t) for i, m, k, _, _, _, s, t in ROWS]
        semantic = run(method="semantic", input=str(home / "docs"), parameters={"eps": 0.05})
        write_run(spark, tmp_path, semantic, rows(spark, near))
        report = make_report(spark, ledger=tmp_path, text_field="text")
        assert {n for _, _, n in report.figures.scores} == {0}
        assert {n for _, n in report.figures.sweep} == {0}
        assert "Records by similarity" not in report.html

    def test_sources_are_bounded(self, spark, home, tmp_path):
        many = {f"s{i}": 1 for i in range(5000)}
        write_run(spark, tmp_path, run(input=str(home / "docs"), documents_by_source=many), rows(spark))
        report = make_report(spark, ledger=tmp_path)
        assert len(report.figures.removed_by_source) == 200
        assert [name for name, _, _ in report.figures.removed_by_source[:3]] != ["s0", "s1", "s2"]
        assert len(report.html) < 100_000


class TestMarks:
    def test_differences(self):
        assert diff("a big dog", "a small dog") == ("a <del>big</del> dog", "a <ins>small</ins> dog")
        assert unified("a b", "a b c") == "a b<ins> c</ins>"
        assert diff("", "") == ("", "")

    def test_markup_and_hidden_characters(self):
        assert safe("<b>\u202e&\u200b") == (
            '&lt;b&gt;<span class="code">U+202E</span>&amp;<span class="code">U+200B</span>'
        )
        assert safe("a\tb\nü 漢 👍") == "a\tb\nü 漢 👍"
        assert "<i>" not in "".join(diff("<i>x", "<i>y"))


def test_page_holds_everything_and_loads_nothing(exact, semantic):
    for html in (exact.html, semantic.html):
        assert not re.search(r'(?:src|href)="(?!data:|#)', html)
        assert 'http-equiv="Content-Security-Policy" content="default-src \'none\'' in html
        assert "document.title='owned'</script>" not in html
        assert "<img src=x" not in html


def test_a_stopped_run_says_why(spark, home, tmp_path):
    stopped = run(input=str(home / "docs"), status=STOPPED, message="stopped: <too> many")
    write_run(spark, tmp_path, stopped, rows(spark))
    html = make_report(spark, ledger=tmp_path, run_id=stopped.run_id).html
    assert "stopped: &lt;too&gt; many" in html


def test_no_duplicates(spark, home, tmp_path):
    write_run(spark, tmp_path, run(input=str(home / "docs"), num_duplicates=0, num_groups=0), rows(spark, []))
    assert "<h1>No duplicates</h1>" in make_report(spark, ledger=tmp_path).html


def test_documents_that_are_gone_leave_the_figures(spark, tmp_path):
    write_run(spark, tmp_path, run(input=str(tmp_path / "gone")), rows(spark))
    html = make_report(spark, ledger=tmp_path).html
    assert "Records are not shown: no such path" in html


def test_errors(spark, home):
    with pytest.raises(InputError, match="no run 'x'"):
        make_report(spark, ledger=home / "exact", run_id="x")
    with pytest.raises(InputError, match="column 'body' not found"):
        make_report(spark, ledger=home / "exact", documents=home / "docs", text_field="body")


def test_saved_and_inline(exact, tmp_path):
    page = tmp_path / "new folder" / "r.html"
    assert exact.save(page) == str(page)
    assert page.read_text("utf-8") == exact.html
    assert exact._repr_html_().startswith("<iframe")
    assert "<h1>" not in exact._repr_html_()


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
class TestInChromium:
    def open(self, page, width=1280):
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
        command = [
            CHROMIUM,
            *flags,
            f"--window-size={width},900",
            "--virtual-time-budget=2000",
            page.as_uri(),
        ]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return ran.stdout, [line for line in ran.stderr.splitlines() if "CONSOLE" in line]

    def test_exact(self, exact, tmp_path):
        exact.save(tmp_path / "r.html")
        dom, console = self.open(tmp_path / "r.html")
        assert not console
        assert "<title>6 of 12 records are duplicates · spark_dedup</title>" in dom
        assert dom.count('<details class="group"') == 3
        assert 'id="similarity"' not in dom

    def test_the_threshold_slider_speaks(self, semantic, tmp_path):
        semantic.save(tmp_path / "r.html")
        dom, console = self.open(tmp_path / "r.html")
        assert not console
        assert ">eps 0.05 (similarity ≥ 0.95): 3 removed, 25.0% of all records</output>" in dom
        assert dom.count("<rect") == 7

    def test_images(self, spark, home, tmp_path):
        make_report(spark, ledger=home / "semantic", image_field="png").save(tmp_path / "r.html")
        dom, console = self.open(tmp_path / "r.html")
        assert not console
        assert dom.count('src="data:image/png;base64,') > 6

    @pytest.mark.parametrize("width", [360, 1280])
    def test_nothing_overflows(self, semantic, tmp_path, width):
        html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", semantic.html)
        (tmp_path / "r.html").write_text(
            f'<iframe id="f" style="width:{width}px;height:800px" srcdoc="{escape(html, quote=True)}"></iframe>'
            "<script>f.onload = () => { document.title = f.contentDocument.documentElement.scrollWidth }</script>"
        )
        dom, _ = self.open(tmp_path / "r.html", 1400)
        assert int(re.search(r"<title>(\d+)</title>", dom)[1]) <= width


def test_a_hundred_thousand_groups_stay_small(spark, tmp_path):
    many = spark.range(100_000).selectExpr(
        "id + 100000 AS id",
        "id AS matched_id",
        "id AS kept_id",
        "string(id) AS group_id",
        "'exact' AS method",
        "1.0D AS score",
    )
    docs = str(tmp_path / "docs")
    spark.range(200_000).selectExpr("id", "concat('text ', id % 100000) AS text").write.parquet(docs)
    write_run(spark, tmp_path / "l", run(input=docs, num_documents=200_000, num_duplicates=100_000), many)
    started = time.monotonic()
    report = make_report(spark, ledger=tmp_path / "l")
    assert len(report.html) < 200_000
    assert time.monotonic() - started < 120
    assert report.figures.sizes == [(2, 2, 100_000, 200_000)]
