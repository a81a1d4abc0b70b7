"""Which cells of a slide are read, and which tiles of which magnifications each of them is a piece of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.contracts.tiles import TileGrid


def groups(grids: Mapping[float, TileGrid]) -> list[dict[float, TileGrid]]:
    """Grids that can be read in one pass, the finest first within a group and among groups.

    They come from one stored level, and a cell of the finest fills whole pixels of the others' tiles.
    """
    found: list[dict[float, TileGrid]] = []
    for magnification, grid in grids.items():
        finest = next(iter(found[-1].values())) if found else None
        if finest is None or finest.source_level != grid.source_level or grid.size_px % ratio(finest, grid):
            found.append({})
        found[-1][magnification] = grid
    return found


def ratio(fine: TileGrid, coarse: TileGrid) -> int:
    """Cells of `fine` per cell of `coarse` on one axis."""
    return round(float(coarse.pitch[0] / fine.pitch[0]))


class SharedCells:
    """Cells of the finest of aligned grids that hold any tile's pixels, in row-major order.

    Attributes
    ----------
    cell : int64 [cells, 2], (column, row) on the finest lattice
    ratios : cells per tile of each grid, one axis; 1 for the finest
    rows : int64 [cells] for each grid, the row of the tile that a cell is a piece of, -1 if none
    """

    def __init__(self, grids: Sequence[TileGrid]) -> None:
        self.ratios = [ratio(grids[0], grid) for grid in grids]
        self.cell = _row_major(
            np.concatenate([_descendants(grid.cell, r) for grid, r in zip(grids, self.ratios, strict=True)])
        )
        self.rows = [rows_of(grid.cell, self.cell // r) for grid, r in zip(grids, self.ratios, strict=True)]

    def __len__(self) -> int:
        return len(self.cell)


def _descendants(cell: np.ndarray, ratio: int) -> np.ndarray:
    """Cells of a lattice `ratio` times finer that make up `cell` [tiles, 2], int64 [tiles * ratio**2, 2]."""
    inner = np.stack(np.meshgrid(np.arange(ratio), np.arange(ratio)), axis=-1).reshape(-1, 2)
    return (cell.astype(np.int64)[:, None] * ratio + inner).reshape(-1, 2)


def _row_major(cell: np.ndarray) -> np.ndarray:
    """Each of `cell` (column, row) once, by row and then column."""
    return np.unique(cell[:, ::-1], axis=0)[:, ::-1]


def rows_of(cell: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Row of `wanted` [n, 2] in row-major `cell` [tiles, 2], int64 [n], -1 where it is not among them."""
    width = 1 + max(int(cell[:, 0].max(initial=0)), int(wanted[:, 0].max(initial=0)))
    keys, sought = (c[:, 1].astype(np.int64) * width + c[:, 0] for c in (cell, wanted))
    at = np.minimum(np.searchsorted(keys, sought), len(keys) - 1)
    return np.where(keys[at] == sought, at, -1)
