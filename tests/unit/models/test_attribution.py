"""Attention maps and integrated gradients, against closed forms and for every model of the registry."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models.attribution import class_margin, integrated_gradients, risk
from models.batch import Batch, Outputs
from models.model import Model
from models.registry import MODELS
from models.survival import Intervals
from pipeline.contracts.errors import InputError
from tests.model_batches import GENES, WIDTH, side_by_side
from tests.unit.models.test_every_model import build, cases, fitted

POOLED = ("abmil", "concat", "add", "bilinear", "porpoise", "feature-generation", "ensemble", "tangle")
LOOKING = (*POOLED, "mcat", "survpath", "subspace-tokens")
PREDICTING = [name for name, entry in MODELS.items() if not entry.task_free]
INTERVALS = Intervals((2.0, 4.0), 6.0)


def moved(batch: Batch, order: Tensor) -> Batch:
    """The tiles in another order."""
    named = ("features", "mask", "slide", "cell", "coords")
    return replace(batch, **{name: getattr(batch, name)[:, order] for name in named})


@pytest.mark.parametrize("name", LOOKING)
def test_attention_is_a_distribution_over_the_tiles_of_a_case(name):
    model = build(name, "classification").eval()
    parts = cases(name, (1,), (7, 2), (12,))
    batch = side_by_side(parts)
    maps = model.attention_maps(batch)
    assert set(maps) == {
        **{key: {"pool"} for key in POOLED},
        **{key: {"token_1", "token_2", "token_3"} for key in ("mcat", "survpath")},
        "subspace-tokens": {"tumour", "tme"},
    }[name]  # fmt: skip
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    for key, weights in maps.items():
        assert weights.shape == batch.mask.shape and not weights.requires_grad
        assert (weights[~batch.mask] == 0).all() and (weights >= 0).all()
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(3))
        assert weights[1, :9].std() > 0
        for row, part in enumerate(parts):
            alone = model.attention_maps(part)[key][0]
            torch.testing.assert_close(alone, weights[row, : len(alone)], rtol=1e-4, atol=1e-6)
        other = model.attention_maps(moved(parts[1], order))[key]
        torch.testing.assert_close(other[0], weights[1, order], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in PREDICTING if name not in LOOKING])
def test_a_model_without_weights_over_tiles_has_no_map(name):
    assert build(name, "classification").eval().attention_maps(cases(name, (5,))[0]) == {}


@pytest.mark.parametrize("name", ["ensemble", "subspace-tokens"])
def test_a_sample_without_slides_has_zeros(name):
    model, batch = build(name, "classification").eval(), side_by_side(cases(name, (4,), (3,)))
    keep = torch.tensor([True, False])
    for weights in model.attention_maps(replace(batch, has_slides=keep, mask=batch.mask & keep[:, None])).values():
        torch.testing.assert_close(weights.sum(dim=1), torch.tensor([1.0, 0.0]))
    none = dict.fromkeys(("features", "mask", "slide", "cell", "coords"))
    assert model.attention_maps(replace(batch, has_slides=~keep & keep, **none)) == {}


def test_the_pooled_embedding_is_the_attention_weighted_sum():
    model = build("abmil", "classification").eval()
    batch = side_by_side(cases("abmil", (7, 2), (3,)))
    weights = model.attention_maps(batch)["pool"]
    with torch.no_grad():
        tiles = model.pool.project(batch.features)
        for row in range(2):
            pooled = sum(weights[row, k] * tiles[row, k] for k in range(int(batch.mask[row].sum())))
            torch.testing.assert_close(model.head(pooled), model(batch).logits[row], rtol=1e-4, atol=1e-5)


def test_what_a_gene_token_saw_is_the_weighted_sum_of_the_tiles():
    model = build("mcat", "classification").eval()
    (case,) = cases("mcat", (12,))
    maps = model.attention_maps(case)
    with torch.no_grad():
        value = nn.functional.linear(
            model.project(case.features[0]),
            *(p.chunk(3)[2] for p in (model.attention.in_proj_weight, model.attention.in_proj_bias)),
        )
        seen = model(case).hidden["co-attended"][0]
        for number, token in enumerate(seen, start=1):
            torch.testing.assert_close(model.attention.out_proj(maps[f"token_{number}"][0] @ value), token)


def test_what_a_pathway_saw_is_its_share_among_the_tiles_of_one_softmax():
    model = build("survpath", "classification").eval()
    (case,) = cases("survpath", (9,))
    maps = model.attention_maps(case)
    with torch.no_grad():
        pathways, tiles = model.pathways(case.genes["all"]), model.project(case.features)
        query, key, value = (each[0, 0].double() for each in model.attention.heads(torch.cat([pathways, tiles], dim=1)))
        attended, _ = model.attention(pathways, tiles, case.mask)
        for number in range(3):
            size = torch.tensor([float(query[number] @ k) / len(k) ** 0.5 for k in key]).exp().double()
            torch.testing.assert_close((size / size.sum()) @ value, attended[0, number].double(), rtol=1e-4, atol=1e-6)
            share = size[3:] / size[3:].sum()
            torch.testing.assert_close(maps[f"token_{number + 1}"][0].double(), share, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["classification", "survival"])
def test_a_linear_model_gives_weight_times_value(kind):
    model = fitted("linear", kind).eval()
    (case,) = cases("linear", (3,), seed=5)
    output = class_margin(1) if kind == "classification" else risk(model, INTERVALS)
    found = integrated_gradients(model, [case], output, steps=1)
    w = model.weight.detach()
    slope = w[1] - (w[0] + w[2]) / 2 if kind == "classification" else w[0]
    torch.testing.assert_close(found.genes["all"], slope * case.genes["all"][0].double(), rtol=1e-6, atol=1e-9)
    assert abs(found.residual) < 1e-6 and found.value != found.baseline


def test_a_mean_of_tiles_gives_each_tile_its_share():
    model = fitted("meanpool", "survival").eval()
    (case,) = cases("meanpool", (4, 3))
    found = integrated_gradients(model, [case], risk(model, INTERVALS), steps=1)
    slope = (model.weight[0] / model.scale).detach()
    torch.testing.assert_close(found.tiles[0][0], case.features[0].double() @ slope / 7, rtol=1e-6, atol=1e-9)
    assert found.genes.keys() == case.genes.keys() and all((g == 0).all() for g in found.genes.values())


class Product(Model):
    """(sum of genes)^2 x (sum of the features)^2 / 100 and 0: genes and tiles each have half of it by symmetry."""

    fits_itself = False

    def forward(self, batch: Batch) -> Outputs:
        both = batch.genes["tme"].double().sum(dim=1) ** 2 * batch.features.double().sum(dim=(1, 2)) ** 2 / 100
        return Outputs(torch.stack([both, torch.zeros_like(both)], dim=1))


def test_a_product_is_shared_as_its_symmetry_asks_and_more_steps_leave_less():
    (case,) = cases("concat", (3, 2))
    few, many = (integrated_gradients(Product(), [case], class_margin(0), steps) for steps in (4, 64))
    assert many.value > 0 and many.baseline == 0
    assert 0 < abs(many.residual) < abs(few.residual) / 100  # the midpoint rule: an error of 1 / steps^2
    assert float(many.genes["tme"].sum()) == pytest.approx(many.value / 2, rel=1e-3)
    assert float(many.tiles[0][0].sum()) == pytest.approx(many.value / 2, rel=1e-3)
    x = case.genes["tme"][0].double()
    torch.testing.assert_close(many.genes["tme"], x / x.sum() * many.value / 2, rtol=1e-3, atol=1e-9)


def test_a_case_of_several_samples_counts_its_genes_once():
    model = build("concat", "classification").eval()
    one, two = cases("concat", (3,), (5,))
    two = replace(two, genes=one.genes)
    found = integrated_gradients(model, [one, two], class_margin(2))
    each = [integrated_gradients(model, [part], class_margin(2)) for part in (one, two)]
    torch.testing.assert_close(found.genes["all"], (each[0].genes["all"] + each[1].genes["all"]) / 2)
    torch.testing.assert_close(found.tiles[1][0], each[1].tiles[0][0] / 2)
    assert abs(found.residual) < 0.01 and [len(sample[0]) for sample in found.tiles] == [3, 5]


@pytest.mark.parametrize("steps", [0, 1.5])
def test_steps_are_counted(steps):
    with pytest.raises(InputError, match="steps"):
        integrated_gradients(Product(), cases("concat", (3,)), class_margin(0), steps)


#: what remains at 16 steps over the sum of the sizes of all shares; more where keys are sampled or tiles clustered
ROUGH = {"disentangled-teacher": 0.3, "disentangled-histology": 0.3, "disentangled-student": 0.3, "mirror": 0.3}


@pytest.mark.parametrize("name", [name for name in PREDICTING if name != "clinical"])
def test_what_is_shared_out_is_complete(name):
    kind = ("classification", "survival")[PREDICTING.index(name) % 2]
    model = fitted(name, kind).eval().requires_grad_(False)
    (case,) = cases(name, (7, 4))
    output = class_margin(0) if kind == "classification" else risk(model, INTERVALS)
    found = integrated_gradients(model, [case], output, steps=16)
    shares = torch.cat([*found.genes.values(), *found.tiles[0]])
    assert torch.isfinite(shares).all()
    assert found.residual == pytest.approx(float(shares.sum()) - (found.value - found.baseline), abs=1e-9)
    assert abs(found.residual) < ROUGH.get(name, 0.05) * float(shares.abs().sum())
    read = {group for group in GENES if group in model.gene_groups}
    assert {group for group, share in found.genes.items() if (share != 0).any()} == read
    widths = [case.features.shape[1], *([case.coarser.features.shape[1]] if case.coarser is not None else [])]
    assert [len(tiles) for tiles in found.tiles[0]] == widths and case.features.shape[2] == WIDTH
    reads_tiles = "slides" in model.needs
    assert all(bool((tiles != 0).any()) == reads_tiles for tiles in found.tiles[0])
