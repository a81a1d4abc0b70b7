"""The mean of the folds' models on a case that none of them was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.contracts.files import digest_of
from pipeline.contracts.predictions import ENSEMBLE, ClassPrediction, Prediction, SurvivalPrediction


def mean_over_folds(rows: Sequence[Prediction], classes: Sequence[str]) -> Prediction:
    """One row of the rows that all folds have for one case; `classes` is empty for survival.

    Probabilities are averaged; of survival, risks as they are and curves by `mean_survival`.
    """
    digest = digest_of(*(row.checkpoint for row in rows))
    first = rows[0]
    if isinstance(first, ClassPrediction):
        mean = np.mean([row.probability for row in rows if isinstance(row, ClassPrediction)], axis=0)
        predicted = classes[int(mean.argmax())]
        return ClassPrediction(
            first.case_id, ENSEMBLE, tuple(mean.tolist()), first.label, predicted, digest, first.lacking
        )
    timed = [row for row in rows if isinstance(row, SurvivalPrediction)]
    curve = mean_survival([row.edges for row in timed], [row.survival for row in timed])
    return SurvivalPrediction(
        first.case_id, ENSEMBLE, float(np.mean([row.risk for row in timed])), curve,
        first.edges, first.time, first.event, digest, first.lacking,
    )  # fmt: skip


def mean_survival(edges: Sequence[Sequence[float]], survival: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The mean of curves, one of each fold, at the first fold's edges: taken as straight between the ends of their
    fold's intervals, and flat after the last."""
    at = edges[0]
    curves = [np.interp(at, (0.0, *own), (1.0, *curve)) for own, curve in zip(edges, survival, strict=True)]
    return tuple(np.mean(curves, axis=0).tolist())
