"""Repaint tiles in the stains of a target: stain normalisation in closed form, both stain matrices given."""

from __future__ import annotations

import numpy as np

from pipeline.contracts.stains import StainColours, colours_from
from pipeline.stain_separation import CODE_LASSO

CHUNK_PIXELS = 16384  # temporaries of a chunk stay in the processor's cache

_REFERENCE = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])

#: The reference H&E appearance of the published implementation of Macenko et al. (ISBI 2009), which most
#: stain normalisers share: stain vectors, and 99th-percentile concentrations in natural optical density.
#: Its rows are made unit length here, and glass is painted pure white (the original leaves it at 240).
BUILTIN_TARGET = colours_from(
    _REFERENCE / np.sqrt((_REFERENCE**2).sum(axis=1, keepdims=True)),
    np.array([1.9705, 1.0308]),
    np.full(3, 255.0),
)


class StainTransfer:
    """Repaints uint8 pixels from one pair of stains to another; None as the source leaves them as they are.

    Concentrations are the exact non-negative sparse ones of `stain_separation.concentrations`, scaled by
    the ratio of 99th percentiles (target / source), and painted with the target's stains on the target's
    white. With unit rows and ``g`` the cosine between the stains, the four cases join in ``c1 = max(u1 + g
    * min(u2, 0), 0)`` and its mirror, where ``u`` solves the two-stain case and is linear in optical
    density.
    """

    def __init__(self, source: StainColours | None, target: StainColours) -> None:
        self._linear: np.ndarray | None = None
        if source is None:
            return
        matrix = np.array(source.matrix)
        gram = matrix @ matrix.T
        inverse = np.linalg.inv(gram)
        grey = np.maximum(np.arange(256.0), 1.0)[:, None] / np.array(source.white)
        self._density = np.ascontiguousarray(np.maximum(-np.log(grey), 0).T, np.float32)  # [channel, grey level]
        self._linear = (inverse @ matrix).astype(np.float32)  # [stain, channel]
        self._offset = (inverse.sum(axis=1) * CODE_LASSO).astype(np.float32)
        self._cosine = np.float32(gram[0, 1])
        ratio = np.array(target.concentrations) / np.array(source.concentrations)
        self._paint = (-ratio[:, None] * np.array(target.matrix)).astype(np.float32)
        self._white = np.array(target.white, np.float32)

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """Repaint uint8 [..., 3] into a new array of that shape; a source of None returns `rgb` itself."""
        if self._linear is None:
            return rgb
        pixels = np.ascontiguousarray(rgb).reshape(-1, 3)
        painted = np.empty_like(pixels)
        for start in range(0, len(pixels), CHUNK_PIXELS):
            self._repaint(self._linear, pixels[start : start + CHUNK_PIXELS], painted[start : start + CHUNK_PIXELS])
        return painted.reshape(rgb.shape)

    def _repaint(self, linear: np.ndarray, pixels: np.ndarray, painted: np.ndarray) -> None:
        density = [np.take(self._density[channel], pixels[:, channel]) for channel in range(3)]
        first, second = (
            row[0] * density[0] + row[1] * density[1] + row[2] * density[2] - offset
            for row, offset in zip(linear, self._offset, strict=True)
        )
        haematoxylin = np.maximum(first + self._cosine * np.minimum(second, 0), 0)
        eosin = np.maximum(second + self._cosine * np.minimum(first, 0), 0)
        for channel in range(3):
            value = self._paint[0, channel] * haematoxylin
            value += self._paint[1, channel] * eosin
            np.exp(value, out=value)
            value *= self._white[channel]
            value += np.float32(0.5)
            painted[:, channel] = value


def apply(rgb: np.ndarray, source: StainColours | None, target: StainColours = BUILTIN_TARGET) -> np.ndarray:
    """Normalise uint8 pixels [..., 3]. `StainTransfer` is the cheaper way for many tiles of one slide."""
    return StainTransfer(source, target)(rgb)
