"""Two stains from pixels: optical density, who takes part in a fit, and the Vahadane and Macenko estimators.

Optical density is natural: ``od = -ln(rgb / white)``. A stain matrix has one row per stain (haematoxylin
first, then eosin) and the columns red, green, blue; rows are non-negative and of unit length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FIT_LASSO = 0.1  #: weight of the l1 term when the dictionary is learnt (Vahadane et al. 2016, section III-B)
CODE_LASSO = 0.01  #: its weight when concentrations are computed with a given matrix
CONCENTRATION_PERCENTILE = 99
MIN_PIXELS = 500
_TISSUE_LUMINANCE = 0.567  # CIE Y of L* = 80: brighter pixels are glass or too pale to carry colour
_DARKEST_OD = 4.0  # grey level 4 or less in some channel: 8 bits resolve no colour there


@dataclass(frozen=True)
class Separation:
    """A fitted stain matrix and what speaks for or against it.

    Attributes
    ----------
    matrix : float64 [2 stains, 3 channels], haematoxylin first
    concentrations : float64 [2], 99th percentile of each stain over the fitted pixels
    angle_degrees : between the two stains
    residual : root mean square of the optical density that the two stains leave over, relative to the whole
    iterations : alternations until the matrix stood still (0 for Macenko)
    negative : the largest negative entry that a unit row had before it was set to 0, as a positive number
    """

    matrix: np.ndarray
    concentrations: np.ndarray
    angle_degrees: float
    residual: float
    iterations: int
    negative: float = 0.0


def optical_density(rgb: np.ndarray, white: np.ndarray) -> np.ndarray:
    """Optical density float64 [..., 3] of uint8 pixels; 0 where one is brighter than `white` (float [3])."""
    table = np.maximum(np.arange(256.0), 1.0)[:, None] / np.asarray(white, np.float64)
    table = np.maximum(-np.log(table), 0.0)
    return np.stack([table[rgb[..., channel], channel] for channel in range(3)], axis=-1)


@dataclass(frozen=True)
class PixelClasses:
    """Boolean arrays of equal shape that never overlap; what is in none of them is background."""

    stained: np.ndarray
    ink: np.ndarray
    saturated: np.ndarray


def classify_pixels(rgb: np.ndarray, white: np.ndarray) -> PixelClasses:
    """Sort uint8 pixels [..., 3] into stained tissue, ink, saturated and background.

    Background is what has CIE lightness L* >= 80 after white balance. Both stains absorb green the most or
    nearly so (Ruifrok & Johnston 2001); pixels that absorb red far more (green, cyan and blue ink) or blue
    more (red, orange and yellow ink) are ink. Saturated pixels are too dark for 8 bits to resolve their
    colour: pigment, folds, black.
    """
    od = optical_density(rgb, white)
    red, green, blue = od[..., 0], od[..., 1], od[..., 2]
    dark = _luminance(rgb, white) < _TISSUE_LUMINANCE
    saturated = dark & (od.max(axis=-1) > _DARKEST_OD)
    ink = dark & ~saturated & ((red > 1.35 * green + 0.05) | (blue > 1.05 * green + 0.05))
    return PixelClasses(dark & ~saturated & ~ink, ink, saturated)


def _luminance(rgb: np.ndarray, white: np.ndarray) -> np.ndarray:
    """CIE Y in 0-1 of sRGB pixels after division by `white`."""
    value = np.minimum(np.arange(256.0)[:, None] / np.asarray(white, np.float64), 1.0)
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    weights = (0.2126, 0.7152, 0.0722)
    return sum(weight * linear[rgb[..., channel], channel] for channel, weight in enumerate(weights))


def concentrations(od: np.ndarray, matrix: np.ndarray, lasso: float = CODE_LASSO) -> np.ndarray:
    """Non-negative sparse concentrations [..., 2 stains] of optical densities [..., 3], in `od`'s dtype.

    Minimises ``|od - c @ matrix|^2 / 2 + lasso * sum(c)`` over ``c >= 0`` exactly. With two non-negative
    stains the Karush-Kuhn-Tucker conditions leave four cases. Let ``b = matrix @ od - lasso`` and ``G =
    matrix @ matrix.T``. (1) Both stains present: ``c = u`` with ``G u = b``, when ``u > 0``. (2, 3) If
    ``u_j <= 0``, stain j is absent and the other is ``b_i / G_ii = u_i + G_ij / G_ii * u_j``, cut off at 0.
    (4) If ``u`` is positive in neither, then ``b = G u <= 0`` because ``G`` has no negative entry, so both
    are absent and the cut-off gives 0. One formula covers all: ``c_i = max(u_i + G_ij / G_ii * min(u_j, 0),
    0)``.
    """
    gram = matrix @ matrix.T
    linear = (np.linalg.inv(gram) @ matrix).astype(od.dtype)
    offset = (np.linalg.inv(gram).sum(axis=1) * lasso).astype(od.dtype)
    first, second = (
        od[..., 0] * row[0] + od[..., 1] * row[1] + od[..., 2] * row[2] - less
        for row, less in zip(linear, offset, strict=True)
    )
    shared = (gram[0, 1] / np.diag(gram)).astype(od.dtype)
    return np.stack(
        [
            np.maximum(first + shared[0] * np.minimum(second, 0), 0),
            np.maximum(second + shared[1] * np.minimum(first, 0), 0),
        ],
        axis=-1,
    )


def fit_vahadane(od: np.ndarray, start: np.ndarray, iterations: int = 300, tolerance: float = 1e-5) -> Separation:
    """Sparse non-negative matrix factorisation of optical densities [pixels, 3] into two stains.

    Alternates exact concentrations (see `concentrations`) with one exact, non-negative, unit-ball update of
    each stain (block coordinate descent, Mairal et al. 2010, algorithm 2), from the matrix `start`, until
    no entry moves by more than `tolerance`. Nothing is drawn at random.

    Source: Vahadane et al., IEEE TMI 35(8):1962-1971, 2016, equation 4.
    """
    matrix, count = np.array(start, np.float64), 0
    for count in range(1, iterations + 1):  # noqa: B007 - the count is reported
        before = matrix.copy()
        coded = concentrations(od, matrix, FIT_LASSO)
        second_moment = _product(coded, coded)
        cross = _product(coded, od)
        for stain in range(2):
            if second_moment[stain, stain] <= 0:
                continue
            gradient = (cross[stain] - second_moment[stain] @ matrix) / second_moment[stain, stain]
            row = np.maximum(matrix[stain] + gradient, 0)
            matrix[stain] = row / max(1.0, float(np.sqrt((row**2).sum())))
        if np.abs(matrix - before).max() < tolerance:
            break
    return describe(od, matrix, count)


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a.T @ b`` by pairwise sums: BLAS would give other last digits with another number of threads."""
    return np.array([[np.sum(a[:, i] * b[:, j]) for j in range(b.shape[1])] for i in range(a.shape[1])])


