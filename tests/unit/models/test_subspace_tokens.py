"""The fusion model of this project: invariances, lacking sides, its losses by hand, and its neighbourhoods."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.batch import Batch, Sizes
from models.experiment import Experiment
from models.neighbourhood import Neighbourhood
from models.predict import predict_folds
from models.subspace_tokens import RunningStandardisation, SubspaceTokens, SubspaceTokensConfig, relation
from models.train import train_folds
from pipeline.contracts.errors import InputError
from pipeline.contracts.predictions import read_predictions
from pipeline.contracts.training import read_folds
from tests.toy_cohort import GRADE, SURVIVAL, make_toy

GENES = {"tumour": 5, "tme": 4, "all": 12}
FEATURES = 6


def built(kind: str = "classification", families: bool = False, seed: int = 1, **params) -> SubspaceTokens:
    torch.manual_seed(seed)
    of = [[0, 3, 7], [1, 2], [11]] if families else []
    model = SubspaceTokens(
        SubspaceTokensConfig(**{"width": 16, **params}), Sizes(FEATURES, GENES, 3, kind, families=of)
    )
    with torch.no_grad():  # as after training: nothing rests at zero
        resting = (layer.weight for layer in (model.slide_side.guide, model.head, model.slide_head, model.gene_head))
        for parameter in (*resting, model.no_slides, model.no_genes):
            parameter.normal_(std=0.3)
    model.tile_scale.update(torch.randn(40, FEATURES) * 2 + 1)
    model.mean_scale.update(torch.randn(40, FEATURES) + 1)
    return model


def case(slides: tuple[int, ...], seed: int = 0, extra: int = 0) -> Batch:
    """One case with a slide per number of tiles on lattices of unequal sides, and `extra` places of garbage."""
    rng = torch.Generator().manual_seed(seed)
    chosen = [torch.randperm(9 * 13, generator=rng)[:n] for n in slides]
    cell = torch.cat([torch.stack([c % 9 + 2, c // 9 + 5], dim=1) for c in chosen])
    slide = torch.cat([torch.full((n,), k) for k, n in enumerate(slides)])
    tiles, present = sum(slides), torch.ones(1, dtype=torch.bool)
    features = torch.cat([torch.randn(tiles, FEATURES, generator=rng), torch.full((extra, FEATURES), 1e6)])
    return Batch(
        ("C",), present, present, features[None], (torch.arange(tiles + extra) < tiles)[None],
        torch.cat([slide, torch.full((extra,), -1)])[None], torch.cat([cell, torch.zeros(extra, 2).long()])[None],
        genes={name: torch.randn(1, n, generator=rng) for name, n in GENES.items()},
    )  # fmt: skip


def side_by_side(*cases: Batch) -> Batch:
    longest = max(c.mask.shape[1] for c in cases)
    names = {"features": 0.0, "mask": False, "slide": -1, "cell": 0}

    def padded(values: torch.Tensor, fill: float) -> torch.Tensor:
        blank = values.new_full((1, longest, *values.shape[2:]), fill)
        blank[:, : values.shape[1]] = values
        return blank

    joined = {name: torch.cat([padded(getattr(c, name), fill) for c in cases]) for name, fill in names.items()}
    genes = {name: torch.cat([c.genes[name] for c in cases]) for name in GENES}
    flags = {name: torch.cat([getattr(c, name) for c in cases]) for name in ("has_slides", "has_genes")}
    return Batch(tuple("C" * len(cases)), **flags, **joined, genes=genes)


def lacking(batch: Batch, *sides: str) -> Batch:
    return replace(batch, **{f"has_{side}": torch.zeros_like(batch.has_slides) for side in sides})


def logits(model: SubspaceTokens, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(batch).logits


class TestInvariance:
    @pytest.mark.parametrize("hops", [0, 2])
    def test_padding_and_batching_change_nothing(self, hops):
        model = built(hops=hops)
        parts = [case((40, 7), 1, extra=9), case((1,), 2), lacking(case((3,), 3), "slides"), case((5, 1), 4)]
        parts[3] = lacking(parts[3], "genes")
        alone = torch.cat([logits(model, part) for part in parts])
        torch.testing.assert_close(logits(model, side_by_side(*parts)), alone, rtol=1e-4, atol=1e-5)
        assert len({tuple(row) for row in alone.tolist()}) == 4

    def test_shuffled_and_moved_tiles_are_the_same_case(self):
        model, one = built(), case((40, 20))
        order = torch.randperm(60)
        moved = one.cell + torch.tensor([3, 5]) * (1 + one.slide[..., None])  # each slide by its own step
        other = replace(
            one, features=one.features[:, order], slide=one.slide[:, order], cell=moved[:, order], mask=one.mask
        )
        torch.testing.assert_close(logits(model, other), logits(model, one), rtol=1e-4, atol=1e-5)

    def test_places_count_unless_there_are_no_hops(self):
        one = case((40,))
        other = replace(one, cell=one.cell[:, torch.randperm(40)])
        for hops in (0, 1):
            model = built(hops=hops)
            assert torch.allclose(logits(model, one), logits(model, other), atol=1e-6) == (hops == 0)

    @pytest.mark.parametrize("tiles", [1, 7, 20_000])
    def test_any_number_of_tiles(self, tiles):
        model = built()
        cell = torch.stack([torch.arange(tiles) % 131, torch.arange(tiles) // 131], dim=1)[None]
        there = torch.ones(1, tiles, dtype=torch.bool)
        one = replace(
            case((1,)), features=torch.randn(1, tiles, FEATURES), mask=there, slide=0 * cell[..., 0], cell=cell
        )
        assert torch.isfinite(logits(model, one)).all()


class TestLackingSides:
    @pytest.mark.parametrize("side", ["slides", "genes"])
    def test_what_is_lacking_is_not_read(self, side):
        model, one = built(), case((12,))
        garbage = {
            "slides": {"features": one.features * 50},
            "genes": {"genes": {n: g * 50 for n, g in one.genes.items()}},
        }
        absent = {"slides": {"features": None, "mask": None, "slide": None, "cell": None}, "genes": {"genes": {}}}
        without = logits(model, lacking(one, side))
        assert not torch.allclose(without, logits(model, one), atol=1e-4)
        for change in (garbage, absent):
            torch.testing.assert_close(logits(model, lacking(replace(one, **change[side]), side)), without)

    def test_nothing_known_gives_the_same_for_everybody(self):
        model = built()
        first, second = (logits(model, lacking(case((4,), seed), "slides", "genes")) for seed in (1, 2))
        torch.testing.assert_close(first, second)

    def test_views_in_training_are_those_of_prediction(self):
        model = built(dropout=0.0, tile_dropout=0.0, gene_dropout=0.0).train()
        for module in model.modules():
            if isinstance(module, torch.nn.AlphaDropout | RunningStandardisation):
                module.eval()
        batch = side_by_side(case((9, 2), 1), case((5,), 2), case((1,), 3))
        branches = model(batch).branches
        expected = (batch, lacking(batch, "genes"), lacking(batch, "slides"))
        for branch, view in zip(branches, expected, strict=True):
            torch.testing.assert_close(branch, logits(model, view), rtol=1e-4, atol=1e-5)


class TestTraining:
    @pytest.mark.parametrize("families", [False, True])
    @pytest.mark.parametrize("kind", ["classification", "survival"])
    def test_one_case_trains_every_parameter(self, kind, families):
        model = built(kind, families).train()
        outputs = model(case((9, 5)))
        (sum(b.square().sum() for b in outputs.branches) + sum(outputs.losses.values())).backward()
        assert not [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
        assert outputs.losses["relation"].item() == 0

    def test_a_step_leaves_every_case_a_tile(self):
        model = built(tile_dropout=0.9).train()
        batch = side_by_side(case((30,), 1), case((1,), 2), lacking(case((2,), 3), "slides"))
        for _ in range(20):
            seen = model.looked_at(batch.mask)
            assert seen.any(dim=1).all() and (seen & batch.mask).any(dim=1).all() and seen[0].sum() < 30

    def test_presets(self):
        for params in SubspaceTokens.presets.values():
            outputs = built(**params).train()(side_by_side(*(case((4,), k) for k in range(4))))
            assert len(outputs.branches) == (0 if params.get("alone") is False else 3)
            assert ("relation" in outputs.losses) == (params.get("relation") != 0.0)

    def test_misfit_is_named(self):
        with pytest.raises(InputError, match="width is 30"):
            SubspaceTokensConfig(width=30)


def test_attention_is_what_pools():
    model = built().eval()
    batch = side_by_side(case((9, 4), 1), case((3,), 2))
    with torch.no_grad():
        sides = model.sides(batch)
        found = model.slide_side(sides.tiles, sides.mask, sides.genes)
        weights = model.attention(batch)
        values = model.slide_side.value(sides.tiles).unflatten(-1, (4, -1))
    assert weights.shape == (2, 2, 4, 13)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 2, 4))
    assert not weights[1, ..., 3:].any()
    torch.testing.assert_close(torch.einsum("bkhn,bnhd->bkhd", weights, values).flatten(2), found, rtol=1e-4, atol=1e-5)


def test_relation_by_hand():
    rng = np.random.default_rng(5)
    tokens = rng.normal(size=(2, 5, 2, 7))
    total = []
    for k in range(2):
        cosines = []
        for side in tokens[:, :, k]:
            centred = side - side.mean(axis=0)
            unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
            cosines.append(unit @ unit.T)
        total += [(cosines[0][i, j] - cosines[1][i, j]) ** 2 for i in range(5) for j in range(5) if i != j]
    slides, genes = (torch.tensor(side, requires_grad=True) for side in tokens)
    torch.testing.assert_close(relation(slides, genes), torch.tensor(np.mean(total)))
    assert torch.autograd.gradcheck(relation, (slides, genes))
    assert relation(slides, 3 * slides + 1) < 1e-12 and relation(slides[:2], genes[:2]) == 0


def test_standardisation_by_all_rows_seen():
    parts = [torch.randn(n, 3, dtype=torch.float64) * 4 + 2 for n in (1, 7, 30)]
    scale = RunningStandardisation(3)
    torch.testing.assert_close(scale.eval()(parts[1]), parts[1])
    for part in parts:
        out = scale.train()(part)
    rows = torch.cat(parts)
    expected = (parts[-1] - rows.mean(dim=0)) / rows.std(dim=0, correction=0)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(scale.eval()(parts[-1][:1]), expected[:1])
    assert scale.seen == 38


@pytest.mark.parametrize("tiles", [0, 1, 60])
def test_neighbourhood_against_a_loop(tiles):
    rng = np.random.default_rng(tiles)
    slide = np.sort(rng.integers(0, 3, tiles))
    cell = np.concatenate([rng.permutation([(x, y) for x in range(9) for y in range(5)])[: (slide == k).sum()]
                           for k in range(3)]).reshape(-1, 2)  # fmt: skip
    tokens = torch.tensor(rng.normal(size=(tiles, 4)))
    expected = [
        tokens[(slide == slide[i]) & (np.abs(cell - cell[i]).max(axis=1) <= 1)].mean(dim=0) for i in range(tiles)
    ]
    for shift in (0, -40):
        around = Neighbourhood.of(torch.tensor(slide), torch.tensor(cell.astype(np.int64)) + shift)
        torch.testing.assert_close(around.mean(tokens), torch.stack(expected) if expected else tokens)
    if tiles:
        leaf = tokens[:6].requires_grad_()
        around = Neighbourhood.of(torch.tensor(slide[:6]), torch.tensor(cell[:6].astype(np.int64)))
        assert torch.autograd.gradcheck(around.mean, (leaf,))


def test_families_add_what_they_see():
    model = built(families=True).eval()
    one = case((4,))
    for column, sees in ((0, True), (11, True), (5, False)):
        changed = {**one.genes, "all": one.genes["all"] + 2 * functional.one_hot(torch.tensor([column]), 12)}
        same = torch.allclose(model.gene_side(one.genes), model.gene_side(changed), atol=1e-7)
        assert same != sees


@pytest.mark.parametrize("task", [GRADE, SURVIVAL], ids=lambda task: task.kind)
def test_cases_without_a_side_are_trained_on_and_predicted(tmp_path: Path, task):
    toy = make_toy()
    del toy.rna["C04"], toy.rna["C11"]
    toy.slides = {name: slide for name, slide in toy.slides.items() if slide[0] not in ("C02", "C09")}
    inputs = toy.write(tmp_path)
    experiment = Experiment("ours", "subspace-tokens", epochs=1, batch_size=5, params={"width": 16})
    train_folds(experiment, task, inputs, tmp_path / "models", tmp_path / "models" / "index.tsv", device="cpu")
    notes = " ".join(row.reason for row in read_folds(tmp_path / "models" / "index.tsv"))
    assert "taken all the same: no RNA" in notes and "taken all the same: no usable slide" in notes
    left_out = predict_folds(experiment, task, inputs, tmp_path / "models", tmp_path / "ours.tsv", device="cpu")
    rows = read_predictions(tmp_path / "ours.tsv").rows
    assert not left_out and {row.case_id for row in rows} == set(toy.cases)
