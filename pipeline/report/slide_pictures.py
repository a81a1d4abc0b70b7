"""Pictures of one slide: the overview, its tiles as layers to lay over it, and sampled tiles before and after."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.contracts.errors import SlideError
from pipeline.contracts.stains import StainColours
from pipeline.contracts.tiles import TileGrid
from pipeline.report.pictures import Picture, photograph, png_image
from pipeline.slide import SlideReader
from pipeline.stain_transfer import StainTransfer

OVERVIEW_PX = 900
THUMBNAIL_PX = 96
SAMPLE_PX = 132
SAMPLES = 12
QUALITY = 78
FILL = 64  #: alpha (0-255) of a layer's cells; their outlines are opaque
LEAST_OUTLINED_PX = 5  #: smaller cells are filled only


@dataclass(frozen=True)
class SampledTile:
    """A tile as scanned and as the encoder sees it; `after` is None where colours are left as they are."""

    cell: tuple[int, int]
    before: Picture
    after: Picture | None


def shrunk(image: np.ndarray, longest: int) -> np.ndarray:
    """uint8 [height, width, 3] with its longer side at most `longest`."""
    factor = min(1.0, longest / max(image.shape[:2]))
    size = max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA) if factor < 1 else image


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
    width, height = size
    scale = np.array(size) / np.array(dimensions)
    layer = np.zeros((height, width, 4), np.uint8)
    near = ((grid.origin + cells * grid.pitch) * scale).round().astype(int)
    far = ((grid.origin + (cells + 1) * grid.pitch) * scale).round().astype(int)
    outlined = bool((grid.pitch * scale).min() >= LEAST_OUTLINED_PX)
    for (x0, y0), (x1, y1) in zip(near.tolist(), np.maximum(far, near + 1).tolist(), strict=True):
        layer[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = (*colour, FILL)
    if outlined:
        for (x0, y0), (x1, y1) in zip(near.tolist(), far.tolist(), strict=True):
            cv2.rectangle(layer, (x0, y0), (x1, y1), (*colour, 255), 1)
    return png_image(layer)


def sampled_rows(grid: TileGrid, slide_id: str, count: int = SAMPLES) -> np.ndarray:
    """Rows of a grid drawn without replacement, in the grid's order; the slide's id is the seed."""
    seed = np.frombuffer(slide_id.encode(), np.uint8)
    return np.sort(np.random.default_rng(seed.astype(np.uint32)).permutation(len(grid))[:count])


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
