"""Prediction: out of fold, one case at a time, from checkpoints alone; what is left out is listed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from models.checkpoint import read_checkpoint
from models.data import Cohort
from models.experiment import Experiment
from models.predict import predict_cases, predict_folds
from models.registry import MODELS as REGISTERED
from models.registry import model_class
from models.train import train_folds
from pipeline.contracts.errors import FormatError, InputError
from pipeline.contracts.predictions import (
    LeftOut,
    left_out_path,
    read_left_out,
    read_predictions,
    read_slide_predictions,
)
from tests.toy_cohort import GRADE, SMALL_PARAMS, SURVIVAL, make_toy

MODELS = tuple(name for name, entry in REGISTERED.items() if not entry.task_free)


def run(toy, task, folder: Path, model: str, **changes):
    inputs = toy.write(folder / "data")
    settings = {"epochs": 2, "batch_size": 5, "lr": 1e-3, "params": SMALL_PARAMS.get(model, {}), **changes}
    made = Experiment(**{"name": model, "model": model, **settings})
    train_folds(made, task, inputs, folder / "models", folder / "models" / "index.tsv", device="cpu")
    left_out = predict_folds(
        made, task, inputs, folder / "models", folder / "p.tsv", device="cpu", slides_out=folder / "s.tsv"
    )
    return inputs, left_out, read_predictions(folder / "p.tsv")


@pytest.mark.parametrize("model", MODELS)
def test_every_case_once_by_the_fold_that_holds_it_out(tmp_path, model):
    toy = make_toy(n=15, pair=REGISTERED[model].magnifications == 2)
    _, left_out, table = run(toy, GRADE, tmp_path, model, epochs=1)
    held_by = {r.case_id: r.fold for r in toy.splits if r.role == "test"}
    assert {row.case_id: row.fold for row in table.rows} == held_by and not left_out
    assert table.classes == ("G2", "G3", "G4")
    for row in table.rows:
        assert sum(row.probability) == pytest.approx(1)
        assert row.predicted == table.classes[int(np.argmax(row.probability))]
        assert row.label == toy.rows[row.case_id]["grade"]


@pytest.mark.parametrize("model", MODELS)
def test_survival_tables(tmp_path, model):
    toy = make_toy(n=15, pair=REGISTERED[model].magnifications == 2)
    _, _, table = run(toy, SURVIVAL, tmp_path, model, epochs=1)
    assert len(table.rows) == len(toy.cases)
    for row in table.rows:
        assert all(0 <= b <= a <= 1 for a, b in zip((1.0, *row.survival), row.survival, strict=False))
        assert len(row.edges) == len(row.survival) == 4 and list(row.edges) == sorted(row.edges)
        assert row.time == float(toy.rows[row.case_id]["time_days"])
    for fold in range(3):
        part = sorted((r for r in table.rows if r.fold == fold), key=lambda r: r.risk)
        means = [np.sum(r.survival) for r in part]
        if not model_class(model).fits_itself:
            assert means == sorted(means, reverse=True)
        else:
            assert [r.survival[1] for r in part] == sorted((r.survival[1] for r in part), reverse=True)


def test_a_case_does_not_depend_on_the_others(tmp_path):
    toy = make_toy()
    inputs, _, table = run(toy, GRADE, tmp_path, "subspace")
    checkpoint = read_checkpoint(tmp_path / "models" / "fold1" / "checkpoint.pt")
    cohort = Cohort(inputs.features_index, None, inputs.expression)
    rows = {row.case_id: row for row in table.rows if row.fold == 1}
    outcomes, _ = predict_cases(checkpoint, cohort, list(rows)[::-1][:3])
    for outcome in outcomes:
        assert tuple(outcome.probability.tolist()) == rows[outcome.case_id].probability


def test_prediction_needs_neither_gene_files_nor_splits_nor_labels(tmp_path):
    """A checkpoint predicts a cohort it has never seen, from bags and expression alone."""
    toy = make_toy()
    run(toy, GRADE, tmp_path, "concat")
    shutil.rmtree(tmp_path / "data")
    other = make_toy(n=6, seed=5).write(tmp_path / "other")
    shutil.rmtree(other.genes_dir)
    checkpoint = read_checkpoint(tmp_path / "models" / "fold0" / "checkpoint.pt")
    outcomes, left_out = predict_cases(
        checkpoint, Cohort(other.features_index, None, other.expression), ["C03", "C01", "nobody"]
    )
    assert [o.case_id for o in outcomes] == ["C03", "C01"]
    assert left_out == {"nobody": "no usable slide at 10x and no RNA"}


def test_left_out_cases_and_untrained_folds_are_listed(tmp_path):
    toy = make_toy()
    held = {f: [r.case_id for r in toy.splits if r.fold == f and r.role == "test"] for f in range(3)}
    lost, unlabelled = held[0][:2]
    del toy.rna[lost]
    toy.rows[unlabelled]["event"] = ""
    for r in toy.splits:
        if r.fold == 2 and r.role == "train" and toy.rows[r.case_id]["event"]:
            toy.rows[r.case_id]["event"] = "0"
    toy.rows[held[2][0]]["event"] = "1"
    _, left_out, table = run(toy, SURVIVAL, tmp_path, "snn")
    assert LeftOut(lost, 0, "no RNA") in left_out
    untrained = [row for row in left_out if row.fold == 2]
    assert len(untrained) == len(held[2]) and "was not trained" in untrained[0].reason
    assert unlabelled not in {row.case_id for row in (*left_out, *table.rows)}
    assert read_left_out(left_out_path(tmp_path / "p.tsv")) == sorted(left_out, key=lambda r: (r.case_id, r.fold))


def test_a_class_that_a_fold_never_saw_gets_probability_zero(tmp_path):
    toy = make_toy()
    rare = next(r.case_id for r in toy.splits if r.fold == 0 and r.role == "test")
    toy.rows[rare]["grade"] = "G9"
    _, _, table = run(toy, GRADE, tmp_path, "snn")
    row = next(r for r in table.rows if r.case_id == rare)
    assert table.classes == ("G2", "G3", "G4", "G9")
    assert row.probability[3] == 0 and row.label == "G9" and row.predicted != "G9"
    assert any(r.probability[3] > 0 for r in table.rows if r.fold != 0)


def test_reference_mode_averages_slides(tmp_path):
    toy = make_toy()
    _, _, table = run(toy, GRADE, tmp_path, "abmil", reference=True, params={"fixed_length": 36})
    checkpoint = read_checkpoint(tmp_path / "models" / "fold0" / "checkpoint.pt")
    row = next(r for r in table.rows if r.fold == 0 and f"{r.case_id}-S1" in toy.slides)
    each = []
    for slide in ("S0", "S1"):
        single = make_toy()
        single.slides = {
            f"{row.case_id}-S0": (row.case_id, *single.slides[f"{row.case_id}-{slide}"][1:]),
            **{s: v for s, v in single.slides.items() if v[0] != row.case_id},
        }
        alone = single.write(tmp_path / slide)
        outcomes, _ = predict_cases(checkpoint, Cohort(alone.features_index), [row.case_id])
        each.append(outcomes[0].probability)
    np.testing.assert_allclose(row.probability, np.mean(each, axis=0), rtol=1e-6)
    assert not np.allclose(each[0], each[1])


def test_prediction_is_repeatable_to_the_byte(tmp_path):
    toy = make_toy()
    inputs, _, _ = run(toy, SURVIVAL, tmp_path, "concat")
    first = (tmp_path / "p.tsv").read_bytes()
    torch.manual_seed(77)
    made = Experiment("concat", "concat", epochs=2, batch_size=5, lr=1e-3)
    predict_folds(made, SURVIVAL, inputs, tmp_path / "models", tmp_path / "q.tsv", device="cpu")
    assert first == (tmp_path / "q.tsv").read_bytes()


def test_another_checkpoint_than_the_index_names_is_refused(tmp_path):
    toy = make_toy()
    inputs, _, _ = run(toy, GRADE, tmp_path, "snn")
    shutil.copy(tmp_path / "models" / "fold1" / "checkpoint.pt", tmp_path / "models" / "fold0" / "checkpoint.pt")
    with pytest.raises(FormatError, match=r"not the checkpoint that index\.tsv names"):
        predict_folds(Experiment("snn", "snn"), GRADE, inputs, tmp_path / "models", tmp_path / "q.tsv", device="cpu")


def test_features_of_another_encoder_are_refused(tmp_path):
    toy = make_toy()
    run(toy, GRADE, tmp_path, "abmil")
    toy.slides = {s: (c, np.hstack([f, f]), cell) for s, (c, f, cell) in toy.slides.items()}
    other = toy.write(tmp_path / "other")
    checkpoint = read_checkpoint(tmp_path / "models" / "fold0" / "checkpoint.pt")
    with pytest.raises(InputError, match="12 features per tile, but it was trained on 6"):
        predict_cases(checkpoint, Cohort(other.features_index), ["C00"])


def test_another_magnification_is_refused(tmp_path):
    toy = make_toy()
    inputs, _, _ = run(toy, GRADE, tmp_path, "abmil")
    checkpoint = read_checkpoint(tmp_path / "models" / "fold0" / "checkpoint.pt")
    index = tmp_path / "data" / "features" / "index.tsv"
    index.write_text(index.read_text().replace("\t10\t", "\t20\t"))
    with pytest.raises(InputError, match="at 20x, but it was trained at 10x"):
        predict_cases(checkpoint, Cohort(inputs.features_index), ["C00"])


def values(row):
    return row.probability if hasattr(row, "probability") else (row.risk, *row.survival)


@pytest.mark.parametrize(("model", "task"), [("abmil", GRADE), ("concat", SURVIVAL), ("meanpool", GRADE)])
def test_slides_of_a_model_of_whole_cases(tmp_path, model, task):
    """A case's only slide is predicted as the case; one of several as if it were the case's only one."""
    toy = make_toy()
    _, _, table = run(toy, task, tmp_path, model)
    classes, slides = read_slide_predictions(tmp_path / "s.tsv")
    assert classes == table.classes and {s.slide_id for s in slides} == set(toy.slides)
    whole = {row.case_id: row for row in table.rows}
    assert all(s.trained_on == "case" and s.row.fold == whole[s.row.case_id].fold for s in slides)
    assert {s.n_slides for s in slides} == {1, 2}
    assert all(s.row == whole[s.row.case_id] for s in slides if s.n_slides == 1)
    chosen = next(s for s in slides if s.slide_id.endswith("S1"))
    case, *bag = toy.slides[chosen.slide_id]
    toy.slides = {f"{case}-S0": (case, *bag), **{s: v for s, v in toy.slides.items() if v[0] != case}}
    alone = toy.write(tmp_path / "alone")
    checkpoint = read_checkpoint(tmp_path / "models" / f"fold{chosen.row.fold}" / "checkpoint.pt")
    cohort = Cohort(alone.features_index, None, alone.expression)
    outcomes, _ = predict_cases(checkpoint, cohort, [case])
    found = outcomes[0].probability if task == GRADE else (outcomes[0].risk, *outcomes[0].survival)
    assert values(chosen.row) == tuple(found) != values(whole[case])


def test_slides_of_a_model_of_single_slides_average_to_their_case(tmp_path):
    toy = make_toy()
    _, _, table = run(toy, SURVIVAL, tmp_path, "abmil", reference=True, params={"fixed_length": 36})
    _, slides = read_slide_predictions(tmp_path / "s.tsv")
    assert {s.trained_on for s in slides} == {"slide"} and len(slides) == len(toy.slides)
    for row in table.rows:
        each = [values(s.row) for s in slides if s.row.case_id == row.case_id]
        np.testing.assert_allclose(values(row), np.mean(each, axis=0), rtol=1e-9)


def test_a_model_of_genes_has_no_row_per_slide(tmp_path):
    run(make_toy(), GRADE, tmp_path, "linear")
    assert read_slide_predictions(tmp_path / "s.tsv") == (("G2", "G3", "G4"), [])
