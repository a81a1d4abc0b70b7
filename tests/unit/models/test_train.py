"""Training: leaks nothing, resumes to the same bytes, skips what verifies, records what fails and goes on."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import models.train as train_module
from models.batch import Batch, Sizes, Targets
from models.checkpoint import read_checkpoint, write_checkpoint
from models.experiment import Experiment
from models.losses import Objective
from models.registry import MODELS as REGISTERED
from models.snn import Snn, SnnConfig
from models.train import exhausted, fold_seed, train_folds
from pipeline.contracts.errors import FormatError, InputError
from pipeline.contracts.files import read_table
from pipeline.contracts.genes import read_genes, write_genes
from pipeline.contracts.training import read_folds
from tests.toy_cohort import GRADE, SMALL_PARAMS, SURVIVAL, make_toy

SMALL = {"epochs": 3, "batch_size": 5, "lr": 3e-3, "weight_decay": 1e-3, "patience": 0}
ALL_MODELS = tuple(name for name, entry in REGISTERED.items() if not entry.task_free)


def experiment(model: str, **changes) -> Experiment:
    return Experiment(**{"name": model, "model": model, "params": SMALL_PARAMS.get(model, {}), **SMALL, **changes})


def train(made: Experiment, task, inputs, out: Path):
    return train_folds(made, task, inputs, out, out / "index.tsv", device="cpu")


def artefacts(out: Path, fold: int) -> list[bytes]:
    return [(out / f"fold{fold}" / name).read_bytes() for name in ("checkpoint.pt", "history.tsv")]


@pytest.mark.parametrize("task", [GRADE, SURVIVAL], ids=lambda t: t.name)
@pytest.mark.parametrize("model", ALL_MODELS)
def test_held_out_inputs_leave_no_trace(tmp_path, model, task):
    """Every input of the fold's test cases is replaced: RNA, features, tile places, label, time, event."""
    toy = make_toy(n=15, folds=2, pair=REGISTERED[model].magnifications == 2)
    before = tmp_path / "before"
    made = experiment(model, epochs=1)
    rows = train(made, task, toy.write(before / "data"), before / "out")
    assert [row.status for row in rows] == ["ok", "ok"]
    rng = np.random.default_rng(99)
    held_out = {row.case_id for row in toy.splits if row.fold == 0 and row.role == "test"}
    for case in held_out:
        toy.rna[case] = rng.normal(50, 9, size=len(toy.rna[case]))
        other = {"G2": "G3", "G3": "G4", "G4": "G2"}[toy.rows[case]["grade"]]
        died = str(1 - int(toy.rows[case]["event"]))
        toy.rows[case].update(grade=other, time_days=str(rng.exponential(9999)), event=died)
        toy.rows[case].update(age=str(rng.integers(900)), sex="other", site="9")
    for slide, (case, features, cell) in list(toy.slides.items()):
        if case in held_out:
            toy.slides[slide] = (case, rng.normal(20, 5, size=features.shape), cell[::-1] + 4)
    after = tmp_path / "after"
    train(made, task, toy.write(after / "data"), after / "out")
    assert artefacts(before / "out", 0) == artefacts(after / "out", 0)
    assert artefacts(before / "out", 1)[0] != artefacts(after / "out", 1)[0]  # there they are training cases


@pytest.mark.parametrize("change", ["rna", "features", "label", "role"])
def test_every_training_input_changes_the_digest(tmp_path, change):
    toy = make_toy(folds=2)
    rows = train(experiment("concat", epochs=1), GRADE, toy.write(tmp_path / "a"), tmp_path / "a" / "out")
    case = next(row.case_id for row in toy.splits if row.fold == 0 and row.role == "val")
    if change == "rna":
        toy.rna[case][3] += 0.01
    elif change == "features":
        toy.slides[f"{case}-S0"][1][0, 0] += 0.01
    elif change == "label":
        toy.rows[case]["grade"] = {"G2": "G3", "G3": "G4", "G4": "G2"}[toy.rows[case]["grade"]]
    else:
        toy.splits = [replace(r, role="train") if (r.case_id, r.fold) == (case, 0) else r for r in toy.splits]
    again = train(experiment("concat", epochs=1), GRADE, toy.write(tmp_path / "b"), tmp_path / "b" / "out")
    assert rows[0].digest != again[0].digest


class Killed(BaseException):
    """Stands in for a signal: nothing in the package may catch it."""


