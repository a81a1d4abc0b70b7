"""Design 5.3: nothing that is fitted for a fold may depend on that fold's held-out cases.

All held-out inputs of fold 0 (RNA, slide pixels, labels, times) are replaced in the raw files, the workflow is rerun,
and the training artefacts of fold 0 must be equal, byte for byte.
"""

from __future__ import annotations

import csv
import gzip
import shutil

import cv2
import numpy as np
import pytest

from pipeline.contracts.cohort import read_cases
from pipeline.contracts.explanations import read_index
from pipeline.contracts.expression import read_expression
from pipeline.contracts.files import read_table, write_table
from pipeline.contracts.genes import write_genes
from pipeline.contracts.splits import TEST, TRAIN, read_splits
from pipeline.expression import ExpressionParams, prepare_expression
from pipeline.genes import GeneParams, select_genes
from workflow.cli.main import main

TRAINED = ("genes/*/fold0.json", "models/*/*/fold0/*")


def replace_held_out(cohort, fold: int = 0) -> set[str]:
    """Overwrite everything about the test cases of a fold with other, legal values."""
    return replace_cases(cohort, set(read_splits(cohort.results / "splits/splits.tsv").cases(fold, TEST)))


def replace_cases(cohort, held_out: set[str]) -> set[str]:
    assert held_out
    data = cohort.path / "data"
    rng = np.random.default_rng(7)
    with gzip.open(data / "rna.tsv.gz", "rt") as handle:
        header, *lines = [line.rstrip("\n").split("\t") for line in handle]
    for column in [i for i, name in enumerate(header) if name in held_out]:
        for line in lines:
            line[column] = str(rng.negative_binomial(2, 0.01))
    with gzip.open(data / "rna.tsv.gz", "wt") as handle:
        handle.writelines("\t".join(line) + "\n" for line in [header, *lines])
    with open(data / "cases.tsv", newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    for row in rows:
        if row["case_id"] in held_out:
            other = sorted({r["grade"] for r in rows} - {row["grade"]})
            row["grade"] = other[0]
            row["time_days"] = str(float(row["time_days"]) * 3 + 1)
            row["event"] = str(1 - int(float(row["event"])))
    with open(data / "cases.tsv", "w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    with open(data / "slides.tsv", newline="") as handle:
        slides = [r for r in csv.DictReader(handle, delimiter="\t") if not r["exclude"]]
    donor = next(s for s in slides if s["case_id"] not in held_out and not s["um_per_px"])
    replaced = [s for s in slides if s["case_id"] in held_out and not s["um_per_px"]]
    assert replaced
    for slide in replaced:
        shutil.copy(cohort.path / donor["path"], cohort.path / slide["path"])
    return held_out


def predicted(cohort) -> dict[str, bytes]:
    """Tables with a row: a model of genes alone has none per slide."""
    tables = cohort.contents("predictions/*/*.tsv")
    return {n: text for n, text in tables.items() if not n.endswith("_left_out.tsv") and text.count(b"\n") > 1}


@pytest.mark.workflow
def test_training_artefacts_do_not_see_held_out_cases(cohort):
    before = cohort.contents(*TRAINED)
    predictions = predicted(cohort)
    replace_held_out(cohort)
    cohort.snakemake("evaluated")
    assert any(name.endswith("checkpoint.pt") for name in before)
    after = cohort.contents(*TRAINED)
    assert sorted(after) == sorted(before)
    assert [name for name in before if before[name] != after[name]] == []
    changed = predicted(cohort)
    assert all(predictions[name] != changed[name] for name in predictions), "the replacement must reach the models"


@pytest.mark.workflow
@pytest.mark.parametrize("centre", ["none", pytest.param("cohort", marks=pytest.mark.full)])
def test_the_test_fails_with_a_leaky_selector(cohort, monkeypatch, centre):
    """The same stage given all cases as training cases chooses and centres by held-out RNA; the comparison sees it."""
    monkeypatch.chdir(cohort.path)
    cases = list(read_cases("data/cases.tsv").rows)
    table = cohort.results / "expression/expression.h5ad"
    training = read_splits(cohort.results / "splits/splits.tsv").cases(0, TRAIN)
    in_turn = [*training, *(case for case in cases if case not in training)]
    cohorts = {case: "odd" if k % 2 else "even" for k, case in enumerate(in_turn)}
    params = GeneParams(**cohort.config()["genes"], centre=centre)
    prepare_expression("data/rna.tsv.gz", table, ExpressionParams(), cases, cohorts=cohorts)

    def selected(chosen: list[str]) -> bytes:
        write_genes(cohort.path / "genes.json", select_genes(read_expression(table), chosen, params, "grade", 0))
        return (cohort.path / "genes.json").read_bytes()

    honest, leaky = selected(training), selected(cases)
    replace_held_out(cohort)
    prepare_expression("data/rna.tsv.gz", table, ExpressionParams(), cases, cohorts=cohorts)
    assert selected(training) == honest
    assert selected(cases) != leaky


@pytest.mark.workflow
@pytest.mark.full
def test_training_artefacts_do_not_see_external_cohorts(cohort):
    """The finished cohort gets an external part: models are trained anew without it, and predict it."""
    data = cohort.path / "data"
    rows = read_table(data / "cases.tsv")
    outside = {row["case_id"] for row in rows[1::4]}
    for row in rows:
        row["cohort"] = "far" if row["case_id"] in outside else "near"
    write_table(data / "cases.tsv", list(rows[0]), rows)
    ledger = (cohort.path / "splits.tsv").read_bytes()
    cohort.edit_config(lambda config: config["splits"].update(external="far"))
    cohort.snakemake()
    assert (cohort.path / "splits.tsv").read_bytes() == ledger
    trained = ("splits/splits.tsv", *(pattern.replace("fold0", "fold*") for pattern in TRAINED))
    before = cohort.contents(*trained)
    predictions = predicted(cohort)
    external = {name for name in predictions if name.endswith("_external.tsv")}
    slides = {name for name in predictions if name.endswith("_slides.tsv")}
    assert (len(external), len(slides)) == (4, 2)
    for task in ("grade", "survival"):
        found = {(row["evaluation"], row["cohort"]) for row in read_table(cohort.results / f"evaluation/{task}.tsv")}
        assert found == {("out-of-fold", ""), ("external-mean", "far"), ("external-folds", "far")}
    assert "cohort far, single models" in (cohort.results / "report.html").read_text()
    replace_cases(cohort, outside)
    cohort.snakemake()
    assert cohort.contents(*trained) == before
    after = predicted(cohort)
    assert {name for name in predictions if predictions[name] != after[name]} == external


@pytest.mark.workflow
def test_a_case_is_explained_by_the_fold_that_held_it_out(finished, tmp_path, monkeypatch):
    """With a picture of its tiles, on the slide."""
    monkeypatch.chdir(finished.path)
    predicted = {row["case_id"]: row["fold"] for row in read_table("results/predictions/grade/slides.tsv")}
    case_id = min(predicted)
    command = ["explain", "--models", "results/models/grade/slides", "--out", str(tmp_path), "--case", case_id]
    assert main([*command, "--steps", "2"]) == 0
    (row,) = read_index(tmp_path / "index.tsv")
    assert (row.case_id, str(row.fold), row.reason) == (case_id, predicted[case_id], "")
    assert {name.rpartition(".")[2] for name in row.files} == {"tsv", "png"}
    for name in row.files:
        if name.endswith("png"):
            picture, tiles = cv2.imread(str(tmp_path / name)), read_table(tmp_path / name.replace("png", "tsv"))
            assert picture is not None and len(np.unique(picture.reshape(-1, 3), axis=0)) > len(tiles) > 0
