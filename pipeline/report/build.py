"""Put the sections together into one page that opens offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.contracts import layout
from pipeline.contracts.files import write_text
from pipeline.report.cohort_section import cohort_section
from pipeline.report.molecular_section import folds_section
from pipeline.report.pages import render_page
from pipeline.report.provenance_section import provenance_section, random_encoders
from pipeline.report.reading import ReportContext, Run, read_run
from pipeline.report.results_section import pretraining_section, results_sections
from pipeline.report.slides_section import slides_section
from pipeline.report.stains_section import stains_section

__all__ = ["ReportContext", "build_report"]


def build_report(results: str | Path, out: str | Path, context: ReportContext) -> None:
    """Write ``report.html`` for everything found below `results`.

    The page carries its style and its figures, asks nothing of the network and runs no script. Parts that
    are absent or damaged are left out and listed under "Skipped, and why"; only thumbnails and stain
    examples are samples (at most 24 and 6), so the page stays small for a cohort of any size.
    """
    run = read_run(Path(results), context)
    sections: dict[str, Any] = {
        "cohort": cohort_section(run),
        "slides": slides_section(run),
        "stains": stains_section(run),
        "folds": folds_section(run),
        "pretraining": pretraining_section(run),
        "tasks": results_sections(run),
        "provenance": provenance_section(run),
        "random_encoders": random_encoders(run),
    }
    own = {"skipped": list(run.skipped), "simulated": context.is_simulated, "slide_list": _slide_list(run, out)}
    write_text(out, render_page("template.html", sections | own))


def _slide_list(run: Run, out: str | Path) -> str:
    """Link from the report to the list of slide pages, empty where there is none."""
    pages = Path(layout.slide_pages(run.results))
    return pages.name if run.slides and pages.exists() and pages.parent == Path(out).parent else ""
