"""Recursive feature elimination with a linear SVM and inner cross-validation: MIRROR's gene selection.

Every round fits the machine to the genes that are left and drops those of the smallest squared weight; an inner
cross-validation says how many should stay. Source: Guyon et al., Mach Learn 46, 389 (2002). The
result is that of scikit-learn's RFECV around its LinearSVC, solved to the end (but that RFECV misses ties between
accuracies that rounding has moved apart).

Cases are few and genes many, so nothing here grows with the square of the genes: the machine is fitted to the cases'
inner products, and dropping genes subtracts theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.contracts.errors import InputError
from pipeline.genes.squared_hinge import Machines

TIE = 1e-9  #: mean accuracies nearer than this are equal; they are sums of fractions


@dataclass(frozen=True)
class Elimination:
    """What stayed, and why so many.

    Parameters
    ----------
    kept : positions of the genes that stayed, sorted, int64
    sizes : numbers of genes that were tried, falling
    scores : mean inner accuracy of each
    """

    kept: np.ndarray
    sizes: tuple[int, ...]
    scores: tuple[float, ...]

    def facts(self) -> dict[str, Any]:
        """JSON values."""
        return {"sizes": list(self.sizes), "scores": list(self.scores), "kept": len(self.kept)}


def eliminate(
    values: np.ndarray,
    labels: Sequence[str],
    step: float,
    folds: int,
    where: str,
    patients: Sequence[str] | None = None,
) -> Elimination:
    """Genes that recursive elimination leaves.

    Inner folds are stratified and not shuffled; where a patient has several cases, they never part. Of sizes with equal
    accuracy the smallest is taken; of genes with equal weight (to seven digits) the first in the table's order stays.

    Parameters
    ----------
    values : float [cases, genes], training cases in a fixed order
    labels : class of each case
    step : share of all genes that one round removes, at least one gene
    folds : inner folds
    patients : patient of each case, by default each case's own

    Raises
    ------
    InputError for one class only, or a class of fewer patients than inner folds.
    """
    names, codes = np.unique(np.asarray(labels), return_inverse=True)
    patient = np.asarray(range(len(codes)) if patients is None else patients)
    counts = np.array([len(set(patient[codes == code])) for code in range(len(names))])
    if len(names) < 2 or counts.min() < folds:
        listed = ", ".join(f"{name}: {count}" for name, count in zip(names, counts, strict=True))
        raise InputError(
            where,
            f"selection rfe_svm needs two classes or more with training cases of at least {folds} patients each;"
            f" there are {listed or 'none'}.",
            "join classes, lower genes.rfe_folds, or set genes.selection: hvg.",
        )
    genes = np.ascontiguousarray(values.T, dtype=np.float64)
    gram = genes.T @ genes
    dropped = max(1, int(step * len(genes)))
    scores = []
    for rows, held_out in _inner_folds(codes, patient, folds):
        _, sizes, right = _path(genes, gram, codes, rows, held_out, 1, dropped)
        scores.append(right)
    mean = np.mean(scores, axis=0)
    best = max(place for place, score in enumerate(mean) if score >= mean.max() - TIE)
    everyone = np.arange(len(codes))
    kept, _, _ = _path(genes, gram, codes, everyone, everyone[:0], sizes[best], dropped)
    return Elimination(kept, tuple(sizes), tuple(float(score) for score in mean))


def _inner_folds(codes: np.ndarray, patient: np.ndarray, folds: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows to learn from and rows held out."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    values = np.zeros((len(codes), 1))
    if len(set(patient)) == len(patient):
        return StratifiedKFold(folds).split(values, codes)
    return StratifiedGroupKFold(folds).split(values, codes, patient)


def survival_classes(outcomes: Mapping[str, tuple[float, int]]) -> dict[str, str]:
    """A label for cases with a survival time, which the elimination needs: died by the median time of death of these
    cases ("early"), or known to be alive after it ("late"). Cases censored before it have none.

    `outcomes` : case -> (time, 1 for an event or 0 for censored)
    """
    deaths = [time for time, event in outcomes.values() if event]
    if not deaths:
        return {}
    middle = float(np.median(deaths))
    return {
        case: "early" if event and time <= middle else "late"
        for case, (time, event) in outcomes.items()
        if event or time >= middle
    }


def _path(
    genes: np.ndarray,
    gram: np.ndarray,
    codes: np.ndarray,
    rows: np.ndarray,
    held_out: np.ndarray,
    smallest: int,
    dropped: int,
) -> tuple[np.ndarray, list[int], list[float]]:
    """Eliminate on the cases `rows` down to `smallest` genes: the genes left, the sizes on the way, and the accuracy of
    each on `held_out` (where there are any).

    `genes` float64 [genes, cases], `gram` float64 [cases, cases] of all genes.
    """
    machines = Machines(codes[rows])
    left, block, inner = np.arange(len(genes)), genes, gram.copy()
    sizes, scores = [], []
    while True:
        beta = machines.fit(inner[np.ix_(rows, rows)])
        sizes.append(len(left))
        if len(held_out):
            said = machines.predict(inner[np.ix_(held_out, rows)], beta)
            scores.append(float((said == codes[held_out]).mean()))
        if len(left) == smallest:
            return left, sizes, scores
        spread = np.zeros((len(codes), beta.shape[1]))  # on all cases, so that no row is copied out of the block
        spread[rows] = beta
        weight = ((block @ spread) ** 2).sum(axis=1).astype(np.float32)  # rounding makes no difference between equals
        n_out = min(dropped, len(left) - smallest)
        last = np.lexsort((-left, weight))  # smallest weight first; of equal ones the later gene
        out, stay = np.sort(last[:n_out]), np.sort(last[n_out:])
        if n_out < len(stay):
            lost = block[out]
            inner -= lost.T @ lost
            left, block = left[stay], block[stay]
        else:  # cheaper than to subtract, and free of its rounding
            left, block = left[stay], block[stay]
            inner = block.T @ block
