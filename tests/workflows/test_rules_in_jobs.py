"""Rules of who survives, in whole jobs; who should is found by plain loops over the vectors that the job wrote."""

import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from ledger_rows import GROUPS, SOURCES

from spark_dedup import ExactDeduplicationWorkflow, SemanticDeduplicationWorkflow, create_views
from spark_dedup.errors import InputError
from spark_dedup.rules import SafetyStopError

TEXTS = {i: name for name, members in GROUPS.items() for i in members} | {4: "x", 11: "y", 12: "z"}
EPS = 0.01


def source_pairs(spark, ledger):
    """Return the view of how much of a source is in another."""
    views = create_views(spark, ledger=ledger, prefix="rules_in_jobs_")
    try:
        found = spark.table("rules_in_jobs_source_pairs").collect()
    finally:
        for view in views:
            spark.sql(f"DROP VIEW IF EXISTS {view}")
    return {(r["source_a"], r["source_b"]): (r["num_records"], r["num_groups"]) for r in found}


def counted_pairs(groups, sources):
    """Count the same by hand, of groups of ids."""
    records, places = Counter(), Counter()
    for group in groups:
        sizes = Counter(sources[i] for i in group)
        for a, n in sizes.items():
            for b in sizes:
                if a != b or n > 1:
                    records[a, b] += n
                    places[a, b] += 1
    return {pair: (records[pair], places[pair]) for pair in records}


class TestExact:
    @pytest.fixture(scope="class")
    @classmethod
    def docs(cls, tmp_path_factory):
        folder = tmp_path_factory.mktemp("exact rules")
        ids = sorted(TEXTS)
        columns = {"id": ids, "text": [TEXTS[i] for i in ids], "source": [SOURCES[i] for i in ids]}
        pq.write_table(pa.table(columns), folder / "docs.parquet")
        return folder

    def job(self, docs, out, **changes):
        options = {"assign_id": False, "id_field": "id", "drop_all_copies": True, **changes}
        return ExactDeduplicationWorkflow(input_path=docs, output_path=out, **options)

    def test_no_copy_stays(self, spark, docs, tmp_path):
        out, ledger = tmp_path / "out", tmp_path / "ledger"
        options = {"source_field": "source", "ledger": ledger, "perform_removal": True, "verify": True}
        result = self.job(docs, out, **options).run(spark)
        copies = sorted(i for members in GROUPS.values() for i in members)
        assert ids_of(out / "ExactDuplicateIds") == copies
        assert (result["num_duplicates"], result["num_groups"]) == (9, 3)
        assert ids_of(out / "deduplicated") == [4, 11, 12]
        rows = {r["id"]: r for r in ledger_of(spark, ledger)}
        assert sorted(rows) == copies
        assert {(r["kept_id"], r["kept_source"]) for r in rows.values()} == {(None, None)}
        for i, row in rows.items():
            assert row["source"] == SOURCES[i]
            assert row["matched_id"] != i
            assert TEXTS[row["matched_id"]] == TEXTS[i]
        assert source_pairs(spark, ledger) == counted_pairs(GROUPS.values(), SOURCES)
        figures = result.report(tmp_path / "report.html", spark).figures
        assert figures.sizes == [(2, 2, 1, 2), (3, 3, 1, 3), (4, 4, 1, 4)]
        assert "All copies are dropped." in (tmp_path / "report.html").read_text("utf-8")

    def test_protected_copies_stay(self, spark, docs, tmp_path):
        out, ledger = tmp_path / "out", tmp_path / "ledger"
        options = {"source_field": "source", "protected_sources": ["news"], "ledger": ledger}
        result = self.job(docs, out, **options).run(spark)
        # news has 3, 8 and 9 of the third group: only 10 goes, and 3 stands for it.
        assert ids_of(out / "ExactDuplicateIds") == [1, 2, 5, 6, 7, 10]
        assert (result["num_duplicates"], result["num_groups"]) == (6, 3)
        kept = {r["id"]: (r["kept_id"], r["kept_source"]) for r in ledger_of(spark, ledger)}
        assert kept == {**dict.fromkeys([1, 2, 5, 6, 7], (None, None)), 10: (3, "news")}
        html = result.report(tmp_path / "report.html", spark).html
        assert "All copies are dropped, but for those of protected sources." in html

    def test_limits_count_the_survivors(self, spark, docs, tmp_path):
        with pytest.raises(SafetyStopError, match=r"9 of 12 records of the input \(75.0%\)"):
            self.job(docs, tmp_path / "a", max_removed_fraction=0.7).run(spark)
        with pytest.raises(SafetyStopError, match=r"group \w{32} holds 4 of 12 records"):
            self.job(docs, tmp_path / "b", max_cluster_fraction=0.3).run(spark)

    def test_an_unfinished_run_with_another_rule_starts_over(self, spark, docs, tmp_path, caplog):
        out = tmp_path / "out"
        self.job(docs, out, drop_all_copies=False).run(spark)
        assert ids_of(out / "ExactDuplicateIds") == [5, 6, 7, 8, 9, 10]
        record = json.loads((out / ".spark_dedup_steps.json").read_text())
        (out / ".spark_dedup_steps.json").write_text(json.dumps({**record, "finished": False}))
        self.job(docs, out).run(spark)
        assert "starting over" in caplog.text
        assert ids_of(out / "ExactDuplicateIds") == [1, 2, 3, 5, 6, 7, 8, 9, 10]


