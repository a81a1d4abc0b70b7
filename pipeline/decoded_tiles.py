"""Decoded tiles of a slide of which parts are still wanted, shared by the threads that read it."""

from __future__ import annotations

import math
from collections import OrderedDict
from threading import Lock

import numpy as np

KEPT_BYTES = 64 * 2**20  #: two rows of 256-px tiles of a slide 40,000 px wide
ALL_CORNERS = 0b1111
_SPARE_TILES = 4  # used-up tiles that are still held: their memory is taken for the next one
_VECTOR_BYTES = 16


class DecodedTiles:
    """Tiles by level and index. A tile is kept until regions have taken all its corners, hence all of it.

    Whoever takes a tile has it alone until it is put back, so its memory is never overwritten under a reader. Where
    some corners are never asked for, the least recently used tiles go once they exceed `KEPT_BYTES`.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: OrderedDict[tuple[int, int], tuple[np.ndarray, int]] = OrderedDict()
        self._kept_bytes = 0
        self._spare: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def take(self, key: tuple[int, int]) -> tuple[np.ndarray | None, int]:
        """A kept tile and which of its corners were used; None and 0 if it has to be decoded."""
        with self._lock:
            if key in self._kept:
                pixels, corners = self._kept.pop(key)
                self._kept_bytes -= pixels.nbytes
                return pixels, corners
            return self._spare.pop(key, None), 0

    def put(self, key: tuple[int, int], pixels: np.ndarray, corners: int) -> None:
        """Give a tile back, with the corners (bits) that were used of it so far."""
        with self._lock:
            if corners == ALL_CORNERS:
                self._spare[key] = pixels
            elif key not in self._kept:  # else another thread has decoded it meanwhile
                self._kept[key] = pixels, corners
                self._kept_bytes += pixels.nbytes
            while self._kept_bytes > KEPT_BYTES and len(self._kept) > 1:
                oldest, (spare, _) = self._kept.popitem(last=False)
                self._kept_bytes -= spare.nbytes
                self._spare[oldest] = spare
            while len(self._spare) > _SPARE_TILES:
                self._spare.popitem(last=False)

    def room(self, shape: tuple[int, int, int]) -> np.ndarray:
        """Memory for a tile, that of a used-up one where there is: fresh pages cost as much as half of a decode."""
        with self._lock:
            while len(self._spare) == _SPARE_TILES:
                _, spare = self._spare.popitem(last=False)
                if spare.shape == shape:
                    return spare
        return _unaligned(shape)


def _unaligned(shape: tuple[int, int, int]) -> np.ndarray:
    """Empty uint8 array of which no row begins at a whole vector.

    The codec writes aligned rows past the processor's cache, and whoever copies them has to wait for memory: that makes
    a tile half as dear again. Rows of tiles are multiples of 48 bytes, so half a vector of 16 serves all of them.
    """
    room = np.empty(math.prod(shape) + _VECTOR_BYTES, np.uint8)
    start = (_VECTOR_BYTES // 2 - room.ctypes.data) % _VECTOR_BYTES
    return room[start : start + math.prod(shape)].reshape(shape)
