"""The elastic net against scikit-learn's own, against its conditions of a minimum, and its choice of the penalty."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from models import elastic_net
from models.batch import Batch, Sizes, Targets
from models.elastic_net import ElasticNet, ElasticNetConfig, Times, cross_validated, dealt
from models.linear import RiskSets, cox_loss
from models.logistic_path import FINE, LogisticPath
from models.survival import Intervals
from pipeline.contracts.errors import InputError


def batch_of(genes: np.ndarray) -> Batch:
    present = torch.ones(len(genes), dtype=torch.bool)
    return Batch(tuple(map(str, range(len(genes)))), present, present, genes={"all": torch.from_numpy(genes)})


def build(genes: int, outputs: int, kind: str, **params) -> ElasticNet:
    return ElasticNet(ElasticNetConfig(**params), Sizes(0, {"all": genes}, outputs, kind))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize(("classes", "ratio"), [(2, 0.3), (3, 0.9)])
def test_path_equals_scikit_learn(rng, classes, ratio):
    x, codes = rng.normal(size=(40, 12)), rng.integers(0, classes, 40)
    codes[:classes] = range(classes)
    weight = rng.uniform(0.5, 2.0, 40)
    path = LogisticPath(x, codes, weight, ratio)
    assert not path.fit(path.largest, FINE)[0].any()
    for penalty in path.largest * np.array([0.4, 0.1]):
        w, b = path.fit(penalty, FINE)
        assert w.any()
        reference = LogisticRegression(
            C=1 / (penalty * 40), l1_ratio=ratio, solver="saga", tol=1e-8, max_iter=100_000, random_state=0
        ).fit(x, codes, sample_weight=weight / weight.mean())
        logits = x @ w.T + b
        ours = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(ours, reference.predict_proba(x), atol=2e-5)
        np.testing.assert_allclose(w[1:] if classes == 2 else w, reference.coef_, atol=1e-4)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("classes", [2, 3])
def test_more_genes_than_cases_is_at_a_minimum(rng, classes, strict):
    """Screening lost no gene, even if it is made too strict: where a weight is 0 the slope is within the penalty,
    elsewhere it balances it."""
    x, codes = rng.normal(size=(30, 100)) + rng.normal(size=(30, 1)), np.arange(30) % classes
    aim = np.eye(classes)[codes]
    largest = np.abs((aim.mean(axis=0) - aim).T @ x).max() / 30 / 0.6
    path = LogisticPath(x, codes, np.ones(30), 0.6)
    for penalty in largest * np.geomspace(1, 0.2, 4):
        path._before = 0.0 if strict else path._before
        w, b = path.fit(penalty, FINE)
        logits = x @ w.T + b
        share = np.exp(logits - logits.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        slope = (share - np.eye(classes)[codes]).T @ x / 30 + 0.4 * penalty * w
        rows = [1] if classes == 2 else range(classes)
        used = w[rows] != 0
        np.testing.assert_allclose(slope[rows][used], -0.6 * penalty * np.sign(w[rows][used]), atol=2e-5)
        assert np.abs(slope[rows][~used]).max() <= 0.6 * penalty * (1 + 1e-5)
    assert used.any() and not used.all()


def test_cox_path_is_at_a_minimum(rng):
    x, time, event = rng.normal(size=(40, 60)), rng.integers(1, 15, 40).astype(float), rng.integers(0, 2, 40)
    times, sets = Times(x, time, event), RiskSets(time, event)
    penalties = times.largest(0.5) * np.array([1.0, 0.5, 0.15])
    weights, biases = times.path(np.arange(40), 0.5, penalties, FINE)
    assert not weights[0].any() and weights[1].any()
    for penalty, (beta,), bias in zip(penalties, weights, biases, strict=True):
        slope = x.T @ (sets.deaths @ sets.shares(x @ beta) - sets.event) / 40 + 0.5 * penalty * beta
        used = beta != 0
        np.testing.assert_allclose(slope[used], -0.5 * penalty * np.sign(beta[used]), rtol=1e-4)
        assert np.abs(slope[~used]).max() <= 0.5 * penalty * (1 + 1e-4)
        assert (x @ beta + bias).mean() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("kind", ["classification", "survival"])
def test_few_genes_are_found_and_the_choice_is_recorded(rng, kind):
    genes = rng.normal(size=(80, 40))
    signal = 2 * genes[:, 3] - 2 * genes[:, 8]
    targets = Targets(label=torch.from_numpy((signal > 0).astype(int)))
    if kind == "survival":
        targets = Targets(time=torch.from_numpy(np.exp(-signal)), event=torch.ones(80, dtype=torch.int64))
    model = build(40, 2 if kind == "classification" else 4, kind, l1_ratios=[0.5, 1.0], penalties=8)
    rows, (note,) = model.fit(batch_of(genes), targets, None)
    assert len(rows) == 16 and sum(row["best"] for row in rows) == 1
    best = next(row for row in rows if row["best"])
    assert best["cv_loss"] == min(row["cv_loss"] for row in rows) and best["val_loss"] is None
    assert f"l1_ratio {best['l1_ratio']:g}, penalty {best['penalty']:.3g}" in note and "5-fold" in note
    size = model.weight.abs().sum(dim=0)
    assert set(size.topk(2).indices.tolist()) == {3, 8} and 2 <= int((size > 0).sum()) < 40
    if kind == "survival":
        risk, survival = model.outcome(model(batch_of(genes)).logits.detach(), Intervals((0.5, 1.0), 2.0))
        assert np.corrcoef(risk, signal)[0, 1] > 0.9 and ((survival[:, 1:] <= survival[:, :-1]).all())


def test_the_inner_folds_decide_and_each_is_judged_by_models_without_it(rng):
    """The held-out losses by hand; validation cases and their labels change nothing."""
    genes, time = rng.normal(size=(24, 5)), rng.exponential(size=24)
    event = (np.arange(24) % 3 > 0).astype(int)
    problem, inner = Times(genes, time, event), dealt(event, 3)
    penalties = np.array([0.3, 0.05])
    total = np.zeros(2)
    for fold in range(3):
        kept = np.flatnonzero(inner != fold)
        for k, (beta,) in enumerate(problem.path(kept, 0.5, penalties)[0]):
            total[k] += cox_loss(genes @ beta, time, event) - cox_loss(genes[kept] @ beta, time[kept], event[kept])
    np.testing.assert_allclose(cross_validated(problem, inner, 0.5, penalties), total / event.sum())
    targets = Targets(time=torch.from_numpy(time), event=torch.from_numpy(event))
    states = []
    for validation in (None, (batch_of(genes[::-1].copy()), targets)):
        model = build(5, 4, "survival", inner_folds=3)
        model.fit(batch_of(genes), targets, validation)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_dealing_spreads_groups_and_spares_the_only_one():
    groups = np.array([0] * 7 + [1] * 4 + [2] + [3] * 2)
    inner = dealt(groups, 3)
    assert inner[11] == -1 and (np.delete(inner, 11) >= 0).all()
    for group in (0, 1, 3):
        counts = np.bincount(inner[groups == group], minlength=3)
        assert counts.max() - counts.min() <= 1
    assert len(set(inner[groups == 3])) == 2  # so one of the two always teaches


def test_cases_of_a_patient_are_held_out_together(rng):
    patient = rng.integers(0, 12, 40)
    groups = (rng.random(40) < 0.4).astype(int)
    inner = dealt(groups, 3, patient)
    assert all(len(set(inner[patient == p])) == 1 for p in np.unique(patient)) and set(inner) == {0, 1, 2}
    np.testing.assert_array_equal(dealt(groups, 3, np.arange(40)), dealt(groups, 3))
    groups, patient = np.array([0, 0, 1, 0, 0, 1]), np.array([5, 5, 2, 9, 2, 2])  # all of group 1 is one patient's
    assert dealt(groups, 2, patient).tolist()[2:] == [-1, dealt(groups, 2, patient)[3], -1, -1]


def test_the_inner_folds_of_a_fit_are_those_of_patients(rng, monkeypatch):
    asked = []
    monkeypatch.setattr(elastic_net, "dealt", lambda *given: asked.append(given) or dealt(*given))
    targets = Targets(label=torch.arange(12) % 2, patient=torch.arange(12) // 4)
    build(6, 2, "classification", penalties=3).fit(batch_of(rng.normal(size=(12, 6))), targets, None)
    np.testing.assert_array_equal(asked[0][2], np.arange(12) // 4)


def test_where_nothing_can_be_spared_it_is_said(rng):
    model = build(6, 3, "classification", penalties=5)
    rows, (note,) = model.fit(batch_of(rng.normal(size=(3, 6))), Targets(label=torch.tensor([2, 0, 1])), None)
    assert "the middle one" in note and [row["best"] for row in rows] == [0, 0, 1, 0, 0]
    assert all(row["cv_loss"] is None for row in rows)


@pytest.mark.parametrize("last", [False, True])
def test_one_event_and_genes_without_any_difference(rng, last):
    """At the last time nobody else is at risk, so that no gene can matter; a constant gene never does."""
    genes, time = rng.normal(size=(8, 3)), np.arange(1.0, 9.0)
    genes[:, 1] = 0
    event = (np.arange(8) == (7 if last else 2)).astype(int)
    model = build(3, 2, "survival", penalties=3)
    model.fit(batch_of(genes), Targets(time=torch.from_numpy(time), event=torch.from_numpy(event)), None)
    assert torch.isfinite(model.weight).all() and model.weight[0, 1] == 0
    assert bool(model.weight.any()) != last and len(model.baseline_time) == 1


def test_settings_are_checked():
    for params in ({"l1_ratios": 0.5}, {"l1_ratios": []}, {"l1_ratios": [0]}, {"inner_folds": 1}, {"smallest": 2}):
        with pytest.raises(InputError):
            ElasticNetConfig(**params)