def ids_of(folder):
    return sorted(ds.dataset(str(folder), format="parquet").to_table()["id"].to_pylist())


def ledger_of(spark, ledger):
    return spark.read.format("delta").load(str(ledger / "duplicates")).collect()


def circle(n=90, seed=1):
    """Return records on a circle, close enough for chains, every tenth with a twin; texts and sources at random."""
    rng = np.random.default_rng(seed)
    angles = rng.uniform(0, 2 * np.pi, n)
    angles[1::10] = angles[::10]
    x = np.column_stack([np.cos(angles), np.sin(angles), np.full(n, 0.1)]).astype(np.float32)
    texts = [None if i == 7 else "é" * int(k) for i, k in enumerate(rng.integers(0, 6, n))]
    sources = [
        None if i == 5 else str(s) for i, s in enumerate(rng.choice(["gold", "silver", "web", "x'y"], n))
    ]
    return pa.table({"id": range(n), "embeddings": list(x), "text": texts, "my.source": sources})


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("semantic rules")
    pq.write_table(circle(), folder / "records.parquet")
    return folder


def survivors(clusters, rank, protected=(), drop_all=False):
    """Return the survivor of each record to remove, or None, and the groups: by loops over ranked records."""
    matched, source = {}, {}
    for members in clusters.values():
        ranked = sorted(members, key=rank)
        source |= {r["id"]: r["my.source"] for r in ranked}
        for place, record in enumerate(ranked):
            mine = np.array(record["embeddings"], dtype=np.float64)
            scores = [np.float32(mine @ np.array(r["embeddings"], np.float64)) for r in ranked[:place]]
            best = int(np.argmax(scores)) if scores else 0
            if scores and scores[best] >= 1 - EPS - 1e-6 and record["my.source"] not in protected:
                matched[record["id"]] = ranked[best]["id"]
    groups = defaultdict(set)
    for i in matched:
        end = i
        while end in matched:
            end = matched[end]
        groups[end] |= {i, end}
    kept = {i: end for end, group in groups.items() for i in group - {end}}
    if drop_all:
        gone = {end for end in groups if source[end] not in protected}
        kept = {i: None if end in gone else end for i, end in kept.items()} | dict.fromkeys(gone)
    return kept, list(groups.values()), source


def written(out):
    """Return the records by cluster, as the job wrote them."""
    found = {}
    for folder in (out / "kmeans_results").glob("centroid=*"):
        files = sorted(folder.glob("*.parquet"))
        found[folder.name] = [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]
    return found


CASES = {
    "protected, then a priority": {"protected_sources": ["gold", "x'y"], "source_priority": ["silver"]},
    "protected, all other copies dropped": {"protected_sources": ["gold"], "drop_all_copies": True},
    "no copy stays": {"drop_all_copies": True},
    "the longest stays, by priority": {
        "source_priority": ["web", "gold"],
        "keep_longest": "text",
        "which_to_keep": "easy",
    },
}


