"""Pre-training without labels and what starts from it, through the real Snakefile."""

from __future__ import annotations

import pytest

from models.checkpoint import read_checkpoint
from pipeline.contracts.predictions import read_predictions
from pipeline.contracts.training import read_folds
from tests.workflow.test_leakage import replace_held_out

SMALL = {"width": 48, "rna_mlp_ratio": 1.0}
STYLE = {"prototypes": 48, "style_hidden": 8, "style_width": 8, "latent": 4}
EXPERIMENTS = [
    {"name": "probe", "model": "mirror", "init_from": "pre", "params": SMALL, "epochs": 2},
    {"name": "pre", "model": "mirror-pretraining", "params": SMALL | STYLE, "epochs": 2, "batch_size": 3},
    {"name": "tuned", "model": "mirror", "init_from": "pre", "params": SMALL | {"mode": "fine_tune"},
     "epochs": 1, "tasks": ["survival"]},
]  # fmt: skip
TARGETS = [f"results/predictions/{run}.tsv" for run in ("grade/probe", "survival/probe", "survival/tuned")]


@pytest.mark.workflow
def test_pretraining_and_probes_never_see_held_out_cases(cohort):
    """One pre-training serves both tasks; its artefacts are those of the training cases alone, labels or not."""
    cohort.edit_config(lambda config: config["experiments"].extend(EXPERIMENTS))
    jobs = [f"train_model {run}" for run in ("_pretrain pre", "grade probe", "survival probe", "survival tuned")]
    planned = cohort.planned(*TARGETS)
    assert [job for job in planned if job.startswith("train_model")] == jobs
    assert [job for job in planned if job.startswith("select_genes")] == ["select_genes _pretrain"]
    cohort.snakemake(*TARGETS)
    for run in ("_pretrain/pre", "grade/probe", "survival/probe", "survival/tuned"):
        assert {row.status for row in read_folds(cohort.results / f"models/{run}/index.tsv")} == {"ok"}
    source, probe = (
        read_checkpoint(cohort.results / f"models/{run}/fold0/checkpoint.pt")
        for run in ("_pretrain/pre", "grade/probe")
    )
    assert probe.selection.digest == source.selection.digest and probe.selection.task == "_pretrain"
    assert all((probe.state[k] == v).all() for k, v in source.state.items() if k.startswith(("slide.", "rna.")))
    assert len(read_predictions(cohort.path / TARGETS[0]).rows) >= 10
    assert cohort.planned(*TARGETS) == []

    mine = ("genes/_pretrain/fold0.json", "models/_pretrain/*/fold0/*", "models/*/probe/fold0/*")
    before, everything = cohort.contents(*mine), cohort.contents("models/_pretrain/pre/fold1/*")
    replace_held_out(cohort)
    cohort.snakemake(*TARGETS)
    assert len(before) == 7 and cohort.contents(*mine) == before
    assert cohort.contents("models/_pretrain/pre/fold1/*") != everything
