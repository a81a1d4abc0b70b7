"""New cases by all folds' models: the mean of what each says, nobody lost without a word, features checked."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from models.checkpoint import read_checkpoint
from models.data import Cohort
from models.experiment import Experiment
from models.predict import predict_cases
from models.train import train_folds
from pipeline.contracts import layout
from pipeline.contracts.errors import InputError
from pipeline.contracts.features import read_bag, read_index, write_bag
from pipeline.contracts.files import read_table
from pipeline.contracts.training import FAILED, FoldRow, write_folds
from tests.toy_cohort import GRADE, SURVIVAL, make_toy
from workflow.cli.main import main


def trained(folder: Path, task, model: str) -> Path:
    inputs = make_toy().write(folder / "data")
    made = Experiment(name="x", model=model, encoder="toy", epochs=1)
    train_folds(made, task, inputs, folder / "models", folder / "models/index.tsv", device="cpu")
    return folder / "models"


def new_run(folder: Path) -> Path:
    """Results of another run; its first case has neither slide nor RNA."""
    toy = make_toy(seed=7)
    gone = toy.cases[0]
    toy.slides = {name: slide for name, slide in toy.slides.items() if slide[0] != gone}
    toy.rna.pop(gone)
    inputs = toy.write(folder / "made")
    results = folder / "results"
    Path(layout.expression(results)).parent.mkdir(parents=True)
    shutil.copy(inputs.expression, layout.expression(results))
    index = Path(layout.features_index(results, "toy"))
    shutil.copytree(Path(inputs.features_index).parent, index.parent)
    return results


def predict(models: Path, results: Path, *more: str) -> int:
    out = results.parent / "out.tsv"
    return main(["predict", "--models", str(models), "--results", str(results), "--out", str(out), *more])


@pytest.mark.parametrize("model", ["abmil", "concat", "linear"])
@pytest.mark.parametrize("task", [GRADE, SURVIVAL], ids=lambda task: task.name)
def test_a_row_is_the_mean_of_the_folds(tmp_path, task, model, capsys):
    models, results = trained(tmp_path / "a", task, model), new_run(tmp_path / "b")
    sheet = tmp_path / "b/made/cases.tsv"
    assert predict(models, results, "--cases", str(sheet)) == 1 and "left out: C00: no" in capsys.readouterr().out
    assert predict(models, results, "--cases", str(sheet), "--allow-left-out") == 0
    rows = read_table(tmp_path / "b/out.tsv")
    assert [row["case_id"] for row in rows] == [f"C{k:02d}" for k in range(1, 24)]
    assert {row["models"] for row in rows} == {"3"}
    assert [row["case_id"] for row in read_table(tmp_path / "b/out_left_out.tsv")] == ["C00"]

    made = tmp_path / "b/made"
    cohort = Cohort(made / "features/index.tsv", 10.0, made / "expression.h5ad")
    checkpoints = [read_checkpoint(models / f"fold{k}/checkpoint.pt") for k in range(3)]
    each = [predict_cases(c, cohort, ["C05"])[0][0] for c in checkpoints]
    row = rows[4]
    if task is GRADE:
        assert checkpoints[0].classes == ("G2", "G3", "G4")
        told = [float(row[f"p_{name}"]) for name in checkpoints[0].classes]
        spread = [float(row[f"sd_{name}"]) for name in checkpoints[0].classes]
        assert np.allclose(told, np.mean([o.probability for o in each], axis=0), rtol=1e-6)
        assert np.allclose(spread, np.std([o.probability for o in each], axis=0), atol=1e-6)
        assert row["predicted"] == checkpoints[0].classes[int(np.argmax(told))] and sum(told) == pytest.approx(1)
    else:
        assert float(row["risk"]) == pytest.approx(np.mean([o.risk for o in each]))
        curve = [float(row[f"survival_{k}"]) for k in range(1, 5)]
        assert [float(row[f"edge_{k}"]) for k in range(1, 5)] == list(checkpoints[0].intervals.ends)
        assert all(0 <= b <= a <= 1 for a, b in pairwise(curve))
        end = checkpoints[0].intervals.ends[0]
        pairs = zip(checkpoints, each, strict=True)
        read = [np.interp(end, [0, *c.intervals.ends], [1, *o.survival]) for c, o in pairs]
        assert curve[0] == pytest.approx(np.mean(read))


def test_a_class_that_one_fold_never_saw(tmp_path):
    toy = make_toy()
    for row in toy.rows.values():
        fold0 = {r.role for r in toy.splits if r.case_id == row["case_id"] and r.fold == 0}
        row["grade"] = "rare" if row["grade"] == "G4" and fold0 == {"test"} else row["grade"].replace("G4", "G3")
    inputs = toy.write(tmp_path / "a/data")
    train_folds(Experiment(name="x", model="linear"), GRADE, inputs, tmp_path / "m", tmp_path / "m/index.tsv")
    assert predict(tmp_path / "m", new_run(tmp_path / "b")) == 0
    rows = read_table(tmp_path / "b/out.tsv")
    assert all(sum(float(row[f"p_{c}"]) for c in ("G2", "G3", "rare")) == pytest.approx(1) for row in rows)
    assert max(float(row["p_rare"]) for row in rows) < 2 / 3 + 1e-9, "one of three models gives it nothing"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights_digest": "other"}, "the digest of the encoder's weights is 'other', but it was 'w' in training"),
        ({"encoder_name": "uni"}, "the encoder is 'uni', but it was 'toy.model' in training"),
        ({"size_px": 256}, "the tile size in px is '256', but it was '224' in training"),
        ({"stain": "vahadane"}, "stain normalisation is 'on', but it was 'off' in training"),
    ],
)
def test_features_made_otherwise_are_refused(tmp_path, capsys, change, message):
    models, results = trained(tmp_path / "a", GRADE, "meanpool"), new_run(tmp_path / "b")
    for record in read_index(layout.features_index(results, "toy")):
        bag = read_bag(record.path)
        write_bag(record.path, replace(bag, source=replace(bag.source, **change)))
    assert predict(models, results) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "b/out.tsv").exists()


def test_what_is_missing_is_named(tmp_path, capsys):
    models, results = trained(tmp_path / "a", GRADE, "linear"), new_run(tmp_path / "b")
    assert predict(tmp_path / "b", results) == 1 and "no index.tsv in it" in capsys.readouterr().err
    Path(layout.expression(results)).unlink()
    assert predict(models, results) == 1
    assert "expression.h5ad: it does not exist; the model 'linear' reads genes" in capsys.readouterr().err


def test_without_a_modality_that_the_model_spares(tmp_path):
    models, results = trained(tmp_path / "a", GRADE, "feature-generation"), new_run(tmp_path / "b")
    assert predict(models, results) == 0
    with_genes = (tmp_path / "b/out.tsv").read_bytes()
    Path(layout.expression(results)).unlink()
    assert predict(models, results) == 0
    assert len(read_table(tmp_path / "b/out.tsv")) == 23 and (tmp_path / "b/out.tsv").read_bytes() != with_genes


def test_no_trained_fold_is_an_error(tmp_path):
    from models.new_cases import trained_folds

    write_folds(tmp_path / "index.tsv", [FoldRow(0, FAILED, "no event")])
    with pytest.raises(InputError, match="no fold was trained"):
        trained_folds(tmp_path)
