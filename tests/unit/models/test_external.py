"""External cohorts: no training artefact knows them, every fold's model predicts them, and so does the mean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.experiment import Experiment, Inputs
from models.fold_mean import mean_over_folds
from models.predict import predict_folds
from models.train import train_folds
from pipeline.contracts.cohort import read_cases
from pipeline.contracts.expression import read_expression, write_expression
from pipeline.contracts.predictions import (
    ENSEMBLE,
    ClassPrediction,
    LeftOut,
    SurvivalPrediction,
    left_out_path,
    read_external_predictions,
    read_left_out,
    read_predictions,
)
from pipeline.contracts.splits import read_splits
from pipeline.contracts.tasks import read_labels
from pipeline.genes import GeneParams, select_genes_for_folds
from pipeline.splits import SplitParams, make_splits
from tests.toy_cohort import GRADE, SURVIVAL, Toy, make_toy

FOLDS = 2
EXPERIMENTS = (
    Experiment("linear", "linear"),
    Experiment("clinical", "clinical", params={"columns": ["age", "site"], "categorical": ["site"]}),
    Experiment("fusion", "concat", epochs=1, batch_size=8, lr=1e-3, params={"width": 16, "hidden": 8}),
)


def two_cohorts(seed: int = 0) -> Toy:
    """Every third of 24 cases is of cohort B."""
    toy = make_toy(seed=seed)
    toy.patient_columns = (*toy.patient_columns, "cohort")
    for k, case in enumerate(toy.cases):
        toy.rows[case]["cohort"] = "B" if k % 3 == 0 else "A"
        toy.rows[case]["grade"] = f"G{2 + k % 2}"
    return toy


def otherwise(toy: Toy, cases: set[str]) -> Toy:
    """All raw values of some cases replaced by legal others: RNA, features, label, outcome, covariates."""
    rng = np.random.default_rng(5)
    for case in cases:
        toy.rna[case] = rng.normal(7, 3, len(toy.rna[case]))
        row = toy.rows[case]
        row |= {"grade": "G3" if row["grade"] == "G2" else "G2", "time_days": str(float(row["time_days"]) * 9 + 1)}
        row |= {"event": str(1 - int(row["event"])), "age": "99", "site": "elsewhere"}
    for slide, (case, features, cell) in toy.slides.items():
        if case in cases:
            toy.slides[slide] = (case, rng.normal(4, 2, features.shape), cell)
    return toy


def run(
    toy: Toy, folder: Path, external: str | None = "B", centre: str = "none", experiments=EXPERIMENTS
) -> dict[str, bytes]:
    """Folds, genes, models and predictions; the bytes of everything that training leaves."""
    inputs = toy.write(folder / "data")
    table = read_expression(inputs.expression)
    cohorts = tuple(toy.rows[case]["cohort"] for case in table.cases)
    write_expression(inputs.expression, replace(table, cohorts=cohorts))
    params = SplitParams(folds=FOLDS, validation=0.2, file=str(folder / "ledger.tsv"), external=external)
    make_splits(inputs.cases, params, [GRADE, SURVIVAL], folder / "splits.tsv")
    genes = GeneParams(selection="all", centre=centre, unseen_cohort="itself")
    for task in (GRADE, SURVIVAL):
        labels = read_labels(inputs.cases, task)
        outputs = [folder / "genes" / task.name / f"fold{k}.json" for k in range(FOLDS)]
        select_genes_for_folds(
            inputs.expression, folder / "splits.tsv", labels.cases, genes, outputs, task.name, labels.label
        )
        given = Inputs(folder / "splits.tsv", inputs.cases, inputs.features_index, inputs.expression, outputs[0].parent)
        for experiment in experiments:
            models = folder / "models" / task.name / experiment.name
            rows = train_folds(experiment, task, given, models, models / "index.tsv", device="cpu")
            assert [row.status for row in rows] == ["ok"] * FOLDS, rows
            place = folder / "predictions" / task.name
            predict_folds(
                experiment, task, given, models, place / f"{experiment.name}.tsv", device="cpu",
                external_out=place / f"{experiment.name}_external.tsv" if external else None,
            )  # fmt: skip
    patterns = ("splits.tsv", "ledger.tsv", "genes/*/*", "models/*/*/fold*/*", "predictions/*/*.tsv")
    files = sorted(p for pattern in patterns for p in folder.glob(pattern) if not p.stem.endswith("left_out"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(("centre", "experiments"), [("none", EXPERIMENTS), ("cohort", EXPERIMENTS[:1])])
def test_nothing_that_is_trained_knows_external_cases(tmp_path, centre, experiments):
    toy = two_cohorts()
    outside = {case for case in toy.cases if toy.rows[case]["cohort"] == "B"}
    settings = {"centre": centre, "experiments": experiments}
    before = run(toy, tmp_path / "a", **settings)
    after = run(otherwise(two_cohorts(), outside), tmp_path / "b", **settings)
    trained = [name for name in before if not name.endswith("_external.tsv")]
    assert sum(name.endswith("checkpoint.pt") for name in trained) == 2 * len(experiments) * FOLDS
    assert [name for name in trained if before[name] != after[name]] == []
    reached = [name for name in before if name.endswith("_external.tsv")]
    assert len(reached) == 2 * len(experiments) and all(before[name] != after[name] for name in reached)


def test_the_test_above_fails_where_the_cases_are_not_external(tmp_path):
    toy = two_cohorts()
    outside = {case for case in toy.cases if toy.rows[case]["cohort"] == "B"}
    before = run(toy, tmp_path / "a", external=None, experiments=EXPERIMENTS[:2])
    after = run(otherwise(two_cohorts(), outside), tmp_path / "b", external=None, experiments=EXPERIMENTS[:2])
    assert all(before[name] != after[name] for name in before if name.endswith(("checkpoint.pt", "fold0.json")))


def test_every_fold_and_their_mean_predict_external_cases(tmp_path):
    toy = two_cohorts()
    del toy.rna[toy.cases[3]]
    toy.rows[toy.cases[6]]["grade"] = ""
    run(toy, tmp_path, experiments=EXPERIMENTS[2:])
    outside = [case for case in toy.cases if toy.rows[case]["cohort"] == "B"]
    assert read_splits(tmp_path / "splits.tsv").external == outside
    path = tmp_path / "predictions" / "grade" / "fusion_external.tsv"
    table = read_external_predictions(path)
    predicted = [case for case in outside if case not in (toy.cases[3], toy.cases[6])]
    assert [(row.case_id, row.fold) for row in table.rows] == [(c, f) for c in predicted for f in (0, 1, ENSEMBLE)]
    for case in predicted:
        *single, mean = [row for row in table.rows if row.case_id == case]
        np.testing.assert_allclose(mean.probability, np.mean([row.probability for row in single], axis=0))
        assert mean.label == toy.rows[case]["grade"] == single[0].label
    assert read_left_out(left_out_path(path)) == [LeftOut(toy.cases[3], ENSEMBLE, "no RNA")]
    inside = read_predictions(tmp_path / "predictions" / "grade" / "fusion.tsv")
    assert {row.case_id for row in inside.rows} == set(toy.cases) - set(outside)
    assert set(read_cases(tmp_path / "data" / "cases.tsv").rows) >= set(outside)


def test_mean_of_two_folds_by_hand():
    rows = [
        SurvivalPrediction("a", 0, -1.0, (0.8, 0.4), (10.0, 20.0), 5.0, 1, "x"),
        SurvivalPrediction("a", 1, -2.0, (0.6, 0.5, 0.2), (5.0, 15.0, 30.0), 5.0, 1, "y"),
    ]
    mean = mean_over_folds(rows, ())
    assert (mean.case_id, mean.fold, mean.risk, mean.edges, mean.time, mean.event) == (
        "a", ENSEMBLE, -1.5, (10.0, 20.0), 5.0, 1,
    )  # fmt: skip
    np.testing.assert_allclose(mean.survival, [(0.8 + 0.55) / 2, (0.4 + 0.4) / 2])
    flat = mean_over_folds(rows[::-1], ())
    assert flat.survival[2] == pytest.approx((0.2 + 0.4) / 2), "a curve goes on flat after its last edge"
    classes = [ClassPrediction("b", k, p, "M", "F", str(k)) for k, p in enumerate([(0.9, 0.1), (0.2, 0.8), (0.1, 0.9)])]
    assert mean_over_folds(classes, ("F", "M")).predicted == "M"
    assert mean_over_folds(classes[:1], ("F", "M")).probability == (0.9, 0.1)
