"""The mean-pooled linear model is the linear model on standardised means, whatever the batches and the padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.batch import Batch, Sizes, Targets, joined
from models.linear import Linear, LinearConfig
from models.meanpool import MeanPool, mean_of_tiles


def bags(rng: np.random.Generator, cases: int) -> list[torch.Tensor]:
    scale = np.array([1.0, 50.0, 0.01, 1.0])
    return [torch.tensor(rng.normal(3, 1, size=(rng.integers(1, 6), 4)) * scale).float() for _ in range(cases)]


def batch_of(tiles: list[torch.Tensor]) -> Batch:
    features = torch.nn.utils.rnn.pad_sequence(tiles, batch_first=True, padding_value=1e6)
    mask = torch.arange(features.shape[1]) < torch.tensor([len(t) for t in tiles])[:, None]
    yes = torch.ones(len(tiles), dtype=torch.bool)
    return Batch(tuple(map(str, range(len(tiles)))), yes, yes, features, mask)


def targets_of(rng: np.random.Generator, kind: str, cases: int) -> Targets:
    if kind == "classification":
        return Targets(label=torch.arange(cases) % 3)
    return Targets(time=torch.from_numpy(rng.exponential(size=cases)), event=torch.arange(cases) % 2)


@pytest.mark.parametrize("kind", ["classification", "survival"])
def test_equals_the_linear_model_on_standardised_means(kind):
    rng = np.random.default_rng(0)
    tiles = bags(rng, 30)
    targets = targets_of(rng, kind, 30)
    means = np.stack([t.double().mean(dim=0).numpy() for t in tiles])
    table = torch.from_numpy((means - means.mean(axis=0)) / means.std(axis=0))
    yes = torch.ones(30, dtype=torch.bool)
    genes = Batch(tuple(map(str, range(30))), yes, yes, genes={"all": table})
    ours = MeanPool(LinearConfig(strength=0.3), Sizes(4, {}, 3, kind))
    reference = Linear(LinearConfig(strength=0.3), Sizes(0, {"all": 4}, 3, kind))
    parts = [ours.condensed(batch_of(tiles[k : k + 7])) for k in range(0, 30, 7)]
    ours.fit(joined(parts), targets, None)
    reference.fit(genes, targets, None)
    torch.testing.assert_close(ours(batch_of(tiles)).logits, reference(genes).logits, rtol=1e-6, atol=1e-8)


def test_a_constant_feature_is_harmless():
    tiles = [torch.tensor([[1.0, 5.0], [3.0, 5.0]]), torch.tensor([[4.0, 5.0]]), torch.tensor([[0.0, 5.0]])]
    model = MeanPool(LinearConfig(strength=1.0), Sizes(2, {}, 2, "classification"))
    model.fit(batch_of(tiles), Targets(label=torch.tensor([0, 1, 0])), None)
    assert torch.isfinite(model(batch_of(tiles)).logits).all() and model.scale[1] == 1


def test_mean_without_padding_and_of_one_tile():
    tiles = [*bags(np.random.default_rng(1), 5), torch.tensor([[1.0, 2.0, 3.0, 4.0]])]
    found = mean_of_tiles(batch_of(tiles))
    torch.testing.assert_close(found, torch.stack([t.double().mean(dim=0) for t in tiles]))
