"""Connected pieces of masks: which are large enough, which are holes, which frame the image."""

from __future__ import annotations

import cv2
import numpy as np


def large_pieces(mask: np.ndarray, min_px: float, connectivity: int = 8) -> np.ndarray:
    """`mask` (bool [rows, columns]) without pieces smaller than `min_px`."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=connectivity)
    keep = stats[:, cv2.CC_STAT_AREA] >= max(min_px, 1)
    keep[0] = False
    return keep[labels]


def grown(seeds: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Pieces of `region` that hold a seed."""
    count, labels = cv2.connectedComponents((seeds | region).astype(np.uint8), connectivity=8)
    keep = np.zeros(count, bool)
    keep[np.unique(labels[seeds])] = True
    keep[0] = False
    return keep[labels]


def without_frames(mask: np.ndarray) -> np.ndarray:
    """`mask` without pieces that cover half of a side of the image."""
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    keep = np.ones(count, bool)
    for side in _sides(labels):
        keep &= np.bincount(side, minlength=count) < 0.5 * len(side)
    keep[0] = False
    return keep[labels]


def small_holes(background: np.ndarray, min_px: float) -> np.ndarray:
    """Pieces of `background` below `min_px` that tissue surrounds; what reaches the image's edge is no hole."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(background.astype(np.uint8), connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] < min_px
    for side in _sides(labels):
        small[side] = False
    small[0] = False
    return small[labels]


def centres_and_areas(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres (x, y) float64 [pieces, 2] in pixels, pixel i spanning i..i + 1, and areas int64 [pieces] in pixels.

    Largest first, equal ones in the order of their topmost rows. Pieces are connected along edges.
    """
    _, _, stats, centres = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    areas = stats[1:, cv2.CC_STAT_AREA].astype(np.int64)
    order = np.argsort(-areas, kind="stable")
    return centres[1:][order] + 0.5, areas[order]


def dilated(mask: np.ndarray, radius_px: float) -> np.ndarray:
    """`mask` grown by a disc."""
    return cv2.dilate(mask.astype(np.uint8), disc(radius_px)).astype(bool)


def disc(radius_px: float) -> np.ndarray:
    """Structuring element of at least one pixel's radius."""
    radius = max(1, round(radius_px))
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def _sides(image: np.ndarray) -> tuple[np.ndarray, ...]:
    return image[0], image[-1], image[:, 0], image[:, -1]
