"""Metrics of predictions, each for any number of weightings of the cases at once, so that a bootstrap is one call.

A weighting gives every case how often it was drawn: ones for the value itself, a row per resample for its interval.

Scores of different folds come from different models and are not comparable. AUC and C-index are therefore made of
pairs within a fold only, and the pairs of all folds are pooled: a fold counts by its comparable pairs, and one without
any adds nothing. Accuracy and the other counts pool the cases of all folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.batch import Targets
from models.survival import (
    NoComparablePairError,
    comparable,
    concordance,
    concordant,
    risk_of_survival,
    survival_of_hazards,
)

CLASSIFICATION_METRICS = ("auc", "balanced_accuracy", "accuracy", "macro_f1", "sensitivity", "specificity")
SURVIVAL_METRICS = ("c_index",)


@dataclass(frozen=True)
class Pairs:
    """Pairs of one fold: `rows` [n] and `columns` [m] are case numbers; `won` [n, m] is 1, 0.5 or 0 for a pair in the
    right, tied or wrong order, 0 for one that does not count; `counted` [n, m] is bool."""

    rows: np.ndarray
    columns: np.ndarray
    won: np.ndarray
    counted: np.ndarray


def pooled(pairs: Sequence[Pairs], weights: np.ndarray) -> np.ndarray:
    """Share of pairs in the right order over all folds, float64 [weightings]; NaN where no pair counts.

    Parameters
    ----------
    weights : [weightings, cases]; a pair weighs the product of its cases' weights
    """
    won, counted = np.zeros(len(weights)), np.zeros(len(weights))
    for part in pairs:
        left, right = weights[:, part.rows].astype(np.float64), weights[:, part.columns].astype(np.float64)
        won += np.einsum("rm,rm->r", left @ part.won, right)
        counted += np.einsum("rm,rm->r", left @ part.counted.astype(np.float64), right)
    return np.divide(won, counted, out=np.full(len(weights), np.nan), where=counted > 0)


def survival_pairs(risk: np.ndarray, time: np.ndarray, event: np.ndarray, fold: np.ndarray) -> list[Pairs]:
    """Harrell's comparable pairs of each fold (`models.survival.comparable`)."""
    parts = []
    for number in np.unique(fold):
        cases = np.flatnonzero(fold == number)
        counted = comparable(time[cases], event[cases])
        parts.append(Pairs(cases, cases, concordant(risk[cases]) * counted, counted))
    return parts


def class_pairs(score: np.ndarray, positive: np.ndarray, fold: np.ndarray) -> list[Pairs]:
    """Pairs of a case of a class with one of another class, within each fold; equal scores count one half."""
    parts = []
    for number in np.unique(fold):
        rows = np.flatnonzero((fold == number) & positive)
        columns = np.flatnonzero((fold == number) & ~positive)
        difference = score[rows][:, None] - score[columns][None, :]
        won = (difference > 0) + 0.5 * (difference == 0)
        parts.append(Pairs(rows, columns, won, np.ones(won.shape, dtype=bool)))
    return parts


