"""Results per task: metrics with intervals, paired differences, and the figures that belong to them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.contracts import layout
from pipeline.contracts.files import read_table
from pipeline.contracts.predictions import (
    ClassPrediction,
    Prediction,
    Predictions,
    SurvivalPrediction,
    left_out_path,
    read_left_out,
    read_predictions,
)
from pipeline.contracts.tasks import PRETRAIN, SURVIVAL, Task
from pipeline.contracts.training import FAILED, FoldRow, read_folds
from pipeline.report.classification_figures import classification_figure
from pipeline.report.figures import Picture, drawing, intervals, png
from pipeline.report.reading import Run
from pipeline.report.survival_figures import kaplan_meier, split_by_risk
from pipeline.report.training_figures import training_curves

METRICS_DRAWN = ("auc", "macro_auc", "balanced_accuracy", "c_index")
NAMES = {"auc": "AUC", "macro_auc": "macro AUC", "balanced_accuracy": "balanced accuracy", "c_index": "C-index"}


def results_sections(run: Run) -> list[dict[str, Any]]:
    return [_task_section(run, task) for task in run.context.tasks]


def _task_section(run: Run, task: Task) -> dict[str, Any]:
    experiments = run.context.experiments(task.name)
    names = [experiment["name"] for experiment in experiments]
    table = _table(run, f"metrics of task {task.name}", layout.evaluation(run.results, task.name))
    metrics = [_numeric(row) for row in table]
    differences = layout.evaluation(run.results, task.name, "differences")
    folds = {name: _folds(run, task.name, name) for name in names}
    predictions = {name: p for name in names if (p := _predictions(run, task.name, name))}
    return {
        "name": task.name,
        "kind": task.kind,
        "experiments": [_experiment_row(x, folds[x["name"]], predictions.get(x["name"])) for x in experiments],
        "metrics": _pivot(metrics),
        "metrics_figure": _metrics_figure(metrics, _chance(task, predictions)),
        "external": sorted({row["cohort"] for row in metrics if row.get("cohort")}),
        "differences": [
            _numeric(row)
            for row in _table(run, f"differences of task {task.name}", differences)
            if row["metric"] in METRICS_DRAWN
        ],
        "figures": _figures(task, predictions),
        "curves": training_curves(run, task.name, names),
        "confidence": metrics[0]["confidence"] if metrics else 0.95,
    }


def pretraining_section(run: Run) -> dict[str, Any] | None:
    """What was trained without labels, once for all tasks; None where nothing was."""
    listed = [x for x in run.context.config.get("experiments") or [] if PRETRAIN in (x.get("tasks") or ())]
    if not listed:
        return None
    return {
        "experiments": [_experiment_row(x, _folds(run, PRETRAIN, x["name"]), None) for x in listed],
        "curves": training_curves(run, PRETRAIN, [x["name"] for x in listed], terms=True),
    }


def _table(run: Run, what: str, path: str) -> list[dict[str, str]]:
    return run.attempt(what, lambda: read_table(path, ["metric", "low", "high", "confidence"])) or []


def _numeric(row: dict[str, str]) -> dict[str, Any]:
    """The row with numbers for text where they are numbers, NaN where empty, and the metric's usual name."""
    values: dict[str, Any] = dict(row)
    for key in ("value", "difference", "low", "high", "confidence"):
        if key in row:
            values[key] = float(row[key]) if row[key] else math.nan
    what = {"external-mean": ", cohort {}", "external-folds": ", cohort {}, single models"}
    values["shown"] = row["experiment"] + what.get(row.get("evaluation", ""), "").format(row.get("cohort"))
    return values | {"metric_name": NAMES.get(row["metric"], row["metric"].replace("_", " "))}


