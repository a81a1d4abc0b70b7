"""Feature generation and ensembling: what they learn from cases with both modalities, and how others are predicted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from models.batch import Batch
from models.checkpoint import read_checkpoint
from models.data import Cohort
from models.ensemble import Ensemble, EnsembleConfig
from models.experiment import Experiment
from models.feature_generation import FeatureGeneration, FeatureGenerationConfig
from models.predict import predict_cases, predict_folds
from models.train import train_folds
from pipeline.contracts.errors import InputError
from pipeline.contracts.predictions import LeftOut, read_predictions, read_slide_predictions
from tests.model_batches import make_case, side_by_side, sizes_of, some_targets
from tests.toy_cohort import GRADE, SURVIVAL, Toy, make_toy

STILL = {"width": 8, "hidden": 4, "dropout": 0.0, "gene_dropout": 0.0}


def generation(**params) -> FeatureGeneration:
    torch.manual_seed(0)
    config = FeatureGenerationConfig(**{**STILL, "embedding": 6, "bottleneck": 3, **params})
    return FeatureGeneration(config, sizes_of("classification"))


def ensemble(**params) -> Ensemble:
    torch.manual_seed(0)
    return Ensemble(EnsembleConfig(**{**STILL, **params}), sizes_of("classification"))


def three_cases(has_slides: list[int] | None = None, has_genes: list[int] | None = None) -> Batch:
    rng = torch.Generator().manual_seed(0)
    batch = side_by_side([make_case(rng, tiles) for tiles in ((4,), (2, 3), (6,))])
    slides, genes = (torch.tensor(has or [1, 1, 1]) == 1 for has in (has_slides, has_genes))
    return replace(batch, has_slides=slides, has_genes=genes, mask=batch.mask & slides[:, None])


class TestFeatureGeneration:
    def test_losses_by_hand(self):
        model, batch = generation(reconstruction=0.7).train(), three_cases(has_genes=[1, 0, 1])
        outputs = model(batch)
        slide, gene = model.embed(model.pool(batch.features, batch.mask)), model.genes(batch.genes["all"])
        made = model.generate(slide)
        error = ((made - gene)[[0, 2]] ** 2).mean()
        torch.testing.assert_close(outputs.losses["reconstruction"], 0.7 * error)
        true, generated = outputs.branches
        torch.testing.assert_close(generated, model.head(torch.cat([slide, made], dim=1)))
        torch.testing.assert_close(true[1], generated[1])
        torch.testing.assert_close(true[[0, 2]], model.head(torch.cat([slide, gene], dim=1))[[0, 2]])

    def test_the_gene_network_is_the_aim_and_not_moved_towards_the_slide(self):
        model = generation().train()
        model(three_cases()).losses["reconstruction"].backward()
        assert all(p.grad is None or not p.grad.any() for p in model.genes.parameters())
        assert model.generate[0].weight.grad.any() and model.embed.weight.grad.any()
        assert generation().train()(three_cases(has_genes=[0, 0, 0])).losses["reconstruction"] == 0

    def test_from_slides_alone_no_rna_is_read(self):
        batch = three_cases()
        other = replace(batch, genes={group: values + 3 for group, values in batch.genes.items()})
        absent = replace(batch, has_genes=torch.zeros(3, dtype=torch.bool))
        present, slides = generation().eval(), generation(predict_from="slides").eval()
        assert torch.equal(slides(batch).logits, slides(other).logits)
        assert torch.equal(slides(batch).logits, present(absent).logits)
        assert not torch.equal(present(batch).logits, present(other).logits)


class TestEnsemble:
    def test_the_mean_or_the_one_there_is(self):
        model = ensemble().eval()
        whole = three_cases()
        slide = model.slide_head(model.pool(whole.features, whole.mask))
        gene = model.gene_head(model.genes(whole.genes["all"]))
        torch.testing.assert_close(model(whole).logits, (slide + gene) / 2)
        found = model(three_cases(has_slides=[1, 0, 1], has_genes=[0, 1, 1])).logits
        torch.testing.assert_close(found, torch.stack([slide[0], gene[1], (slide + gene)[2] / 2]))
        from_slides = ensemble(predict_from="slides").eval()
        found = from_slides(three_cases(has_slides=[1, 0, 1])).logits
        torch.testing.assert_close(found, torch.stack([slide[0], gene[1], slide[2]]))
        assert len(from_slides.train()(whole).branches) == 2  # while training, RNA is read

    def test_each_half_learns_from_its_own_cases_once(self):
        model, batch = ensemble().train(), three_cases(has_slides=[1, 0, 1], has_genes=[1, 1, 0])
        label = some_targets("classification", 3).label
        sum(cross_entropy(half, label) for half in model(batch).branches).backward()
        whole = three_cases()
        for head, values, rows in (
            (model.gene_head, model.genes(whole.genes["all"]), [0, 1]),
            (model.slide_head, model.pool(whole.features, whole.mask), [0, 2]),
        ):
            losses = cross_entropy(head(values), label, reduction="none")
            (aim,) = torch.autograd.grad(losses[rows].sum() / 3, head.weight)
            torch.testing.assert_close(head.weight.grad, aim)

    def test_published_form_trains_the_mean(self):
        made = Experiment("e", "ensemble", params={"preset": "published"}).resolved("survival").params
        assert (made["trained"], made["predict_from"]) == ("mean", "slides")
        outputs = ensemble(trained="mean").train()(three_cases())
        assert not outputs.branches


def run(toy: Toy, model: str, task, folder: Path, **changes):
    inputs = toy.write(folder / "data")
    made = Experiment(model, model, **{"epochs": 3, "batch_size": 4, "lr": 3e-3, "params": STILL, **changes})
    rows = train_folds(made, task, inputs, folder / "m", folder / "m" / "index.tsv", device="cpu")
    out, slides = folder / "p.tsv", folder / "s.tsv"
    left_out = predict_folds(made, task, inputs, folder / "m", out, device="cpu", slides_out=slides)
    return inputs, rows, left_out, read_predictions(folder / "p.tsv").rows


@pytest.mark.parametrize("task", [GRADE, SURVIVAL], ids=lambda t: t.name)
@pytest.mark.parametrize("model", ["feature-generation", "ensemble"])
def test_cases_that_lack_a_modality_are_trained_on_predicted_and_counted(tmp_path, model, task):
    toy = make_toy(folds=2)
    held_out, train = ([r.case_id for r in toy.splits if r.fold == 0 and r.role == role] for role in ("test", "train"))
    no_rna, no_slide = {held_out[0], *train[:2]}, {held_out[1], train[2]}
    toy.rna = {case: values for case, values in toy.rna.items() if case not in no_rna}
    toy.slides = {slide: value for slide, value in toy.slides.items() if value[0] not in no_slide}
    inputs, rows, left_out, predicted = run(toy, model, task, tmp_path)
    assert [row.status for row in rows] == ["ok", "ok"]
    _, by_slide = read_slide_predictions(tmp_path / "s.tsv")
    assert {row.slide_id for row in by_slide} == set(toy.slides)
    assert "2 cases taken all the same: no RNA" in rows[0].reason
    lacking = {row.case_id: row.lacking for row in predicted}
    assert {case for case, what in lacking.items() if what == "no RNA"} == no_rna
    assert {case for case, what in lacking.items() if "slide" in what} == (no_slide if model == "ensemble" else set())
    assert {row.row.case_id for row in by_slide if row.row.lacking == "no RNA"} == no_rna
    found = set(lacking)
    if model == "ensemble":
        assert "1 case taken all the same: no usable slide at 10x" in rows[0].reason
        assert found == set(toy.cases) and not left_out and rows[0].n_train == len(train)
    else:
        assert "1 case left out: no usable slide at 10x" in rows[0].reason and rows[0].n_train == len(train) - 1
        assert found == set(toy.cases) - no_slide and LeftOut(held_out[1], 0, "no usable slide at 10x") in left_out
    checkpoint = read_checkpoint(tmp_path / "m" / "fold0" / "checkpoint.pt")
    blind = Cohort(inputs.features_index)  # no expression at all
    outcomes, _ = predict_cases(checkpoint, blind, held_out[2:4])
    assert len(outcomes) == 2
    if model == "ensemble":
        outcomes, lost = predict_cases(checkpoint, Cohort(expression=inputs.expression), held_out[2:3])
        assert len(outcomes) == 1 and not lost
    else:
        with pytest.raises(InputError, match="trained at 10x"):
            predict_cases(checkpoint, Cohort(expression=inputs.expression), held_out[2:3])


def test_generation_learns_to_reconstruct():
    """Where slides tell the genes, new slides do too: better than the mean gene embedding."""
    torch.manual_seed(0)
    kind = torch.randn(60)
    rng = torch.Generator().manual_seed(1)
    cases = [make_case(rng, (5,)) for _ in kind]
    for case, value in zip(cases, kind, strict=True):
        case.features[..., 0] += 3 * value
        case.genes["all"][:] = value * torch.arange(12) / 6
    seen, new = side_by_side(cases[:40]), side_by_side(cases[40:])
    model = generation().train()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(80):
        optimiser.zero_grad()
        model(seen).losses["reconstruction"].backward()
        optimiser.step()
    with torch.no_grad():
        embedding = model.genes(new.genes["all"])
        spread = ((embedding - embedding.mean(dim=0)) ** 2).mean()
        assert model(new).losses["reconstruction"] < 0.3 * spread


def test_whose_rna_is_missing_enters_the_digest(tmp_path):
    """The same values, in the same order, of another case."""
    toy = make_toy(n=12, folds=2)
    train = [r.case_id for r in toy.splits if r.fold == 0 and r.role == "train"]
    digests = []
    for folder, (absent, present) in (("a", train[:2]), ("b", train[1::-1])):
        other = make_toy(n=12, folds=2)
        other.rna[present] = toy.rna[train[0]]
        del other.rna[absent]
        inputs, made = other.write(tmp_path / folder), Experiment("e", "ensemble", epochs=1, params=STILL)
        digests.append(train_folds(made, GRADE, inputs, tmp_path / folder, tmp_path / folder / "i.tsv")[0].digest)
    assert digests[0] != digests[1]


def test_a_modality_that_no_training_case_has_fails_the_fold(tmp_path):
    toy = make_toy(folds=2)
    train = {r.case_id for r in toy.splits if r.fold == 0 and r.role == "train"}
    inputs = toy.write(tmp_path / "data")
    lines = inputs.features_index.read_text().splitlines()
    inputs.features_index.write_text("\n".join(x for x in lines if not any(f"\t{c}\t" in x for c in train)) + "\n")
    made = Experiment("e", "ensemble", epochs=1, params=STILL)
    rows = train_folds(made, GRADE, inputs, tmp_path / "m", tmp_path / "m" / "index.tsv", device="cpu")
    assert rows[0].status == "failed" and "no usable slide at 10x in any training case" in rows[0].reason
    assert rows[1].status == "ok"
