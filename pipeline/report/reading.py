"""Read artefacts for the report: what is absent or damaged becomes a remark in it, never an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pipeline.contracts import layout
from pipeline.contracts.batches import OK, BatchRow, read_batch
from pipeline.contracts.cohort import CaseSheet, Slide, batches, read_cases, read_slides
from pipeline.contracts.encoders import IMPORTED
from pipeline.contracts.errors import HistoweaveError
from pipeline.contracts.expression import Expression, read_expression
from pipeline.contracts.features import BagRecord, read_index
from pipeline.contracts.slide_types import select_types
from pipeline.contracts.tasks import Task

T = TypeVar("T")
SLIDE_STAGES = ("check", "tissue", "tiles", "stain")


@dataclass(frozen=True)
class ReportContext:
    """What the report has to know beside the artefacts.

    `config` is the resolved configuration as plain values; a missing section or key counts as "not asked for".
    `revisions` maps a stage to its revision. Paths in `config` are relative to the working folder.
    """

    config: Mapping[str, Any]
    revisions: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_simulated(self) -> bool:
        return bool(self.inputs.get("simulated"))

    @property
    def inputs(self) -> Mapping[str, Any]:
        return self.config.get("inputs") or {}

    @property
    def tasks(self) -> list[Task]:
        return [Task(**task) for task in self.config.get("tasks") or []]

    @property
    def encoders(self) -> list[Mapping[str, Any]]:
        return list(self.config.get("encoders") or []) if self.inputs.get("slides") else []

    @property
    def reads_slides(self) -> bool:
        """Whether any slide file is read: not where all features are imported."""
        encoders = self.encoders
        return not encoders or any(encoder.get("weights") != IMPORTED for encoder in encoders)

    def experiments(self, task: str) -> list[Mapping[str, Any]]:
        """The experiments that run on a task, in the config's order."""
        chosen = self.config.get("experiments") or []
        return [x for x in chosen if not x.get("tasks") or task in x["tasks"]]


@dataclass
class Run:
    """The artefacts that several sections of the report need, read once, and what could not be read."""

    results: Path
    context: ReportContext
    skipped: dict[tuple[str, str], None] = field(default_factory=dict)  # an ordered set
    cases: CaseSheet | None = None
    expression: Expression | None = None
    slides: list[Slide] = field(default_factory=list)
    stages: dict[str, dict[str, BatchRow]] = field(default_factory=dict)
    bags: dict[str, list[BagRecord]] = field(default_factory=dict)

    def attempt(self, what: str, read: Callable[[], T]) -> T | None:
        """The result of `read`, or None with the reason kept for the section "skipped"."""
        try:
            return read()
        except FileNotFoundError as error:
            self.skip(what, f"not there: {error.filename or error}")
        except (HistoweaveError, OSError) as error:
            self.skip(what, str(error))
        return None

    def skip(self, what: str, why: str) -> None:
        self.skipped[what, why] = None

    @property
    def last_rows(self) -> dict[str, BatchRow]:
        """The verdict of the last slide stage that was reached, per slide; of several encoders the worst."""
        rows: dict[str, BatchRow] = {}
        for stage_rows in self.stages.values():
            for slide_id, row in stage_rows.items():
                if slide_id not in rows or rows[slide_id].status == OK:
                    rows[slide_id] = row
        return rows


def read_run(results: Path, context: ReportContext) -> Run:
    """Read sheets, batch indexes and feature indexes."""
    run = Run(results, context)
    inputs = context.inputs
    if inputs.get("cases"):
        run.cases = run.attempt("clinical sheet", lambda: read_cases(inputs["cases"]))
    if inputs.get("expression"):
        run.expression = run.attempt("expression", lambda: read_expression(layout.expression(results)))
    else:
        run.skip("expression", "the config names no expression table: a cohort without RNA")
    if not inputs.get("slides"):
        run.skip("slides", "the config names no slide sheet: a cohort without images")
        return run
    sheet = run.attempt("slide sheet", lambda: read_slides(inputs["slides"])) or []
    run.slides = select_types(sheet, inputs.get("slide_types"), bool(inputs.get("keep_normal")))
    stages = [
        *(SLIDE_STAGES if context.reads_slides else ()),
        *(f"features/{encoder['slug']}" for encoder in context.encoders),
    ]
    for stage in stages:
        run.stages[stage] = _read_stage(run, stage)
    for encoder in context.encoders:
        slug = encoder["slug"]
        path = layout.features_index(results, slug)
        run.bags[slug] = run.attempt(f"feature index of {slug}", lambda path=path: _index(path)) or []
    return run


def _index(path: str) -> list[BagRecord]:
    if not Path(path).exists():
        raise FileNotFoundError(2, "no such file", path)
    return read_index(path)


def _read_stage(run: Run, stage: str) -> dict[str, BatchRow]:
    """Rows of the batches that the sheet has now: a batch left over from an older sheet is not this run's."""
    rows: dict[str, BatchRow] = {}
    for batch in batches(run.slides):
        path = layout.batch_index(run.results, stage, batch)
        if not Path(path).exists():
            run.skip(f"stage {stage}, batch {batch}", "not run")
            continue
        rows |= run.attempt(f"stage {stage}, batch {batch}", lambda path=path: read_batch(path)) or {}
    return rows
