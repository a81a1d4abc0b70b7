"""Cells of tiles whose tool stored corners only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.contracts.errors import SlideError

TOLERANCE_PX = 1.0  #: corners are whole level-0 pixels, rounded or cut from a lattice of any pitch
CHOICES = ("refuse", "nearest")


@dataclass(frozen=True)
class Lattice:
    """`cell` int32 [tiles, 2] (column, row); `origin` and `pitch` (x, y) in level-0 pixels.

    `offset_px` is the farthest that a corner lies from its cell.
    """

    cell: np.ndarray
    origin: tuple[float, float]
    pitch: tuple[float, float]
    offset_px: float


def find_lattice(coords: np.ndarray, pitch: tuple[float, float], off_lattice: str = "refuse") -> Lattice:
    """The lattice that corners lie on.

    Parameters
    ----------
    coords : int64 [tiles, 2], upper-left corners (x, y) in level-0 pixels
    pitch : side of a tile in level-0 pixels (x, y); the lattice's may differ by a pixel, where the tool rounded it
    off_lattice : what to do with corners farther than `TOLERANCE_PX` from every lattice: refuse, or nearest, which
        takes the nearest cell of the lattice through the uppermost and leftmost corners

    Raises
    ------
    SlideError : no lattice fits, or two tiles come to lie in one cell
    """
    axes = [_axis(coords[:, axis], pitch[axis], off_lattice) for axis in (0, 1)]
    cell = np.stack([axis[0] for axis in axes], axis=1).astype(np.int32)
    offset = max(axis[3] for axis in axes)
    if len(np.unique(cell, axis=0)) != len(cell):
        n = len(cell) - len(np.unique(cell, axis=0))
        raise SlideError(f"{n} tiles lie in the cell of another: they overlap, and ours do not")
    return Lattice(cell, (axes[0][1], axes[1][1]), (axes[0][2], axes[1][2]), offset)


def _axis(positions: np.ndarray, pitch: float, off_lattice: str) -> tuple[np.ndarray, float, float, float]:
    """Cells, origin, pitch and largest offset along one axis. The origin is the slide's corner where that fits."""
    low = int(positions.min())
    for step in (pitch, *(p for p in (round(pitch), round(pitch) - 1, round(pitch) + 1) if p >= 1 and p != pitch)):
        for origin in (0.0, low % step):
            cell = np.rint((positions - origin) / step)
            offset = float(np.abs(positions - origin - cell * step).max())
            if offset <= TOLERANCE_PX:
                return cell, float(origin), float(step), offset
    cell = np.rint((positions - low) / pitch)
    offset = float(np.abs(positions - low - cell * pitch).max())
    if off_lattice != "nearest":
        raise SlideError(
            f"corners lie up to {offset:.0f} level-0 pixels off every lattice of tiles of {pitch:g}"
            " (--off-lattice nearest takes the nearest cells)"
        )
    return cell, float(low % pitch), float(pitch), offset


def parent_rows(fine: Lattice, coarse: Lattice | None, ratio: int) -> np.ndarray:
    """Row of each tile's parent in the coarser bag, int64 [tiles]; -1 where the two lattices do not nest."""
    none = np.full(len(fine.cell), -1, np.int64)
    if coarse is None or not _nest(fine, coarse, ratio):
        return none
    row_of = {(int(c), int(r)): row for row, (c, r) in enumerate(coarse.cell)}
    parents = fine.cell.astype(np.int64) // ratio
    return np.array([row_of.get((int(c), int(r)), -1) for c, r in parents], np.int64)


def _nest(fine: Lattice, coarse: Lattice, ratio: int) -> bool:
    """Whether lattices share their origin and every `ratio`-th line, to a pixel over the whole slide."""
    for axis in (0, 1):
        farthest = abs(fine.cell[:, axis]).max() + 1
        drift = abs(coarse.pitch[axis] - ratio * fine.pitch[axis]) / ratio * farthest
        if abs(fine.origin[axis] - coarse.origin[axis]) > TOLERANCE_PX or drift > TOLERANCE_PX * ratio:
            return False
    return max(fine.offset_px, coarse.offset_px) <= TOLERANCE_PX
