"""Genes alone, few of them: elastic-net logistic or Cox regression, the penalty chosen inside the training cases.

Source: Zou and Hastie 2005; Simon et al. 2011 for Cox regression, by scikit-survival.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy.special import log_softmax
from sksurv.linear_model import CoxnetSurvivalAnalysis
from sksurv.util import Surv

from models.batch import Batch, Targets
from models.linear import Linear, RiskSets, cox_loss, outcome_of
from models.logistic_path import COARSE, FINE, LogisticPath
from models.losses import fit_class_weights
from models.params import WHERE, check_range
from pipeline.contracts.errors import InputError
from pipeline.contracts.tasks import CLASSIFICATION


@dataclass(frozen=True)
class ElasticNetConfig:
    """Beside the mean loss of the training cases stands
    ``penalty x (l1_ratio x |weights|_1 + (1 - l1_ratio) / 2 x |weights|^2)``.

    Attributes
    ----------
    l1_ratios : from near 0 (all genes) to 1 (lasso); of several the best is taken
    penalties, smallest : so many penalties, from the least that leaves no gene down to `smallest` times it
    inner_folds : of the cross-validation that chooses. It deals out training patients, by class or event. The genes
        were selected and scaled on all of them before
    balanced : weight classes by the inverse of their frequency among training cases
    """

    l1_ratios: Sequence[float] = (0.5,)
    penalties: int = 20
    smallest: float = 0.02
    inner_folds: int = 5
    balanced: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.l1_ratios, (int, float)) or not self.l1_ratios:
            raise InputError(f"{WHERE} params", f"l1_ratios is {self.l1_ratios!r}, expected a list.", "use [0.5].")
        object.__setattr__(self, "l1_ratios", tuple(self.l1_ratios))
        for ratio in self.l1_ratios:
            check_range("l1_ratios", ratio, 0.01, 1)
        check_range("penalties", self.penalties, 1, 1000, integer=True)
        check_range("smallest", self.smallest, 1e-6, 1)
        check_range("inner_folds", self.inner_folds, 2, 100, integer=True)


class ElasticNet(Linear):
    """logits = genes W' + b with most of W zero; survival as in `linear`. Validation cases choose nothing."""

    name = "elastic-net"
    Config = ElasticNetConfig
    config: ElasticNetConfig

    def fit(
        self, batch: Batch, targets: Targets, validation: tuple[Batch, Targets] | None
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """Choose by cross-validation within the training cases, then fit on all of them.

        Returns a history row per l1_ratio and penalty, and notes.
        """
        columns = self.columns(batch).cpu().numpy()
        problem = self._problem(columns, targets)
        patient = None if targets.patient is None else targets.patient.cpu().numpy()
        inner = dealt(problem.groups, self.config.inner_folds, patient)
        rows = [row for ratio in self.config.l1_ratios for row in self._tried(problem, inner, ratio)]
        best, reason = self._choice(rows, inner)
        for row in rows:
            row["best"] = int(row is best)
        self._fit_final(problem, best, columns, targets)
        best["training_loss"] = self._loss(batch, targets)
        best["val_loss"] = None if validation is None else self._loss(*validation)
        used = f"{int(self.weight.any(dim=0).sum())} of {columns.shape[1]} genes"
        return rows, [f"l1_ratio {best['l1_ratio']:g}, penalty {best['penalty']:.3g}, {used}: {reason}"]

    def _penalties(self, problem: Problem, ratio: float) -> np.ndarray:
        largest = max(problem.largest(ratio), 1e-9)  # 0 where no gene differs between cases
        return largest * np.geomspace(1, self.config.smallest, self.config.penalties)

    def _tried(self, problem: Problem, inner: np.ndarray, ratio: float) -> list[dict[str, Any]]:
        """A row for each penalty: its held-out loss, and how many genes it leaves on all training cases."""
        penalties = self._penalties(problem, ratio)
        losses = cross_validated(problem, inner, ratio, penalties)
        weights, _ = problem.path(np.arange(len(inner)), ratio, penalties)
        genes = weights.any(axis=1).sum(axis=1)
        return [
            {"l1_ratio": ratio, "penalty": float(penalty), "cv_loss": loss, "genes_used": int(count)}
            for penalty, loss, count in zip(penalties, losses, genes, strict=True)
        ]

    def _choice(self, rows: list[dict[str, Any]], inner: np.ndarray) -> tuple[dict[str, Any], str]:
        """The row with the least held-out loss, of equal ones that with the larger penalty; and why."""
        if rows[0]["cv_loss"] is None:
            return rows[self.config.penalties // 2], "the middle one, as no training case can be spared to choose it"
        best = min(rows, key=lambda row: row["cv_loss"])
        reason = f"by {len(set(inner[inner >= 0]))}-fold cross-validation within the training cases"
        if best is [row for row in rows if row["l1_ratio"] == best["l1_ratio"]][-1]:
            reason += "; it is the least one tried, so a lower `smallest` may do better"
        return best, reason

    def _fit_final(self, problem: Problem, best: dict[str, Any], columns: np.ndarray, targets: Targets) -> None:
        """Take the weights at the chosen penalty, to full accuracy, from those at the larger ones."""
        penalties = self._penalties(problem, best["l1_ratio"])
        weights, biases = problem.path(
            np.arange(len(columns)), best["l1_ratio"], penalties[penalties >= best["penalty"]], FINE
        )
        self.take(weights[-1], biases[-1])
        if self.kind != CLASSIFICATION:
            self.take_baseline(columns @ weights[-1][0] + biases[-1][0], *outcome_of(targets))

    def _problem(self, columns: np.ndarray, targets: Targets) -> Problem:
        if self.kind != CLASSIFICATION:
            return Times(columns, *outcome_of(targets))
        assert targets.label is not None
        return Classes(columns, targets.label.cpu().numpy(), len(self.bias), self.config.balanced)


def dealt(groups: np.ndarray, folds: int, patient: np.ndarray | None = None) -> np.ndarray:
    """Inner fold of each case, each group spread evenly; -1 for the only one of its group, never held out.

    Cases of one `patient` share a fold; she counts for the group of her first case, and is never held out where she has
    all cases of a group.
    """
    if patient is not None:
        _, first, member = np.unique(patient, return_index=True, return_inverse=True)
        inner = dealt(groups[first], folds)[member]
        for group in np.unique(groups):
            if len(set(inner[groups == group])) == 1:
                inner[np.isin(member, member[groups == group])] = -1
        return inner
    inner, next_fold = np.full(len(groups), -1), 0
    rng = np.random.default_rng(0)
    for group in np.unique(groups):
        members = rng.permutation(np.flatnonzero(groups == group))
        if len(members) > 1:
            inner[members] = (next_fold + np.arange(len(members))) % folds
            next_fold += len(members)
    return inner


class Problem(Protocol):
    """The loss of one task over all training cases; `groups` are to be spread over inner folds."""

    groups: np.ndarray

    def largest(self, ratio: float) -> float:
        """The least penalty that leaves no gene."""

    def path(
        self, cases: np.ndarray, ratio: float, penalties: np.ndarray, tolerance: float = COARSE
    ) -> tuple[np.ndarray, np.ndarray]:
        """Weights [penalties, outputs, columns] and biases [penalties, outputs], learnt from these cases alone.

        The tolerance is that of the last penalty.
        """

    def held_out(self, cases: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> tuple[float, float]:
        """Summed loss of the cases that are not among these, and what to divide it by."""


def cross_validated(problem: Problem, inner: np.ndarray, ratio: float, penalties: np.ndarray) -> list[float | None]:
    """Held-out loss at each penalty; None where no case may be held out."""
    total, count = np.zeros(len(penalties)), 0.0
    for fold in np.unique(inner[inner >= 0]):
        cases = np.flatnonzero(inner != fold)
        weights, biases = problem.path(cases, ratio, penalties)
        parts = [problem.held_out(cases, weight, bias) for weight, bias in zip(weights, biases, strict=True)]
        total += [part[0] for part in parts]
        count += parts[0][1]
    return (total / count).tolist() if count else [None] * len(penalties)


class Classes:
    """Weighted cross-entropy."""

    def __init__(self, columns: np.ndarray, codes: np.ndarray, classes: int, balanced: bool) -> None:
        self.columns, self.groups = columns, codes
        self.weight = fit_class_weights(codes, classes)[codes] if balanced else np.ones(len(codes))

    def largest(self, ratio: float) -> float:
        return LogisticPath(self.columns, self.groups, self.weight, ratio).largest

    def path(
        self, cases: np.ndarray, ratio: float, penalties: np.ndarray, tolerance: float = COARSE
    ) -> tuple[np.ndarray, np.ndarray]:
        path = LogisticPath(self.columns[cases], self.groups[cases], self.weight[cases], ratio)
        fits = [path.fit(penalty) for penalty in penalties[:-1]] + [path.fit(penalties[-1], tolerance)]
        weights, biases = zip(*fits, strict=True)
        return np.stack(weights), np.stack(biases)

    def held_out(self, cases: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> tuple[float, float]:
        others = np.setdiff1d(np.arange(len(self.groups)), cases)
        shares = log_softmax(self.columns[others] @ weight.T + bias, axis=1)
        losses = -shares[np.arange(len(others)), self.groups[others]]
        return float(self.weight[others] @ losses), float(self.weight[others].sum())


class Times:
    """Negative log partial likelihood per case, ties after Breslow."""

    def __init__(self, columns: np.ndarray, time: np.ndarray, event: np.ndarray) -> None:
        self.columns, self.time, self.groups = columns, time, (event == 1).astype(int)

    def largest(self, ratio: float) -> float:
        sets = RiskSets(self.time, self.groups)
        expected = sets.deaths @ sets.shares(np.zeros(len(self.time)))
        return float(np.abs(self.columns.T @ (expected - sets.event)).max()) / len(self.time) / ratio

    def path(
        self, cases: np.ndarray, ratio: float, penalties: np.ndarray, tolerance: float = COARSE
    ) -> tuple[np.ndarray, np.ndarray]:
        columns = self.columns[cases]
        net = CoxnetSurvivalAnalysis(alphas=penalties, l1_ratio=ratio, tol=tolerance, max_iter=1_000_000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # no gene at a large penalty is no surprise
            net.fit(columns, Surv.from_arrays(self.groups[cases] == 1, self.time[cases]))
        weights = net.coef_.T[:, None, :]
        return weights, -weights @ columns.mean(axis=0)

    def held_out(self, cases: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> tuple[float, float]:
        """What the held-out cases add to the partial likelihood (Verweij and van Houwelingen 1993)."""
        risk, event = self.columns @ weight[0], self.groups
        added = cox_loss(risk, self.time, event) - cox_loss(risk[cases], self.time[cases], event[cases])
        return added, float(event.sum() - event[cases].sum())
