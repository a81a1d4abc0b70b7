"""Predictions of all experiments of a task -> metrics with intervals, and paired differences between experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from models.metrics import (
    CLASSIFICATION_METRICS,
    SURVIVAL_METRICS,
    c_index,
    classification_metrics,
    interval,
    resamples,
)
from models.survival import NoComparablePairError
from pipeline.contracts.cohort import COHORT, PATIENT, read_cases
from pipeline.contracts.errors import InputError
from pipeline.contracts.files import write_table
from pipeline.contracts.predictions import (
    ENSEMBLE,
    ClassPrediction,
    Predictions,
    SurvivalPrediction,
    left_out_path,
    read_external_predictions,
    read_left_out,
    read_predictions,
)
from pipeline.contracts.tasks import CLASSIFICATION, Task

OUT_OF_FOLD = "out-of-fold"  #: each case by the model that never saw it
EXTERNAL = "external-mean"  #: the mean of the folds' models on the cases of an external cohort
EXTERNAL_FOLDS = "external-folds"  #: the folds' models one by one on these cases
COLUMNS = (
    "experiment", "evaluation", "cohort", "metric", "value", "low", "high", "confidence", "n_cases", "n_patients",
    "n_folds", "n_left_out", "n_bootstrap", "note",
)  # fmt: skip
DIFFERENCE_COLUMNS = (
    "experiment", "other", "evaluation", "cohort", "metric", "difference", "low", "high", "confidence", "n_cases",
    "n_patients", "n_bootstrap", "note",
)  # fmt: skip


@dataclass(frozen=True)
class EvaluationParams:
    """Section ``evaluation`` of the config: number of bootstrap resamples, their seed, and the intervals' coverage."""

    bootstrap: int = 1000
    seed: int = 0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not isinstance(self.bootstrap, int) or not 1 <= self.bootstrap <= 1_000_000:
            raise InputError("config.yaml evaluation.bootstrap", f"{self.bootstrap!r} is not from 1 to 1000000.")
        if not 0 < self.confidence < 1:
            raise InputError("config.yaml evaluation.confidence", f"{self.confidence!r} is not between 0 and 1.")


@dataclass(frozen=True)
class Part:
    """Predictions that are evaluated together: experiment -> table, and the number of cases without one."""

    name: str
    cohort: str
    tables: Mapping[str, Predictions]
    left_out: Mapping[str, int]


def evaluate_task(
    task: Task,
    predictions: Mapping[str, str | Path],
    out: str | Path,
    differences_out: str | Path,
    params: EvaluationParams | None = None,
    cases: str | Path | None = None,
    external: Mapping[str, str | Path] | None = None,
) -> None:
    """Write ``evaluation/{task}.tsv`` and its paired differences.

    Intervals are percentiles of a bootstrap over patients: a patient is drawn with all her cases. For a difference both
    experiments are evaluated on the cases that both predicted and on the same resamples. An undefined metric leaves
    its fields empty and says why.

    Each external cohort has rows of its own: one by the mean of the folds' models (`EXTERNAL`), compared with those of
    other experiments too, and one of the models by themselves (`EXTERNAL_FOLDS`), in which a case counts once per
    model.

    Parameters
    ----------
    predictions : experiment -> its table
    cases : the clinical sheet; its optional column ``patient_id`` groups cases, ``cohort`` names cohorts
    external : experiment -> its table of external cohorts
    """
    params = params or EvaluationParams()
    sheet = read_cases(cases).rows if cases is not None else {}
    patient = {case: row[PATIENT] for case, row in sheet.items() if row.get(PATIENT)}
    tables = {name: read_predictions(path) for name, path in predictions.items()}
    lost = {name: _left_out(path) for name, path in predictions.items()}
    parts = [Part(OUT_OF_FOLD, "", tables, {name: len(cases) for name, cases in lost.items()})]
    parts += external_parts(external or {}, {case: row.get(COHORT, "") for case, row in sheet.items()})
    rows = [
        {"experiment": name, "evaluation": part.name, "cohort": part.cohort, "n_left_out": part.left_out[name], **row}
        for part in parts
        for name, table in part.tables.items()
        for row in evaluate(task, table, params, patient)
    ]
    write_table(out, COLUMNS, rows)
    pairs = [
        {"experiment": a, "other": b, "evaluation": part.name, "cohort": part.cohort, **row}
        for part in parts
        if part.name != EXTERNAL_FOLDS
        for a, b in combinations(part.tables, 2)
        for row in compare(task, part.tables[a], part.tables[b], params, patient)
    ]
    write_table(differences_out, DIFFERENCE_COLUMNS, pairs)


