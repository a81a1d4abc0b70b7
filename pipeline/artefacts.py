"""Pen, folds, and dark hueless things (borders, coverslip edges, bubbles), told by colour on a thumbnail.

Everything here works on optical density, ``-log10(value / white)`` per channel, smoothed by `pipeline.tissue.smoothed`.
Densities of layers add up (Beer-Lambert), so ink or a fold over tissue shifts the density of the tissue by its own.
"""

from __future__ import annotations

import cv2
import numpy as np

from pipeline.pieces import dilated, grown, large_pieces, without_frames

INK_HALO_UM = 30.0
MIN_INK_MM2 = 0.01
MIN_INK_PX = 16
MIN_RED_INK_MM2 = 0.05  # smaller red spots are vessels full of blood
MIN_INK_SHARE = 0.02  # of a small field: a piece this large is ink whatever its area

MIN_PURPLE_INK_MM2 = 0.03
PURPLE_DENSITY, PURPLE_RED = 0.3, 0.45  # of green, and red over green: eosin has a fifth, haematoxylin 0.6 or more

DARK_DENSITY = 0.3  # of the densest channel, about half of the light

FOLD_NEIGHBOURHOOD_UM = 200.0  # sigma of the tissue around that a fold is compared with
FOLD_EDGE_RATIO = 1.5  # times as dense as that, where a fold begins; such pixels are no neighbourhood
FOLD_LEAST_RATIO = 1.2  # in every channel: both stains are doubled, also beside tissue of another kind
FOLD_RATIO = 1.75  # median of a fold: two layers, less what crumples and smoothing take
FOLD_DENSITY = 0.4  # of green; what is paler is not two layers of stained tissue
MIN_FOLD_LENGTH_UM = 300.0
MAX_FOLD_ROUNDNESS = 0.08  # area / length squared: a ridge; dense epithelium and lymph follicles are wider
FOLD_FROM_UM_PER_PX = 12.0  # folds are narrower than a few pixels of anything coarser


def find_ink(density: np.ndarray, um_per_px: float) -> np.ndarray:
    """Pen marks with the blurred rim around them.

    Green and blue ink absorb red more than green; both stains of H&E absorb green most. Red ink takes green and blue
    alike and hardly any red; over tissue, whose blue is about half its green, the sum keeps more blue than tissue
    or blood has. Yellow and orange ink absorb blue most and no red, unlike the browns (DAB, melanin), which do.
    Black ink has no hue and is no frame around the image.

    Parameters
    ----------
    density : float32 [rows, columns, 3], smoothed

    Returns
    -------
    bool [rows, columns]
    """
    red, green, blue = density[..., 0], density[..., 1], density[..., 2]
    largest = density.max(axis=2)
    cold = grown((red > 1.25 * green) & (red > 0.15), (red > 1.05 * green) & (red > 0.08))
    warm = grown(
        (green > 0.45) & (blue > 0.70 * green) & (red < 0.32 * green),
        (green > 0.30) & (blue > 0.65 * green) & (red < 0.36 * green),
    )
    yellow = grown(
        (blue > 1.1 * green) & (blue > 0.3) & (red < 0.25 * blue), (blue > green) & (blue > 0.15) & (red < 0.3 * blue)
    )
    black = _is_grey(density, largest) & (largest > 0.5)
    pixel_mm2 = (um_per_px / 1000) ** 2
    smallest, smallest_red = (
        max(min(area / pixel_mm2, MIN_INK_SHARE * red.size), MIN_INK_PX) for area in (MIN_INK_MM2, MIN_RED_INK_MM2)
    )
    ink = (
        large_pieces(cold | yellow, smallest)
        | large_pieces(warm, smallest_red)
        | without_frames(large_pieces(black, smallest))
    )
    return _with_rim(ink, um_per_px)


def _with_rim(ink: np.ndarray, um_per_px: float) -> np.ndarray:
    """Ink and the blur around it."""
    return dilated(ink, INK_HALO_UM / um_per_px) if ink.any() else ink