def fit_macenko(od: np.ndarray, percentile: float = 1.0) -> Separation:
    """Stains at the extreme angles of the plane that holds most of the optical densities [pixels, 3].

    Source: Macenko et al., IEEE ISBI 2009, 1107-1110, section 2 (robust extremes at `percentile` and 100
    minus it).
    """
    centred = od - od.mean(axis=0)
    _, vectors = np.linalg.eigh(_product(centred, centred))
    plane = vectors[:, [2, 1]].T
    plane = plane * np.where(plane.sum(axis=1, keepdims=True) < 0, -1.0, 1.0)
    along, across = od @ plane[0], od @ plane[1]
    low, high = np.percentile(np.arctan2(across, along), [percentile, 100 - percentile])
    rows = np.array([[np.cos(angle), np.sin(angle)] for angle in (low, high)]) @ plane
    return describe(od, rows, 0)


def describe(od: np.ndarray, matrix: np.ndarray, iterations: int) -> Separation:
    """Normalise and order `matrix`, and measure it on `od`.

    Rows point to where light is absorbed, have unit length and no negative entry. Haematoxylin is the stain that
    absorbs more of the red: it is blue, eosin is pink.
    """
    matrix = _unit_rows(np.where(matrix.sum(axis=1, keepdims=True) < 0, -matrix, matrix))
    negative = float(max(0.0, -matrix.min()))
    matrix = _unit_rows(np.maximum(matrix, 0))
    if matrix[0, 0] < matrix[1, 0]:
        matrix = matrix[::-1].copy()
    cosine = float(np.clip((matrix[0] * matrix[1]).sum(), -1, 1))
    if cosine > 1 - 1e-9:
        return Separation(matrix, np.zeros(2), 0.0, 1.0, iterations, negative)
    coded = concentrations(od, matrix)
    left = od - (coded[:, :1] * matrix[0] + coded[:, 1:] * matrix[1])
    residual = float(np.sqrt((left**2).sum() / max((od**2).sum(), 1e-12)))
    top = np.percentile(coded, CONCENTRATION_PERCENTILE, axis=0)
    return Separation(matrix, top, float(np.degrees(np.arccos(cosine))), residual, iterations, negative)


def _unit_rows(matrix: np.ndarray) -> np.ndarray:
    lengths = np.sqrt((matrix**2).sum(axis=1, keepdims=True))
    return matrix / np.where(lengths > 0, lengths, 1)
