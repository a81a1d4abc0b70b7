"""The report's pictures of genes: there for any cohort that has them, and true to what was selected."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.contracts import layout
from pipeline.contracts.expression import Expression, write_expression
from pipeline.contracts.files import write_table
from pipeline.contracts.genes import read_genes, write_genes
from pipeline.contracts.splits import SplitRow, write_splits
from pipeline.expression.apply import apply_genes
from pipeline.genes import GeneParams, select_genes_for_folds
from pipeline.report.build import ReportContext, build_report
from pipeline.report.gene_figures import clustered, frequencies, jaccard

CASES = tuple(f"c{k:02d}" for k in range(24))
SYMBOLS = tuple(f"G{k:02d}" for k in range(70))
TASKS = [
    {"name": "grade", "kind": "classification", "label": "grade"},
    {"name": "survival", "kind": "survival", "time": "time", "event": "event"},
]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Expression, folds and a case sheet of 24 cases; genes are still to be selected."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng()
    values = draw.normal(6, draw.uniform(0.3, 2, 70), (24, 70)).clip(0).astype(np.float32)
    values[::2, 3] += 6
    none = np.zeros(70, bool)
    table = Expression(CASES, SYMBOLS, values, "log2", values, ("",) * 70, none, none, cohorts=("x", "x", "y") * 8)
    write_expression(layout.expression("results"), table)
    write_splits(
        layout.splits("results"),
        [
            SplitRow(case, fold, "test" if k % 3 == fold else "train")
            for fold in range(3)
            for k, case in enumerate(CASES)
        ],
    )
    rows = [
        {"case_id": c, "grade": "hl"[k % 2], "time": 10 + 7 * k, "event": int(k % 4 > 0), "site": f"s{k % 3}"}
        for k, c in enumerate(CASES)
    ]
    write_table("cases.tsv", list(rows[0]), rows)
    lists = "symbol\tset\n" + "".join(f"{s}\t{'tumour' if k < 25 else 'tme'}\n" for k, s in enumerate(SYMBOLS[:50]))
    Path("lists.tsv").write_text(lists)
    return Path("results")


def select(**change: object) -> None:
    params = replace(GeneParams(tumour="lists.tsv", tme="lists.tsv", min_genes=1, rfe_folds=3), **change)
    for task in TASKS:
        paths = [layout.genes("results", task["name"], fold) for fold in range(3)]
        classes = {case: "hl"[k % 2] for k, case in enumerate(CASES)}
        outcomes = {case: (10.0 + 7 * k, int(k % 4 > 0)) for k, case in enumerate(CASES)}
        select_genes_for_folds(
            layout.expression("results"), layout.splits("results"), CASES, params, paths, task["name"], classes,
            survival=outcomes if task["name"] == "survival" else None,
        )  # fmt: skip


def page(tasks: int = 1, **config: object) -> str:
    config |= {"inputs": {"cases": "cases.tsv", "expression": "rna.tsv"}, "tasks": TASKS[:tasks]}
    build_report("results", "results/report.html", ReportContext(config))
    return Path("results/report.html").read_text()


def pictures(html: str) -> list[str]:
    section = html.partition('id="molecular"')[2].partition("</section>")[0]
    return re.findall(r'<img [^>]*alt="([^"]+)"', section)


def test_every_picture_is_there_and_says_how_genes_agree(run: Path) -> None:
    select()
    scores = [{"case_id": case, "tumour": k, "tme_b_cell": k % 5, "tme_mast": 1} for k, case in enumerate(CASES)]
    write_table(layout.gene_set_scores("results"), list(scores[0]), scores)
    few = {"set": "tme_few", "listed": 9, "present": 2, "scored": 0}
    write_table(layout.gene_set_scores("results", "sets"), list(few), [few])
    rows = [{"case_id": case, "umap1": k, "umap2": -k} for k, case in enumerate(CASES)]
    write_table(layout.umap("results"), list(rows[0]), rows)
    html = page(tasks=2, report={"umap": True})
    assert len(pictures(html)) == 2 * 6
    folds = [read_genes(layout.genes("results", "grade", fold)) for fold in range(3)]
    everywhere = set.intersection(*(set(fold.genes) for fold in folds))
    assert f"{len(everywhere)} of {len(frequencies(folds))} genes are selected in every fold" in html
    assert "tme_few (2 of 9)" in html
    assert "Does expression follow the site" in html and "splits.site" in html


def test_elimination_shows_its_accuracies(run: Path) -> None:
    select(selection="rfe_svm", families="builtin")
    assert read_genes(layout.genes("results", "survival", 1)).elimination["classes"].keys() == {"early", "late"}
    assert pictures(page()).count("accuracy by genes left") == 1


def test_a_whole_panel_of_zscores_has_no_picture_of_choices(run: Path) -> None:
    values, none = np.random.default_rng().normal(0, 1, (24, 70)).astype(np.float32), np.zeros(70, bool)
    table = Expression(CASES, SYMBOLS, values, "zscore", values, ("",) * 70, none, none)
    write_expression(layout.expression("results"), table)
    select(selection="all")
    assert set(pictures(page())) == {"heatmap of selected genes", "principal components"}


def test_one_gene_and_genes_without_spread(run: Path) -> None:
    select(selection="all")
    path = layout.genes("results", "grade", 0)
    first = read_genes(path)
    one = {"tumour": first.genes[:1], "tme": (), "all": first.genes[:1]}
    write_genes(path, replace(first, genes=first.genes[:1], groups=one, mean=first.mean[:1], std=first.std[:1]))
    assert "Genes of task grade" in page()


def test_a_new_table_is_listed_with_the_genes_it_lacks(run: Path) -> None:
    select(max_missing=0.5)
    selected = read_genes(layout.genes("results", "grade", 0))
    gone = selected.genes[1]
    kept = [symbol for symbol in SYMBOLS if symbol != gone]
    rows = [{"gene": symbol, "n1": 4.5, "n2": 5.25} for symbol in kept]
    write_table("new.tsv", ["gene", "n1", "n2"], rows)
    Path("results/applied").mkdir()
    write_genes(layout.genes("results", "grade", 0), replace(selected, settings={"unit": "log2"}))
    apply_genes(layout.genes("results", "grade", 0), "new.tsv", "results/applied/new.tsv")
    table = Path("results/applied/new.tsv.missing.tsv").read_text().splitlines()
    group = "tumour" if gone in selected.groups["tumour"] else "tme"
    assert table[0] == "gene\tgroups\ttraining_mean\ttraining_std"
    assert table[1].split("\t")[:2] == [gone, group] and len(table) == 2
    assert re.search(
        rf'<th scope="row">new.tsv</th><td class="n">{len(selected.genes)}</td><td class="n">1</td>\s*<td>{gone}</td>',
        page(),
    )


def test_overlaps_and_frequencies_by_hand(run: Path) -> None:
    select(selection="all")
    first = read_genes(layout.genes("results", "grade", 0))
    sets = [replace(first, genes=tuple(genes)) for genes in ("AB", "BC", "ABC")]
    np.testing.assert_allclose(jaccard(sets), [[1, 1 / 3, 2 / 3], [1 / 3, 1, 2 / 3], [2 / 3, 2 / 3, 1]])
    assert frequencies(sets) == {"B": 3, "A": 2, "C": 2}


def test_like_rows_are_put_side_by_side() -> None:
    wave = np.sin(np.arange(12))
    rows = np.array([wave, -wave, 2 * wave + 1, -3 * wave, wave + 0.01])
    order = clustered(rows).tolist()
    together = {frozenset(order[:3]), frozenset(order[2:])} & {frozenset({0, 2, 4})}
    assert together
    assert clustered(rows[:1]).tolist() == [0]
