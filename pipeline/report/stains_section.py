"""Stain normalisation as the encoder sees it: a few tiles before and after."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.contracts import layout
from pipeline.contracts.batches import OK
from pipeline.contracts.slide_files import is_remote
from pipeline.contracts.slides import read_slide_facts
from pipeline.contracts.stains import StainFit, read_stain
from pipeline.contracts.tiles import TileGrid, read_tiles
from pipeline.report.pictures import photograph
from pipeline.report.reading import Run
from pipeline.report.slides_section import spread
from pipeline.slide import open_checked
from pipeline.stain import StainParams
from pipeline.stain_target import read_target
from pipeline.stain_transfer import apply

PAIRS = 6


def stains_section(run: Run) -> dict[str, Any] | None:
    """Pairs of tiles from slides spread over the cohort, and how often each method was really used."""
    rows = run.stages.get("stain", {})
    usable = sorted(slide_id for slide_id, row in rows.items() if row.status == OK)
    if not usable:
        return None
    asked = (run.context.config.get("stain") or {}).get("method", "vahadane")
    sampled = [found for slide_id in spread(usable, PAIRS) if (found := _fit(run, slide_id))]
    pairs = [pair for fit in sampled if (pair := _pair(run, fit))]
    return {
        "asked": asked,
        "pairs": pairs,
        "slides": len(usable),
        "methods": Counter(fit.method for fit in sampled),
    }


def _fit(run: Run, slide_id: str) -> StainFit | None:
    fit = run.attempt(f"stain of {slide_id}", lambda: read_stain(layout.stain_fit(run.results, slide_id)))
    if fit and fit.fallback:
        run.skip(f"{fit.requested} stain fit of {slide_id}", fit.fallback)
    return fit


def _pair(run: Run, fit: StainFit) -> dict[str, Any] | None:
    """One tile of a slide, as scanned and as the encoder sees it."""
    slide_id = fit.slide_id
    params = StainParams(**(run.context.config.get("stain") or {}))

    def read() -> dict[str, Any] | None:
        grid = next(iter(read_tiles(layout.tiles(run.results, slide_id)).magnifications.values()), None)
        if grid is None or len(grid) == 0:
            return None
        facts = read_slide_facts(layout.slide_facts(run.results, slide_id))
        if not is_remote(facts.path) and not Path(facts.path).exists():
            raise FileNotFoundError(2, "the slide file is gone", facts.path)
        with open_checked(facts) as slide:
            x, y = grid.upper_left[_middle_tile(grid)]
            before = slide.read_field(x, y, grid.um_per_px, grid.size_px)
        after = before if fit.colours is None else apply(before, fit.colours, read_target(params, run.results)[0])
        return {
            "slide_id": slide_id,
            "method": fit.method,
            "before": photograph(before, 90),
            "after": photograph(after, 90),
            "angle": fit.diagnostics.get("angle_degrees"),
        }

    return run.attempt(f"stain example of {slide_id}", read)


def _middle_tile(grid: TileGrid) -> int:
    """Row of the middle tile among those with the most tissue, so that the choice is stable and typical."""
    full = np.flatnonzero(grid.tissue_fraction >= np.quantile(grid.tissue_fraction, 0.75))
    return int(full[len(full) // 2])
