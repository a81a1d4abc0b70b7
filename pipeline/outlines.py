"""Masks as polygons along pixel edges, and back: the two conversions are each other's exact inverse."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

#: rings of one piece, the outline first, then its holes: [vertices, 2] (x, y), not closed
Polygon = list[np.ndarray]


def without_diagonals(mask: np.ndarray) -> np.ndarray:
    """Fill pixels until no two pieces, and no two holes, touch at a corner only.

    Outlines along pixel edges are then simple rings, as GeoJSON demands.

    Parameters
    ----------
    mask : bool [rows, columns]
    """
    mask = mask.copy()
    while True:
        a, b, c, d = mask[:-1, :-1], mask[:-1, 1:], mask[1:, :-1], mask[1:, 1:]
        falling, rising = a & d & ~b & ~c, b & c & ~a & ~d
        if not (falling.any() or rising.any()):
            return mask
        mask[:-1, 1:] |= falling
        mask[:-1, :-1] |= rising


def trace(mask: np.ndarray) -> list[Polygon]:
    """Polygons along the pixel edges of a mask without diagonal contacts.

    Parameters
    ----------
    mask : bool [rows, columns]

    Returns
    -------
    One polygon per piece, ordered by its topmost, then leftmost corner; int64 vertices (x, y) at pixel
    corners, so that pixel (column, row) spans column..column + 1 and row..row + 1.
    """
    padded = np.pad(np.asarray(mask, np.uint8), 1)
    neighbours = padded[:-1, :-1] + padded[:-1, 1:] + padded[1:, :-1] + padded[1:, 1:]
    corners = np.argwhere((neighbours == 1) | (neighbours == 3))  # (y, x), row-major
    if not len(corners):
        return []
    _, labels = cv2.connectedComponents(padded, connectivity=4)
    # Runs of edge join corners pairwise along each row, and along each column, of the lattice of pixel
    # corners.
    along_row = np.arange(len(corners)) ^ 1
    order = np.lexsort((corners[:, 0], corners[:, 1]))
    along_column = np.empty_like(along_row)
    along_column[order] = order[np.arange(len(corners)) ^ 1]
    rings = _rings(along_row.tolist(), along_column.tolist())
    pieces: dict[int, Polygon] = {}
    for ring in rings:
        y, x = corners[ring[0]]
        # The first corner of a ring is its topmost, leftmost: a piece begins below right of it, a hole's
        # piece above.
        outer = bool(padded[y + 1, x + 1])
        label = int(labels[y + 1, x + 1] if outer else labels[y, x])
        vertices = corners[ring][:, ::-1].astype(np.int64)
        pieces.setdefault(label, []).append(vertices if outer else vertices[::-1])
    return list(pieces.values())


def _rings(along_row: list[int], along_column: list[int]) -> list[list[int]]:
    rings = []
    seen = bytearray(len(along_row))
    for start in range(len(along_row)):
        if seen[start]:
            continue
        ring, corner = [], start
        while True:
            other = along_row[corner]
            ring += [corner, other]
            seen[corner] = seen[other] = 1
            corner = along_column[other]
            if corner == start:
                break
        rings.append(ring)
    return rings


def fill(polygons: Sequence[Polygon], width: int, height: int) -> np.ndarray:
    """Mask of the pixels whose centre lies inside one of `polygons`, which do not overlap (even-odd rule).

    Parameters
    ----------
    polygons : vertices (x, y) in pixels of the mask, fractions allowed
    width, height : size of the mask

    Returns
    -------
    bool [height, width]
    """
    rings = [np.asarray(ring, np.float64) for polygon in polygons for ring in polygon]
    if not rings:
        return np.zeros((height, width), bool)
    starts = np.concatenate(rings)
    stops = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    first = np.clip(np.ceil(np.minimum(starts[:, 1], stops[:, 1]) - 0.5), 0, height).astype(np.int64)
    last = np.clip(np.ceil(np.maximum(starts[:, 1], stops[:, 1]) - 0.5), 0, height).astype(np.int64)
    edge = np.repeat(np.arange(len(starts)), last - first)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(last - first) - (last - first), last - first) + first[edge]
    slope = (stops[edge, 0] - starts[edge, 0]) / (stops[edge, 1] - starts[edge, 1])
    x = starts[edge, 0] + (row + 0.5 - starts[edge, 1]) * slope
    column = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
    crossings = np.zeros((height, width + 1), np.uint8)
    np.add.at(crossings, (row, column), 1)
    return (np.cumsum(crossings[:, :width], axis=1, dtype=np.uint32) & 1).astype(bool)
