"""Repainting pixels in other stains, compiled: the inner loop of `stain_transfer`, one pass over the pixels.

It goes through the pixels in short blocks, in three steps that a processor does many pixels at a time: look optical
densities up, compute, put the colours of a pixel side by side again. Each pixel is computed by itself with the same
float32 operations, whatever its place.
"""

from __future__ import annotations

import numpy as np

from pipeline.compiled import compiled

_BLOCK = 1024  # pixels whose numbers stay in the processor's nearest cache
_BLACK = np.float32(-30)  # 2**-30 of any white is no grey level
_ZERO, _HALF = np.float32(0), np.float32(0.5)
_BIAS, _EXPONENT = np.int32(127), np.int32(23)  # of a float32: the exponent's zero, and the first of its bits
# 2**x = 1 + c1 x + ... + c5 x**5 for -1 < x <= 0, by least squares at Chebyshev points: relative error below 1e-7
_ONE = np.float32(1)
_C1, _C2, _C3, _C4, _C5 = map(np.float32, (0.693143568, 0.240178903, 0.055294042, 0.009202176, 0.000943511))


@compiled
def _grey_level(exponent: np.float32, white: np.float32) -> np.uint8:
    """``white * 2**exponent`` rounded to nearest; `exponent` is never positive."""
    exponent = exponent if exponent > _BLACK else _BLACK
    whole = np.int32(exponent)
    part = exponent - np.float32(whole)
    power = _ONE + part * (_C1 + part * (_C2 + part * (_C3 + part * (_C4 + part * _C5))))
    scale = np.int32((whole + _BIAS) << _EXPONENT).view(np.float32)
    return np.uint8(np.int32(power * scale * white + _HALF))


@compiled
def repaint(
    pixels: np.ndarray,
    density: np.ndarray,
    linear: np.ndarray,
    offset: np.ndarray,
    cosine: np.float32,
    paint: np.ndarray,
    white: np.ndarray,
    out: np.ndarray,
) -> None:
    """Repaint uint8 `pixels` [n, 3] into uint8 `out` [n, 3]; the numbers are those of `Coefficients`, by name."""
    od = np.empty((3, _BLOCK), np.float32)
    level = np.empty((3, _BLOCK), np.uint8)
    for start in range(0, len(pixels), _BLOCK):
        n = min(_BLOCK, len(pixels) - start)
        for i in range(n):
            od[0, i] = density[0, pixels[start + i, 0]]
            od[1, i] = density[1, pixels[start + i, 1]]
            od[2, i] = density[2, pixels[start + i, 2]]
        for i in range(n):
            red, green, blue = od[0, i], od[1, i], od[2, i]
            first = red * linear[0, 0] + green * linear[0, 1] + blue * linear[0, 2] - offset[0]
            second = red * linear[1, 0] + green * linear[1, 1] + blue * linear[1, 2] - offset[1]
            h = first + cosine * (second if second < _ZERO else _ZERO)
            e = second + cosine * (first if first < _ZERO else _ZERO)
            h = h if h > _ZERO else _ZERO
            e = e if e > _ZERO else _ZERO
            level[0, i] = _grey_level(h * paint[0, 0] + e * paint[1, 0], white[0])
            level[1, i] = _grey_level(h * paint[0, 1] + e * paint[1, 1], white[1])
            level[2, i] = _grey_level(h * paint[0, 2] + e * paint[1, 2], white[2])
        for i in range(n):
            out[start + i, 0], out[start + i, 1], out[start + i, 2] = level[0, i], level[1, i], level[2, i]
