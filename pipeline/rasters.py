"""Rasters over a slide and their exact means over rectangular cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Raster:
    """`values` bool or float [rows, columns] from the slide's corner, `px_per_raster_px` (x, y) level-0 pixels each."""

    values: np.ndarray
    px_per_raster_px: tuple[float, float]

    def means(self, x_edges: np.ndarray, y_edges: np.ndarray) -> np.ndarray:
        """Means over cells between edges in level-0 pixels, float64 [cell rows, cell columns]."""
        return cell_means(self.values, x_edges / self.px_per_raster_px[0], y_edges / self.px_per_raster_px[1])

    def shares(self, x_edges: np.ndarray, y_edges: np.ndarray) -> np.ndarray:
        """Means of a mask, without the rounding that may leave 0..1."""
        return np.clip(self.means(x_edges, y_edges), 0, 1)


def cell_means(values: np.ndarray, x_edges: np.ndarray, y_edges: np.ndarray) -> np.ndarray:
    """Exact means of a raster over rectangular cells; what lies outside the raster counts as 0.

    Parameters
    ----------
    values : float or bool [raster rows, raster columns]
    x_edges, y_edges : ascending cell edges in raster pixels, fractions allowed; pixel i spans i..i + 1

    Returns
    -------
    float64 [cell rows, cell columns]
    """
    sums = np.zeros((values.shape[0] + 1, values.shape[1] + 1))
    np.cumsum(values, axis=0, out=sums[1:, 1:], dtype=np.float64)
    np.cumsum(sums[1:, 1:], axis=1, out=sums[1:, 1:])
    at = _interpolated(_interpolated(sums, y_edges).T, x_edges).T
    area = np.diff(y_edges)[:, None] * np.diff(x_edges)[None, :]
    return np.diff(np.diff(at, axis=0), axis=1) / area


def _interpolated(sums: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Rows of `sums` at fractional positions: the running sum of a raster is linear within each pixel."""
    position = np.clip(edges, 0, len(sums) - 1)
    low = np.minimum(position.astype(np.int64), len(sums) - 2)
    share = (position - low)[:, None]
    return sums[low] * (1 - share) + sums[low + 1] * share
