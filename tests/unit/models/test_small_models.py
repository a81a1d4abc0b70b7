"""abmil, snn, concat: parameter counts of the specification, attention written out, padding, batches of one."""

from __future__ import annotations

import pytest
import torch

from models.abmil import Abmil, AbmilConfig
from models.batch import Batch, Sizes
from models.concat import Concat, ConcatConfig
from models.layers import AttentionPool, SelfNormalisingNetwork
from models.registry import MODELS, model_class
from models.snn import Snn, SnnConfig
from pipeline.contracts.errors import InputError

SIZES = Sizes(1024, {"all": 431}, 4, "classification")


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_parameter_counts_of_the_reference():
    assert count(Snn(SnnConfig(), SIZES)) == 37_076
    assert count(Abmil(AbmilConfig(**Abmil.reference_params), SIZES)) == 135_429
    assert count(Concat(ConcatConfig(**Concat.reference_params), SIZES)) == 300_117


def batch_of(features: torch.Tensor, mask: torch.Tensor, genes: torch.Tensor) -> Batch:
    present = torch.ones(len(genes), dtype=torch.bool)
    return Batch(tuple(map(str, range(len(genes)))), present, present, features, mask, genes={"all": genes})


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("name", ["abmil", "concat"])
@pytest.mark.parametrize("tiles", [(1, 7, 50), (7,), (1,)])
def test_padding_and_batching_change_nothing(name, tiles, reference):
    generator = torch.Generator().manual_seed(0)
    cls = model_class(name)
    torch.manual_seed(1)
    model = cls(cls.Config(**(cls.reference_params if reference else {})), Sizes(6, {"all": 5}, 3, "survival")).eval()
    bags = [torch.randn(n, 6, generator=generator) for n in tiles]
    genes = torch.randn(len(tiles), 5, generator=generator)
    padded, mask = torch.full((len(tiles), 60, 6), 1e6), torch.zeros(len(tiles), 60, dtype=torch.bool)
    for k, bag in enumerate(bags):
        padded[k, : len(bag)], mask[k, : len(bag)] = bag, True
    with torch.no_grad():
        together = model(batch_of(padded, mask, genes)).logits
        for k, bag in enumerate(bags):
            alone = model(batch_of(bag[None], torch.ones(1, len(bag), dtype=torch.bool), genes[k : k + 1])).logits
            torch.testing.assert_close(alone, together[k : k + 1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gated", [True, False])
def test_attention_against_the_equations(gated):
    generator = torch.Generator().manual_seed(2)
    torch.manual_seed(3)
    pool = AttentionPool(5, 4, gated)
    values = torch.randn(1, 6, 5, generator=generator)
    scores = []
    for x in values[0]:
        hidden = torch.tanh(pool.content.weight @ x + pool.content.bias)
        if gated:
            hidden = hidden * torch.sigmoid(pool.gate.weight @ x + pool.gate.bias)
        scores.append((pool.score.weight @ hidden + pool.score.bias).squeeze())
    weights = torch.stack(scores).softmax(dim=0)
    mask = torch.ones(1, 6, dtype=torch.bool)
    torch.testing.assert_close(pool.weights(values, mask)[0], weights)
    torch.testing.assert_close(pool(values, mask)[0], weights @ values[0])


def test_gene_network_starts_normalised_and_non_negative():
    torch.manual_seed(4)
    network = SelfNormalisingNetwork(400).eval()
    out = network(torch.randn(500, 400))
    assert out.shape == (500, 128) and (out >= 0).all() and 0.3 < (out > 0).float().mean() < 0.7
    first = network[0]
    assert first.weight.std().item() == pytest.approx(400**-0.5, rel=0.05) and not first.bias.any()


def fits(config_class, params: dict) -> bool:
    try:
        config_class(**params)
    except InputError:
        return False
    return True


def test_registry_and_classes_agree():
    for name, entry in MODELS.items():
        cls = model_class(name)
        assert cls.name == name and cls.needs == entry.needs and cls.magnifications == entry.magnifications
        assert cls.may_lack <= cls.needs
        for preset in cls.presets.values():  # some belong to reference mode
            built = [fits(cls.Config, {**mode, **preset}) for mode in ({}, cls.reference_params or {})]
            assert any(built), preset
        assert set(cls.defaults) == {"epochs", "batch_size", "lr", "weight_decay", "patience"}
        cls.Config(**(cls.reference_params or {}))
