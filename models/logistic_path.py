"""Elastic-net logistic regression along a path of penalties, float64.

Proximal Newton (Friedman, Hastie, Tibshirani 2010; Lee, Sun, Saunders 2014): the loss is replaced by a weighted sum of
squares, one class after the other, whose elastic net scikit-learn solves by coordinate descent; its own logistic
regression (SAGA) takes minutes where this takes seconds. Genes that cannot enter at the next penalty are left out
beforehand (strong rules, Tibshirani et al. 2012), and taken back where the conditions of the minimum say so.
"""

from __future__ import annotations

import warnings

import numpy as np
from scipy.special import log_softmax, logsumexp
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import enet_path

STEPS = 500
COARSE, FINE = 1e-7, 1e-11  #: tolerances, of the loss relative to that of no gene at all
SMALLEST_WEIGHT = 1e-5


class LogisticPath:
    """Minimisers of mean weighted cross-entropy + penalty x (l1_ratio x |W|_1 + (1 - l1_ratio) / 2 x |W|^2).

    The intercept is free. Two classes have one row of weights, for the second class; more have one each.

    Parameters
    ----------
    x : float64 [cases, columns]
    codes : int [cases], every class present
    weight : float64 [cases], importance of each case; the mean is taken to be 1

    Attributes
    ----------
    largest : the least penalty at which no column has a weight; fit falling ones from there
    """

    def __init__(self, x: np.ndarray, codes: np.ndarray, weight: np.ndarray, l1_ratio: float) -> None:
        self.x = np.asfortranarray(x, dtype=np.float64)
        classes = int(codes.max()) + 1
        self.rows = [1] if classes == 2 else list(range(classes))
        self.aim = (codes[:, None] == np.arange(classes)).astype(float)
        self.weight, self.l1_ratio = weight / weight.mean(), l1_ratio
        self.coefficients = np.zeros((classes, x.shape[1]))
        shares = self.weight @ self.aim / len(codes)
        self.intercepts = np.log(shares) - np.log(shares[0] if classes == 2 else 1.0)
        self._scale = self._loss(self._logits())
        self.largest = self._before = float(np.abs(self._gradient()).max()) / l1_ratio

    def fit(self, penalty: float, tolerance: float = COARSE) -> tuple[np.ndarray, np.ndarray]:
        """Weights [classes, columns] and intercepts [classes], started from those of the penalty fitted before."""
        used = self.coefficients.any(axis=0)
        active = used | (np.abs(self._gradient()).max(axis=0) >= self.l1_ratio * (2 * penalty - self._before))
        while True:
            self._descend(penalty, np.flatnonzero(active), tolerance)
            wrong = (np.abs(self._gradient()).max(axis=0) > self.l1_ratio * penalty * (1 + 1e-6)) & ~active
            if not wrong.any():
                break
            active |= wrong
        self._before = penalty
        return self.coefficients.copy(), self.intercepts.copy()

    def _descend(self, penalty: float, active: np.ndarray, tolerance: float) -> None:
        x = np.asfortranarray(self.x[:, active])
        current = self._objective(penalty)
        for _ in range(STEPS):
            last = current
            for row in self.rows:
                current = self._step(row, x, active, penalty, current)
            if last - current <= tolerance * self._scale:
                return

    def _step(self, row: int, x: np.ndarray, active: np.ndarray, penalty: float, current: float) -> float:
        """Move one class to the minimum of its quadratic model, or as far towards it as the loss falls."""
        logits = self._logits()
        share = np.exp(log_softmax(logits, axis=1)[:, row])
        spread = np.maximum(share * (1 - share), SMALLEST_WEIGHT)
        response = logits[:, row] + (self.aim[:, row] - share) / spread
        coefficients, intercept = self.coefficients[row, active], self.intercepts[row]
        aim, start = self._least_squares(x, response, self.weight * spread, penalty, coefficients)
        size = 1.0
        while size > 1e-6:
            self.coefficients[row, active] = coefficients + size * (aim - coefficients)
            self.intercepts[row] = intercept + size * (start - intercept)
            found = self._objective(penalty)
            if found <= current:
                return found
            size /= 2
        self.coefficients[row, active], self.intercepts[row] = coefficients, intercept
        return current

    def _least_squares(
        self, x: np.ndarray, response: np.ndarray, weight: np.ndarray, penalty: float, start: np.ndarray
    ) -> tuple[np.ndarray, float]:
        share = weight / weight.sum()
        centre, level = share @ x, float(share @ response)
        if not x.shape[1]:
            return start, level
        root = np.sqrt(share * len(share))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the loop around it goes on until the loss is still
            _, found, _ = enet_path(
                (x - centre) * root[:, None], (response - level) * root, l1_ratio=self.l1_ratio, precompute=False,
                alphas=[penalty / weight.mean()], coef_init=start, check_input=False, tol=1e-8, max_iter=10_000,
            )  # fmt: skip
        return found[:, 0], level - float(centre @ found[:, 0])

    def _logits(self) -> np.ndarray:
        used = self.coefficients.any(axis=0)
        return self.x[:, used] @ self.coefficients[:, used].T + self.intercepts

    def _gradient(self) -> np.ndarray:
        """Of the loss without penalty by the weights, [rows, columns]."""
        logits = self._logits()
        difference = np.exp(log_softmax(logits, axis=1)) - self.aim
        return (difference * self.weight[:, None]).T[self.rows] @ self.x / len(self.x)

    def _loss(self, logits: np.ndarray) -> float:
        losses = logsumexp(logits, axis=1) - (logits * self.aim).sum(axis=1)
        return float(self.weight @ losses) / len(losses)

    def _objective(self, penalty: float) -> float:
        size = self.l1_ratio * np.abs(self.coefficients).sum() + (1 - self.l1_ratio) / 2 * (self.coefficients**2).sum()
        return self._loss(self._logits()) + penalty * float(size)
