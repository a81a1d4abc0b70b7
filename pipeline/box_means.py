"""Weighted means of neighbouring pixels, compiled: the inner loop of area averages."""

from __future__ import annotations

import numpy as np

from pipeline.compiled import compiled


@compiled
def box_means(
    image: np.ndarray,
    row_shares: np.ndarray,
    rows: np.ndarray,
    column_shares: np.ndarray,
    columns: np.ndarray,
    out: np.ndarray,
) -> None:
    """Weigh rows of pixels and then, in each line that gives, its columns.

    Parameters
    ----------
    image : uint8 [image rows, image columns * 3], the colours of a pixel side by side
    row_shares, rows : float32 and int32 [height, terms], weights that sum to 1 and the rows of `image` they belong to
    column_shares, columns : float32 and int32 [width, terms], the same of its columns
    out : uint8 [height, width, 3], written: the sums in float32, rounded to nearest
    """
    line = np.empty(image.shape[1], np.float32)
    for y in range(out.shape[0]):
        line[:] = 0
        for term in range(rows.shape[1]):
            share, source = row_shares[y, term], image[rows[y, term]]
            if share > 0:
                for i in range(len(line)):
                    line[i] += share * np.float32(source[i])
        for x in range(out.shape[1]):
            red = green = blue = np.float32(0)
            for term in range(columns.shape[1]):
                share, at = column_shares[x, term], 3 * columns[x, term]
                red += share * line[at]
                green += share * line[at + 1]
                blue += share * line[at + 2]
            out[y, x, 0], out[y, x, 1], out[y, x, 2] = np.rint(red), np.rint(green), np.rint(blue)
