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
]
TARGETS = ["results/predictions/survival/probe.tsv", "results/models/grade/probe/index.tsv"]


@pytest.fixture
def probed(cohort):
    cohort.edit_config(lambda config: config["experiments"].extend(EXPERIMENTS))
    jobs = [f"train_model {run}" for run in ("_pretrain pre", "grade probe", "survival probe")]
    assert cohort.planned(*TARGETS) == ["predict_cases survival probe", "select_genes _pretrain", *jobs]
    cohort.snakemake(*TARGETS)
    return cohort


@pytest.mark.workflow
def test_one_pretraining_serves_classification_and_survival(probed):
    for run in ("_pretrain/pre", "grade/probe", "survival/probe"):
        assert {row.status for row in read_folds(probed.results / f"models/{run}/index.tsv")} == {"ok"}
    paths = [probed.results / f"models/{run}/fold0/checkpoint.pt" for run in ("_pretrain/pre", "grade/probe")]
    source, probe = (read_checkpoint(path) for path in paths)
    assert probe.selection.digest == source.selection.digest and probe.selection.task == "_pretrain"
    assert all((probe.state[k] == v).all() for k, v in source.state.items() if k.startswith(("slide.", "rna.")))
    fusion = read_predictions(probed.results / "predictions/survival/fusion.tsv")
    assert len(read_predictions(probed.path / TARGETS[0]).rows) == len(fusion.rows)
    assert probed.planned(*TARGETS) == []


@pytest.mark.full
@pytest.mark.workflow
def test_pretraining_and_probes_never_see_held_out_cases(probed):
    mine = ("genes/_pretrain/fold0.json", "models/_pretrain/*/fold0/*", "models/*/probe/fold0/*")
    before, other = probed.contents(*mine), probed.contents("models/_pretrain/pre/fold1/*")
    replace_held_out(probed)
    probed.snakemake(*TARGETS)
    assert len(before) == 7 and probed.contents(*mine) == before
    assert probed.contents("models/_pretrain/pre/fold1/*") != other