def c_index(
    risk: np.ndarray, time: np.ndarray, event: np.ndarray, fold: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Harrell's C-index from pairs within folds, float64 [weightings]; higher risk means an earlier event.

    Parameters
    ----------
    risk, time, event, fold : [cases]; weights : [weightings, cases], None for one weighting of ones

    Raises
    ------
    NoComparablePairError
        No fold has a comparable pair. A single weighting without one gives NaN.
    """
    pairs = survival_pairs(risk, time, event, fold)
    if not any(part.counted.any() for part in pairs):
        raise NoComparablePairError(
            "the C-index is undefined: no fold has a case known to have had its event before another."
        )
    return pooled(pairs, _weights(weights, len(risk)))


def macro_auc(
    probability: np.ndarray, codes: np.ndarray, fold: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """One-vs-rest AUC from pairs within folds, unweighted mean over the classes that have a pair, [weightings].

    Parameters
    ----------
    probability : [cases, classes]; codes : int [cases]; fold : [cases]
    """
    weights = _weights(weights, len(codes))
    each = np.stack(
        [pooled(class_pairs(probability[:, k], codes == k, fold), weights) for k in range(probability.shape[1])]
    )
    return _mean_over_classes(each, ~np.isnan(each))


def confusion(codes: np.ndarray, predicted: np.ndarray, classes: int, weights: np.ndarray) -> np.ndarray:
    """Weighted counts, float64 [weightings, true class, predicted class]."""
    cells = np.zeros((len(codes), classes * classes))
    cells[np.arange(len(codes)), codes * classes + predicted] = 1
    return (weights @ cells).reshape(len(weights), classes, classes)


def classification_metrics(
    probability: np.ndarray,
    codes: np.ndarray,
    predicted: np.ndarray,
    fold: np.ndarray,
    weights: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """All of `CLASSIFICATION_METRICS`, each float64 [weightings].

    Per class, one against the rest: recall, specificity and F1; means over classes are unweighted. A class without a
    case in a weighting has no recall and is left out of those means; one that is neither true nor predicted is left
    out of F1's, as in scikit-learn. Sensitivity is the mean recall, the same number as balanced accuracy under the
    name that the subspace paper uses.

    Parameters
    ----------
    probability : [cases, classes]; codes, predicted : int [cases]; fold : [cases]; weights : [weightings, cases]
    """
    weights = _weights(weights, len(codes))
    counts = confusion(codes, predicted, probability.shape[1], weights)
    hit = np.einsum("rkk->rk", counts).T  # [classes, weightings], as all below
    true, called = counts.sum(axis=2).T, counts.sum(axis=1).T
    total = counts.sum(axis=(1, 2))
    recall = _ratio(hit, true)
    f1 = _ratio(2 * hit, true + called)
    specificity = _ratio(total - true - called + hit, total - true)
    balanced = _mean_over_classes(recall, true > 0)
    return {
        "auc": macro_auc(probability, codes, fold, weights),
        "balanced_accuracy": balanced,
        "accuracy": _ratio(hit.sum(axis=0), total),
        "macro_f1": _mean_over_classes(f1, true + called > 0),
        "sensitivity": balanced,
        "specificity": _mean_over_classes(specificity, (true > 0) & (true < total)),
    }


def _weights(weights: np.ndarray | None, cases: int) -> np.ndarray:
    return np.ones((1, cases)) if weights is None else weights


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.divide(top, bottom, out=np.zeros(np.broadcast(top, bottom).shape), where=bottom > 0)


def _mean_over_classes(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Mean of [classes, weightings] over the classes present in each weighting; NaN where there is none."""
    count = present.sum(axis=0)
    total = np.where(present, values, 0.0).sum(axis=0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def resamples(groups: Sequence[str], count: int, seed: int) -> np.ndarray:
    """Bootstrap over patients: how often each case is drawn, int64 [resamples, cases].

    Patients are drawn with replacement, as many as there are, each with all cases of hers. `groups` names the patient
    of each case. The same patients, count and seed give the same resamples.
    """
    patients, member = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    drawn = np.random.default_rng(seed).multinomial(
        len(patients), np.full(len(patients), 1 / len(patients)), size=count
    )
    return drawn[:, member]


def interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float, int]:
    """Percentile interval (low, high) of resampled values and the number of those that are defined."""
    defined = values[np.isfinite(values)]
    if not len(defined):
        return float("nan"), float("nan"), 0
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high), len(defined)


def selection_score(logits: Tensor, targets: Targets) -> float | None:
    """AUC or C-index of one model's validation samples, for the training record; None where undefined."""
    if targets.label is not None:
        codes = targets.label.numpy()
        value = macro_auc(logits.softmax(dim=1).numpy(), codes, np.zeros(len(codes)))[0]
        return None if np.isnan(value) else float(value)
    assert targets.time is not None and targets.event is not None
    risk = risk_of_survival(survival_of_hazards(logits)).numpy()
    try:
        return concordance(risk, targets.time.numpy(), targets.event.numpy())
    except NoComparablePairError:
        return None


def softmax(logits: Tensor) -> np.ndarray:
    """Class probabilities, float64 [samples, classes]."""
    return torch.softmax(logits.double(), dim=1).cpu().numpy()
