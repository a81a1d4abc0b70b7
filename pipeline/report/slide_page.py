"""One page about one slide: what it is, what was taken of it, what it looks like, and where the time went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.contracts import layout
from pipeline.contracts.batches import OK, BatchRow
from pipeline.contracts.errors import HistoweaveError
from pipeline.contracts.features import read_cells
from pipeline.contracts.quality import SlideQuality
from pipeline.contracts.slides import SlideFacts, read_slide_facts
from pipeline.contracts.stains import StainColours, StainFit, read_stain
from pipeline.contracts.tiles import TileGrid, TileSet, read_tiles
from pipeline.contracts.timings import SlideTimings, read_timings
from pipeline.contracts.tissue import Tissue, read_tissue
from pipeline.overlays import shrunk
from pipeline.report.pages import render_page
from pipeline.report.pictures import photograph
from pipeline.report.slide_pictures import OVERVIEW_PX, QUALITY, cell_layer, sampled_tiles, tile_colour
from pipeline.slide import open_checked

EXCLUDED_COLOURS = ((176, 57, 74), (150, 30, 140), (90, 90, 90), (200, 60, 20), (20, 120, 120))
TIMED = ("read", "normalise", "encode", "write")


@dataclass
class SlideRecord:
    """Everything that was written about one slide; what is absent is None, and `remarks` says why."""

    slide_id: str
    case_id: str
    verdict: BatchRow
    stages: Mapping[str, BatchRow]
    facts: SlideFacts | None = None
    tissue: Tissue | None = None
    tiles: TileSet | None = None
    stain: StainFit | None = None
    timings: dict[str, SlideTimings] = field(default_factory=dict)
    unreadable: dict[str, dict[str, int]] = field(default_factory=dict)  #: encoder -> magnification -> tiles
    remarks: list[str] = field(default_factory=list)

    @property
    def grids(self) -> dict[float, TileGrid]:
        return self.tiles.magnifications if self.tiles else {}


def read_record(results: str | Path, stages: Mapping[str, BatchRow], encoders: Sequence[str]) -> SlideRecord:
    """Read the artefacts of a slide.

    Parameters
    ----------
    stages : the slide's row of every stage that has one, in order; ``features/{encoder}`` for each encoder
    encoders : slugs
    """
    rows = list(stages.values())
    verdict = next((row for row in rows if row.status != OK), rows[-1])
    record = SlideRecord(verdict.slide_id, verdict.case_id, verdict, stages)
    slide_id = record.slide_id
    # what the losing stage left is looked for, what later ones left is of an earlier run
    made = {stage for stage, row in stages.items() if row.status == OK or row.stage == stage.partition("/")[0]}

    def attempt(stage: str, read: Any, path: str) -> Any:
        if stage not in made or not Path(path).exists():
            return None
        try:
            return read(path)
        except (HistoweaveError, OSError) as error:
            if stages[stage].status == OK:
                record.remarks.append(str(error))
            return None

    record.facts = attempt("check", read_slide_facts, layout.slide_facts(results, slide_id))
    record.tissue = attempt("tissue", read_tissue, layout.tissue_shape(results, slide_id))
    record.tiles = attempt("tiles", read_tiles, layout.tiles(results, slide_id))
    record.stain = attempt("stain", read_stain, layout.stain_fit(results, slide_id))
    for slug in encoders:
        stage = f"features/{slug}"
        timings = attempt(stage, read_timings, layout.slide_timings(results, slug, slide_id))
        if timings:
            record.timings[slug] = timings
        for magnification in record.grids if stages.get(stage, verdict).status == OK else ():
            found = attempt(stage, read_cells, layout.features(results, slug, magnification, slide_id))
            if found is not None:
                record.unreadable.setdefault(slug, {})[f"{magnification:g}x"] = len(found[1])
    return record


def summarise(record: SlideRecord, digest: str, has_thumbnail: bool) -> SlideQuality:
    """The slide's row in the list of pages."""
    facts, tissue, stain = record.facts, record.tissue, record.stain
    return SlideQuality(
        slide_id=record.slide_id,
        case_id=record.case_id,
        status=record.verdict.status,
        stage=record.verdict.stage,
        reason=record.verdict.reason,
        um_per_px=sum(facts.um_per_px) / 2 if facts else None,
        tissue_mm2=tissue.tissue_mm2 if tissue else None,
        ink_mm2=tissue.ink_mm2 if tissue else None,
        tiles={f"{m:g}x": len(grid) for m, grid in record.grids.items()},
        excluded=sum(len(cells) for grid in record.grids.values() for cells in grid.excluded.values()),
        unreadable=max((sum(counts.values()) for counts in record.unreadable.values()), default=0),
        stain=stain.method if stain else "",
        angle=stain.diagnostics.get("angle_degrees") if stain else None,
        seconds=round(sum(row.seconds for row in record.stages.values()), 3),
        has_thumbnail=has_thumbnail,
        digest=digest,
    )


