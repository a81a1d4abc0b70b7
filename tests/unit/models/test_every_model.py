"""What holds for every model of the registry: any bag length, batches, masks, missing modalities, its own state."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.batch import Batch
from models.data import Cohort
from models.experiment import Experiment
from models.losses import Objective
from models.model import Model
from models.params import build_config
from models.registry import GENES, MODELS, SLIDES, model_class
from tests.model_batches import OUTPUTS, make_case, side_by_side, sizes_of, some_targets
from tests.toy_cohort import SMALL_PARAMS, make_toy

KINDS = ("classification", "survival")
TRIALS = [
    pytest.param(name, kind, id=f"{name}-{kind}")
    for name, entry in MODELS.items()
    for kind in (("pretraining",) if entry.task_free else KINDS)
]
PREDICTING = [trial for trial in TRIALS if trial.values[1] != "pretraining"]
SPARING = [trial for trial in PREDICTING if model_class(trial.values[0]).may_lack]


def build(name: str, kind: str, seed: int = 1, features: int = 6) -> Model:
    torch.manual_seed(seed)
    cls = model_class(name)
    params = Experiment(name, name, params=SMALL_PARAMS.get(name, {}), init_from="x").resolved(kind).params
    return cls(build_config(cls.Config, params, name), sizes_of(kind, features))


def cases(name: str, *slides: tuple[int, ...], seed: int = 0) -> list[Batch]:
    rng = torch.Generator().manual_seed(seed)
    return [make_case(rng, tiles, MODELS[name].magnifications == 2) for tiles in slides]


def fitted(name: str, kind: str) -> Model:
    """Fitted on twelve cases, if the model fits itself."""
    model = build(name, kind)
    if model.fits_itself:
        batch, targets = side_by_side(cases(name, *[(3, 2)] * 12, seed=9)), some_targets(kind, 12)
        batch.genes["all"][:, 0] += 2 * (targets.time if targets.label is None else targets.label)
        model.fit(batch, targets, None)
    return model


def step(model: Model, batch: Batch, kind: str) -> torch.Tensor:
    """One step of training as the loop does it; returns the logits."""
    model.train()
    targets = some_targets(kind, len(batch))
    outputs = model(batch)
    parts = list(outputs.losses.values())
    if kind != "pretraining":
        objective = Objective(kind)
        totals = [objective(logits, targets) for logits in outputs.branches or (outputs.logits,)]
        parts += [total / weight for total, weight in totals]
    torch.stack(parts).sum().backward()
    model.edit_gradients(outputs, targets)
    model.constrain()
    return outputs.logits


def check_step(name: str, kind: str, tiles: int) -> None:
    model = fitted(name, kind)
    (case,) = cases(name, (tiles,))
    logits = step(model, case, kind)
    assert logits.shape[0] == 1 and torch.isfinite(logits).all()
    width = {"classification": OUTPUTS, "pretraining": 0}.get(kind, 1 if model.fits_itself else OUTPUTS)
    assert logits.shape[1] == width
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(g).all() for g in gradients)
    assert any(g.abs().sum() > 0 for g in gradients) or kind == "pretraining"  # a contrast of one case is never wrong


@pytest.mark.parametrize("tiles", [1, 7])
@pytest.mark.parametrize(("name", "kind"), TRIALS)
def test_a_case_alone_trains(name, kind, tiles):
    check_step(name, kind, tiles)


@pytest.mark.full
@pytest.mark.parametrize("tiles", [1250, 2500, 20_000])
@pytest.mark.parametrize("name", MODELS)
def test_a_large_case_trains(name, tiles):
    check_step(name, "pretraining" if MODELS[name].task_free else "survival", tiles)


@pytest.mark.parametrize(("name", "kind"), PREDICTING)
def test_a_case_alone_is_the_case_in_a_padded_batch(name, kind):
    model = fitted(name, kind).eval()
    parts = cases(name, (1,), (7, 2), (12,))
    with torch.no_grad():
        together = model(side_by_side(parts)).logits
        alone = torch.cat([model(part).logits for part in parts])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(alone[0], alone[1])


@pytest.mark.parametrize(("name", "kind"), PREDICTING)
def test_the_state_is_the_model(name, kind):
    model, other = fitted(name, kind).eval(), build(name, kind, seed=2)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        batch = side_by_side(cases(name, (5,), (2, 3)))
        assert torch.equal(model(batch).logits, other.eval()(batch).logits)


@pytest.fixture(scope="module")
def toy_cohort(tmp_path_factory) -> Cohort:
    """C01 has no RNA, C02 no slide, C03 neither."""
    toy = make_toy(n=5, folds=2, pair=True)
    toy.rna = {case: values for case, values in toy.rna.items() if case not in ("C01", "C03")}
    toy.slides = {slide: value for slide, value in toy.slides.items() if value[0] not in ("C02", "C03")}
    inputs = toy.write(tmp_path_factory.mktemp("toy"))
    return Cohort(inputs.features_index, 10, inputs.expression, cases=inputs.cases)


@pytest.mark.parametrize("name", MODELS)
def test_a_modality_may_be_missing_only_where_the_model_says_so(toy_cohort, name):
    cls = model_class(name)
    usable = {case: not toy_cohort.lacking(case, cls.needs, cls.may_lack) for case in ("C00", "C01", "C02", "C03")}
    needed = cls.needs - cls.may_lack
    only_slides, only_genes = cls.needs <= {SLIDES}, cls.needs <= {GENES}
    assert usable["C00"]
    assert usable["C01"] == (GENES not in needed and (not only_genes))
    assert usable["C02"] == (SLIDES not in needed and (not only_slides))
    assert usable["C03"] == ("clinical" in cls.needs)


def without(batch: Batch, modality: str, row: int) -> Batch:
    """The batch as the collator gives it when a sample lacks a modality; garbage where nobody may look."""
    keep = torch.arange(len(batch)) != row
    if modality == GENES:
        genes = {name: torch.where(keep[:, None], values, 1e6) for name, values in batch.genes.items()}
        return replace(batch, has_genes=keep, genes=genes)
    return replace(batch, has_slides=keep, mask=batch.mask & keep[:, None])


@pytest.mark.parametrize(("name", "kind"), SPARING)
def test_what_is_missing_is_not_read_and_the_others_do_not_change(name, kind):
    model = build(name, kind).eval()
    whole = side_by_side(cases(name, (4,), (7, 2), (3,)))
    with torch.no_grad():
        before = model(whole).logits
        for modality in sorted(model.may_lack):
            part = without(whole, modality, 1)
            after = model(part).logits
            torch.testing.assert_close(after[[0, 2]], before[[0, 2]])
            assert torch.isfinite(after).all() and not torch.allclose(after[1], before[1])
            blank = {group: torch.zeros_like(values[1:2]) for group, values in whole.genes.items()}
            alone = cases(name, (4,), (7, 2), (3,))[1]
            no = torch.zeros(1, dtype=torch.bool)
            if modality == GENES:
                alone = replace(alone, has_genes=no, genes=blank)
            else:
                alone = replace(alone, has_slides=no, features=None, mask=None, slide=None, cell=None, coords=None)
            torch.testing.assert_close(model(alone).logits, after[1:2], rtol=1e-4, atol=1e-5)
    for modality in sorted(model.may_lack):
        trained = build(name, kind)
        assert torch.isfinite(step(trained, without(whole, modality, 1), kind)).all()
        assert all(torch.isfinite(p.grad).all() for p in trained.parameters() if p.grad is not None)
