"""Contrastive pre-training of slides against RNA, and slide-only models on it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.batch import Batch, Sizes
from models.checkpoint import read_checkpoint
from models.experiment import Experiment
from models.predict import predict_folds
from models.tangle_pretraining import TanglePretraining, TanglePretrainingConfig
from models.train import train_folds
from pipeline.contracts.files import read_table
from pipeline.contracts.predictions import read_predictions
from pipeline.contracts.tasks import PRETRAINING_TASK
from tests.toy_cohort import GRADE, SURVIVAL, make_toy

SMALL = {"width": 12, "hidden": 6}
PRE = Experiment("pre", "tangle-pretraining", epochs=30, batch_size=8, lr=3e-3, params={**SMALL, "dropout": 0.0})
PROBE = Experiment("probe", "tangle", epochs=3, init_from="pre", params={**SMALL, "dropout": 0.0})


def test_the_contrast_written_out_and_padding():
    torch.manual_seed(0)
    model = TanglePretraining(TanglePretrainingConfig(**SMALL, temperature=0.2), Sizes(6, {"all": 5}, 0, "pretraining"))
    model = model.eval()
    bags, genes = [torch.randn(n, 6) for n in (1, 7, 4)], torch.randn(3, 5)
    features, mask = torch.full((3, 9, 6), 1e6), torch.zeros(3, 9, dtype=torch.bool)
    for row, bag in enumerate(bags):
        features[row, : len(bag)], mask[row, : len(bag)] = bag, True
    yes = torch.ones(3, dtype=torch.bool)
    outputs = model(Batch(("a", "b", "c"), yes, yes, features, mask, genes={"all": genes}))
    slides = torch.cat([model.slide(bag[None], torch.ones(1, len(bag), dtype=torch.bool)) for bag in bags])
    cosine = torch.cosine_similarity(slides[:, None], model.rna(genes)[None], dim=2) / 0.2
    expected = -(cosine.log_softmax(dim=1).diag().mean() + cosine.log_softmax(dim=0).diag().mean()) / 2
    torch.testing.assert_close(outputs.losses["contrast"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("task", [GRADE, SURVIVAL], ids=lambda t: t.name)
def test_a_slide_only_probe_of_paired_pretraining(tmp_path, task):
    """Held-out cases and the probe need no RNA; pre-training learns to retrieve."""
    toy = make_toy()
    for row in toy.splits:
        if row.fold == 0 and row.role == "test":
            toy.rna.pop(row.case_id)
    inputs = toy.write(tmp_path / "data")

    def run(made, task, inputs):
        out = tmp_path / "models" / made.name
        return train_folds(made, task, inputs, out, out / "index.tsv", device="cpu")

    assert run(PRE, PRETRAINING_TASK, inputs)[0].status == "ok"
    history = read_table(tmp_path / "models/pre/fold0/history.tsv")
    assert float(history[-1]["contrast"]) < 0.7 * float(history[0]["contrast"])
    given = replace(inputs, genes_dir=None, expression=None, sources={"pre": tmp_path / "models/pre"})
    assert run(PROBE, task, given)[0].status == "ok"
    source, probe = (read_checkpoint(tmp_path / f"models/{n}/fold0/checkpoint.pt") for n in ("pre", "probe"))
    assert all(torch.equal(probe.state[k], v) for k, v in source.state.items() if k.startswith("slide."))
    predict_folds(PROBE, task, given, tmp_path / "models/probe", tmp_path / "p.tsv", device="cpu")
    assert {row.fold for row in read_predictions(tmp_path / "p.tsv").rows} >= {0}