def slide_page(record: SlideRecord, overview: np.ndarray | None, target: StainColours, is_simulated: bool) -> str:
    """The page as HTML. `overview` is the thumbnail with its contours, uint8 [height, width, RGB]."""
    samples, grid = _samples(record, target)
    values: dict[str, Any] = {
        "record": record,
        "verdict": record.verdict,
        "facts": _facts(record),
        "stages": _stage_rows(record),
        "overview": None if overview is None else _overview(record, overview),
        "tiles": [_tile_row(record, m, grid) for m, grid in record.grids.items()],
        "reasons": sorted({reason for grid in record.grids.values() for reason in grid.excluded}),
        "refused": sorted((record.tiles.refused if record.tiles else {}).items(), reverse=True),
        "qc": [(m, _qc_rows(grid)) for m, grid in record.grids.items() if grid.qc and len(grid)],
        "samples": samples,
        "sample_grid": grid,
        "stain": _stain(record.stain),
        "timings": [_timing_row(slug, timings) for slug, timings in record.timings.items()],
        "timed": TIMED,
        "encoders": list(record.unreadable),
        "remarks": record.remarks,
        "simulated": is_simulated,
    }
    return render_page("slide_page.html", values)


def _facts(record: SlideRecord) -> list[tuple[str, str]]:
    facts, tissue = record.facts, record.tissue
    rows: list[tuple[str, str]] = [("case", record.case_id)]
    if facts:
        (x, y), (width, height) = facts.um_per_px, facts.dimensions
        rows += [
            ("file", facts.path),
            ("um/px at level 0", f"{x:.4g} x {y:.4g}, from {facts.um_per_px_source}"),
            ("size", f"{width:,} x {height:,} px, {width * x / 1000:.1f} x {height * y / 1000:.1f} mm"),
            ("objective", f"{facts.objective:g}x" if facts.objective else "not said"),
            ("vendor", facts.vendor),
            ("decoded by", facts.backend + (f" ({facts.backend_reason})" if facts.backend_reason else "")),
            ("levels", ", ".join(f"{w} x {h}" for w, h, _, _ in facts.levels)),
            *(("warning", warning) for warning in facts.warnings),
        ]
    if tissue:
        rows.append(("tissue", f"{tissue.tissue_mm2:.2f} mm2 in {_counted(len(tissue.tissue), 'piece')}"))
        rows.append(("ink", f"{tissue.ink_mm2:.2f} mm2" if tissue.ink_mm2 else "none found"))
    return rows


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def _stage_rows(record: SlideRecord) -> list[tuple[str, BatchRow, str]]:
    """Stages that the slide reached: name, row, and what that stage itself remarked (remarks add up over stages)."""
    rows, before = [], ""
    for name, row in record.stages.items():
        if row.status != OK and row.stage != name.partition("/")[0] and name != next(iter(record.stages)):
            continue
        rows.append((name, row, row.reason.removeprefix(before).removeprefix("; ")))
        before = row.reason if not name.startswith("features/") else before
    return rows


