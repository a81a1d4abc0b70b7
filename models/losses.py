"""The two task losses, each with what it was fitted on: class weights, or nothing but the intervals."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from models.batch import Targets

SMALLEST_PROBABILITY = 1e-7


def fit_class_weights(codes: np.ndarray, classes: int) -> np.ndarray:
    """Largest class count over each class's count, float64 [classes], from training cases; 0 for an absent class."""
    counts = np.bincount(codes, minlength=classes)
    return np.divide(counts.max(), counts, out=np.zeros(classes), where=counts > 0)


def cross_entropy(
    logits: Tensor, label: Tensor, weight: Tensor | None = None, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Class-weighted cross-entropy as (sum w_y l, sum w_y): the loss is their ratio, over any number of batches.

    With `smoothing` s, a case's l is (1 - s) (-ln p_y) + s times the mean over classes of -ln p_c.
    """
    losses = nn.functional.cross_entropy(logits, label, reduction="none", label_smoothing=smoothing)
    weights = torch.ones_like(losses) if weight is None else weight.to(losses)[label]
    return (weights * losses).sum(), weights.sum()


def interval_likelihood(logits: Tensor, interval: Tensor, event: Tensor, alpha: float = 0.0) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of discrete-time survival as (sum, cases) (subspace specification 7).

    With hazards h = sigmoid(logits), S_k = prod_{j <= k}(1 - h_j), S_{-1} = 1: an event in interval y costs
    -ln S_{y-1} - ln h_y, a censored case -ln S_y; every argument is clamped below at 1e-7. `alpha` in [0, 1) lowers the
    weight of censored cases.

    Parameters
    ----------
    logits : [samples, bins]; interval : int64 [samples]; event : int64 [samples], 1 = event
    """
    hazard = torch.sigmoid(logits)
    survival = torch.cumprod(1 - hazard, dim=1)
    padded = torch.cat([torch.ones_like(survival[:, :1]), survival], dim=1)  # S_{-1} first
    at = interval[:, None]
    before, after, now = (_log(v.gather(1, i)) for v, i in ((padded, at), (padded, at + 1), (hazard, at)))
    died = event.to(logits)
    uncensored = -died * (before + now)
    censored = -(1 - died) * after
    losses = (1 - alpha) * (censored + uncensored) + alpha * uncensored
    return losses.sum(), died.new_tensor(float(len(died)))


def _log(probability: Tensor) -> Tensor:
    return probability.squeeze(1).clamp(min=SMALLEST_PROBABILITY).log()


class Objective:
    """The task's loss on a model's logits, as a (numerator, denominator) pair that adds up over batches."""

    def __init__(self, kind: str, class_weights: Tensor | None = None, label_smoothing: float = 0.0) -> None:
        self.kind = kind
        self.class_weights = class_weights
        self.label_smoothing = label_smoothing

    def __call__(self, logits: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        if self.kind == "classification":
            assert targets.label is not None
            return cross_entropy(logits, targets.label, self.class_weights, self.label_smoothing)
        assert targets.interval is not None and targets.event is not None
        return interval_likelihood(logits, targets.interval, targets.event)