class TestSemantic:
    @pytest.mark.parametrize("case", CASES)
    def test_who_survives(self, spark, records, tmp_path, case):
        rules, out, ledger = CASES[case], tmp_path / "out", tmp_path / "ledger"
        options = {"eps": EPS, "source_field": "my.source", "ledger": ledger, **rules}
        result = SemanticDeduplicationWorkflow(records, out, 3, **options).run(spark)
        protected, drop_all = rules.get("protected_sources", []), rules.get("drop_all_copies", False)
        order = {
            **dict.fromkeys(protected, -1),
            **{s: i for i, s in enumerate(rules.get("source_priority", []))},
        }
        texts = dict(zip(*circle().select(["id", "text"]).to_pydict().values(), strict=True))
        sign = 1 if rules.get("which_to_keep") == "easy" else -1

        def rank(r):
            length = len(texts[r["id"]] or "") if "keep_longest" in rules else 0
            by_source = order.get(r["my.source"], 99) if order else 0
            return by_source, -length, sign * r["cosine_dist_to_cent"], sign * r["id"]

        kept, groups, source = survivors(written(out), rank, protected, drop_all)
        assert len(kept) > 20
        assert max(map(len, groups)) > 3
        assert ids_of(out / "duplicates") == sorted(kept)
        rows = {r["id"]: r for r in ledger_of(spark, ledger)}
        assert {i: r["kept_id"] for i, r in rows.items()} == kept
        assert {i: r["source"] for i, r in rows.items()} == {i: source[i] for i in kept}
        assert {i: r["kept_source"] for i, r in rows.items()} == {i: source.get(k) for i, k in kept.items()}
        assert not {source[i] for i in kept} & set(protected)
        assert (result["num_duplicates"], result["documents_by_source"]) == (
            len(kept),
            dict(Counter(s or "" for s in source.values())),
        )
        run = spark.read.format("delta").load(str(ledger / "runs")).first()
        assert (run["num_groups"], run["documents_by_source"]) == (len(groups), result["documents_by_source"])
        named = [[i for i in group if source[i] is not None] for group in groups]
        assert source_pairs(spark, ledger) == counted_pairs(named, source)
        texts_kept = {"_text_length"} & set(next(iter(written(out).values()))[0])
        assert texts_kept == ({"_text_length"} if "keep_longest" in rules else set())

    def test_probing_more_clusters_keeps_groups_whole(self, spark, records, tmp_path):
        ledger = tmp_path / "ledger"
        options = {"eps": EPS, "n_probe": 2, "source_field": "my.source", "protected_sources": ["gold"]}
        SemanticDeduplicationWorkflow(records, tmp_path / "out", 6, ledger=ledger, **options).run(spark)
        rows = ledger_of(spark, ledger)
        assert len({(r["group_id"], r["kept_id"]) for r in rows}) == len({r["kept_id"] for r in rows})
        assert "gold" not in {r["source"] for r in rows}
        assert not {r["id"] for r in rows} & {r["kept_id"] for r in rows}
        assert {r["id"] for r in rows} == set(ids_of(tmp_path / "out" / "duplicates"))

    def test_limits_by_source(self, spark, records, tmp_path):
        out = tmp_path / "out"
        options = {"eps": EPS, "source_field": "my.source", "protected_sources": ["gold"]}
        limited = {**options, "max_removed_fraction": {"gold": 0.0, "web": 0.01, "*": 0.9}}
        with pytest.raises(SafetyStopError, match=r"records of source 'web' .* max_removed_fraction=0.01"):
            SemanticDeduplicationWorkflow(records, out, 3, **limited).run(spark)
        found = ids_of(out / "duplicates")
        assert found
        with pytest.raises(InputError, match="names the source 'wiki', which is not one of"):
            SemanticDeduplicationWorkflow(records, out, 3, **options, max_removed_fraction={"wiki": 0.5}).run(
                spark
            )
        # Goes on after the similarities; a rule of the last step needs no other clusters.
        raised = {**options, "max_removed_fraction": {"gold": 0.0}, "drop_all_copies": True}
        SemanticDeduplicationWorkflow(records, out, 3, **raised).run(spark)
        assert set(found) < set(ids_of(out / "duplicates"))

    def test_a_length_in_the_files_does_not_rank(self, spark, tmp_path):
        """Tasks that read the files by themselves would take it for the one that the job counts."""
        columns = {
            "id": [0, 1],
            "embeddings": [[1.0, 0.0]] * 2,
            "text": ["long text", "b"],
            "_Text_Length": [1, 2],
        }
        (tmp_path / "in").mkdir()
        pq.write_table(pa.table(columns), tmp_path / "in" / "0.parquet")
        job = SemanticDeduplicationWorkflow(
            tmp_path / "in", tmp_path / "out", 1, eps=EPS, keep_longest="text"
        )
        with pytest.raises(InputError, match="'_text_length' would be replaced by keep_longest"):
            job.run(spark)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"protected_sources": ["a"]}, "rules by source need source_field"),
            ({"source_priority": ["a"]}, "rules by source need source_field"),
            ({"max_removed_fraction": {"a": 0.1}}, "rules by source need source_field"),
            ({"source_field": "my.source", "protected_sources": "gold"}, r"write \['gold'\], not 'gold'"),
            ({"source_field": "my.source", "max_removed_fraction": {"a": 5}}, r"lie in \[0, 1\], not 5"),
            ({"drop_all_copies": True, "eps": None}, "drop_all_copies needs eps"),
            (
                {"keep_longest": "text", "metadata_fields": ["_text_length"]},
                "'_text_length' would be replaced",
            ),
            ({"source_field": "origin"}, "'origin'"),
            ({"keep_longest": "body"}, "'body' not found"),
            ({"keep_longest": "id"}, "is bigint, not string: name another with keep_longest"),
        ],
    )
    def test_bad_rules(self, spark, records, tmp_path, changes, says):
        options = {"eps": EPS, **changes}
        with pytest.raises(InputError, match=says):
            SemanticDeduplicationWorkflow(records, tmp_path / "out", 3, **options).run(spark)
        assert not (tmp_path / "out").exists()
