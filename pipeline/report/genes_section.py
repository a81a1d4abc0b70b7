"""What was selected and what it shows: pictures per task, gene-set scores, and tables that were applied later."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.contracts import layout
from pipeline.contracts.expression import Expression
from pipeline.contracts.files import read_json, read_table
from pipeline.contracts.genes import APPLIED_KIND, APPLIED_VERSION, GeneSelection
from pipeline.contracts.splits import TRAIN, Splits
from pipeline.contracts.tasks import SURVIVAL, Task, read_labels
from pipeline.report.batch_effects import Components, batch_table, principal_components
from pipeline.report.case_figures import component_plot
from pipeline.report.figures import Picture
from pipeline.report.gene_figures import (
    HEATMAP_GENES,
    elimination,
    frequencies,
    group_of,
    heatmap,
    jaccard,
    mean_variance,
    stability,
)
from pipeline.report.reading import Run
from pipeline.report.slides_section import spread

CASES_SHOWN = 1500  #: of a larger cohort, spread evenly over the case ids
GENES_USED = 2000  #: for components: those of the largest spread over the training cases
GENES_LISTED = 600
TCGA_SITE = re.compile(r"TCGA-([A-Z0-9]{2})-[A-Z0-9]{4}")


@dataclass(frozen=True)
class Cases:
    """Cases of a task with RNA and a label: ids, what they are coloured by, and their order by time (survival only)."""

    ids: tuple[str, ...]
    factors: dict[str, list[str]]
    order: np.ndarray | None


def genes_section(run: Run, splits: Splits, chosen: dict[str, list[GeneSelection]]) -> dict[str, Any]:
    """Pictures of each task's genes, scores of gene sets, and what was applied to new tables."""
    tasks = []
    for task in run.context.tasks:
        if chosen.get(task.name) and run.expression is not None:
            shown = run.attempt(
                f"pictures of genes, task {task.name}",
                lambda task=task: _task(run, run.expression, task, splits, chosen[task.name]),
            )
            tasks += [shown] if shown else []
    return {"tasks": tasks, "applied": _applied(run), "sets": _sets(run)}


def _task(
    run: Run, expression: Expression, task: Task, splits: Splits, selections: list[GeneSelection]
) -> dict[str, Any]:
    first = selections[0]
    figures: list[dict[str, Any]] = []

    def add(picture: Picture, alt: str, caption: str) -> None:
        figures.append({"picture": picture, "alt": alt, "caption": caption})

    known = set(expression.cases)
    training = [case for case in splits.cases(first.fold, TRAIN) if case in known]
    if expression.scale != "zscore" and len(training) > 1 and set(first.genes) != set(expression.symbols):
        picture = mean_variance(expression.values[expression.rows(training)], expression.symbols, first)
        add(picture, "mean and spread of every gene", "Over the training cases. The widest selected genes are named.")
    if all(selection.elimination for selection in selections):
        add(elimination(selections), "accuracy by genes left", "Dots: the smallest size of the best accuracy.")
    stable = None
    if len(selections) > 1 and first.params.get("selection") != "all":
        add(stability(selections), "overlap of the folds' genes", "Folds share most of their training cases.")
        stable = _stable(selections)
    cases = _cases(run, expression, task)
    batch: list[dict[str, Any]] = []
    if len(cases.ids) > 2:
        names, values = _standardised(expression, first, cases.ids)
        widest = np.sort(np.argsort(-first.std, kind="stable")[:HEATMAP_GENES])
        group = group_of(first)
        labels = next(iter(cases.factors.values()))
        picture = heatmap(
            values[:, widest], [names[k] for k in widest], [group[names[k]] for k in widest], labels,
            f"Selected genes by {task.label_name}", "genes", cases.order,
        )  # fmt: skip
        order = "time" if cases.order is not None else "label"
        more = f"The {len(widest)} of largest spread of {len(names)} genes. " if len(widest) < len(names) else ""
        add(picture, "heatmap of selected genes", f"{more}Scaled as in fold {first.fold}; cases ordered by {order}.")
        components = principal_components(values[:, np.sort(np.argsort(-first.std, kind="stable")[:GENES_USED])])
        if components is not None:
            caption = f"Principal components of the genes of fold {first.fold}, all cases with a label."
            add(component_plot(components, cases.factors), "principal components", caption)
            batch = batch_table(components, cases.factors)
        places = _umap(run, cases)
        if places is not None:
            caption = "UMAP of the tumour and TME genes, all cases. Distances between groups mean little."
            add(component_plot(places, cases.factors, "UMAP "), "UMAP of the cases", caption)
        scores = _scores(run, cases)
        if scores is not None:
            add(
                scores,
                "gene-set scores",
                "Scores by scanpy, standardised per set. All values: expression/scores.tsv.",
            )
    return {
        "name": task.name,
        "figures": figures,
        "batch": batch,
        "stable": stable,
        "cases": len(cases.ids),
        "families": [{"name": n, "genes": len(g)} for n, g in first.families.items()],
    }


