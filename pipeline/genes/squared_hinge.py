"""Linear support vector machines from inner products alone: as many unknowns as cases, however many genes there are.

L2 penalty, squared hinge, one machine per class against the rest (one in all for two classes), and an intercept that
is penalised like a weight: what LIBLINEAR solves (Fan et al., J Mach Learn Res 9, 1871 (2008)) as MIRROR uses it. With
weights that are a sum of cases, the optimum solves a linear system over the cases on the wrong side of their margin,
and Newton's method finds that set in a few steps (Chapelle, Neural Comput 19, 1155 (2007)).
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve

STEPS = 100
SMALLEST_GAIN = 1e-13  #: of the objective, below which a step is rounding


class Machines:
    """Machines of one problem, refitted to one kernel after another; each fit starts from the last one's margins.

    Parameters
    ----------
    codes : int [cases], classes from 0 up, two or more
    penalty : C
    """

    def __init__(self, codes: np.ndarray, penalty: float = 1.0) -> None:
        self.classes = np.unique(codes)
        positive = self.classes[1:] if len(self.classes) == 2 else self.classes
        self.signs = np.where(codes[:, None] == positive, 1.0, -1.0)
        self.penalty = penalty
        self._inside: list[np.ndarray | None] = [None] * len(positive)

    def fit(self, kernel: np.ndarray) -> np.ndarray:
        """Coefficients float64 [cases, machines] for the inner products `kernel`, float64 [cases, cases]."""
        kernel = kernel + 1.0  # the intercept is the weight of a constant 1
        found = []
        for k, before in enumerate(self._inside):
            beta, self._inside[k] = fit(kernel, self.signs[:, k], self.penalty, before)
            found.append(beta)
        return np.stack(found, axis=1)

    def predict(self, kernel: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
        """Classes int [others] of other cases, from their inner products with the training cases [others, cases]."""
        scores = (kernel + 1.0) @ coefficients
        place = (scores[:, 0] > 0).astype(int) if scores.shape[1] == 1 else scores.argmax(axis=1)
        return self.classes[place]


def fit(
    kernel: np.ndarray, signs: np.ndarray, penalty: float, inside: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """One machine: coefficients float64 [cases] of the optimum, and the cases inside their margin, bool [cases].

    `inside` is a guess of them; without it all cases are.
    """
    inside = np.ones(len(signs), bool) if inside is None else inside
    beta = _solve(kernel, signs, penalty, inside)
    scores = kernel @ beta
    objective = _objective(beta, scores, signs, penalty)
    for _ in range(STEPS):
        wrong = signs * scores < 1
        if (wrong == inside).all():
            break
        inside = wrong
        towards = _solve(kernel, signs, penalty, inside)
        moved, length = kernel @ towards, 1.0
        while True:  # halve the step until it helps
            new_beta, new_scores = beta + length * (towards - beta), scores + length * (moved - scores)
            new = _objective(new_beta, new_scores, signs, penalty)
            if new < objective or length < 1e-9:
                break
            length /= 2
        gain = objective - new
        if gain > 0:
            beta, scores, objective = new_beta, new_scores, new
        if gain <= SMALLEST_GAIN * abs(objective):
            break
    return beta, inside


def _solve(kernel: np.ndarray, signs: np.ndarray, penalty: float, inside: np.ndarray) -> np.ndarray:
    """Coefficients of the quadratic problem in which exactly the cases `inside` count."""
    rows = np.flatnonzero(inside)
    beta = np.zeros(len(signs))
    if len(rows):
        system = kernel[np.ix_(rows, rows)]
        system[np.diag_indices_from(system)] += 0.5 / penalty
        beta[rows] = cho_solve(cho_factor(system, lower=True, overwrite_a=True), signs[rows])
    return beta


def _objective(beta: np.ndarray, scores: np.ndarray, signs: np.ndarray, penalty: float) -> float:
    return float(0.5 * beta @ scores + penalty * (np.maximum(0, 1 - signs * scores) ** 2).sum())
