"""Join the slide sheet, the clinical sheet and the expression table before any compute; say all that does not fit."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.contracts.cohort import CaseSheet, Slide, read_cases, read_slides
from pipeline.contracts.errors import InputError, nearest
from pipeline.contracts.files import write_table, write_text
from pipeline.contracts.slide_files import is_remote
from pipeline.contracts.slide_types import count_types, describe_types, mixes_preparations, select_types, slide_type
from pipeline.contracts.tasks import Task, read_labels
from pipeline.expression import ExpressionParams
from pipeline.expression.samples import table_cases

ERROR, WARNING, INFO = "error", "warning", "info"
STYLE = (
    "body{font:15px system-ui;margin:2em auto;max-width:60em}.error{color:#a00}"
    "td,th{padding:.2em .8em;text-align:left;border-bottom:1px solid #ddd}"
)


@dataclass(frozen=True)
class Finding:
    """One row of ``cohort/report.tsv``. `severity`: error (the slide or case is lost), warning, or info."""

    severity: str
    kind: str
    id: str
    problem: str


def join_cohort(
    cases: str | Path,
    slides: str | Path | None,
    expression: str | Sequence[Any] | Mapping[str, Any] | None,
    expression_params: Mapping[str, Any],
    tasks: Sequence[Mapping[str, Any]],
    table: str | Path,
    page: str | Path,
    slide_types: Sequence[str] | None = None,
    keep_normal: bool = False,
    reads_slides: bool = True,
) -> list[Finding]:
    """Write the cohort report as a table and a page. `slide_types` and `keep_normal` are as in `select_types`;
    `reads_slides` is False where all features are imported and slide files need not be there.

    Raises InputError when no sample of the expression table belongs to any case: the ids then follow different schemes,
    and nothing that follows could be right.
    """
    sheet = read_cases(cases)
    rows = select_types(read_slides(slides), slide_types, keep_normal) if slides else []
    findings = [*_slide_findings(rows, sheet, reads_slides), *_type_findings(rows, slide_types)] if slides else []
    if expression:
        found, remarks = table_cases(expression, ExpressionParams(**expression_params), list(sheet.rows))
        findings += _expression_findings(set(found), remarks, sheet)
    for task in tasks:
        labels = read_labels(sheet, Task(**task))
        findings += [Finding(INFO, "no_label", case, f"{task['name']}: {why}") for case, why in labels.missing.items()]
    findings.sort(key=lambda f: ((ERROR, WARNING, INFO).index(f.severity), f.kind, f.id))
    write_table(table, [f.name for f in fields(Finding)], [asdict(f) for f in findings])
    write_text(page, _page(findings, len(sheet.rows), len(rows), expression is not None))
    return findings


def _slide_findings(slides: Sequence[Slide], sheet: CaseSheet, reads_slides: bool) -> Iterable[Finding]:
    for slide in slides:
        if slide.case_id not in sheet.rows:
            hint = nearest(slide.case_id, sheet.rows)
            yield Finding(ERROR, "slide_of_unknown_case", slide.slide_id, f"case '{slide.case_id}' is unknown{hint}")
        if slide.exclude:
            yield Finding(INFO, "slide_excluded", slide.slide_id, slide.exclude)
        elif reads_slides and not is_remote(slide.path) and not Path(slide.path).exists():
            yield Finding(ERROR, "slide_file_missing", slide.slide_id, f"'{slide.path}' does not exist")
    paths: dict[str, str] = {}
    for slide in slides:
        place = slide.path if is_remote(slide.path) else str(Path(slide.path).resolve())
        other = paths.setdefault(place, slide.slide_id)
        if other != slide.slide_id:
            yield Finding(WARNING, "same_file_twice", slide.slide_id, f"the same file as slide '{other}'")
    with_slides = {s.case_id for s in slides if not s.exclude}
    for case in sheet.rows:
        if case not in with_slides:
            yield Finding(WARNING, "case_without_slide", case, "no usable row in the slide sheet")


def _type_findings(slides: Sequence[Slide], types: Sequence[str] | None) -> Iterable[Finding]:
    """Slides kept although their name tells no type, and paraffin mixed with frozen sections."""
    counts = count_types(slides)
    if mixes_preparations(counts):
        problem = f"paraffin and frozen sections together ({describe_types(counts)}); inputs.slide_types keeps some"
        yield Finding(WARNING, "slide_types_mixed", "all slides", problem)
    for slide in slides if types else ():
        found = slide_type(slide)
        if not slide.exclude and found and not found.slide:
            yield Finding(WARNING, "slide_type_unknown", slide.slide_id, "kept: its TCGA barcode tells no slide type")


def _expression_findings(
    found: Collection[str], remarks: Iterable[tuple[str, str]], sheet: CaseSheet
) -> Iterable[Finding]:
    if not found:
        raise InputError(
            "config.yaml inputs.expression",
            "no sample belongs to any case of the clinical sheet.",
            "use the same case ids in both.",
        )
    for case in sheet.rows:
        if case not in found:
            yield Finding(WARNING, "case_without_rna", case, "no sample in the expression table")
    for table, remark in remarks:
        yield Finding(INFO, "expression_table", table, remark)


def _page(findings: Sequence[Finding], n_cases: int, n_slides: int, has_rna: bool) -> str:
    counts = Counter((f.severity, f.kind) for f in findings)
    summary = "".join(f"<li>{n} x {kind} ({severity})</li>" for (severity, kind), n in counts.items())
    body = "".join(
        f'<tr class="{f.severity}"><td>{f.severity}<td>{f.kind}<td>{html.escape(f.id)}<td>{html.escape(f.problem)}'
        for f in findings
    )
    table = "not given" if not has_rna else "given"
    return (
        f"<!doctype html><meta charset=utf-8><title>Cohort report</title><style>{STYLE}</style><h1>Cohort report</h1>"
        f"<p>{n_cases} cases, {n_slides} slides, expression table {table}. {len(findings)} findings.</p>"
        f"<ul>{summary}</ul><table><tr><th>severity<th>kind<th>id<th>problem{body}</table>\n"
    )