def find_purple_ink(density: np.ndarray, plain: np.ndarray, um_per_px: float) -> np.ndarray:
    """Pen marks of the colour of haematoxylin, with their rim: dense, and without the nuclei that are dense in tissue.

    Ink on glass or so thick that it hides the tissue; tissue that shines through is not plain. Calcifications and
    smeared nuclei may be taken for it, which are no tiles to learn from either.

    Parameters
    ----------
    density : float32 [rows, columns, 3], smoothed
    plain : bool [rows, columns], where `focus.measure_focus` sees next to no detail

    Returns
    -------
    bool [rows, columns]
    """
    red, green = density[..., 0], density[..., 1]
    purple = plain & (green > PURPLE_DENSITY) & (red > PURPLE_RED * green)
    ink = large_pieces(purple, max(MIN_PURPLE_INK_MM2 / (um_per_px / 1000) ** 2, MIN_INK_PX))
    return _with_rim(ink, um_per_px)


def find_dark(density: np.ndarray, ink: np.ndarray) -> np.ndarray:
    """What is dark without a hue and no ink: slide borders, coverslip edges, rims of bubbles; bool [rows, columns]."""
    largest = density.max(axis=2)
    return _is_grey(density, largest) & (largest > DARK_DENSITY) & ~ink


def _is_grey(density: np.ndarray, largest: np.ndarray) -> np.ndarray:
    return density.min(axis=2) > 0.75 * largest


def find_folds(density: np.ndarray, tissue: np.ndarray, um_per_px: float) -> np.ndarray:
    """Ridges of doubled tissue.

    A fold lays the tissue over itself, so it is about twice as dense as the tissue around it, in every channel, along a
    line. Nothing is looked for on thumbnails coarser than `FOLD_FROM_UM_PER_PX`.

    Parameters
    ----------
    density : float32 [rows, columns, 3], smoothed
    tissue : bool [rows, columns], free of ink

    Returns
    -------
    bool [rows, columns]
    """
    nothing = np.zeros(tissue.shape, bool)
    if um_per_px > FOLD_FROM_UM_PER_PX or not tissue.any():
        return nothing
    sigma_px = FOLD_NEIGHBOURHOOD_UM / um_per_px
    ratio, _ = _ratio_to_neighbourhood(density, tissue, sigma_px)
    ratio, least = _ratio_to_neighbourhood(density, tissue & (ratio < FOLD_EDGE_RATIO), sigma_px)
    dense = tissue & (ratio > FOLD_EDGE_RATIO) & (least > FOLD_LEAST_RATIO) & (density[..., 1] > FOLD_DENSITY)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(dense.astype(np.uint8), connectivity=8)
    length = np.hypot(stats[:, cv2.CC_STAT_WIDTH], stats[:, cv2.CC_STAT_HEIGHT])
    ridge = (length * um_per_px >= MIN_FOLD_LENGTH_UM) & (stats[:, cv2.CC_STAT_AREA] <= MAX_FOLD_ROUNDNESS * length**2)
    for piece in np.flatnonzero(ridge[1:]) + 1:
        x, y, width, height = stats[piece, : cv2.CC_STAT_AREA]
        here = np.s_[y : y + height, x : x + width]
        own = labels[here] == piece
        if np.median(ratio[here][own]) >= FOLD_RATIO:
            nothing[here] |= own
    return nothing


def _ratio_to_neighbourhood(density: np.ndarray, tissue: np.ndarray, sigma_px: float) -> tuple[np.ndarray, np.ndarray]:
    """Density over the mean density of the tissue around: of all channels, and the least; float32 [rows, columns]."""
    step = max(1, int(sigma_px / 6))  # such a wide mean needs no finer raster
    size = (max(1, tissue.shape[1] // step), max(1, tissue.shape[0] // step))
    weight = tissue.astype(np.float32)
    parts = np.dstack([density * weight[..., None], weight])
    small = cv2.resize(parts, size, interpolation=cv2.INTER_AREA)
    wide = cv2.GaussianBlur(small, (0, 0), sigma_px / step)
    around = wide[..., :3] / np.maximum(wide[..., 3:], 1e-6)
    around = cv2.resize(around, tissue.shape[::-1], interpolation=cv2.INTER_LINEAR)
    around = np.maximum(around, 0.02)
    return density.sum(axis=2) / around.sum(axis=2), (density / around).min(axis=2)
