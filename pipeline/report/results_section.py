"""Results per task: metrics with intervals, paired differences, and the figures that belong to them."""

from __future__ import annotations

from typing import Any

from pipeline.contracts import layout
from pipeline.contracts.predictions import read_predictions
from pipeline.contracts.tasks import Task
from pipeline.report.reading import Run
from pipeline.report.training_figures import training_curves

CHANCE = {"auc": 0.5, "c_index": 0.5}
METRIC_NAMES = {"auc": "AUC", "balanced_accuracy": "balanced accuracy", "c_index": "C-index"}


def results_sections(run: Run) -> list[dict[str, Any]]:
    return [_task_section(run, task) for task in run.context.tasks]


def _task_section(run: Run, task: Task) -> dict[str, Any]:
    experiments = run.context.experiments(task.name)
    metrics = _table(run, f"metrics of task {task.name}", layout.evaluation(run.results, task.name))
    differences = _table(
        run, f"differences of task {task.name}", layout.evaluation(run.results, task.name, "differences")
    )
    _failed_folds(run, task, [x["name"] for x in experiments])
    predictions = {}
    for experiment in experiments:
        name = experiment["name"]
        path = layout.predictions(run.results, task.name, name)
        found = run.attempt(f"predictions of {task.name}/{name}", lambda path=path: read_predictions(path))
        if found is not None and len(found):
            predictions[name] = found
    return {
        "name": task.name,
        "kind": task.kind,
        "experiments": [(x["name"], x.get("model", "")) for x in experiments],
        "metrics": [_metric_row(row) for row in metrics],
        "metrics_figure": _metrics_figure(metrics),
        "differences": [_difference_row(row) for row in differences],
        "figures": _figures(task, predictions),
        "curves": training_curves(run, task.name, [x["name"] for x in experiments]),
        "level": (run.context.config.get("evaluation") or {}).get("level", 0.95),
    }
