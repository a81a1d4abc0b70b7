"""Experiments chained by `init_from`, through the real Snakefile."""

from __future__ import annotations

import pytest

from models.checkpoint import read_checkpoint
from pipeline.contracts.predictions import read_predictions
from pipeline.contracts.training import read_folds

STAGES = [
    {"name": "student", "model": "disentangled-student", "init_from": ["teacher", "alone"]},
    {"name": "alone", "model": "disentangled-student"},
    {"name": "teacher", "model": "disentangled-teacher"},
]


@pytest.mark.workflow
def test_a_teacher_and_two_students(cohort):
    """The stages are named in the wrong order; each finds the fold of the other that it needs."""
    small = {"tasks": ["survival"], "epochs": 1}
    cohort.edit_config(lambda config: config["experiments"].extend({**stage, **small} for stage in STAGES))
    target = "results/predictions/survival/student.tsv"
    jobs = [f"train_model survival {name}" for name in ("alone", "student", "teacher")]
    assert cohort.planned(target) == ["predict_cases survival student", *jobs]
    cohort.snakemake(target)
    for name in ("teacher", "alone", "student"):
        assert {row.status for row in read_folds(cohort.results / f"models/survival/{name}/index.tsv")} == {"ok"}
    student = read_checkpoint(cohort.results / "models/survival/student/fold0/checkpoint.pt")
    assert student.magnification == (20, 10) and student.selection is None
    fusion = read_predictions(cohort.results / "predictions/survival/fusion.tsv")
    assert len(read_predictions(cohort.path / target).rows) >= len(fusion.rows)
    assert cohort.planned(target) == []
    cohort.edit_config(lambda config: config["experiments"][-1].update(seed=1))
    assert cohort.planned(target) == ["predict_cases survival student", *jobs[1:]]  # not the student alone
