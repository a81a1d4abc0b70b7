"""Who is in the cohort, what was joined and what was not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from statistics import median
from typing import Any

from pipeline.contracts import layout
from pipeline.contracts.expression import Expression
from pipeline.contracts.files import read_table
from pipeline.contracts.tasks import SURVIVAL, Labels, Task, read_labels
from pipeline.report.reading import Run

LISTED = 30  #: findings of one kind that are listed; the rest is counted


def cohort_section(run: Run) -> dict[str, Any]:
    """Counts of cases by what is known of them, labels per task, and the findings of the cohort join."""
    expression = run.expression
    known = list(run.cases.rows) if run.cases else []
    with_rna = set(expression.cases) if expression else set()
    with_slide = {slide.case_id for slide in run.slides if not slide.exclude}
    with_bag = {bag.case_id for bags in run.bags.values() for bag in bags if bag.n_tiles}
    return {
        "cases": len(known),
        "slides": len(run.slides),
        "counts": [
            ("cases in the clinical sheet", len(known)),
            ("with a slide in the sheet", len(with_slide & set(known)) if run.slides else None),
            ("with embedded tiles", len(with_bag & set(known)) if run.slides else None),
            ("with RNA", len(with_rna & set(known)) if expression else None),
            ("with both", len(with_bag & with_rna & set(known)) if run.slides and expression else None),
        ],
        "tasks": [_task_row(run, task) for task in run.context.tasks],
        "covariates": _covariates(run),
        "findings": _findings(run),
        "expression": _expression_facts(expression),
    }


def _expression_facts(expression: Expression | None) -> dict[str, Any] | None:
    if expression is None:
        return None
    return {
        "genes": len(expression.symbols),
        "cases": len(expression.cases),
        "unit": expression.unit,
        "scale": expression.scale,
        "tumour": int(expression.tumour.sum()),
        "tme": int(expression.tme.sum()),
        "report": _reading(expression.report),
        "digest": expression.digest,
    }


def _reading(report: Mapping[str, Any], of: str = "") -> list[tuple[str, Any]]:
    """What was decided and counted, by name; that of several tables below each other."""
    rows: list[tuple[str, Any]] = []
    for key, value in sorted(report.items()):
        if key.startswith("table "):
            rows += _reading(value, f"{key}: ")
        elif isinstance(value, dict) and value.keys() == {"number", "examples"}:
            more = ["..."] if value["number"] > len(value["examples"]) else []
            shown = ", ".join(map(str, [*value["examples"], *more]))
            rows.append((f"{of}{key}", f"{value['number']}{f': {shown}' if shown else ''}"))
        elif value not in ({}, [], "", None):
            rows.append((f"{of}{key}", value))
    return rows


def _task_row(run: Run, task: Task) -> dict[str, Any]:
    row = {"name": task.name, "kind": task.kind, "labelled": "", "labels": "", "missing": ""}
    cases = run.cases
    labels = run.attempt(f"labels of task {task.name}", lambda: read_labels(cases, task)) if cases else None
    if labels is None:
        return row
    for case, why in list(labels.missing.items())[:LISTED]:
        run.skip(f"case {case} in task {task.name}", why)
    return row | {
        "labelled": len(labels.cases),
        "labels": _label_text(labels),
        "missing": len(labels.missing),
    }


def _label_text(labels: Labels) -> str:
    if labels.task.kind == SURVIVAL:
        events = sum(labels.event.values())
        return f"{events} events, median time {median(labels.time.values()):g} {labels.task.time_unit}"
    counts = Counter(labels.label.values())
    return ", ".join(f"{name}: {counts[name]}" for name in labels.classes)


def _covariates(run: Run) -> list[tuple[str, str]]:
    """Values of the columns that describe where cases come from, when few enough to be groups."""
    rows: list[tuple[str, str]] = []
    for column in ("cohort", "site", "sex"):
        if run.cases and column in run.cases.columns:
            counts = Counter(row[column] or "unknown" for row in run.cases.rows.values())
            shown = ", ".join(f"{name}: {n}" for name, n in counts.most_common(12))
            rows.append((column, shown + (f" and {len(counts) - 12} more" if len(counts) > 12 else "")))
    return rows


def _findings(run: Run) -> list[dict[str, Any]]:
    path = layout.cohort_report(run.results)
    rows = run.attempt("cohort report", lambda: read_table(path, ["severity", "kind", "id", "problem"])) or []
    kinds: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows:
        kinds.setdefault((row["severity"], row["kind"]), []).append(row)
    return [
        {"severity": severity, "kind": kind.replace("_", " "), "n": len(found), "rows": found[:LISTED]}
        for (severity, kind), found in kinds.items()
    ]