def external_parts(paths: Mapping[str, str | Path], cohort_of: Mapping[str, str]) -> list[Part]:
    """Two parts of every external cohort, sorted: the mean of the folds' models, and each of them."""
    tables = {name: read_external_predictions(path) for name, path in paths.items()}
    lost = {name: _left_out(path) for name, path in paths.items()}
    found = {row.case_id for table in tables.values() for row in table.rows}.union(*lost.values())
    parts = []
    for cohort in sorted({cohort_of[case] for case in found}):
        members = {case for case in found if cohort_of[case] == cohort}
        left_out = {name: len(cases & members) for name, cases in lost.items()}
        for part in (EXTERNAL, EXTERNAL_FOLDS):
            chosen = {}
            for name, table in tables.items():
                rows = (row for row in table.rows if row.case_id in members)
                chosen[name] = Predictions(
                    table.classes, tuple(row for row in rows if (row.fold == ENSEMBLE) == (part == EXTERNAL))
                )
            parts.append(Part(part, cohort, chosen, left_out))
    return parts


def evaluate(
    task: Task, table: Predictions, params: EvaluationParams, patient: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Rows of one experiment, a metric each; `patient` maps case_id to patient, by default the case itself."""
    groups = [patient.get(row.case_id, row.case_id) for row in table.rows]
    shared = {
        "confidence": params.confidence,
        "n_cases": len({row.case_id for row in table.rows}),
        "n_patients": len(set(groups)),
        "n_folds": len({row.fold for row in table.rows}),
    }
    names = CLASSIFICATION_METRICS if task.kind == CLASSIFICATION else SURVIVAL_METRICS
    if not table.rows:
        return [{**shared, "metric": name, "n_bootstrap": 0, "note": "no case was predicted"} for name in names]
    try:
        values = metrics(task, table)
    except NoComparablePairError as error:
        return [{**shared, "metric": name, "n_bootstrap": 0, "note": str(error)} for name in names]
    drawn = metrics(task, table, resamples(groups, params.bootstrap, params.seed))
    note = _class_note(task, table)
    rows = []
    for name in names:
        low, high, defined = interval(drawn[name], params.confidence)
        rows.append(
            {**shared, "metric": name, "value": _number(values[name][0]), "low": _number(low), "high": _number(high),
             "n_bootstrap": defined, "note": note}
        )  # fmt: skip
    return rows


def compare(
    task: Task, first: Predictions, second: Predictions, params: EvaluationParams, patient: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Differences first - second on their common cases, a row per metric."""
    common = {row.case_id for row in first.rows} & {row.case_id for row in second.rows}
    tables = [Predictions(t.classes, tuple(r for r in t.rows if r.case_id in common)) for t in (first, second)]
    groups = [patient.get(row.case_id, row.case_id) for row in tables[0].rows]
    shared = {"confidence": params.confidence, "n_cases": len(common), "n_patients": len(set(groups))}
    names = CLASSIFICATION_METRICS if task.kind == CLASSIFICATION else SURVIVAL_METRICS
    if not common:
        return [{**shared, "metric": n, "n_bootstrap": 0, "note": "no case in common"} for n in names]
    weights = resamples(groups, params.bootstrap, params.seed)
    try:
        values = [metrics(task, table) for table in tables]
        drawn = [metrics(task, table, weights) for table in tables]
    except NoComparablePairError as error:
        return [{**shared, "metric": n, "n_bootstrap": 0, "note": str(error)} for n in names]
    rows = []
    for name in names:
        low, high, defined = interval(drawn[0][name] - drawn[1][name], params.confidence)
        difference = _number(values[0][name][0] - values[1][name][0])
        rows.append(
            {**shared, "metric": name, "difference": difference, "low": _number(low), "high": _number(high),
             "n_bootstrap": defined, "note": _class_note(task, tables[0])}
        )  # fmt: skip
    return rows


def metrics(task: Task, table: Predictions, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Every metric of the task's kind, float64 [weightings]. Raises NoComparablePairError."""
    fold = np.array([row.fold for row in table.rows])
    if task.kind == CLASSIFICATION:
        rows = [row for row in table.rows if isinstance(row, ClassPrediction)]
        code = {name: k for k, name in enumerate(table.classes)}
        probability = np.array([row.probability for row in rows])
        codes, predicted = (np.array([code[getattr(r, key)] for r in rows]) for key in ("label", "predicted"))
        return classification_metrics(probability, codes, predicted, fold, weights)
    cases = [row for row in table.rows if isinstance(row, SurvivalPrediction)]
    risk, time, event = (np.array([getattr(r, key) for r in cases], dtype=float) for key in ("risk", "time", "event"))
    return {"c_index": c_index(risk, time, event, fold, weights)}


def _class_note(task: Task, table: Predictions) -> str:
    if task.kind != CLASSIFICATION:
        return ""
    seen = {row.label for row in table.rows if isinstance(row, ClassPrediction)}
    absent = [name for name in table.classes if name not in seen]
    return f"no case of class {', '.join(absent)}: left out of the means over classes" if absent else ""


def _left_out(path: str | Path) -> set[str]:
    beside = left_out_path(path)
    return {row.case_id for row in read_left_out(beside)} if beside.exists() else set()


def _number(value: float) -> float | None:
    """Six decimals: more would only record rounding. None where undefined."""
    return None if not np.isfinite(value) else round(float(value), 6)


__all__: Sequence[str] = ["EvaluationParams", "compare", "evaluate", "evaluate_task", "metrics"]
