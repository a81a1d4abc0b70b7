"""Folds, and the genes that each of them selected."""

from __future__ import annotations

from typing import Any

from pipeline.contracts import layout
from pipeline.contracts.files import read_table
from pipeline.contracts.genes import GROUPS, read_genes
from pipeline.contracts.splits import ROLES, Splits, read_splits
from pipeline.report.reading import Run


def folds_section(run: Run) -> dict[str, Any] | None:
    splits = run.attempt("folds", lambda: read_splits(layout.splits(run.results)))
    if splits is None:
        return None
    rows = [{"fold": k, **{role: len(splits.cases(k, role)) for role in ROLES}} for k in range(splits.n_folds)]
    return {
        "rows": rows,
        "roles": ROLES,
        "n_folds": splits.n_folds,
        "genes": _genes(run, splits),
        "notes": run.attempt("notes on folds", lambda: read_table(layout.split_notes(run.results))) or [],
        "groups": GROUPS,
    }


def _genes(run: Run, splits: Splits) -> list[dict[str, Any]]:
    """Counts of selected genes per task and fold, and how many genes every fold of a task agrees on."""
    if not run.context.inputs.get("expression"):
        return []
    rows = []
    for task in run.context.tasks:
        chosen = []
        for fold in range(splits.n_folds):
            path = layout.genes(run.results, task.name, fold)
            selection = run.attempt(f"genes of task {task.name}, fold {fold}", lambda path=path: read_genes(path))
            if selection:
                chosen.append(selection)
        if not chosen:
            continue
        shared = set.intersection(*(set(selection.genes) for selection in chosen))
        for selection in chosen:
            counts = {group: len(selection.groups[group]) for group in GROUPS}
            rows.append(
                {
                    "task": task.name,
                    "fold": selection.fold,
                    "counts": counts,
                    "training": selection.n_training,
                    "shared": len(shared),
                    "digest": selection.digest,
                }
            )
    return rows