@pytest.mark.parametrize("model", ["snn", "concat", "subspace"])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, monkeypatch, model):
    toy = make_toy(folds=2)
    inputs = toy.write(tmp_path / "data")
    made = experiment(model, epochs=4)
    train(made, SURVIVAL, inputs, tmp_path / "whole")
    real, calls = train_module.write_bytes, []

    def dying(path, content):
        real(path, content)
        calls.append(path)
        if len(calls) in (2, 3):  # after epoch 2, then again after epoch 3
            raise Killed

    monkeypatch.setattr(train_module, "write_bytes", dying)
    for _ in range(2):
        with pytest.raises(Killed):
            train(made, SURVIVAL, inputs, tmp_path / "killed")
        assert (tmp_path / "killed" / "fold0" / "last.pt").exists()
        torch.manual_seed(12345)  # whatever happened in between
        torch.rand(7)
    rows = train(made, SURVIVAL, inputs, tmp_path / "killed")
    assert len(calls) == 8  # 4 epochs x 2 folds: none was run twice
    assert [row.status for row in rows] == ["ok", "ok"]
    for fold in (0, 1):
        assert artefacts(tmp_path / "whole", fold) == artefacts(tmp_path / "killed", fold)
        assert not (tmp_path / "killed" / f"fold{fold}" / "last.pt").exists()


def test_a_damaged_or_foreign_state_starts_anew(tmp_path):
    inputs = make_toy(folds=2).write(tmp_path / "data")
    train(experiment("snn"), GRADE, inputs, tmp_path / "whole")
    (tmp_path / "other" / "fold0").mkdir(parents=True)
    (tmp_path / "other" / "fold0" / "last.pt").write_bytes(b"torn")
    train(experiment("snn"), GRADE, inputs, tmp_path / "other")
    assert artefacts(tmp_path / "whole", 0) == artefacts(tmp_path / "other", 0)


def test_finished_folds_are_skipped_and_damaged_ones_made_again(tmp_path):
    inputs = make_toy(folds=2).write(tmp_path / "data")
    out = tmp_path / "out"
    first = train(experiment("snn"), GRADE, inputs, out)
    good = [artefacts(out, k) for k in (0, 1)]
    path = out / "fold1" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-200])
    again = train(experiment("snn"), GRADE, inputs, out)
    assert again[0].seconds == 0 and again[1].seconds > 0
    assert [r.digest for r in first] == [r.digest for r in again]
    assert good == [artefacts(out, k) for k in (0, 1)]
    assert read_folds(out / "index.tsv") == again
    changed = train(experiment("snn", lr=1e-2), GRADE, inputs, out)
    assert all(row.seconds > 0 for row in changed) and changed[0].digest != first[0].digest


def test_a_fold_that_cannot_be_trained_is_recorded_and_the_others_go_on(tmp_path):
    toy = make_toy(folds=3)
    for row in toy.splits:
        if row.fold == 1 and row.role == "train":
            toy.rows[row.case_id]["event"] = "0"
    toy.splits = [
        replace(r, role="val") if r.fold == 2 and r.role == "train" and toy.rows[r.case_id]["grade"] != "G2" else r
        for r in toy.splits
    ]
    inputs = toy.write(tmp_path / "data")
    rows = train(experiment("snn"), SURVIVAL, inputs, tmp_path / "os")
    assert rows[1].status == "failed" and "none of the" in rows[1].reason and "has an event" in rows[1].reason
    assert not (tmp_path / "os" / "fold1" / "checkpoint.pt").exists()
    rows = train(experiment("snn"), GRADE, inputs, tmp_path / "grade")
    assert [row.status for row in rows] == ["ok", "ok", "failed"]
    assert "are of class 'G2'" in rows[2].reason


def test_a_missing_gene_file_fails_its_fold_alone(tmp_path):
    inputs = make_toy(folds=2).write(tmp_path / "data")
    inputs.genes_path(0).unlink()
    rows = train(experiment("snn"), GRADE, inputs, tmp_path / "out")
    assert rows[0].status == "failed" and "do not exist" in rows[0].reason and rows[1].status == "ok"


@pytest.mark.parametrize("fault", ["nan", "bug"])
def test_a_fault_in_the_second_epoch(tmp_path, monkeypatch, fault):
    """A loss that is not finite fails the fold with its reason; an unforeseen error stops the job without an index."""
    real, calls = train_module.train_epoch, []

    def faulty(*args):
        calls.append(1)
        out = real(*args)
        if len(calls) == 2 and fault == "bug":
            raise RuntimeError("shapes")
        return {**out, "loss": float("nan")} if len(calls) == 2 else out

    monkeypatch.setattr(train_module, "train_epoch", faulty)
    inputs = make_toy(folds=2).write(tmp_path / "d")
    if fault == "bug":
        with pytest.raises(RuntimeError, match="shapes"):
            train(experiment("snn"), GRADE, inputs, tmp_path / "o")
        assert not (tmp_path / "o/index.tsv").exists()
        return
    rows = train(experiment("snn"), GRADE, inputs, tmp_path / "o")
    assert rows[0].status == "failed" and "loss is nan in epoch 2" in rows[0].reason
    assert rows[1].status == "ok" and len(calls) == 5


