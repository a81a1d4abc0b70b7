"""Tiles of slides in fixed batches, read by threads a bounded number of tiles ahead of whoever takes them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple

import numpy as np

from pipeline.contracts.errors import SlideError
from pipeline.contracts.slides import SlideFacts
from pipeline.contracts.tiles import TileGrid
from pipeline.decoded_tiles import DecodedTiles
from pipeline.shared_cells import SharedCells
from pipeline.slide import PixelLattice, SlideReader, Window, open_checked
from pipeline.stain_transfer import StainTransfer

_MOST_CELLS = 32  # that a reader takes at a time: handing over costs as much as reading one of them


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


class Reading:
    """The tiles to read of one slide.

    Parameters
    ----------
    facts : of the slide, as it was checked
    transfer : repaints the pixels of a tile
    groups : grids that are read in one pass, group after group, as `shared_cells.groups` puts them together
    """

    def __init__(self, facts: SlideFacts, transfer: StainTransfer, groups: Sequence[Mapping[float, TileGrid]]) -> None:
        self.facts, self.transfer = facts, transfer
        self.tiles = DecodedTiles()
        self.passes = [(grids, SharedCells(list(grids.values()))) for grids in groups if grids]
        self.seconds_reading = 0.0  # of all reader threads together
        self.seconds_normalising = 0.0
        self.is_abandoned = False

    def abandon(self) -> None:
        """Read nothing more of this slide; what is read already is thrown away."""
        self.is_abandoned = True


class TileReader:
    """Reads and stain-normalises the tiles of slide after slide; a context manager.

    The window of what is read in advance goes on over the end of a slide: while the last batches of one are taken, the
    first of the next are read. At most ``ahead + 1`` batches of the finest magnification are held at any time (one more
    while two slides meet), and of each coarser one the tiles of one row of cells: memory grows neither with a slide's
    area nor with the number of slides. Each reader thread opens a slide for itself, because slide libraries do not
    share a handle between threads, and has one open at a time; the tiles that they decode of it are shared.

    Aligned magnifications that come from the same stored level are read in one pass: the pixels of a cell of the
    finest are decoded once, and averaged for its own tile and for its place in each coarser one. No tile depends on
    which other magnifications are read with it.
    """

    def __init__(self, readers: int = 1, ahead: int = 3, batch_size: int = 32) -> None:
        self._batch_size = batch_size
        in_advance = max(1, ahead) * batch_size
        # cells per hand-over: few enough that every thread has one to do and one waiting
        self._step = max(1, min(_MOST_CELLS, batch_size, in_advance // (2 * max(1, readers))))
        self._window = in_advance // self._step
        self._own = threading.local()
        self._opened: dict[int, SlideReader] = {}  # by thread
        self._pool = ThreadPoolExecutor(max(1, readers), thread_name_prefix="read")

    def batches(
        self, readings: Iterable[Reading], is_ready: Callable[[], bool] = lambda: True
    ) -> Iterator[tuple[Reading, TileBatch | Exception | None]]:
        """Batches of `batch_size` rows of each grid, in order within the grid; its last one is what is left.

        Each reading ends with None, or with the exception that ended it early. The next of `readings` is asked for
        while tiles of earlier ones are still under way, but only when `is_ready` says that it will not take long.
        """
        coming = iter(readings)
        parts: Iterator[_Part] = iter(())
        waiting: deque[tuple[_Part, Future[_Read] | None]] = deque()
        n_reading = 0
        try:
            while True:
                while n_reading < self._window:
                    part = next(parts, None)
                    if part is None:
                        if waiting and not is_ready():
                            break
                        if (reading := next(coming, None)) is None:
                            break
                        parts = self._parts(reading)
                        continue
                    task = self._submit(part)
                    waiting.append((part, task))
                    n_reading += task is not None
                if not waiting:
                    return
                part, task = waiting.popleft()
                n_reading -= task is not None
                yield from self._taken(part, task)
        finally:
            for _, task in waiting:
                if task is not None:
                    task.cancel()

    def _parts(self, reading: Reading) -> Iterator[_Part]:
        """Pieces of work for a reader thread, then one without cells that marks the end of the slide."""
        for grids, cells in reading.passes:
            filling = [
                _Filling(m, grid, ratio, self._batch_size)
                for (m, grid), ratio in zip(grids.items(), cells.ratios, strict=True)
            ]
            for start in range(0, len(cells), self._step):
                yield _Part(reading, cells, filling, np.arange(start, min(start + self._step, len(cells))))
                if reading.is_abandoned:
                    return
        yield _Part(reading, None, [], np.arange(0))

    def _submit(self, part: _Part) -> Future[_Read] | None:
        if part.cells is None or part.reading.is_abandoned:
            return None
        return self._pool.submit(self._read, part.reading, _tasks(part.cells, part.filling, part.which))

    def _taken(self, part: _Part, task: Future[_Read] | None) -> Iterator[tuple[Reading, TileBatch | Exception | None]]:
        reading = part.reading
        if part.cells is None:
            if not reading.is_abandoned:
                yield reading, None
            return
        if task is None or reading.is_abandoned:
            return
        try:
            read = task.result()
        except Exception as error:
            reading.abandon()
            yield reading, error
            return
        reading.seconds_reading += read.seconds_reading
        reading.seconds_normalising += read.seconds_normalising
        for grid, rows in zip(part.filling, part.cells.rows, strict=True):
            for batch in grid.take(rows[part.which], {int(rows[c]): reason for c, reason in read.failed.items()}):
                if not reading.is_abandoned:
                    yield reading, batch

    def _read(self, reading: Reading, tasks: list[_Task]) -> _Read:
        """Fill the places of `tasks`."""
        started = time.perf_counter()
        slide = self._slide(reading)
        failed, normalising = {}, 0.0
        for task in tasks:
            windows = [grid.window(slide, task.at) for grid, _ in task.places]
            try:
                pieces = slide.read_windows(windows)
            except SlideError as error:
                failed[task.cell] = str(error)
                continue
            read = time.perf_counter()
            for (_, place), piece in zip(task.places, pieces, strict=True):
                place[:] = reading.transfer(piece)
            normalising += time.perf_counter() - read
        return _Read(failed, time.perf_counter() - started - normalising, normalising)

    def _slide(self, reading: Reading) -> SlideReader:
        if getattr(self._own, "reading", None) is not reading:
            self._own.reading = None
            thread = threading.get_ident()
            if (before := self._opened.pop(thread, None)) is not None:
                before.close()
            self._own.slide = self._opened[thread] = open_checked(reading.facts, reading.tiles)
            self._own.reading = reading
        return self._own.slide

    def __enter__(self) -> TileReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        for slide in self._opened.values():
            slide.close()


@dataclass(frozen=True)
class _Part:
    """Cells `which` of a group, for one reader thread; `cells` is None at the end of a slide."""

    reading: Reading
    cells: SharedCells | None
    filling: list[_Filling]
    which: np.ndarray


@dataclass(frozen=True)
class _Read:
    """What a reader thread has done: cells that it could not read, with the reason, and how long it took."""

    failed: dict[int, str]
    seconds_reading: float
    seconds_normalising: float


class _Task(NamedTuple):
    """A cell to read: its number, its (column, row), and the places of each grid's tile that it fills."""

    cell: int
    at: tuple[int, int]
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
        self._lattice: PixelLattice | None = None
        self._pixels: dict[int, np.ndarray] = {}
        self._failed: dict[int, str] = {}

    def window(self, slide: SlideReader, cell: tuple[int, int]) -> Window:
        """The pixels of `cell` (column, row) on this grid's lattice."""
        if self._lattice is None:  # the same from every reader thread's own slide
            self._lattice = slide.lattice(float(self._origin[0]), float(self._origin[1]), self._um_per_px)
        return Window(self._lattice, cell[0] * self._side, cell[1] * self._side, self._side)

    def place(self, row: int, cell: tuple[int, int]) -> np.ndarray:
        """View [side, side, 3] of where the piece `cell` of tile `row` belongs."""
        batch, at = divmod(row, self._batch_size)
        if batch not in self._pixels:
            self._pixels[batch] = _room(int(self._counts[batch]), self._size)
        if self._ratio == 1:
            return self._pixels[batch][at]
        x, y = (place % self._ratio * self._side for place in cell)
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
        failed = tuple((row, self._failed.pop(row)) for row in rows.tolist() if row in self._failed)
        if failed:
            kept = ~np.isin(rows, [row for row, _ in failed])
            rows, pixels = rows[kept], pixels[kept]
        return TileBatch(self._magnification, rows, pixels, failed)


def _room(count: int, size_px: int) -> np.ndarray:
    """Memory of a batch: the only place where pixels of many tiles are held."""
    return np.empty((count, size_px, size_px, 3), np.uint8)


def _tasks(cells: SharedCells, filling: list[_Filling], part: np.ndarray) -> list[_Task]:
    grids = list(zip(filling, (rows[part].tolist() for rows in cells.rows), strict=True))
    numbered = zip(part.tolist(), map(tuple, cells.cell[part].tolist()), strict=True)
    return [
        _Task(cell, at, [(grid, grid.place(rows[k], at)) for grid, rows in grids if rows[k] >= 0])
        for k, (cell, at) in enumerate(numbered)
    ]
