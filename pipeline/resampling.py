"""Area averages of images on any sub-pixel lattice."""

from __future__ import annotations

import cv2
import numpy as np

_WHOLE = 1e-3  # px; lattice lines this close to whole pixels count as whole


def area_average(image: np.ndarray, x0: float, x1: float, y0: float, y1: float, width: int, height: int) -> np.ndarray:
    """Average `image` over a lattice of ``height x width`` equal boxes that fill the rectangle x0..x1,
    y0..y1.

    Parameters
    ----------
    image : uint8 [rows, columns, 3]
    x0, x1, y0, y1 : edges of the rectangle in pixels of `image` (a pixel spans its index to its index + 1);
        they lie within it, and boxes may be smaller than a pixel
    width, height : number of boxes per axis

    Returns
    -------
    uint8 [height, width, 3], each box's exact mean rounded to the nearest grey level
    """
    edges = (x0, x1, y0, y1)
    near = [round(edge) for edge in edges]
    if all(abs(edge - whole) <= _WHOLE for edge, whole in zip(edges, near, strict=True)):
        image = image[near[2] : near[3], near[0] : near[1]]
        if image.shape[:2] == (height, width):
            return np.ascontiguousarray(image)
        if image.shape[0] >= height and image.shape[1] >= width:
            return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        x0, x1, y0, y1 = 0.0, float(image.shape[1]), 0.0, float(image.shape[0])
    rows = _average_rows(image.astype(np.float32), y0, y1, height)
    both = cv2.transpose(_average_rows(cv2.transpose(rows), x0, x1, width))
    return cv2.convertScaleAbs(both)  # rounds to nearest; means are never negative


def _average_rows(image: np.ndarray, start: float, stop: float, boxes: int) -> np.ndarray:
    """Mean of the rows of float32 `image` [rows, ...] over `boxes` equal intervals of start..stop."""
    edges = np.linspace(start, stop, boxes + 1)
    low, high = edges[:-1], edges[1:]
    first = np.clip(np.floor(low).astype(int), 0, len(image) - 1)
    span = (stop - start) / boxes
    flat = image.reshape(len(image), -1)
    out = np.zeros((boxes, flat.shape[1]), np.float32)
    term = np.empty_like(out)
    for step in range(int(np.ceil(span)) + 1):
        row = first + step
        weight = np.clip(np.minimum(high, row + 1) - np.maximum(low, row), 0, None) / span
        np.take(flat, np.minimum(row, len(image) - 1), axis=0, out=term)
        term *= weight.astype(np.float32)[:, None]
        out += term
    return out.reshape(boxes, *image.shape[1:])
