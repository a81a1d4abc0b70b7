"""Metrics against scikit-learn, scikit-survival and hand-worked cases; the bootstrap against one written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from sksurv.metrics import concordance_index_censored

from models.batch import Targets
from models.metrics import c_index, classification_metrics, interval, macro_auc, resamples, selection_score
from models.survival import NoComparablePairError


def random_classes(seed: int, n: int = 60, classes: int = 4):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, classes, n)
    codes[:classes] = np.arange(classes)
    probability = np.round(rng.dirichlet(np.ones(classes), n) + 0.5 * np.eye(classes)[codes], 2)  # ties on purpose
    probability /= probability.sum(axis=1, keepdims=True)
    return probability, codes, probability.argmax(axis=1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("classes", [2, 4])
def test_against_scikit_learn(seed, classes):
    probability, codes, predicted = random_classes(seed, classes=classes)
    ours = {k: v[0] for k, v in classification_metrics(probability, codes, predicted, np.zeros(len(codes))).items()}
    truth = np.eye(classes)[codes]
    assert ours["auc"] == pytest.approx(sk.roc_auc_score(truth, probability, average="macro"))
    assert ours["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(codes, predicted))
    assert ours["sensitivity"] == pytest.approx(sk.recall_score(codes, predicted, average="macro"))
    assert ours["accuracy"] == pytest.approx(sk.accuracy_score(codes, predicted))
    assert ours["macro_f1"] == pytest.approx(sk.f1_score(codes, predicted, average="macro"))
    tables = sk.multilabel_confusion_matrix(codes, predicted)
    assert ours["specificity"] == pytest.approx(np.mean([t[0, 0] / t[0].sum() for t in tables]))


def test_specification_vector():
    codes = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 3])
    predicted = np.array([0, 0, 1, 2, 1, 1, 0, 2, 3, 3])
    out = classification_metrics(np.eye(4)[predicted], codes, predicted, np.zeros(10))
    got = [out[name][0] for name in ("accuracy", "macro_f1", "sensitivity", "specificity")]
    assert got == pytest.approx([0.6, 0.601190, 0.666667, 0.863591], abs=5e-7)


def test_a_missing_class_is_left_out_of_means():
    codes, predicted = np.array([0, 0, 2, 2]), np.array([0, 2, 2, 2])
    probability = np.eye(3)[predicted]
    out = classification_metrics(probability, codes, predicted, np.zeros(4))
    assert out["balanced_accuracy"][0] == pytest.approx(0.75)
    assert out["macro_f1"][0] == pytest.approx(sk.f1_score(codes, predicted, average="macro"))
    assert out["auc"][0] == pytest.approx(0.75)


def test_one_class_only_has_no_auc():
    assert np.isnan(macro_auc(np.ones((3, 2)) / 2, np.zeros(3, int), np.zeros(3))[0])


class TestFolds:
    def test_scores_of_different_folds_are_never_compared(self):
        """Each fold is perfect on a scale of its own; pooling all scores would not see it."""
        risk = np.array([1.0, 2, 3, 101, 102, 103])
        time, event, fold = np.array([3.0, 2, 1] * 2), np.ones(6, int), np.repeat([0, 1], 3)
        assert c_index(risk, time, event, fold)[0] == 1
        codes = np.array([0, 0, 1, 0, 0, 1])
        probability = np.stack([1 - risk / 200, risk / 200], axis=1)
        assert macro_auc(probability, codes, fold)[0] == 1
        assert sk.roc_auc_score(codes, probability[:, 1]) < 1

    def test_folds_weigh_by_their_pairs(self):
        rng = np.random.default_rng(0)
        n = 40
        risk, time, event = rng.normal(size=n), rng.exponential(size=n), rng.integers(0, 2, n)
        fold = np.where(np.arange(n) < 12, 0, np.where(np.arange(n) < 39, 1, 2))  # the third fold has a single case
        right = count = 0.0
        for k in (0, 1):
            at = fold == k
            value, wins, losses, ties, _ = concordance_index_censored(event[at] == 1, time[at], risk[at])
            right, count = right + wins + ties / 2, count + wins + losses + ties
            assert value
        assert c_index(risk, time, event, fold)[0] == pytest.approx(right / count)

    def test_a_fold_without_a_class_adds_nothing(self):
        probability = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
        codes, fold = np.array([0, 1, 1]), np.array([0, 0, 1])
        assert macro_auc(probability, codes, fold)[0] == 1

    def test_no_pair_anywhere(self):
        with pytest.raises(NoComparablePairError):
            c_index(np.ones(4), np.arange(4.0), np.array([0, 0, 0, 1]), np.zeros(4))


class TestBootstrap:
    def test_a_weighting_equals_repeating_the_cases(self):
        probability, codes, predicted = random_classes(9, n=30)
        rng = np.random.default_rng(1)
        fold, time, event = rng.integers(0, 3, 30), rng.exponential(size=30), rng.integers(0, 2, 30)
        weights = rng.integers(0, 4, (6, 30))
        together = classification_metrics(probability, codes, predicted, fold, weights)
        survival = c_index(probability[:, 0], time, event, fold, weights)
        for k, row in enumerate(weights):
            drawn = np.repeat(np.arange(30), row)
            alone = classification_metrics(probability[drawn], codes[drawn], predicted[drawn], fold[drawn])
            for name, value in alone.items():
                assert together[name][k] == pytest.approx(value[0], nan_ok=True), name
            expected = c_index(probability[drawn, 0], time[drawn], event[drawn], fold[drawn])[0]
            assert survival[k] == pytest.approx(expected)

    def test_patients_are_drawn_whole_and_as_many_as_there_are(self):
        groups = ["p1", "p2", "p1", "p3"]
        drawn = resamples(groups, 500, seed=3)
        assert (drawn[:, 0] == drawn[:, 2]).all()
        assert (drawn[:, [0, 1, 3]].sum(axis=1) == 3).all()
        assert drawn.mean(axis=0) == pytest.approx(np.ones(4), abs=0.15)
        assert np.array_equal(drawn, resamples(groups, 500, seed=3))
        assert not np.array_equal(drawn, resamples(groups, 500, seed=4))

    def test_interval_of_a_mean_is_the_textbook_one(self):
        rng = np.random.default_rng(5)
        correct = rng.integers(0, 2, 400)
        accuracy = classification_metrics(
            np.eye(2)[correct],
            np.ones(400, int),
            correct,
            np.zeros(400),
            resamples(list(map(str, range(400))), 2000, 0),
        )["accuracy"]
        low, high, defined = interval(accuracy)
        centre, half = correct.mean(), 1.96 * (correct.var() / 400) ** 0.5
        assert (low, high, defined) == (
            pytest.approx(centre - half, abs=0.01),
            pytest.approx(centre + half, abs=0.01),
            2000,
        )

    def test_undefined_resamples_are_left_out_and_counted(self):
        low, high, defined = interval(np.array([np.nan, 0.5, 0.5, np.nan]))
        assert (low, high, defined) == (0.5, 0.5, 2)
        assert interval(np.full(3, np.nan))[2] == 0


def test_validation_score_is_none_where_undefined():
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    assert selection_score(logits, Targets(label=torch.tensor([0, 1]))) == 1
    assert selection_score(logits, Targets(label=torch.tensor([1, 1]))) is None
    time = torch.tensor([1.0, 2.0])
    assert selection_score(logits, Targets(time=time, event=torch.tensor([0, 0]))) is None
    assert selection_score(logits, Targets(time=time, event=torch.tensor([1, 0]))) in (0.0, 1.0)
