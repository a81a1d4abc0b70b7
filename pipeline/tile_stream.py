"""Tiles of a slide in fixed batches, read by threads a bounded number of tiles ahead of whoever takes them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from pipeline.contracts.errors import SlideError
from pipeline.contracts.slides import SlideFacts
from pipeline.contracts.tiles import TileGrid
from pipeline.decoded_tiles import DecodedTiles
from pipeline.shared_cells import SharedCells
from pipeline.slide import SlideReader, Window, open_checked
from pipeline.stain_transfer import StainTransfer

_TASK_CELLS = 8  # cells that a reader takes at a time: hand-over costs little beside reading them


@dataclass(frozen=True)
class TileBatch:
    """Consecutive rows of a grid: those that could be read, and for the others why not.

    Attributes
    ----------
    magnification : of the grid
    rows : int64 [B], rows of the grid, ascending
    pixels : uint8 [B, size_px, size_px, 3]
    failed : (row, reason) of each tile that could not be read
    """

    magnification: float
    rows: np.ndarray
    pixels: np.ndarray
    failed: tuple[tuple[int, str], ...]


class TileStream:
    """Reads and stain-normalises the tiles of one slide, for all its magnifications; a context manager.

    Aligned magnifications that come from the same stored level are read in one pass: the pixels of a cell of the
    finest are decoded once, and averaged for its own tile and for its place in each coarser one. No tile depends on
    which other magnifications are read with it.

    At most ``ahead + 1`` batches of the finest magnification are held at any time, and of each coarser one the tiles
    of one row of cells: memory does not grow with the slide's area. Each reader thread opens the slide for itself,
    because slide libraries do not share a handle between threads; the tiles
    that they decode are shared.
    """

    def __init__(self, facts: SlideFacts, transfer: StainTransfer, readers: int = 1, ahead: int = 3) -> None:
        self._facts = facts
        self._transfer = transfer
        self._ahead = max(1, ahead)
        self._tiles = DecodedTiles()
        self._own = threading.local()
        self._opened: list[SlideReader] = []
        self._pool = ThreadPoolExecutor(max(1, readers), thread_name_prefix="read")

    def batches(self, grids: Mapping[float, TileGrid], batch_size: int) -> Iterator[TileBatch]:
        """Batches of `batch_size` rows of each grid, in order within the grid; its last one is what is left.

        `grids` are of aligned magnifications, the finest first, as `shared_cells.groups` puts them together.
        """
        if not grids:
            return
        cells = SharedCells(list(grids.values()))
        filling = [_Filling(m, grid, r, batch_size) for (m, grid), r in zip(grids.items(), cells.ratios, strict=True)]
        step = min(_TASK_CELLS, batch_size)
        parts = (np.arange(start, min(start + step, len(cells))) for start in range(0, len(cells), step))
        waiting: deque[tuple[np.ndarray, Future[dict[int, str]]]] = deque()
        try:
            while True:
                while len(waiting) < self._ahead * batch_size // step and (part := next(parts, None)) is not None:
                    waiting.append((part, self._pool.submit(self._read, _tasks(cells, filling, part))))
                if not waiting:
                    return
                part, task = waiting.popleft()
                failed = task.result()
                for grid, rows in zip(filling, cells.rows, strict=True):
                    yield from grid.take(rows[part], {int(rows[cell]): reason for cell, reason in failed.items()})
        finally:
            for _, task in waiting:
                task.cancel()

    def _read(self, tasks: list[_Task]) -> dict[int, str]:
        """Fill the places of `tasks` and return the cells that could not be read, with the reason."""
        slide = self._slide()
        failed = {}
        for task in tasks:
            windows = [grid.window(slide, task.at) for grid, _ in task.places]
            try:
                pieces = slide.read_windows(windows)
            except SlideError as error:
                failed[task.cell] = str(error)
                continue
            for (_, place), piece in zip(task.places, pieces, strict=True):
                place[:] = self._transfer(piece)
        return failed

    def _slide(self) -> SlideReader:
        if not hasattr(self._own, "slide"):
            self._own.slide = open_checked(self._facts, self._tiles)
            self._opened.append(self._own.slide)
        return self._own.slide

    def __enter__(self) -> TileStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        for slide in self._opened:
            slide.close()


@dataclass(frozen=True)
class _Task:
    """A cell to read: its number, its (column, row), and the places of each grid's tile that it fills."""

    cell: int
    at: np.ndarray
    places: list[tuple[_Filling, np.ndarray]]


class _Filling:
    """The batches of one grid that are being filled, piece by piece."""

    def __init__(self, magnification: float, grid: TileGrid, ratio: int, batch_size: int) -> None:
        self._origin, self._um_per_px, self._side = grid.origin, grid.um_per_px, grid.size_px // ratio
        self._magnification, self._ratio, self._batch_size, self._size = magnification, ratio, batch_size, grid.size_px
        starts = np.arange(0, len(grid), batch_size)
        self._counts = np.minimum(batch_size, len(grid) - starts)
        self._missing = self._counts * ratio**2  # pieces of each batch that are still to come
        self._next = 0
        self._pixels: dict[int, np.ndarray] = {}
        self._failed: dict[int, str] = {}

    def window(self, slide: SlideReader, cell: np.ndarray) -> Window:
        """The pixels of `cell` (column, row) on this grid's lattice."""
        lattice = slide.lattice(float(self._origin[0]), float(self._origin[1]), self._um_per_px)
        return Window(lattice, int(cell[0]) * self._side, int(cell[1]) * self._side, self._side)

    def place(self, row: int, cell: np.ndarray) -> np.ndarray:
        """View [side, side, 3] of where the piece `cell` of tile `row` belongs."""
        batch, at = divmod(row, self._batch_size)
        if batch not in self._pixels:
            self._pixels[batch] = np.empty((self._counts[batch], self._size, self._size, 3), np.uint8)
        x, y = cell % self._ratio * self._side
        return self._pixels[batch][at, y : y + self._side, x : x + self._side]

    def take(self, rows: np.ndarray, failed: dict[int, str]) -> Iterator[TileBatch]:
        """Count a piece of each of `rows` (-1: of none) as read or failed; the batches that this completes."""
        self._failed = {**failed, **self._failed}
        np.subtract.at(self._missing, rows[rows >= 0] // self._batch_size, 1)
        while self._next < len(self._missing) and self._missing[self._next] == 0:
            yield self._batch(self._next)
            self._next += 1

    def _batch(self, batch: int) -> TileBatch:
        rows = batch * self._batch_size + np.arange(self._counts[batch])
        pixels = self._pixels.pop(batch)
        failed = tuple((int(row), self._failed.pop(int(row))) for row in rows if int(row) in self._failed)
        if failed:
            kept = ~np.isin(rows, [row for row, _ in failed])
            rows, pixels = rows[kept], pixels[kept]
        return TileBatch(self._magnification, rows, pixels, failed)


def _tasks(cells: SharedCells, filling: list[_Filling], part: np.ndarray) -> list[_Task]:
    return [
        _Task(
            int(cell),
            cells.cell[cell],
            [
                (grid, grid.place(int(rows[cell]), cells.cell[cell]))
                for grid, rows in zip(filling, cells.rows, strict=True)
                if rows[cell] >= 0
            ],
        )
        for cell in part
    ]