def test_autocast_rounds_the_weights_of_every_step():
    """An epoch of two steps ends where two epochs of one end: no step computes with weights of the one before."""
    batch = Batch(("a", "b"), *[torch.ones(2, dtype=torch.bool)] * 2, genes={"all": torch.randn(2, 6)})
    data, ends = [(batch, Targets(label=torch.tensor([0, 1])))] * 2, []
    for epochs in ([data], [data[:1], data[1:]]):
        torch.manual_seed(0)
        model = Snn(SnnConfig(dropout=0.0), Sizes(0, {"all": 6}, 2, "classification"))
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        for part in epochs:
            autocast = torch.autocast("cpu", torch.bfloat16)
            train_module.train_epoch(model, Objective("classification"), part, optimiser, [0.1] * len(part), autocast)
        ends.append(list(model.state_dict().values()))
    assert all(torch.equal(*pair) for pair in zip(*ends, strict=True))


def test_cases_without_a_modality_or_label_are_left_out_and_said(tmp_path):
    toy = make_toy(folds=2)
    train_cases = [r.case_id for r in toy.splits if r.fold == 0 and r.role == "train"]
    lost_rna, lost_slide, lost_label = train_cases[:3]
    del toy.rna[lost_rna]
    toy.slides = {s: v for s, v in toy.slides.items() if v[0] != lost_slide}
    toy.rows[lost_label]["grade"] = ""
    rows = train(experiment("concat", epochs=1), GRADE, toy.write(tmp_path / "d"), tmp_path / "out")
    assert rows[0].n_train == len(train_cases) - 3
    for words in ("1 case left out: no RNA", "1 case left out: no usable slide at 10x", "1 case left out: no grade"):
        assert words in rows[0].reason


def test_few_events_and_no_validation_case_are_said(tmp_path):
    toy = make_toy(folds=2)
    toy.splits = [replace(r, role="train") if r.role == "val" else r for r in toy.splits]
    cases = [r.case_id for r in toy.splits if r.fold == 0 and r.role == "train"]
    for k, case in enumerate(cases):
        toy.rows[case]["event"] = str(int(k < 2))
    rows = train(experiment("snn"), SURVIVAL, toy.write(tmp_path / "d"), tmp_path / "out")
    assert "2 survival intervals instead of 4: 2 training cases with an event" in rows[0].reason
    assert "no validation case: the last epoch is kept" in rows[0].reason
    assert rows[0].best_epoch == rows[0].epochs == 3
    assert len(read_checkpoint(tmp_path / "out" / "fold0" / "checkpoint.pt").intervals) == 2


def test_a_batch_without_event_trains(tmp_path):
    """Batches of one, most of them censored, with CG-Coord and Ge-Con on."""
    toy = make_toy(n=12, folds=2)
    rows = train(experiment("subspace", batch_size=1, epochs=1), SURVIVAL, toy.write(tmp_path / "d"), tmp_path / "o")
    assert [row.status for row in rows] == ["ok", "ok"]
    history = read_table(tmp_path / "o" / "fold0" / "history.tsv")
    assert float(history[0]["gecon_tumour"]) == 0


def test_history_selection_and_schedule(tmp_path):
    made = experiment("snn", epochs=30, lr=1e-2, patience=3)
    rows = train(made, GRADE, make_toy(folds=2).write(tmp_path / "d"), tmp_path / "o")
    for row in rows:
        history = read_table(tmp_path / "o" / f"fold{row.fold}" / "history.tsv")
        losses = [float(r["val_loss"]) for r in history]
        assert row.best_epoch == 1 + int(np.argmin(losses)) and row.epochs == len(history)
        assert row.epochs == 30 or row.epochs == row.best_epoch + 3
        expected = [1e-2 * (1 + np.cos(np.pi * e / 30)) / 2 for e in range(len(history))]
        np.testing.assert_allclose([float(r["lr"]) for r in history], expected)
        assert [int(r["best"]) for r in history] == [int(x < min([np.inf, *losses[:k]])) for k, x in enumerate(losses)]


def test_training_learns(tmp_path):
    made = experiment("concat", epochs=40, lr=3e-3)
    train(made, GRADE, make_toy(folds=2).write(tmp_path / "d"), tmp_path / "o")
    history = read_table(tmp_path / "o" / "fold0" / "history.tsv")
    assert float(history[-1]["loss"]) < 0.3 * float(history[0]["loss"])


def test_seeds_differ_by_fold_and_run(tmp_path):
    assert len({fold_seed(s, f) for s in range(5) for f in range(5)}) == 25
    inputs = make_toy(folds=2).write(tmp_path / "d")
    for seed in (0, 1):
        train(experiment("snn", seed=seed), GRADE, inputs, tmp_path / str(seed))
    assert artefacts(tmp_path / "0", 0)[1] != artefacts(tmp_path / "1", 0)[1]


