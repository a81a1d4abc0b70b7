"""The linear model against the same fits done in the space of all genes by scikit-learn and scikit-survival."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.util import Surv

from models.batch import Batch, Sizes, Targets
from models.linear import STRENGTHS, Linear, LinearConfig, RiskSets, cox_loss, fit_cox
from models.survival import Intervals


def batch_of(genes: np.ndarray) -> Batch:
    present = torch.ones(len(genes), dtype=torch.bool)
    return Batch(tuple(map(str, range(len(genes)))), present, present, genes={"all": torch.from_numpy(genes)})


def build(genes: int, outputs: int, kind: str, **params) -> Linear:
    return Linear(LinearConfig(**params), Sizes(0, {"all": genes}, outputs, kind))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("balanced", [True, False])
def test_logistic_equals_the_fit_on_all_genes(rng, classes, balanced):
    genes = rng.normal(1.0, 2.0, size=(30, 45))
    codes = rng.integers(0, classes, 30)
    codes[:classes] = range(classes)
    model = build(45, classes, "classification", strength=0.3, balanced=balanced)
    model.fit(batch_of(genes), Targets(label=torch.from_numpy(codes)), None)
    reference = LogisticRegression(
        C=1 / (0.3 * 45), class_weight="balanced" if balanced else None, tol=1e-10, max_iter=100_000
    ).fit(genes, codes)
    ours = model(batch_of(genes)).logits.softmax(dim=1).detach().numpy()
    np.testing.assert_allclose(ours, reference.predict_proba(genes), atol=1e-5)


def test_cox_equals_the_fit_on_all_genes(rng):
    genes, time, event = rng.normal(size=(40, 6)), rng.integers(1, 20, 40).astype(float), rng.integers(0, 2, 40)
    model = build(6, 4, "survival", strength=0.5)
    model.fit(batch_of(genes), Targets(time=torch.from_numpy(time), event=torch.from_numpy(event)), None)
    reference = CoxPHSurvivalAnalysis(alpha=0.5 * 6, ties="breslow", tol=1e-14, n_iter=1000)
    reference.fit(genes, Surv.from_arrays(event == 1, time))
    np.testing.assert_allclose(model.weight.detach().numpy()[0], reference.coef_, rtol=1e-5, atol=1e-7)
    ends = (4.0, 9.0, 15.0)
    _, survival = model.outcome(model(batch_of(genes)).logits.detach(), Intervals(ends, 19.5))
    curves = reference.predict_survival_function(genes)
    np.testing.assert_allclose(survival[:, :3], [curve(ends) for curve in curves], atol=1e-6)


def test_more_genes_than_cases_is_at_a_minimum(rng):
    """The gradient in the space of all genes is zero, so the row space lost nothing."""
    genes, time, event = rng.normal(size=(25, 200)), rng.exponential(size=25), rng.integers(0, 2, 25)
    event[0] = 1
    model = build(200, 4, "survival", strength=0.2)
    model.fit(batch_of(genes), Targets(time=torch.from_numpy(time), event=torch.from_numpy(event)), None)
    beta = model.weight.detach().numpy()[0]

    def loss(b):
        return cox_loss(genes @ b, time, event) + 0.2 * 200 / 2 * b @ b

    for direction in (rng.normal(size=200), np.eye(200)[7]):
        slope = (loss(beta + 1e-5 * direction) - loss(beta - 1e-5 * direction)) / 2e-5
        assert abs(slope) < 1e-4 * np.abs(direction).sum()


def test_cox_loss_and_its_slope_by_hand():
    """Risk 0, ln 2, ln 3; the first two die together at time 1 (Breslow), the last is censored at 2."""
    risk, time, event = np.log([1.0, 2.0, 3.0]), np.array([1.0, 1.0, 2.0]), np.array([1, 1, 0])
    assert cox_loss(risk, time, event) == pytest.approx(2 * np.log(6) - np.log(2))
    sets = RiskSets(time, event)
    np.testing.assert_allclose(sets.deaths @ sets.shares(risk) - sets.event, [2 / 6 - 1, 4 / 6 - 1, 6 / 6])
    assert cox_loss(risk, time, np.zeros(3)) == 0


def test_cox_slope_against_finite_differences(rng):
    risk, time, event = rng.normal(size=12), rng.integers(1, 6, 12).astype(float), rng.integers(0, 2, 12)
    sets = RiskSets(time, event)
    slope = sets.deaths @ sets.shares(risk) - sets.event
    for case, side in enumerate(np.eye(12) * 1e-6):
        numeric = (cox_loss(risk + side, time, event) - cox_loss(risk - side, time, event)) / 2e-6
        assert numeric == pytest.approx(slope[case], rel=1e-6, abs=1e-8)


def test_cox_survives_extreme_values():
    x = np.array([[500.0], [-500.0], [0.0]])
    assert np.isfinite(fit_cox(x, np.array([1.0, 2.0, 3.0]), np.array([1, 1, 0]), 0.01)).all()


def test_survival_before_the_first_event_is_one(rng):
    genes, time = rng.normal(size=(10, 3)), np.arange(5.0, 15.0)
    model = build(3, 2, "survival", strength=1.0)
    model.fit(batch_of(genes), Targets(time=torch.from_numpy(time), event=torch.ones(10, dtype=torch.int64)), None)
    risk, survival = model.outcome(model(batch_of(genes)).logits.detach(), Intervals((4.0,), 14.0))
    assert (survival[:, 0] == 1).all() and (survival[:, 1] < 1).all()
    assert (np.argsort(risk.numpy()) == np.argsort(-survival[:, 1].numpy())).all()


def test_strength_is_chosen_by_the_validation_loss(rng):
    signal = rng.normal(size=(200, 10))
    codes = (signal[:, 0] + 0.1 * rng.normal(size=200) > 0).astype(int)
    train, val = slice(0, 60), slice(60, 200)
    parts = [(batch_of(signal[s]), Targets(label=torch.from_numpy(codes[s]))) for s in (train, val)]
    strong, noise = build(10, 2, "classification"), build(10, 2, "classification")
    rows, notes = strong.fit(*parts[0], parts[1])
    assert [row["strength"] for row in rows] == list(STRENGTHS)
    best = min(rows, key=lambda row: row["val_loss"])["strength"]
    assert notes == [f"strength {best:g} chosen by the validation loss"]
    shuffled = Targets(label=torch.from_numpy(rng.permutation(codes[val])))
    noisy_rows, _ = noise.fit(*parts[0], (parts[1][0], shuffled))
    assert min(noisy_rows, key=lambda row: row["val_loss"])["strength"] > best
    _, said = build(10, 2, "classification").fit(*parts[0], None)
    assert said == ["strength 0.2: there is no validation case to choose it by"]


def test_state_loads_into_a_fresh_model(rng):
    genes, time, event = rng.normal(size=(12, 3)), rng.exponential(size=12), np.ones(12, dtype=np.int64)
    model = build(3, 4, "survival", strength=1.0)
    model.fit(batch_of(genes), Targets(time=torch.from_numpy(time), event=torch.from_numpy(event)), None)
    fresh = build(3, 4, "survival", strength=1.0)
    fresh.load_state_dict(model.state_dict())
    assert len(fresh.baseline_time) == 12
    for a, b in zip(
        *(m.outcome(m(batch_of(genes)).logits, Intervals((0.5,), 2.0)) for m in (model, fresh)), strict=True
    ):
        assert torch.equal(a, b)
