"""Area averages of images on any sub-pixel lattice."""

from __future__ import annotations

import cv2
import numpy as np


def area_average(image: np.ndarray, x_edges: np.ndarray, y_edges: np.ndarray) -> np.ndarray:
    """Mean of `image` over every box between neighbouring lines of a lattice.

    The mean of a box depends on its own lines and pixels alone, to the last bit: a piece of a larger average equals
    the average of the piece.

    Parameters
    ----------
    image : uint8 [rows, columns, 3]
    x_edges, y_edges : float64 [width + 1] and [height + 1], equally spaced ascending lines in pixels of `image` (a
        pixel spans its index to its index + 1); they lie within it, and boxes may be smaller than a pixel

    Returns
    -------
    uint8 [height, width, 3], each box's exact mean rounded to the nearest grey level
    """
    steps = [_whole_step(edges) for edges in (x_edges, y_edges)]
    width, height = len(x_edges) - 1, len(y_edges) - 1
    if all(steps):
        image = image[int(y_edges[0]) : int(y_edges[-1]), int(x_edges[0]) : int(x_edges[-1])]
        if steps == [1, 1]:
            return np.ascontiguousarray(image)
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    from pipeline.box_means import box_means

    out = np.empty((height, width, 3), np.uint8)
    pixels = np.ascontiguousarray(image).reshape(len(image), -1)
    box_means(pixels, *_shares(y_edges, len(image)), *_shares(x_edges, image.shape[1]), out)
    return out


def _whole_step(edges: np.ndarray) -> int:
    """Distance of lines that are all whole numbers, 0 if they are not."""
    step = edges[1] - edges[0]
    whole = step >= 1 and (edges == edges[0] + np.arange(len(edges)) * step).all() and (edges == np.rint(edges)).all()
    return int(step) if whole else 0


def _shares(edges: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Share of pixels in each interval between `edges`, float32, and which of `length` pixels, int32.

    Both are [intervals, terms]; a place that would lie beyond the pixels is the last one, with a share of 0.
    """
    low, high = edges[:-1, None], edges[1:, None]
    terms = int(np.ceil((high - low).max())) + 1
    pixel = np.floor(low) + np.arange(terms)
    share = np.clip(np.minimum(high, pixel + 1) - np.maximum(low, pixel), 0, None) / (high - low)
    return share.astype(np.float32), np.minimum(pixel, length - 1).astype(np.int32)
