"""PORPOISE's fusion written out in float64 numbers, its elastic penalty, and what may be zero."""

from __future__ import annotations

import pytest
import torch

from models.experiment import Experiment
from models.porpoise import Porpoise, PorpoiseConfig
from pipeline.contracts.errors import InputError
from tests.model_batches import make_case, sizes_of

SMALL = {"width": 10, "hidden": 4, "embedding": 6, "reduced": 3, "fused": 5}


def build(**params) -> Porpoise:
    torch.manual_seed(0)
    return Porpoise(PorpoiseConfig(**{**SMALL, **params}), sizes_of("classification"))


def test_the_network_written_out():
    model = build().double().eval()
    case = make_case(torch.Generator().manual_seed(1), (4, 3))
    case.features.data, case.genes["all"].data = case.features.double(), case.genes["all"].double()
    state = model.state_dict()

    def layer(name: str, values: torch.Tensor) -> torch.Tensor:
        return state[f"{name}.weight"] @ values + state[f"{name}.bias"]

    tiles = [layer("pool.project.0", x).relu() for x in case.features[0]]
    scores = [
        layer(
            "pool.attention.score",
            layer("pool.attention.content", t).tanh() * layer("pool.attention.gate", t).sigmoid(),
        )
        for t in tiles
    ]
    share = torch.cat(scores).softmax(dim=0)
    slide = layer("embed.0", sum(w * t for w, t in zip(share, tiles, strict=True))).relu()
    gene = torch.nn.functional.elu(layer("genes.0", case.genes["all"][0]))
    gene = torch.nn.functional.elu(layer("genes.3", gene))
    gated = []
    for name, own in (("gated_slide", slide), ("gated_gene", gene)):
        gate = torch.stack([slide @ w @ gene for w in state[f"{name}.gate.weight"]]) + state[f"{name}.gate.bias"]
        inner = gate.sigmoid() * layer(f"{name}.content", own).relu()
        gated.append(torch.cat([layer(f"{name}.out", inner).relu(), torch.ones(1).double()]))
    product = layer("product.1", torch.outer(*gated).flatten()).relu()
    fused = layer("fusion.0", torch.cat([product, slide, gene])).relu()
    torch.testing.assert_close(model(case).logits[0], layer("head", fused), rtol=1e-10, atol=1e-12)


def test_the_elastic_penalty_is_of_genes_and_fusion_and_of_training_only():
    model = build(l1=0.5)
    case = make_case(torch.Generator().manual_seed(2), (5,))
    assert not model.eval()(case).losses
    loss = model.train()(case).losses["l1"]
    parts = ("genes.", "gated_slide.", "gated_gene.", "product.", "fusion.")
    aim = sum(p.abs().sum() for name, p in model.named_parameters() if name.startswith(parts))
    torch.testing.assert_close(loss, 0.5 * aim)
    (gradient,) = torch.autograd.grad(loss, model.genes[0].weight)
    torch.testing.assert_close(gradient, 0.5 * model.genes[0].weight.sign())
    assert build(l1=0.0).train()(case).losses["l1"] == 0
    assert Experiment("p", "porpoise").resolved("survival").weight_decay == 1e-5  # the squared part


def test_settings_are_checked():
    with pytest.raises(InputError, match="reduced is 0"):
        PorpoiseConfig(reduced=0)
    with pytest.raises(InputError, match="l1 is -1"):
        PorpoiseConfig(l1=-1)