def _standardised(
    expression: Expression, selection: GeneSelection, cases: Sequence[str]
) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and values float32 [cases, genes] as models of the fold see them."""
    of_case = expression.cohort_of()
    cohorts = [of_case[case] for case in cases]
    fitted = selection.with_own_centres(expression.values, expression.symbols, [*of_case.values()], cohorts)
    return selection.genes, fitted.apply(expression.values[expression.rows(list(cases))], expression.symbols, cohorts)


def _stable(selections: list[GeneSelection]) -> dict[str, Any]:
    shared, counts = jaccard(selections), frequencies(selections)
    pairs = shared[np.triu_indices(len(selections), 1)]
    always = [gene for gene, n in counts.items() if n == len(selections)]
    return {
        "mean": float(pairs.mean()),
        "least": float(pairs.min()),
        "genes": [{"gene": gene, "folds": n} for gene, n in counts.items()][:GENES_LISTED],
        "always": len(always),
        "n": len(counts),
    }


def _cases(run: Run, expression: Expression, task: Task) -> Cases:
    """Labelled cases with RNA, and the factors by which they are coloured: label, site and cohort."""
    if run.cases is None:
        return Cases((), {}, None)
    labels = read_labels(run.cases, task)
    known = set(expression.cases)
    ids = spread(sorted(case for case in labels.cases if case in known), CASES_SHOWN)
    survival = task.kind == SURVIVAL
    outcome = [("died" if labels.event[c] else "censored") if survival else labels.label[c] for c in ids]
    factors = {("event" if survival else task.label_name): outcome}
    site = (run.context.config.get("splits") or {}).get("site") or "site"
    sites = [run.cases.rows[case].get(site, "") for case in ids]
    if not any(sites):
        found = [TCGA_SITE.match(case) for case in ids]
        site, sites = "source site (barcode)", [match.group(1) if match else "" for match in found]
    cohort_of = expression.cohort_of()
    for name, levels in ((site, sites), ("cohort", [cohort_of[case] for case in ids])):
        if len({level for level in levels if level}) > 1:
            factors[name] = levels
    order = np.argsort([labels.time[case] for case in ids], kind="stable") if survival else None
    return Cases(tuple(ids), factors, order)


def _umap(run: Run, cases: Cases) -> Components | None:
    """Places of these cases on the map, if the config asks for one."""
    if not (run.context.config.get("report") or {}).get("umap"):
        return None
    rows = run.attempt("UMAP", lambda: read_table(layout.umap(run.results), ["case_id", "umap1", "umap2"])) or []
    by_case = {row["case_id"]: (float(row["umap1"]), float(row["umap2"])) for row in rows}
    if not set(cases.ids) <= by_case.keys():
        return None
    return Components(np.array([by_case[case] for case in cases.ids]), np.array([]))


def _scores(run: Run, cases: Cases) -> Picture | None:
    """Heatmap of the gene-set scores of these cases; None where there are none."""
    path = layout.gene_set_scores(run.results)
    rows = run.attempt("gene-set scores", lambda: read_table(path, ["case_id"])) if Path(path).exists() else None
    by_case = {row["case_id"]: row for row in rows or []}
    names = [name for name in (rows or [{}])[0] if name != "case_id"]
    if not names or not set(cases.ids) <= by_case.keys():
        return None
    values = np.array([[float(by_case[case][name]) for name in names] for case in cases.ids])
    spread_of = values.std(axis=0)
    values = (values - values.mean(axis=0)) / np.where(spread_of > 0, spread_of, 1)
    kind = ["tumour" if n.startswith("tumour") else "TME" if n.startswith("tme") else "other" for n in names]
    plain = [re.sub(r"^(tumour|tme)_", "", name).replace("_", " ") for name in names]
    return heatmap(values, plain, kind, next(iter(cases.factors.values())), "Gene-set scores", "sets", cases.order)


def _sets(run: Run) -> list[dict[str, str]]:
    """Gene sets that have too few genes in the table for a score."""
    path = layout.gene_set_scores(run.results, "sets")
    if not Path(path).exists():
        return []
    rows = run.attempt("gene sets", lambda: read_table(path, ["set", "listed", "present", "scored"])) or []
    return [row for row in rows if row["scored"] == "0"]


def _applied(run: Run) -> list[dict[str, Any]]:
    """New tables that were brought through a fold's genes, and what each of them lacks."""
    rows = []
    for path in sorted(Path(layout.applied_genes(run.results)).glob("*.json")):
        body = run.attempt(
            f"applied genes {path.name}", lambda path=path: read_json(path, APPLIED_KIND, APPLIED_VERSION)
        )
        if body:
            missing = body["report"].get("genes_at_the_training_mean", {"number": 0, "examples": []})
            n = body["report"].get("genes_selected", math.nan)
            more = ["..."] if missing["number"] > len(missing["examples"]) else []
            listed = ", ".join([*missing["examples"], *more])
            rows.append(
                {"table": path.name.removesuffix(".json"), "genes": n, "missing": missing["number"], "examples": listed}
            )
    return rows
