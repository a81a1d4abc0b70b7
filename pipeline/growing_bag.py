"""The feature file of one grid while its tiles are embedded."""

from __future__ import annotations

import numpy as np

from pipeline.contracts.errors import SlideError
from pipeline.contracts.features import CHUNK_ROWS, BagSource, BagWriter, feature_chunks, read_cells
from pipeline.contracts.tiles import TileGrid

Cells = tuple[np.ndarray, np.ndarray]  # (column, row) of a file's tiles, in order, and of those that failed


class GrowingBag:
    """Takes features in the order of the grid's rows and keeps account of the tiles that could not be read."""

    def __init__(self, grid: TileGrid, source: BagSource, writer: BagWriter) -> None:
        self._grid, self._writer, self._label = grid, writer, f"{source.magnification:g}x"
        self._kept = np.zeros(len(grid), bool)
        self._failed: list[tuple[int, str]] = []

    def refuse_too_many(self, failed: tuple[tuple[int, str], ...], most: float) -> None:
        """Count tiles that could not be read. Raises SlideError when they are more than the share `most`."""
        self._failed += failed
        if len(self._failed) > most * len(self._grid):
            raise SlideError(
                f"{self._label}: {len(self._failed)} tiles could not be read so far, at most {most:.0%} of"
                f" {len(self._grid)} may fail (embedding.max_failed_fraction). The first: {self._failed[0][1]}"
            )

    def add(self, rows: np.ndarray, features: np.ndarray) -> None:
        """Append the features of `rows` of the grid."""
        self._writer.append(features)
        self._kept[rows] = True

    @property
    def is_complete(self) -> bool:
        return int(self._kept.sum()) + len(self._failed) == len(self._grid)

    def finish(self, coarser: Cells | None, width: int) -> None:
        """Write the other columns; `coarser` are the cells of the next coarser file."""
        grid, kept = self._grid, self._kept
        self._writer.finish(
            coords=grid.coords[kept],
            cell=grid.cell[kept],
            parent=_parents(grid, coarser)[kept],
            tissue_fraction=grid.tissue_fraction[kept],
            failed_cells=grid.cell[~kept],
            width=width,
        )

    @property
    def cells(self) -> Cells:
        """Cells with features, in the order of the file, and those that failed."""
        return self._grid.cell[self._kept], self._grid.cell[~self._kept]


def carry_over(path: str, grid: TileGrid, source: BagSource, coarser: Cells | None, dtype: str, width: int) -> None:
    """Write a file anew from its own features, with all else as `grid` and `source` have it now.

    The bytes are those of encoding its tiles anew: its `rows_digest` must be that of `source`.
    """
    failed = {tuple(cell) for cell in read_cells(path)[1].tolist()}
    rows = np.array([row for row, cell in enumerate(grid.cell.tolist()) if tuple(cell) not in failed], np.int64)
    with BagWriter(path, source, len(grid), dtype) as writer:
        bag = GrowingBag(grid, source, writer)
        for number, features in enumerate(feature_chunks(path)):
            bag.add(rows[number * CHUNK_ROWS :][: len(features)], features)
        bag.finish(coarser, width)


def _parents(grid: TileGrid, coarser: Cells | None) -> np.ndarray:
    """Row of each tile's parent in the coarser feature file (int64 [tiles]), -1 where there is none.

    `coarser` are the cells of that file and those that failed. The grid counts its parents among all of them, in
    row-major order; the file lacks the failed.
    """
    if coarser is None:
        return np.full(len(grid), -1, np.int64)
    cells = np.concatenate(coarser).astype(np.int64)
    rows = np.concatenate([np.arange(len(coarser[0])), np.full(len(coarser[1]), -1)]).astype(np.int64)
    in_grid_order = rows[np.lexsort((cells[:, 0], cells[:, 1]))]
    return np.where(grid.parent >= 0, in_grid_order[grid.parent], -1)
