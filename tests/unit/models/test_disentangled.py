"""Disentangled teacher and student in default mode: invariances, masks, bag lengths, gradients, distillation."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.batch import Batch, Sizes, Targets
from models.disentangled_student import DisentangledStudent, SubspaceSlots
from models.disentangled_teacher import DisentangledTeacher, Injection, global_parents
from models.losses import interval_likelihood
from models.magnification_pair import linked_consistency
from models.model import Model
from models.registry import model_class
from models.slides import unpadded
from models.train import warmup_cosine
from pipeline.contracts.errors import InputError

NAMES = ("disentangled-teacher", "disentangled-histology", "disentangled-student")


def model_of(name: str, kind: str = "classification", seed: int = 3, **params) -> Model:
    torch.manual_seed(seed)
    cls = model_class(name)
    return cls(cls.Config(**params), Sizes(8, {"tumour": 5, "tme": 3}, 4, kind)).eval()


def without_dropout(name: str, **params) -> Model:
    off = {"attention_dropout": 0.0, **({"dropout": 0.0} if name == "disentangled-teacher" else {})}
    return model_of(name, **off, **params).train()


def case(rng: torch.Generator, tiles: list[int]) -> Batch:
    """One case with a slide per entry: so many coarse tiles on a lattice of unequal sides, and two or one in each."""
    coarse_cells, fine_cells, parents = [], [], []
    for n in tiles:
        width = max(9, math.isqrt(n))
        chosen = torch.randperm(max(63, 2 * n), generator=rng)[:n]
        cell = torch.stack([chosen % width, chosen // width], dim=1)
        parent = torch.cat([torch.arange(n), torch.arange(0, n, 2)])
        corner = torch.cat([torch.zeros(n, 2, dtype=torch.int64), torch.ones(len(parent) - n, 2, dtype=torch.int64)])
        parents.append(parent + sum(len(c) for c in coarse_cells))
        coarse_cells.append(cell)
        fine_cells.append(2 * cell[parent] + corner)
    coarser = side(rng, coarse_cells)
    genes = {"tumour": torch.randn(1, 5, generator=rng), "tme": torch.randn(1, 3, generator=rng)}
    return replace(side(rng, fine_cells), genes=genes, coarser=coarser, parent=torch.cat(parents)[None])


def side(rng: torch.Generator, cells: list[Tensor]) -> Batch:
    cell = torch.cat(cells)[None]
    slide = torch.cat([torch.full((len(c),), s) for s, c in enumerate(cells)])[None]
    yes, mask = torch.ones(1, dtype=torch.bool), torch.ones(slide.shape, dtype=torch.bool)
    return Batch(("C",), yes, yes, torch.randn(1, cell.shape[1], 8, generator=rng), mask, slide, cell, cell * 448)


def joined(cases: list[Batch], extra: int) -> Batch:
    """Cases side by side, padded with garbage to `extra` tiles more than the longest, at both magnifications."""
    blank = {"features": 1e6, "cell": 0, "slide": -1, "mask": 0, "coords": 0, "parent": -1}

    def padded(parts: list[Batch]) -> dict[str, Tensor]:
        longest = max(p.features.shape[1] for p in parts) + extra
        out = {}
        for name, value in blank.items():
            rows = [getattr(p, name) for p in parts]
            if rows[0] is not None:
                full = [r.new_full((1, longest, *r.shape[2:]), value) for r in rows]
                for f, r in zip(full, rows, strict=True):
                    f[:, : r.shape[1]] = r
                out[name] = torch.cat(full)
        return out

    yes = torch.ones(len(cases), dtype=torch.bool)
    ids = tuple(map(str, range(len(cases))))
    genes = {g: torch.cat([c.genes[g] for c in cases]) for g in cases[0].genes}
    return Batch(
        ids, yes, yes, **padded(cases), genes=genes, coarser=Batch(ids, yes, yes, **padded([c.coarser for c in cases]))
    )


def taught(batch: Batch, rng: torch.Generator) -> Batch:
    """The batch with lessons, the first sample without."""
    n = len(batch)
    lesson = {f"{m}_{w}": torch.randn(n, k, generator=rng) for m in ("coarse", "fine") for w, k in
              (("logits", 4), ("features", 256))}  # fmt: skip
    return replace(batch, lesson=lesson, taught=torch.arange(n) > 0)


@pytest.mark.parametrize("name", NAMES)
class TestInvariance:
    @pytest.mark.parametrize("tiles", [[1], [7], [50], [1, 1], [12, 1, 30]])
    def test_padding_and_batching_change_nothing(self, name, tiles):
        rng = torch.Generator().manual_seed(sum(tiles))
        cases = [case(rng, tiles), case(rng, [4]), case(rng, [21, 3])]
        model = model_of(name)
        with torch.no_grad():
            alone, together = [model(c) for c in cases], model(joined(cases, extra=5))
        assert torch.isfinite(together.logits).all()
        torch.testing.assert_close(torch.cat([a.logits for a in alone]), together.logits, rtol=1e-5, atol=2e-6)
        for key, value in together.hidden.items():
            torch.testing.assert_close(torch.cat([a.hidden[key] for a in alone]), value, rtol=1e-4, atol=5e-6)

    def test_training_losses_are_means_over_samples(self, name):
        params = {"consistency": "parents"} if name == "disentangled-student" else {}
        model, rng = without_dropout(name, **params), torch.Generator().manual_seed(5)
        cases = [case(rng, [9]), case(rng, [14, 6])]
        alone, together = [model(c).losses for c in cases], model(joined(cases, 3)).losses
        assert together and all(float(loss.detach()) > 0 for loss in together.values())
        for key, value in together.items():
            torch.testing.assert_close((alone[0][key] + alone[1][key]) / 2, value, rtol=1e-4, atol=1e-6)

    def test_tile_order_does_not_matter_but_places_do(self, name):
        rng = torch.Generator().manual_seed(1)
        one = case(rng, [40])
        order = torch.randperm(60, generator=rng)
        tiles = {key: getattr(one, key)[:, order] for key in ("features", "cell", "parent")}
        model = model_of(name)
        with torch.no_grad():
            kept, same, other = (
                model(b).logits for b in (one, replace(one, **tiles), replace(one, cell=tiles["cell"]))
            )
        torch.testing.assert_close(kept, same, rtol=1e-5, atol=1e-6)
        assert (kept - other).abs().max() > 1e-5

    def test_every_parameter_gets_a_gradient(self, name):
        model, rng = without_dropout(name, seed=4), torch.Generator().manual_seed(0)
        outputs = model(joined([case(rng, [30]), case(rng, [20, 9])], 0))
        (sum(x.square().sum() for x in outputs.branches) + sum(outputs.losses.values())).backward()
        silent = [k for k, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        # a bias of the last layer before a softmax, or of the score before an importance, moves nothing
        assert all(k.endswith(("position_bias.4.bias", "merging.score.bias")) for k in silent), silent

    def test_a_step_against_finite_differences(self, name):
        """The derivative of everything that is trained, along a random direction in all parameters."""
        params = {"consistency": "parents", "distil_logits": 1.0} if name == "disentangled-student" else {}
        model, rng = without_dropout(name, seed=6, **params).double(), torch.Generator().manual_seed(7)
        batch = taught(joined([case(rng, [13]), case(rng, [8, 5])], 2), rng)
        batch = in_double(batch)

        def total() -> Tensor:
            outputs = model(batch)
            return sum(x.sin().sum() for x in outputs.branches) + sum(outputs.losses.values())

        parameters = list(model.parameters())
        direction = [torch.randn(p.shape, generator=rng, dtype=torch.float64) for p in parameters]
        grads = torch.autograd.grad(total(), parameters, allow_unused=True)
        slope = sum((g * d).sum() for g, d in zip(grads, direction, strict=True) if g is not None)
        ends = []
        for step in (1e-7, -2e-7):
            with torch.no_grad():
                for p, d in zip(parameters, direction, strict=True):
                    p.add_(d, alpha=step)
                ends.append(float(total()))
        assert (ends[0] - ends[1]) / 2e-7 == pytest.approx(float(slope), rel=1e-4)


def in_double(batch: Batch) -> Batch:
    doubled = {"features": batch.features.double(), "genes": {k: v.double() for k, v in batch.genes.items()}}
    if batch.coarser is not None:
        doubled |= {"coarser": in_double(batch.coarser), "lesson": {k: v.double() for k, v in batch.lesson.items()}}
    return replace(batch, **doubled)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "tiles", [1250, pytest.param(2500, marks=pytest.mark.full), pytest.param(20_000, marks=pytest.mark.full)]
)
def test_long_bags(name, tiles):
    """The coarse bag has two thirds of the tiles of the fine one; a step is finite."""
    model, rng = without_dropout(name), torch.Generator().manual_seed(8)
    outputs = model(case(rng, [2 * tiles // 3]))
    (sum(x.square().sum() for x in outputs.branches) + sum(outputs.losses.values())).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


class TestTeacher:
    def test_several_gene_tokens_are_read_tile_by_tile(self):
        """Against attention written out; with one token its weight is 1 and every tile gets the same vector."""
        torch.manual_seed(0)
        injection = Injection(0.0, genes=True)
        rng = torch.Generator().manual_seed(9)
        slides = unpadded(joined([case(rng, [5]), case(rng, [3])], 2), None)
        tokens, attention = torch.randn(len(slides.features), 128, generator=rng), injection.attention
        for count in (4, 1):
            genes = torch.randn(2, count, 128, generator=rng)
            weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
            q = (injection.norm(tokens) @ weights[0].T + biases[0]).unflatten(1, (8, 16))
            k, v = (
                (injection.norm(genes) @ w.T + b).unflatten(2, (8, 16))
                for w, b in zip(weights[1:], biases[1:], strict=True)
            )
            share = (torch.einsum("nhd,nthd->nht", q, k[slides.sample]) / 4).softmax(dim=2)
            read = torch.einsum("nht,nthd->nhd", share, v[slides.sample]).flatten(1)
            read = read @ attention.out_proj.weight.T + attention.out_proj.bias
            pooled = torch.stack([injection.norm(tokens + read)[slides.sample == s].mean(dim=0) for s in (0, 1)])
            torch.testing.assert_close(injection(tokens, genes, slides), torch.tanh(injection.pool(pooled)))
            spread = share.std(dim=0).max()
            assert spread > 0.01 if count > 1 else spread == 0

    def test_parents_across_slides_and_samples(self):
        rng = torch.Generator().manual_seed(10)
        batch = joined([case(rng, [3, 2]), case(rng, [4])], 3)
        coarse = unpadded(batch.coarser, None)
        rows = global_parents(batch, coarse)
        fine = unpadded(batch, None)
        assert (coarse.sample[rows] == fine.sample).all()
        assert torch.equal(coarse.cell[rows], fine.cell // 2)

    def test_consistency_is_that_of_the_tokens(self):
        rng = torch.Generator().manual_seed(11)
        batch = case(rng, [12, 5])
        model = without_dropout("disentangled-teacher", consistency_weight=0.25)
        coarse, fine = unpadded(batch.coarser, None), unpadded(batch, None)
        genes = {u: model.genes[u](batch.genes[u]) for u in ("tumour", "tme")}
        tokens = [getattr(model, m)(s, genes, False).tokens["tme"] for m, s in (("fine", fine), ("coarse", coarse))]
        expected = 0.25 * linked_consistency(*tokens, batch.parent[0], coarse.sample, 1)
        torch.testing.assert_close(model(batch).losses["consistency_tme"], expected)
        assert not model.eval()(batch).losses

    @pytest.mark.parametrize("kind", ["classification", "survival"])
    def test_gradient_editing_touches_only_the_classifiers(self, kind):
        model, rng = model_of("disentangled-teacher", kind).train(), torch.Generator().manual_seed(12)
        batch = joined([case(rng, [9]), case(rng, [11]), case(rng, [5])], 0)
        outputs = model(batch)
        sum(x.square().sum() for x in outputs.branches).backward()
        heads = [model.coarse.head, model.fine.head]
        for head in heads:
            head.weight.grad[:, 128:] = -head.weight.grad[:, :128]
        before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        targets = Targets(label=torch.tensor([0, 1, 2]))
        if kind == "survival":
            targets = Targets(time=torch.tensor([2.0, 1, 3]), event=torch.tensor([1, 1, 1]))
        model.edit_gradients(outputs, targets)
        changed = {n for n, p in model.named_parameters() if p.grad is not None and not torch.equal(p.grad, before[n])}
        assert changed and changed <= {"coarse.head.weight", "fine.head.weight"}
        if kind == "survival":  # all censored: nothing to be sure of
            now = [head.weight.grad.clone() for head in heads]
            model.edit_gradients(outputs, Targets(time=torch.tensor([1.0, 1, 3]), event=torch.tensor([0, 0, 0])))
            assert all(torch.equal(a, h.weight.grad) for a, h in zip(now, heads, strict=True))
            loss, cases = interval_likelihood(
                outputs.logits, torch.tensor([0, 1, 3]), torch.zeros(3, dtype=torch.int64)
            )
            assert torch.isfinite(loss / cases)

    def test_combined_outcome_lies_between_the_magnifications(self):
        model, rng = model_of("disentangled-teacher", "survival"), torch.Generator().manual_seed(13)
        outputs = model(case(rng, [9]))
        hazards = [x.sigmoid() for x in outputs.branches]
        torch.testing.assert_close(outputs.logits.sigmoid(), (hazards[0] + hazards[1]) / 2)


class TestStudent:
    def test_slots_choose_among_the_tokens_and_do_not_see_their_order(self):
        torch.manual_seed(1)
        slots = SubspaceSlots()
        tokens = torch.randn(5, 128)
        got = slots([tokens, tokens.flip(0)])
        torch.testing.assert_close(got[0], got[1])
        for k in range(2):
            share = (slots.query[k] @ tokens.T / 128**0.5).softmax(dim=0)
            expected = torch.tanh(slots.pool[k](share @ tokens))
            torch.testing.assert_close(got[0, 128 * k : 128 * (k + 1)], expected)

    def test_only_taught_samples_are_distilled(self):
        model, rng = without_dropout("disentangled-student"), torch.Generator().manual_seed(14)
        cases = [case(rng, [9]), case(rng, [7])]
        batch = taught(joined(cases, 2), rng)
        both = model(batch).losses
        assert sorted(both) == [f"distil_{m}_{w}" for m in ("coarse", "fine") for w in ("features", "logits")]
        lesson = {k: v[1:] for k, v in batch.lesson.items()}
        alone = model(replace(cases[1], lesson=lesson, taught=torch.tensor([True]))).losses
        for key, value in both.items():
            torch.testing.assert_close(value, alone[key], rtol=1e-4, atol=1e-7)
        untaught = replace(cases[0], lesson={k: v[:1] for k, v in batch.lesson.items()}, taught=torch.tensor([False]))
        assert model(untaught).losses == {} == model(cases[0]).losses

    def test_weights_are_what_they_say(self):
        rng = torch.Generator().manual_seed(15)
        batch = taught(joined([case(rng, [9]), case(rng, [7])], 2), rng)
        one = without_dropout("disentangled-student")(batch).losses
        preset = DisentangledStudent.presets["features-only"]
        other = without_dropout("disentangled-student", **preset)(batch).losses
        assert set(other) == {"distil_coarse_features", "distil_fine_features"}
        for key, value in other.items():
            torch.testing.assert_close(value, 100 * one[key])

    def test_prediction_reads_neither_genes_nor_lessons(self):
        model, rng = model_of("disentangled-student"), torch.Generator().manual_seed(16)
        one = case(rng, [9])
        blind = taught(replace(one, genes={}, has_genes=torch.tensor([False])), rng)
        torch.testing.assert_close(model(one).logits, model(blind).logits, rtol=0, atol=0)

    def test_fewer_tiles_than_clusters(self):
        rng = torch.Generator().manual_seed(17)
        for slots in ("subspace", "cluster"):
            logits = model_of("disentangled-student", slots=slots, clusters=32)(case(rng, [1])).logits
            assert torch.isfinite(logits).all()


@pytest.mark.parametrize(
    ("name", "params", "words"),
    [
        ("disentangled-teacher", {"fixed_length": 144}, "needs real tile positions"),
        ("disentangled-teacher", {"consistency": "reference"}, "needs a fixed_length"),
        ("disentangled-teacher", {"fixed_length": 145, "consistency": "none"}, "not a square"),
        ("disentangled-teacher", {"query": "genes"}, "did you mean 'gene'"),
        ("disentangled-student", {"clusters": 1}, "clusters is 1"),
        ("disentangled-student", {"slots": "clusters"}, "did you mean 'cluster'"),
    ],
)
def test_refusals(name, params, words):
    with pytest.raises(InputError, match=words):
        model_of(name, **params)


def test_released_sizes():
    count = {name: sum(p.numel() for p in model_class(name)(model_class(name).Config(**params), Sizes(
        1024, {"tumour": 59, "tme": 361}, 4, "classification")).parameters()) for name, params in (
        ("disentangled-teacher", DisentangledTeacher.reference_params),
        ("disentangled-student", DisentangledStudent.reference_params),
    )}  # fmt: skip
    assert count == {"disentangled-teacher": 1_150_136 - 2 * 518, "disentangled-student": 487_116 - 2 * 16_768}


def test_warm_up_vector_of_the_specification():
    factors = [warmup_cosine(step, 10, 100) for step in (0, 5, 10, 55, 100)]
    assert factors == pytest.approx([0, 0.5, 1, 0.5, 0])
