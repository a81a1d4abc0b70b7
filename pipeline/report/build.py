"""Put the sections together into one page that opens offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pipeline.contracts.files import write_text
from pipeline.report.cohort_section import cohort_section
from pipeline.report.molecular_section import folds_section
from pipeline.report.provenance_section import provenance_section, random_encoders
from pipeline.report.reading import ReportContext, read_run
from pipeline.report.results_section import results_sections
from pipeline.report.slides_section import slides_section
from pipeline.report.stains_section import stains_section

__all__ = ["ReportContext", "build_report"]

HERE = Path(__file__).parent


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
        "tasks": results_sections(run),
        "provenance": provenance_section(run),
        "random_encoders": random_encoders(run),
    }
    write_text(out, render(sections | {"skipped": list(run.skipped), "simulated": context.is_simulated}))


def render(values: dict[str, Any]) -> str:
    """Fill the template. Everything that comes from data is escaped; an undefined name raises."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    style = Markup((HERE / "style.css").read_text(encoding="utf-8"))
    template = (HERE / "template.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(**values, style=style)
