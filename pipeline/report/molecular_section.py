"""Folds, and the genes that each of them selected."""

from __future__ import annotations

from typing import Any

from pipeline.contracts import layout
from pipeline.contracts.files import read_table
from pipeline.contracts.genes import GROUPS, GeneSelection, read_genes
from pipeline.contracts.splits import EXTERNAL, ROLES, Splits, read_splits
from pipeline.report.genes_section import genes_section
from pipeline.report.reading import Run


def folds_section(run: Run) -> dict[str, Any] | None:
    splits = run.attempt("folds", lambda: read_splits(layout.splits(run.results)))
    if splits is None:
        return None
    roles = (*ROLES, EXTERNAL) if splits.external else ROLES
    rows = [{"fold": k, **{role: len(splits.cases(k, role)) for role in roles}} for k in range(splits.n_folds)]
    chosen = _selections(run, splits)
    return {
        "rows": rows,
        "roles": roles,
        "n_folds": splits.n_folds,
        "genes": [row for task, selections in chosen.items() for row in _counts(task, selections)],
        "pictures": genes_section(run, splits, chosen),
        "notes": run.attempt("notes on folds", lambda: read_table(layout.split_notes(run.results))) or [],
        "groups": GROUPS,
    }


def _selections(run: Run, splits: Splits) -> dict[str, list[GeneSelection]]:
    """The genes of each task's folds that are there, by task."""
    chosen: dict[str, list[GeneSelection]] = {}
    for task in run.context.tasks if run.context.inputs.get("expression") else ():
        for fold in range(splits.n_folds):
            path = layout.genes(run.results, task.name, fold)
            selection = run.attempt(f"genes of task {task.name}, fold {fold}", lambda path=path: read_genes(path))
            if selection:
                chosen.setdefault(task.name, []).append(selection)
    return chosen


def _counts(task: str, selections: list[GeneSelection]) -> list[dict[str, Any]]:
    """Counts of selected genes per fold, and how many genes every fold of the task agrees on."""
    shared = set.intersection(*(set(selection.genes) for selection in selections))
    return [
        {
            "task": task,
            "fold": selection.fold,
            "counts": {group: len(selection.groups[group]) for group in GROUPS},
            "training": selection.n_training,
            "shared": len(shared),
            "digest": selection.digest,
        }
        for selection in selections
    ]
