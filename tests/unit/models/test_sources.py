"""Three stages chained by `init_from`: fold by fold, no leak, resumed to the same bytes, predicted without RNA."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import models.train as train_module
from models.checkpoint import read_checkpoint, write_checkpoint
from models.data import Cohort, Sample
from models.experiment import Experiment, Inputs, check_sources
from models.predict import predict_cases, predict_folds
from models.sources import lessons, with_lessons
from models.train import train_folds
from pipeline.contracts.errors import InputError
from pipeline.contracts.files import read_table
from pipeline.contracts.predictions import read_predictions
from tests.toy_cohort import GRADE, SURVIVAL, make_toy

SMALL = {"epochs": 1, "batch_size": 4, "lr": 1e-3}
TEACHER = Experiment("teacher", "disentangled-teacher", **SMALL)
ALONE = Experiment("alone", "disentangled-student", **SMALL)
TAUGHT = Experiment("student", "disentangled-student", init_from=["teacher", "alone"], **SMALL)


def run(made: Experiment, task, inputs: Inputs, models: Path):
    """Train one stage below `models`; stages before it lie there too, and the student is given no gene lists."""
    names = made.init_from or ()
    inputs = replace(
        inputs, sources={name: models / name for name in names}, genes_dir=None if names else inputs.genes_dir
    )
    return train_folds(made, task, inputs, models / made.name, models / made.name / "index.tsv", device="cpu")


def three_stages(task, inputs: Inputs, models: Path):
    return [run(made, task, inputs, models) for made in (TEACHER, ALONE, TAUGHT)]


def history(models: Path, fold: int = 0) -> list[dict[str, str]]:
    return read_table(models / "student" / f"fold{fold}" / "history.tsv")


def artefacts(models: Path, fold: int) -> list[bytes]:
    return [path.read_bytes() for path in sorted(models.glob(f"*/fold{fold}/*"))]


@pytest.mark.parametrize("task", [GRADE, SURVIVAL], ids=lambda t: t.name)
def test_three_stages(tmp_path, task):
    inputs = make_toy(n=12, folds=2, pair=True).write(tmp_path / "data")
    rows = three_stages(task, inputs, tmp_path / "models")
    assert {row.status for stage in rows for row in stage} == {"ok"}
    assert float(history(tmp_path / "models")[-1]["distil_fine_features"]) > 0
    for fold in (0, 1):
        alone, teacher, student = (
            read_checkpoint(tmp_path / "models" / name / f"fold{fold}" / "checkpoint.pt")
            for name in ("alone", "teacher", "student")
        )
        assert student.intervals == teacher.intervals and student.classes == teacher.classes
        assert student.selection is None and set(student.state) == set(alone.state)
        assert student.experiment.init_from == ("teacher", "alone")
    given = replace(inputs, expression=None, genes_dir=None)
    assert not predict_folds(TAUGHT, task, given, tmp_path / "models" / "student", tmp_path / "p.tsv", device="cpu")
    assert len(read_predictions(tmp_path / "p.tsv").rows) == 12


def test_a_student_starts_from_the_weights_of_its_own_fold(tmp_path, monkeypatch):
    inputs = make_toy(n=12, folds=2, pair=True).write(tmp_path / "data")
    run(ALONE, GRADE, inputs, tmp_path / "models")
    started = []

    def stop(model, *_):
        started.append({k: v.clone() for k, v in model.state_dict().items()})
        raise InputError("here", "far enough")

    monkeypatch.setattr(train_module, "run_epochs", stop)
    run(replace(TAUGHT, init_from="alone"), GRADE, inputs, tmp_path / "models")
    for fold, state in enumerate(started):
        source = read_checkpoint(tmp_path / "models" / "alone" / f"fold{fold}" / "checkpoint.pt").state
        assert all(torch.equal(state[name], source[name]) for name in source)
    assert any(not torch.equal(started[0][k], started[1][k]) for k in started[0])


@pytest.mark.parametrize("task", [GRADE, SURVIVAL], ids=lambda t: t.name)
def test_held_out_inputs_leave_no_trace_in_any_stage(tmp_path, task):
    toy = make_toy(n=12, folds=2, pair=True)
    three_stages(task, toy.write(tmp_path / "a"), tmp_path / "before")
    rng = np.random.default_rng(5)
    held_out = {row.case_id for row in toy.splits if row.fold == 0 and row.role == "test"}
    for case in held_out:
        toy.rna[case] = rng.normal(50, 9, size=len(toy.rna[case]))
        toy.rows[case].update(
            grade={"G2": "G3", "G3": "G4", "G4": "G2"}[toy.rows[case]["grade"]],
            time_days=str(rng.exponential(9999)), event=str(1 - int(toy.rows[case]["event"])),
        )  # fmt: skip
    for slide, (case, features, cell) in list(toy.slides.items()):
        if case in held_out:
            toy.slides[slide] = (case, rng.normal(20, 5, size=features.shape), cell[::-1] + 4)
    three_stages(task, toy.write(tmp_path / "b"), tmp_path / "after")
    assert artefacts(tmp_path / "before", 0) == artefacts(tmp_path / "after", 0)
    assert artefacts(tmp_path / "before", 1) != artefacts(tmp_path / "after", 1)


def test_the_teachers_rna_of_training_cases_changes_the_student(tmp_path):
    toy = make_toy(n=12, folds=2, pair=True)
    before = three_stages(GRADE, toy.write(tmp_path / "a"), tmp_path / "before")
    case = next(row.case_id for row in toy.splits if row.fold == 0 and row.role == "train")
    toy.rna[case][3] += 0.5
    after = three_stages(GRADE, toy.write(tmp_path / "b"), tmp_path / "after")
    assert [a[0].digest == b[0].digest for a, b in zip(before, after, strict=True)] == [False, True, False]


class Killed(BaseException):
    """Stands in for a signal."""


def test_a_killed_student_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    inputs = make_toy(n=12, folds=2, pair=True).write(tmp_path / "data")
    longer = replace(TAUGHT, epochs=3)
    for made in (TEACHER, ALONE, longer):
        run(made, SURVIVAL, inputs, tmp_path / "models")
    whole = artefacts(tmp_path / "models", 0)
    shutil.rmtree(tmp_path / "models" / "student")
    real = train_module.write_bytes

    def dying(path, content):
        real(path, content)
        monkeypatch.setattr(train_module, "write_bytes", real)
        raise Killed

    monkeypatch.setattr(train_module, "write_bytes", dying)
    with pytest.raises(Killed):
        run(longer, SURVIVAL, inputs, tmp_path / "models")
    assert (tmp_path / "models" / "student" / "fold0" / "last.pt").exists()
    torch.manual_seed(99)
    run(longer, SURVIVAL, inputs, tmp_path / "models")
    assert artefacts(tmp_path / "models", 0) == whole


def test_cases_without_rna_learn_from_labels_and_are_predicted(tmp_path):
    toy = make_toy(folds=2, pair=True)
    lost = [row.case_id for row in toy.splits if row.fold == 0 and row.role in ("train", "test")][::3]
    for case in lost:
        del toy.rna[case]
    inputs = toy.write(tmp_path / "data")
    rows = three_stages(GRADE, inputs, tmp_path / "models")
    fewer = sum(row.case_id in lost for row in toy.splits if row.fold == 0 and row.role == "train")
    assert fewer and rows[0][0].n_train + fewer == rows[2][0].n_train == rows[1][0].n_train
    predict_folds(TAUGHT, GRADE, inputs, tmp_path / "models" / "student", tmp_path / "p.tsv", device="cpu")
    assert {row.case_id for row in read_predictions(tmp_path / "p.tsv").rows} >= set(lost)
    checkpoint = read_checkpoint(tmp_path / "models" / "student" / "fold0" / "checkpoint.pt")
    outcomes, left_out = predict_cases(checkpoint, Cohort(inputs.features_index, magnifications=2), lost[:2])
    assert len(outcomes) == 2 and not left_out


def test_lessons_are_the_teachers_words_case_by_case(tmp_path):
    toy = make_toy(n=12, folds=2, pair=True)
    del toy.rna["C01"]
    inputs = toy.write(tmp_path / "data")
    run(TEACHER, GRADE, inputs, tmp_path / "models")
    teacher = read_checkpoint(tmp_path / "models" / "teacher" / "fold0" / "checkpoint.pt")
    cohort = Cohort(inputs.features_index, None, inputs.expression, magnifications=2)
    samples = [Sample("C00"), Sample("C01"), Sample("C02")]
    said = lessons(teacher, cohort, samples, torch.device("cpu"))
    assert list(said) == [samples[0], samples[2]]
    assert {name: tuple(v.shape) for name, v in said[samples[0]].items()} == {
        "coarse_logits": (3,), "fine_logits": (3,), "coarse_features": (256,), "fine_features": (256,),
    }  # fmt: skip
    both = with_lessons(samples, said)
    assert both["taught"].tolist() == [True, False, True]
    for row, sample in enumerate(samples):
        for name, value in both["lesson"].items():
            assert torch.equal(value[row], said[sample][name] if sample in said else torch.zeros_like(value[row]))


@pytest.mark.parametrize("fault", ["fold", "split", "task", "failed", "absent", "foreign"])
def test_a_source_of_another_fold_split_or_task_is_refused(tmp_path, fault):
    toy = make_toy(n=12, folds=2, pair=True)
    inputs = toy.write(tmp_path / "data")
    models = tmp_path / "models"
    rows = run(TEACHER, GRADE, inputs, models)
    student = replace(TAUGHT, init_from="teacher")
    path, task = models / "teacher" / "fold0" / "checkpoint.pt", GRADE
    if fault == "fold":  # fold 1's weights where fold 0's belong, with an index that says all is well
        other = read_checkpoint(models / "teacher" / "fold1" / "checkpoint.pt")
        write_checkpoint(path, replace(other, digest=rows[0].digest))
    elif fault == "split":  # a held-out case of today was a training case of the teacher's
        case = next(row.case_id for row in toy.splits if row.fold == 0 and row.role == "test")
        toy.splits = [replace(r, role="train") if (r.case_id, r.fold) == (case, 0) else r for r in toy.splits]
        run(TEACHER, GRADE, toy.write(tmp_path / "other"), models)
    elif fault == "task":
        task = SURVIVAL
    elif fault == "failed":
        index = models / "teacher" / "index.tsv"
        index.write_text(index.read_text().replace("\tok\t\t", "\tfailed\tno event\t", 1))
    elif fault == "absent":
        shutil.rmtree(models / "teacher")
        inputs = replace(inputs, sources={})
    else:
        path.write_bytes((models / "teacher" / "fold1" / "checkpoint.pt").read_bytes())
    words = {
        "fold": "trained on another fold", "split": "trained on another split", "task": "trained on another task",
        "failed": "it was not trained: no event", "absent": "", "foreign": "not the checkpoint that index",
    }[fault]  # fmt: skip
    row = run(student, task, inputs, models)[0]
    assert row.status == "failed" and words in row.reason
    assert not (models / "student" / "fold0" / "checkpoint.pt").exists()


def test_a_class_that_the_teacher_never_saw(tmp_path):
    toy = make_toy(n=12, folds=2, pair=True)
    rare = next(row.case_id for row in toy.splits if row.fold == 0 and row.role == "train")
    toy.rows[rare]["grade"] = "G9"
    del toy.rna[rare]
    inputs = toy.write(tmp_path / "data")
    run(TEACHER, GRADE, inputs, tmp_path / "models")
    row = run(replace(TAUGHT, init_from="teacher"), GRADE, inputs, tmp_path / "models")[0]
    assert row.status == "failed" and "1 training cases are of a class that the teacher's lacked: 'G9'" in row.reason


def test_reference_mode_in_three_stages(tmp_path):
    """Slides are samples there; batches of one as well."""
    inputs = make_toy(n=12, folds=2, pair=True).write(tmp_path / "data")
    for made in (TEACHER, ALONE, TAUGHT):
        changed = replace(made, reference=True, epochs=1, batch_size=1, params={"fixed_length": 64})
        assert [row.status for row in run(changed, SURVIVAL, inputs, tmp_path / "models")] == ["ok", "ok"]
    assert float(history(tmp_path / "models")[0]["distil_coarse_logits"]) > 0
    half = replace(TAUGHT, init_from="teacher")
    row = run(half, SURVIVAL, inputs, tmp_path / "models")[0]
    assert row.status == "failed" and "is in reference mode" in row.reason


@pytest.mark.parametrize(
    ("experiments", "words"),
    [
        ([replace(TAUGHT, init_from="teachr"), TEACHER], "unknown experiment 'teachr'; did you mean 'teacher'"),
        ([replace(ALONE, init_from="alone")], "'alone' would have to be trained before itself"),
        ([replace(ALONE, init_from="student"), replace(TAUGHT, init_from="alone")], "before itself"),
        ([replace(TEACHER, init_from="alone"), ALONE], "a 'disentangled-teacher' can do nothing with 'alone'"),
        ([TAUGHT, replace(TEACHER, encoder="b"), ALONE], "encoder is None, but b in 'teacher'"),
        ([TAUGHT, TEACHER, replace(ALONE, magnification=[20, 10])], r"magnification is None, but \(20, 10\)"),
        ([replace(TAUGHT, init_from=["a", "b"]), replace(ALONE, name="a"), replace(ALONE, name="b")], "the same part"),
        ([TAUGHT, TEACHER, replace(ALONE, tasks=["grade"])], "'alone' is not trained on task 'survival'"),
    ],
)
def test_what_cannot_come_before(experiments, words):
    with pytest.raises(InputError, match=words):
        check_sources(experiments, ["grade", "survival"])


def test_a_chain_that_fits():
    check_sources([TEACHER, ALONE, TAUGHT, replace(TAUGHT, name="x", init_from="student")], ["grade"])
    check_sources(
        [replace(TEACHER, tasks=["grade"]), replace(TAUGHT, init_from="teacher", tasks=["grade"])], ["g", "h"]
    )


def test_defaults_and_presets_of_a_taught_student():
    made = Experiment("s", "disentangled-student", init_from="t", params={"preset": "logits-only", "clusters": 4})
    resolved = made.resolved("survival")
    assert resolved.lr == 1e-4 and Experiment("s", "disentangled-student").resolved("survival").lr == 2e-4
    assert resolved.params["distil_features"] == 0 and resolved.params["clusters"] == 4
    assert resolved.resolved("survival") == resolved
    with pytest.raises(InputError, match="did you mean 'logits-only'"):
        Experiment("s", "disentangled-student", params={"preset": "logit-only"}).resolved("survival")


def test_inputs_name_their_sources_by_folder():
    given = {"splits": "s.tsv", "sources": ["r/models/grade/teacher/index.tsv"]}
    assert Inputs.from_named(given, "c.tsv").sources == {"teacher": Path("r/models/grade/teacher")}
    one = Inputs.from_named({**given, "sources": given["sources"][0]}, "c.tsv")
    assert one.sources == {"teacher": Path("r/models/grade/teacher")}
