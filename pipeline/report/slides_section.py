"""What became of the slides: seconds and verdicts per stage, slides lost, tiles, thumbnails."""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import Any

import cv2
import numpy as np

from pipeline.contracts import layout
from pipeline.contracts.batches import OK, STATUSES
from pipeline.contracts.tiles import TileSet, read_tiles
from pipeline.overlays import draw_cells, shrunk
from pipeline.report.pictures import photograph
from pipeline.report.reading import Run
from pipeline.report.slide_pictures import read_overview, tile_colour

MOST_THUMBNAILS = 24
MOST_LISTED = 300
THUMBNAIL_PX = 420


def slides_section(run: Run) -> dict[str, Any] | None:
    if not run.slides:
        return None
    rows = run.last_rows
    usable = [slide_id for slide_id, row in rows.items() if row.status == OK]
    lost = [row for row in rows.values() if row.status != OK]
    remarks = [row for row in rows.values() if row.status == OK and row.reason]
    shown = spread(sorted(usable), MOST_THUMBNAILS) if run.context.reads_slides else []
    thumbnails = [t for slide_id in shown if (t := _thumbnail(run, slide_id))]
    return {
        "usable": len(usable),
        "total": len(run.slides),
        "stages": [_stage_row(stage, rows) for stage, rows in run.stages.items()],
        "statuses": STATUSES,
        "lost": sorted(lost, key=lambda row: (STATUSES.index(row.status), row.slide_id))[:MOST_LISTED],
        "n_lost": len(lost),
        "remarks": sorted(remarks, key=lambda row: row.slide_id)[:MOST_LISTED],
        "n_remarks": len(remarks),
        "tiles": _tile_rows(run),
        "thumbnails": thumbnails,
        "legend": _legend(run),
    }


def spread(items: list[str], most: int) -> list[str]:
    """At most `most` of the items, evenly spread over the list."""
    if len(items) <= most:
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]


def _stage_row(stage: str, rows: dict[str, Any]) -> dict[str, Any]:
    """Verdicts that this stage itself gave (a slide lost earlier is counted where it was lost)."""
    encoder = stage.partition("/")[2]
    own = {"features", encoder} if encoder else {stage}
    counts = Counter(row.status for row in rows.values() if row.status == OK or row.stage in own)
    if stage == "check":
        counts = Counter(row.status for row in rows.values())
    worked = [row.seconds for row in rows.values() if row.seconds > 0]
    return {
        "stage": f"features ({encoder})" if encoder else stage,
        "counts": {status: counts[status] for status in STATUSES},
        "worked": len(worked),
        "seconds": sum(worked),
        "median": median(worked) if worked else None,
    }


def _tile_rows(run: Run) -> list[dict[str, Any]]:
    rows = []
    for slug, bags in run.bags.items():
        for magnification in sorted({bag.magnification for bag in bags}, reverse=True):
            counts = [bag.n_tiles for bag in bags if bag.magnification == magnification]
            rows.append(
                {
                    "encoder": slug,
                    "magnification": f"{magnification:g}x",
                    "um_per_px": 10 / magnification,
                    "slides": len(counts),
                    "tiles": sum(counts),
                    "median": median(counts),
                    "range": (min(counts), max(counts)),
                }
            )
    return rows


def _legend(run: Run) -> list[tuple[str, str]]:
    magnifications = (run.context.config.get("tiles") or {}).get("magnifications") or []
    finest_first = sorted(magnifications, reverse=True)
    return [(f"{m:g}x", f"rgb{tile_colour(i)}") for i, m in enumerate(finest_first)]


def _thumbnail(run: Run, slide_id: str) -> dict[str, Any] | None:
    """The stored thumbnail with the tissue contour, and the outlines of the tiles drawn on it."""
    image = read_overview(run.results, slide_id)
    if image is None:
        run.skip(f"thumbnail of {slide_id}", "no readable overlay was written")
        return None
    tiles = run.attempt(f"tiles of {slide_id}", lambda: read_tiles(layout.tiles(run.results, slide_id)))
    picture = shrunk(image, THUMBNAIL_PX)
    if tiles:
        picture = outline_tiles(picture, tiles)
    counts = {m: len(grid) for m, grid in tiles.magnifications.items()} if tiles else {}
    text = ", ".join(f"{n} at {m:g}x" for m, n in counts.items())
    for magnification, reason in (tiles.refused if tiles else {}).items():
        run.skip(f"{slide_id} at {magnification:g}x", reason)
    return {"slide_id": slide_id, "image": photograph(picture), "text": text or "no tiles"}


def outline_tiles(image: np.ndarray, tiles: TileSet) -> np.ndarray:
    """Outline every tile on a thumbnail of the whole slide, uint8 [height, width, RGB]; returns another."""
    picture = image
    for index, grid in enumerate(tiles.magnifications.values()):
        layer = picture.copy()
        draw_cells(layer, grid, grid.cell, tiles.dimensions, tile_colour(index), 1 + (index > 0), share_lines=True)
        picture = cv2.addWeighted(layer, 0.75, picture, 0.25, 0)
    return picture