def _overview(record: SlideRecord, image: np.ndarray) -> dict[str, Any]:
    """The picture and its layers: tiles by magnification, excluded cells by reason."""
    picture = shrunk(image, OVERVIEW_PX)
    size = (picture.shape[1], picture.shape[0])
    layers = []
    if record.tiles:
        dimensions = record.tiles.dimensions
        for number, (m, grid) in enumerate(record.grids.items()):
            colour = tile_colour(number)
            layers.append(
                _layer(
                    f"{m:g}x tiles",
                    len(grid),
                    colour,
                    cell_layer(grid.cell, grid, dimensions, size, colour),
                    number == 0,
                )
            )
        for number, reason in enumerate(sorted({r for grid in record.grids.values() for r in grid.excluded})):
            m, grid = next((m, g) for m, g in record.grids.items() if reason in g.excluded)
            cells, colour = grid.excluded[reason], EXCLUDED_COLOURS[number % len(EXCLUDED_COLOURS)]
            if len(cells):
                drawn = cell_layer(cells, grid, dimensions, size, colour)
                layers.append(_layer(f"excluded at {m:g}x: {reason}", len(cells), colour, drawn, True))
    return {"base": photograph(picture, QUALITY), "layers": layers}


def _layer(label: str, n: int, colour: tuple[int, int, int], picture: Any, is_on: bool) -> dict[str, Any]:
    return {"label": label, "n": n, "colour": f"rgb{colour}", "picture": picture, "on": is_on}


def _tile_row(record: SlideRecord, magnification: float, grid: TileGrid) -> dict[str, Any]:
    label = f"{magnification:g}x"
    return {
        "label": label,
        "um_per_px": grid.um_per_px,
        "side_um": grid.size_px * grid.um_per_px,
        "source": f"level {grid.source_level} at {grid.source_um_per_px[0]:.4g}",
        "n": len(grid),
        "tissue": float(np.median(grid.tissue_fraction)) if len(grid) else None,
        "excluded": {reason: len(cells) for reason, cells in grid.excluded.items()},
        "unreadable": {slug: counts.get(label) for slug, counts in record.unreadable.items()},
    }


def _qc_rows(grid: TileGrid) -> list[tuple[str, list[float]]]:
    """Name and the 5th, 50th and 95th percentile of each column."""
    return [(name, np.percentile(values, [5, 50, 95]).tolist()) for name, values in sorted(grid.qc.items())]


def _samples(record: SlideRecord, target: StainColours) -> tuple[list[Any], str]:
    """Tiles of the finest magnification, and its label."""
    found = next(((m, grid) for m, grid in record.grids.items() if len(grid)), None)
    if found is None or record.facts is None:
        return [], ""
    magnification, grid = found
    source = record.stain.colours if record.stain else None
    try:
        with open_checked(record.facts) as slide:
            tiles, problems = sampled_tiles(slide, grid, record.slide_id, source, target)
    except HistoweaveError as error:
        record.remarks.append(f"no tiles are shown: {error}")
        return [], ""
    record.remarks += problems
    return tiles, f"{magnification:g}x"


def _stain(fit: StainFit | None) -> dict[str, Any] | None:
    if fit is None:
        return None
    colours = []
    if fit.colours:
        white = np.array(fit.colours.white)
        for name, row, c in zip(("haematoxylin", "eosin"), fit.colours.matrix, fit.colours.concentrations, strict=True):
            shown = np.clip(white * np.exp(-np.array(row) * c), 0, 255).round().astype(int)
            colours.append((name, f"rgb({', '.join(map(str, shown))})", row, c))
    return {"fit": fit, "colours": colours, "diagnostics": sorted(fit.diagnostics.items())}


def _timing_row(slug: str, timings: SlideTimings) -> dict[str, Any]:
    seconds = {name: getattr(timings, name) for name in TIMED}
    total = sum(seconds.values()) or 1.0
    return {
        "slug": slug,
        "timings": timings,
        "seconds": seconds,
        "share": {name: 100 * value / total for name, value in seconds.items()},
        "tiles_per_second": timings.tiles / timings.wall if timings.wall else None,
    }