def _pivot(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """A row per experiment and evaluation, a column per metric, and the remarks on undefined or incomplete values."""
    if not rows:
        return None
    names = list(dict.fromkeys(row["metric_name"] for row in rows))
    table: dict[str, dict[str, Any]] = {}
    for row in rows:
        line = table.setdefault(row["shown"], {"cells": dict.fromkeys(names), "n_cases": row["n_cases"], "notes": []})
        line["cells"][row["metric_name"]] = row
        if row["note"] and row["note"] not in line["notes"]:
            line["notes"].append(row["note"])
    return {"names": names, "rows": table, "has_notes": any(line["notes"] for line in table.values())}


def _folds(run: Run, task: str, experiment: str) -> list[FoldRow]:
    path = layout.models_index(run.results, task, experiment)
    rows = run.attempt(f"training of {task}/{experiment}", lambda: read_folds(path)) or []
    for row in rows:
        if row.status == FAILED:
            run.skip(f"{task}/{experiment}, fold {row.fold}", f"training failed: {row.reason}")
    return rows


def _predictions(run: Run, task: str, experiment: str) -> Predictions | None:
    path = layout.predictions(run.results, task, experiment)
    external = (run.context.config.get("splits") or {}).get("external")
    for part in ("", "external") if external else ("",):
        lost = left_out_path(layout.predictions(run.results, task, experiment, part))
        what = f"cases left out of {task}/{experiment}"
        for case in (run.attempt(what, lambda lost=lost: read_left_out(lost)) or []) if lost.exists() else []:
            run.skip(f"case {case.case_id} in {task}/{experiment}", case.reason)
    found = run.attempt(f"predictions of {task}/{experiment}", lambda: read_predictions(path))
    return found if found and found.rows else None


def _experiment_row(experiment: Any, folds: list[FoldRow], predictions: Predictions | None) -> dict[str, Any]:
    trained = [row for row in folds if row.status != FAILED]
    return {
        "name": experiment["name"],
        "model": experiment.get("model", ""),
        "mode": ", ".join(["reference" if experiment.get("reference") else "default", *_settings(experiment)]),
        "needs": " + ".join(experiment.get("needs") or []),
        "folds": len(trained),
        "cases": _counted(predictions.rows if predictions else ()),
        "epochs": ", ".join(f"{row.best_epoch}/{row.epochs}" for row in trained),
        "seconds": sum(row.seconds for row in trained),
        "notes": "; ".join(sorted({row.reason for row in trained if row.reason})),
    }


def _counted(rows: Sequence[Prediction]) -> str:
    """How many cases are predicted, and how many of them without something that the model can read; "" for none."""
    lacking = Counter(row.lacking for row in rows if row.lacking)
    return str(len(rows) or "") + "".join(f", {count} with {what}" for what, count in sorted(lacking.items()))


def _settings(experiment: Any) -> list[str]:
    """What the config says of the model's own choices: a preset (an ablation of its authors) and other parameters."""
    given = [f"{key} {value}" for key, value in (experiment.get("params") or {}).items()]
    return given + [f"from {name}" for name in experiment.get("init_from") or []]


def _chance(task: Task, predictions: dict[str, Predictions]) -> dict[str, float]:
    classes = max((len(p.classes) for p in predictions.values()), default=2)
    return {"balanced_accuracy": 1 / max(2, classes)}


def _metrics_figure(rows: list[dict[str, Any]], chance: dict[str, float]) -> Picture | None:
    """A panel per metric with a row per experiment; None when there is nothing to draw."""
    rows = [row for row in rows if row.get("evaluation") != "external-folds"]
    drawn = [metric for metric in METRICS_DRAWN if any(row["metric"] == metric for row in rows)]
    if not drawn:
        return None
    longest = max(sum(row["metric"] == metric for row in rows) for metric in drawn)
    with drawing(4.2 * len(drawn), 0.75 + 0.34 * longest, 1, len(drawn)) as (figure, axes):
        for axis, metric in zip(axes[0], drawn, strict=True):
            mine = [row for row in rows if row["metric"] == metric]
            columns = [[row[key] for row in mine] for key in ("value", "low", "high")]
            intervals(axis, [row["shown"] for row in mine], *columns, chance.get(metric, 0.5))
            axis.set_title(NAMES[metric])
            lowest = np.nanmin([*columns[0], *columns[1], 0.45])
            axis.set_xlim(max(0.0, lowest - 0.04), 1.01)
        return png(figure)


def _figures(task: Task, predictions: dict[str, Predictions]) -> list[dict[str, Any]]:
    figures = []
    for name, table in predictions.items():
        if task.kind == SURVIVAL:
            timed = [row for row in table.rows if isinstance(row, SurvivalPrediction)]
            known = [row for row in timed if row.time is not None and row.event is not None]
            if known:
                columns = (
                    np.array([getattr(r, key) for r in known], float) for key in ("time", "event", "risk", "fold")
                )
                picture = kaplan_meier(name, split_by_risk(*columns), task.time_unit)
                figures.append({"picture": picture, "alt": f"Kaplan-Meier curves by predicted risk, {name}"})
            continue
        labelled = [row for row in table.rows if isinstance(row, ClassPrediction) and row.label in table.classes]
        if labelled:
            labels, predicted, folds = (
                [getattr(row, key) for row in labelled] for key in ("label", "predicted", "fold")
            )
            probabilities = np.array([row.probability for row in labelled]).T
            named = dict(zip(table.classes, probabilities, strict=True))
            picture = classification_figure(name, labels, predicted, folds, named)
            figures.append({"picture": picture, "alt": f"ROC curves and confusion matrix, {name}"})
    return figures
