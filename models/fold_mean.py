"""The mean of the folds' models on a case that none of them was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.contracts.files import digest_of
from pipeline.contracts.predictions import ENSEMBLE, ClassPrediction, Prediction, SurvivalPrediction


def mean_over_folds(rows: Sequence[Prediction], classes: Sequence[str]) -> Prediction:
    """One row of the rows that all folds have for one case; `classes` is empty for survival.

    Probabilities are averaged. Of survival, risks are averaged as they are, and the curves, taken as straight between
    the ends of their fold's intervals and flat after the last, at the ends of the first fold's.
    """
    digest = digest_of(*(row.checkpoint for row in rows))
    first = rows[0]
    if isinstance(first, ClassPrediction):
        mean = np.mean([row.probability for row in rows if isinstance(row, ClassPrediction)], axis=0)
        predicted = classes[int(mean.argmax())]
        return ClassPrediction(first.case_id, ENSEMBLE, tuple(mean.tolist()), first.label, predicted, digest)
    timed = [row for row in rows if isinstance(row, SurvivalPrediction)]
    curves = [np.interp(first.edges, (0.0, *row.edges), (1.0, *row.survival)) for row in timed]
    return SurvivalPrediction(
        first.case_id, ENSEMBLE, float(np.mean([row.risk for row in timed])), tuple(np.mean(curves, axis=0).tolist()),
        first.edges, first.time, first.event, digest,
    )  # fmt: skip
