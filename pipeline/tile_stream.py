"""Tiles of a slide in fixed batches, read by threads a bounded number of batches ahead of whoever takes them."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from pipeline.contracts.errors import SlideError
from pipeline.contracts.slides import SlideFacts
from pipeline.contracts.tiles import TileGrid
from pipeline.slide import SlideReader, open_checked
from pipeline.stain_transfer import StainTransfer

logger = logging.getLogger(__name__)

_TASK_TILES = 8  # tiles that a reader takes at a time: hand-over costs little beside reading them


@dataclass(frozen=True)
class TileBatch:
    """Consecutive rows of a grid: those that could be read, and for the others why not.

    Attributes
    ----------
    rows : int64 [B], rows of the grid, ascending
    pixels : uint8 [B, size_px, size_px, 3]
    failed : (row, reason) of each tile that could not be read
    """

    rows: np.ndarray
    pixels: np.ndarray
    failed: tuple[tuple[int, str], ...]


class TileStream:
    """Reads and stain-normalises the tiles of one slide, for all its magnifications; a context manager.

    At most ``ahead + 1`` batches are held at any time, whatever the size of the slide. Each reader thread opens the
    slide for itself, because slide libraries do not share a handle between threads.
    """

    def __init__(self, facts: SlideFacts, transfer: StainTransfer, readers: int = 1, ahead: int = 3) -> None:
        self._facts = facts
        self._transfer = transfer
        self._ahead = max(1, ahead)
        self._own = threading.local()
        self._opened: list[SlideReader] = []
        self._pool = ThreadPoolExecutor(max(1, readers), thread_name_prefix="read")

    def batches(self, grid: TileGrid, batch_size: int) -> Iterator[TileBatch]:
        """Batches of `batch_size` rows in order; the last one is what is left."""
        starts = iter(range(0, len(grid), batch_size))
        waiting: deque[tuple[np.ndarray, np.ndarray, list[Future[list[tuple[int, str]]]]]] = deque()
        try:
            while True:
                while len(waiting) < self._ahead and (start := next(starts, None)) is not None:
                    waiting.append(self._begin(grid, np.arange(start, min(start + batch_size, len(grid)))))
                if not waiting:
                    return
                rows, pixels, tasks = waiting.popleft()
                failed = tuple(failure for task in tasks for failure in task.result())
                if failed:
                    kept = ~np.isin(rows, [row for row, _ in failed])
                    rows, pixels = rows[kept], pixels[kept]
                yield TileBatch(rows, pixels, failed)
        finally:
            for _, _, tasks in waiting:
                for task in tasks:
                    task.cancel()

    def _begin(
        self, grid: TileGrid, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, list[Future[list[tuple[int, str]]]]]:
        pixels = np.empty((len(rows), grid.size_px, grid.size_px, 3), np.uint8)
        corners = grid.origin + grid.cell[rows] * grid.pitch
        parts = (slice(at, at + _TASK_TILES) for at in range(0, len(rows), _TASK_TILES))
        tasks = [self._pool.submit(self._read, grid, rows[part], corners[part], pixels[part]) for part in parts]
        return rows, pixels, tasks

    def _read(self, grid: TileGrid, rows: np.ndarray, corners: np.ndarray, pixels: np.ndarray) -> list[tuple[int, str]]:
        """Fill `pixels` and return the rows that could not be read."""
        slide = self._slide()
        failed = []
        for row, (x, y), place in zip(rows, corners, pixels, strict=True):
            try:
                tile = slide.read_field(float(x), float(y), grid.um_per_px, grid.size_px)
            except SlideError as error:
                failed.append((int(row), str(error)))
                continue
            place[:] = self._transfer(tile)
        return failed

    def _slide(self) -> SlideReader:
        if not hasattr(self._own, "slide"):
            self._own.slide = open_checked(self._facts)
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