def test_patience():
    progress = train_module.Progress(epoch=7, best_epoch=4)
    assert exhausted(progress, 3) and not exhausted(progress, 4) and not exhausted(progress, 0)


def test_evaluation_mode_during_validation(tmp_path, monkeypatch):
    """Dropout must be off: with it on, two validations of the same weights differ."""
    seen = []
    real = train_module.validate

    def twice(model, objective, data):
        results = [real(model, objective, data) for _ in range(2)]
        seen.append(results[0] == results[1])
        return results[0]

    monkeypatch.setattr(train_module, "validate", twice)
    train(experiment("abmil", params={"dropout": 0.5}), GRADE, make_toy(folds=2).write(tmp_path / "d"), tmp_path / "o")
    assert len(seen) == 6 and all(seen)


class TestCheckpoint:
    def test_round_trip_is_byte_equal_and_needs_no_pickled_code(self, tmp_path):
        train(experiment("subspace", epochs=1), SURVIVAL, make_toy(folds=2).write(tmp_path / "d"), tmp_path / "o")
        path = tmp_path / "o" / "fold0" / "checkpoint.pt"
        body = torch.load(path, weights_only=True)
        assert body["meta"]["experiment"]["params"]["coordination"] == "projection"
        assert body["meta"]["selection"]["genes"][0] == "G00"
        write_checkpoint(tmp_path / "again.pt", read_checkpoint(path))
        assert (tmp_path / "again.pt").read_bytes() == path.read_bytes()

    def test_unknown_version_and_damage_are_refused(self, tmp_path):
        train(experiment("snn", epochs=1), GRADE, make_toy(folds=2).write(tmp_path / "d"), tmp_path / "o")
        path = tmp_path / "o" / "fold0" / "checkpoint.pt"
        body = torch.load(path, weights_only=True)
        torch.save({**body, "format_version": 99}, path)
        with pytest.raises(FormatError, match="version 99"):
            read_checkpoint(path)
        next(iter(body["state"].values()))[0] = float("nan")
        torch.save(body, path)
        with pytest.raises(FormatError, match="not finite"):
            read_checkpoint(path)
        path.write_bytes(b"")
        with pytest.raises(FormatError, match="not readable"):
            read_checkpoint(path)


def test_moved_results_and_thread_count_do_not_enter_the_digest(tmp_path):
    inputs = make_toy(folds=2).write(tmp_path / "d")
    rows = train(experiment("concat", epochs=1), GRADE, inputs, tmp_path / "o")
    shutil.copytree(tmp_path / "d", tmp_path / "moved")
    moved = make_toy(folds=2).write(tmp_path / "moved")
    again = train(experiment("concat", epochs=1), GRADE, moved, tmp_path / "o")
    assert [r.digest for r in rows] == [r.digest for r in again] and all(r.seconds == 0 for r in again)


def test_what_concerns_all_folds_is_raised(tmp_path):
    inputs = make_toy(folds=2).write(tmp_path / "d")
    with pytest.raises(InputError, match="needs slides"):
        train(experiment("abmil"), GRADE, replace(inputs, features_index=None), tmp_path / "o")


def test_a_magnification_without_bags_fails_every_fold_with_its_reason(tmp_path):
    inputs = make_toy(folds=2).write(tmp_path / "d")
    rows = train(experiment("abmil", magnification=20), GRADE, inputs, tmp_path / "o")
    assert [row.status for row in rows] == ["failed", "failed"]
    assert "no training case has what model 'abmil' needs" in rows[0].reason
    assert "no usable slide at 20x" in rows[0].reason


def test_a_token_per_gene_family_is_trained_and_kept_in_order(tmp_path):
    inputs = make_toy(folds=2).write(tmp_path / "data")
    families = {"second": ("G05", "G01"), "first": ("G01",), "last": ("G07", "G08", "G11")}
    for fold in range(2):
        path = tmp_path / "data" / "genes" / f"fold{fold}.json"
        write_genes(path, replace(read_genes(path), families=families))
    made = experiment("mcat", epochs=1, params={"width": 8, "cut": "families"})
    assert [row.status for row in train(made, GRADE, inputs, tmp_path / "out")] == ["ok", "ok"]
    checkpoint = read_checkpoint(tmp_path / "out" / "fold0" / "checkpoint.pt")
    assert list(checkpoint.selection.families.items()) == list(families.items())
    columns = [[checkpoint.selection.genes.index(gene) for gene in genes] for genes in families.values()]
    assert checkpoint.sizes.families == columns
    assert [checkpoint.state[f"tokens.pieces.{k}.0.weight"].shape[1] for k in range(3)] == [2, 1, 3]
