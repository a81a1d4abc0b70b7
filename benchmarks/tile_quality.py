"""What does it cost to measure pen, dark areas, folds and focus? CPU time of one thread per 256-px tile at 0.5 um/px.

On generated slides of 16384 x 12288 px that are tissue throughout, with a stored level at 1 um/px, with the nearest
finer one at 0.5, and with none but 0.25 um/px; the limit is half of what design section 7 grants such a tile for being
embedded, or, where all is decoded from 0.25 um/px, as much again as its own reading.

One command, ``python -m benchmarks.tile_quality``; one line per figure. Exit status 1 if one is missed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import cv2

from benchmarks.generated_slide import write_slide
from benchmarks.tile_reading import Figure, cpu_seconds, fastest
from pipeline.check import check_slide
from pipeline.contracts.cohort import Slide
from pipeline.slide import open_checked
from pipeline.tile_quality import measure_quality
from pipeline.tissue import TissueParams, find_tissue

TILE_MM2 = (256 * 0.5e-3) ** 2


def quality_cost(name: str, path: Path, limit: float) -> Figure:
    facts = check_slide(Slide(name, "c", str(path)))
    with open_checked(facts) as slide:
        tissue, rgb, _ = find_tissue(slide, name, TissueParams(), "")
        (seconds,) = fastest(lambda: cpu_seconds(measure_quality, slide, tissue, rgb))
    return Figure(name, seconds / (tissue.tissue_mm2 / TILE_MM2) * 1e3, "limit", limit, "CPU-ms")


def run(folder: Path, width: int = 16384, height: int = 12288) -> list[Figure]:
    """Make the slides in `folder` and measure all figures."""
    cases = (("1 um/px stored", (1, 2, 4, 16), 0.75), ("0.5 um/px stored", (1, 2, 16), 0.75), ("0.25 only", (1,), 2.2))
    return [
        quality_cost(f"quality per tile, {name}", write_slide(folder / f"{i}.tif", width, height, 0.25, levels), limit)
        for i, (name, levels, limit) in enumerate(cases)
    ]


def main() -> int:
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = run(Path(folder))
    for figure in figures:
        print(figure)
    return 0 if all(figure.holds for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
