"""Pictures of one slide: the overview, its tiles as layers to lay over it, and sampled tiles before and after."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pipeline.contracts import layout
from pipeline.contracts.errors import SlideError
from pipeline.contracts.stains import StainColours
from pipeline.contracts.tiles import TileGrid
from pipeline.overlays import draw_cells, shrunk
from pipeline.report.pictures import Picture, photograph, png_image
from pipeline.slide import SlideReader
from pipeline.stain_transfer import StainTransfer

OVERVIEW_PX = 900
THUMBNAIL_PX = 96
SAMPLE_PX = 132
SAMPLES = 12
QUALITY = 78
TILE_COLOURS = ((47, 102, 144), (200, 116, 44), (63, 138, 100), (122, 90, 166))  # RGB, finest magnification first
FILL = 64  #: alpha (0-255) of a layer's cells; their outlines are opaque
LEAST_OUTLINED_PX = 5  #: smaller cells are filled only


@dataclass(frozen=True)
class SampledTile:
    """A tile as scanned and as the encoder sees it; `after` is None where colours are left as they are."""

    cell: tuple[int, int]
    before: Picture
    after: Picture | None


def read_overview(results: str | Path, slide_id: str) -> np.ndarray | None:
    """The thumbnail with its contours, uint8 [height, width, RGB], None where there is none."""
    path = layout.tissue_overlay(results, slide_id)
    image = cv2.imread(path) if Path(path).exists() else None
    return None if image is None else image[..., ::-1]


def tile_colour(index: int) -> tuple[int, int, int]:
    """RGB of the tiles of a magnification, 0 the finest."""
    return TILE_COLOURS[index % len(TILE_COLOURS)]


def cell_layer(
    cells: np.ndarray, grid: TileGrid, dimensions: tuple[int, int], size: tuple[int, int], colour: tuple[int, int, int]
) -> Picture:
    """A transparent picture with cells of a grid filled and outlined.

    Parameters
    ----------
    cells : int [cells, 2], (column, row) on the lattice of `grid`
    dimensions : (width, height) of the slide, level-0 pixels
    size : (width, height) of the picture, which shows the whole slide
    """
    layer = np.zeros((size[1], size[0], 4), np.uint8)
    draw_cells(layer, grid, cells, dimensions, (*colour, FILL))
    if (grid.pitch * size / dimensions).min() >= LEAST_OUTLINED_PX:
        draw_cells(layer, grid, cells, dimensions, (*colour, 255), pen_px=1, share_lines=True)
    return png_image(layer)


def sampled_rows(grid: TileGrid, slide_id: str) -> np.ndarray:
    """Rows of a grid drawn without replacement, in the grid's order; the slide's id is the seed."""
    seed = np.frombuffer(slide_id.encode(), np.uint8)
    return np.sort(np.random.default_rng(seed.astype(np.uint32)).permutation(len(grid))[:SAMPLES])


def sampled_tiles(
    slide: SlideReader, grid: TileGrid, slide_id: str, source: StainColours | None, target: StainColours
) -> tuple[list[SampledTile], list[str]]:
    """Read a sample of a grid; tiles, and why others of the sample could not be read."""
    transfer = StainTransfer(source, target)
    tiles, problems = [], []
    for row in sampled_rows(grid, slide_id):
        x, y = grid.upper_left[row]
        column_row = (int(grid.cell[row][0]), int(grid.cell[row][1]))
        try:
            before = slide.read_field(x, y, grid.um_per_px, grid.size_px)
        except SlideError as error:
            problems.append(f"tile {column_row}: {error}")
            continue
        after = None if source is None else _photograph(transfer(before))
        tiles.append(SampledTile(column_row, _photograph(before), after))
    return tiles, problems


def _photograph(tile: np.ndarray) -> Picture:
    return photograph(shrunk(tile, SAMPLE_PX), QUALITY)
