"""How sharp is each part of a slide? Fine detail against coarser structure, at a stated um per pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.contracts.errors import SlideError
from pipeline.rasters import Raster
from pipeline.slide import PixelLattice, SlideReader, Window

FOCUS_UM_PER_PX = 1.0  #: or the slide's own um/px where that is coarser
DETAIL_SIGMA_PX = 1.0  # what this blur removes is detail
STRUCTURE_PX = 4  # structure is what remains of means over squares of this side ...
STRUCTURE_SIGMA_PX = 12.0  # ... after the mean over this sigma is taken off
FLOOR = 0.04  # grey levels squared; below rounding (1/12), yet gives featureless tissue, which nobody can judge, 1
DETAIL_SPREAD_CELLS = 1.0  # sigma
SURROUNDINGS_CELLS, SURROUNDINGS_WEIGHT = 4.0, 0.15  # sigma; focus changes slowly over a slide
CELL_PX = 16  # side of the squares that the two are averaged over
BLOCK_PX = 1024  # read at a time; whole cells, and whole tiles of most files, so that nothing is decoded twice
PLAIN_DETAIL, PLAIN_STRUCTURE = 4.0, 64.0  # grey levels squared; stained tissue has 2 to 10 times as much of either
MAX_SOURCE_PX = 1_000_000_000  # decoded per slide; beyond it only every n-th block is read


@dataclass(frozen=True)
class Focus:
    """Energy of detail and of structure (grey levels squared), spread over their surroundings, wherever a block holds
    tissue, 0 elsewhere; and `plain`, bool, where there was next to nothing of both."""

    detail: Raster
    structure: Raster
    plain: Raster


def sharpness(detail: np.ndarray, structure: np.ndarray) -> np.ndarray:
    """Square root of the energy of detail over that of structure (grey levels squared), at most 1.

    Their ratio does not depend on contrast or stain. Out of focus, detail goes first: sharp H&E measures 0.2
    to 0.8, and a blur of 1, 2, 3 um (sigma) leaves about 1/2, 1/4, 1/6 of it.
    """
    return np.minimum(np.sqrt((detail + FLOOR) / (structure + FLOOR)), 1)


def measure_focus(reader: SlideReader, tissue: Raster) -> Focus:
    """Measure every block that holds tissue.

    Where the file holds no pyramid near `FOCUS_UM_PER_PX`, and where the tissue is large, only every n-th block is read
    (`MAX_SOURCE_PX`); the others, and those that cannot be decoded, take the mean of the nearest one that was.
    """
    um = max(FOCUS_UM_PER_PX, *reader.um_per_px)
    lattice = reader.lattice(0, 0, um)
    size = [max(1, int(side * own / um)) for side, own in zip(reader.dimensions, reader.um_per_px, strict=True)]
    cell = CELL_PX * um / reader.um_per_px[0], CELL_PX * um / reader.um_per_px[1]
    shape = math.ceil(size[1] / CELL_PX), math.ceil(size[0] / CELL_PX)
    energies = np.zeros((2, *shape), np.float32)

    blocks = _blocks_with_tissue(tissue, shape, cell)
    stride = max(1, math.ceil(len(blocks) * BLOCK_PX**2 * lattice.step[0] * lattice.step[1] / MAX_SOURCE_PX))
    measured: dict[tuple[int, int], np.ndarray] = {}
    for row, column in blocks[::stride]:
        try:
            cells = _measured(reader, lattice, size, row, column)
        except SlideError:
            continue  # embedding finds out which tiles cannot be read
        measured[row, column] = cells.mean(axis=(1, 2))
        energies[:, *_cells_of(row, column)] = cells
    _fill_from_nearest(energies, [block for block in blocks if block not in measured], measured)
    known = np.zeros(shape, np.float32)
    for row, column in blocks:
        known[_cells_of(row, column)] = 1
    detail, structure = energies
    plain = (known > 0) & (detail < PLAIN_DETAIL) & (structure < PLAIN_STRUCTURE)
    # Structure reaches beyond the edges that it comes from; their detail must reach as far, or flat tissue beside a
    # sharp edge would seem blurred. Where there is little of either, the surroundings decide.
    detail = _mean_around(detail, known, DETAIL_SPREAD_CELLS)
    detail, structure = (
        values + SURROUNDINGS_WEIGHT * _mean_around(values, known, SURROUNDINGS_CELLS) for values in (detail, structure)
    )
    return Focus(Raster(detail, cell), Raster(structure, cell), Raster(plain, cell))


def _blocks_with_tissue(tissue: Raster, shape: tuple[int, int], cell: tuple[float, float]) -> list[tuple[int, int]]:
    """(row, column) of blocks, row-major."""
    side = BLOCK_PX // CELL_PX
    y, x = (np.arange(math.ceil(count / side) + 1) * side for count in shape)
    return [(int(row), int(column)) for row, column in np.argwhere(tissue.means(x * cell[0], y * cell[1]) > 1e-9)]


def _measured(reader: SlideReader, lattice: PixelLattice, size: list[int], row: int, column: int) -> np.ndarray:
    """Energies of one block, float32 [2, cell rows, cell columns]."""
    x, y = column * BLOCK_PX, row * BLOCK_PX
    rgb = reader.read_windows([Window(lattice, x, y, BLOCK_PX)])[0]
    rgb = np.ascontiguousarray(rgb[: size[1] - y, : size[0] - x])  # nothing beyond the slide's edge
    return energies_of(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY))


def energies_of(grey: np.ndarray) -> np.ndarray:
    """Energies of detail and structure of the cells of a block, float32 [2, cell rows, cell columns].

    `grey` is uint8 [rows, columns]. A cell cut by the edge counts what it lacks as 0 in both.
    """
    fine = grey.astype(np.float32)
    detail = fine - cv2.GaussianBlur(fine, (0, 0), DETAIL_SIGMA_PX)
    rows, columns = (math.ceil(length / STRUCTURE_PX) for length in fine.shape)
    bottom, right = rows * STRUCTURE_PX - fine.shape[0], columns * STRUCTURE_PX - fine.shape[1]
    whole = cv2.copyMakeBorder(fine, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
    structure = cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA)
    structure -= cv2.GaussianBlur(structure, (0, 0), STRUCTURE_SIGMA_PX / STRUCTURE_PX)
    return np.stack([_square_means(detail, CELL_PX), _square_means(structure, CELL_PX // STRUCTURE_PX)])


def _square_means(values: np.ndarray, side: int) -> np.ndarray:
    """Means of squared values over squares of `side`, zeros beyond the edge."""
    rows, columns = (math.ceil(length / side) for length in values.shape)
    squares = cv2.copyMakeBorder(
        values * values, 0, rows * side - len(values), 0, columns * side - values.shape[1], cv2.BORDER_CONSTANT
    )
    return cv2.resize(squares, (columns, rows), interpolation=cv2.INTER_AREA)


def _cells_of(row: int, column: int) -> tuple[slice, slice]:
    side = BLOCK_PX // CELL_PX
    return slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side)


def _mean_around(cells: np.ndarray, known: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian mean of known (1) cells, 0 elsewhere."""
    total, weight = (cv2.GaussianBlur(v, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE) for v in (cells, known))
    return total / np.maximum(weight, 1e-6) * known


def _fill_from_nearest(
    energies: np.ndarray, blocks: list[tuple[int, int]], measured: dict[tuple[int, int], np.ndarray]
) -> None:
    """Give every block the means of the measured one nearest to it, the first of equally near ones."""
    if not measured:
        return
    known = np.array(list(measured))
    for row, column in blocks:
        nearest = tuple(known[np.argmin(((known - (row, column)) ** 2).sum(axis=1))])
        energies[:, *_cells_of(row, column)] = measured[nearest][:, None, None]
