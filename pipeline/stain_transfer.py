"""Repaint tiles in the stains of a target: stain normalisation in closed form, both stain matrices given."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.contracts.stains import StainColours, colours_from
from pipeline.stain_separation import CODE_LASSO

CHUNK_PIXELS = 32768  # temporaries of a chunk stay in the processor's cache
PLAIN_PIXELS = 20 * 224**2  # about as many as repay the table's memory, which the system has to clear

_REFERENCE = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])

#: The reference H&E appearance of the published implementation of Macenko et al. (ISBI 2009), which most
#: stain normalisers share: stain vectors, and 99th-percentile concentrations in natural optical density.
#: Its rows are made unit length here, and glass is painted pure white (the original leaves it at 240).
BUILTIN_TARGET = colours_from(
    _REFERENCE / np.sqrt((_REFERENCE**2).sum(axis=1, keepdims=True)),
    np.array([1.9705, 1.0308]),
    np.full(3, 255.0),
)


@dataclass(frozen=True)
class Coefficients:
    """The numbers of a transfer, float32, so that every device computes with the same ones.

    With unit rows and ``g`` the cosine between the source's stains, the four cases of
    `stain_separation.concentrations` join in ``c1 = max(u1 + g * min(u2, 0), 0)`` and its mirror, where ``u`` solves
    the two-stain case and is linear in optical density. Painting scales ``c`` by the ratio of 99th percentiles
    (target / source) and uses the target's stains on the target's white.

    Attributes
    ----------
    density : [3 channels, 256 grey levels], optical densities on the source's white, never negative
    linear, offset : [2 stains, 3 channels] and [2 stains]; ``u = linear @ density - offset``
    cosine : of the angle between the source's stains
    paint : [2 stains, 3 channels], minus the optical density that a unit of each concentration is painted with
    white : [3 channels], of the target
    """

    density: np.ndarray
    linear: np.ndarray
    offset: np.ndarray
    cosine: np.float32
    paint: np.ndarray
    white: np.ndarray

    @classmethod
    def of(cls, source: StainColours, target: StainColours) -> Coefficients:
        matrix = np.array(source.matrix)
        gram = matrix @ matrix.T
        inverse = np.linalg.inv(gram)
        grey = np.maximum(np.arange(256.0), 1.0)[:, None] / np.array(source.white)
        ratio = np.array(target.concentrations) / np.array(source.concentrations)
        return cls(
            density=np.ascontiguousarray(np.maximum(-np.log(grey), 0).T, np.float32),
            linear=(inverse @ matrix).astype(np.float32),
            offset=(inverse.sum(axis=1) * CODE_LASSO).astype(np.float32),
            cosine=np.float32(gram[0, 1]),
            paint=(-ratio[:, None] * np.array(target.matrix)).astype(np.float32),
            white=np.array(target.white, np.float32),
        )


class StainTransfer:
    """Repaints uint8 pixels from one pair of stains to another; None as the source leaves them as they are.

    After the first `PLAIN_PIXELS` each colour is computed once and then looked up: a slide shows far fewer colours
    than it has pixels. The table has room for all 24-bit colours and takes memory (at most 64 MiB) only where colours
    have been seen. What a colour becomes depends on nothing else, so neither the table, the order of tiles nor
    threads that share a transfer change a pixel: a place of the table is empty, or holds its one value.
    """

    def __init__(self, source: StainColours | None, target: StainColours) -> None:
        self._numbers = None if source is None else Coefficients.of(source, target)
        self._table: np.ndarray | None = None
        self._seen_pixels = 0

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """Repaint uint8 [..., 3] into a new array of that shape; a source of None returns `rgb` itself."""
        if self._numbers is None:
            return rgb
        pixels = np.ascontiguousarray(rgb).reshape(-1, 3)
        painted = np.empty_like(pixels)
        table = self._table_after(len(pixels))
        for start in range(0, len(pixels), CHUNK_PIXELS):
            part = slice(start, start + CHUNK_PIXELS)
            if table is None:
                _repaint(self._numbers, pixels[part], painted[part])
            else:
                self._look_up(self._numbers, table, pixels[part], painted[part])
        return painted.reshape(rgb.shape)

    def _table_after(self, n_pixels: int) -> np.ndarray | None:
        """The table, or None while so few pixels were seen that making it would cost more than it saves."""
        if self._table is None and self._seen_pixels >= PLAIN_PIXELS:
            self._table = np.zeros(1 << 24, "<u4")
        self._seen_pixels += n_pixels
        return self._table

    @staticmethod
    def _look_up(numbers: Coefficients, table: np.ndarray, pixels: np.ndarray, painted: np.ndarray) -> None:
        """Fill `painted` from the table, in which the highest byte of a colour that was seen is 255."""
        colour = (_four_bytes(pixels) & 0xFFFFFF).astype(np.intp)
        found = table[colour]
        if not found.all():
            new = np.flatnonzero(found == 0)
            repainted = np.empty((len(new), 3), np.uint8)
            _repaint(numbers, pixels[new], repainted)
            found[new] = _four_bytes(repainted)
            table[colour[new]] = found[new]
        cv2.cvtColor(found.view(np.uint8).reshape(1, -1, 4), cv2.COLOR_RGBA2RGB, dst=painted[None])


def _four_bytes(pixels: np.ndarray) -> np.ndarray:
    """uint8 [pixels, 3] as little-endian numbers [pixels]: red lowest, and 255 as the highest byte."""
    return cv2.cvtColor(pixels[None], cv2.COLOR_RGB2RGBA).reshape(-1).view("<u4")


def _repaint(numbers: Coefficients, pixels: np.ndarray, painted: np.ndarray) -> None:
    """The closed form: fill `painted` (uint8 [pixels, 3]) with the new colours of `pixels`."""
    density = [np.take(numbers.density[channel], pixels[:, channel]) for channel in range(3)]
    first, second = (
        row[0] * density[0] + row[1] * density[1] + row[2] * density[2] - offset
        for row, offset in zip(numbers.linear, numbers.offset, strict=True)
    )
    haematoxylin = np.maximum(first + numbers.cosine * np.minimum(second, 0), 0)
    eosin = np.maximum(second + numbers.cosine * np.minimum(first, 0), 0)
    for channel in range(3):
        value = numbers.paint[0, channel] * haematoxylin
        value += numbers.paint[1, channel] * eosin
        np.exp(value, out=value)
        value *= numbers.white[channel]
        value += np.float32(0.5)
        painted[:, channel] = value


def apply(rgb: np.ndarray, source: StainColours | None, target: StainColours = BUILTIN_TARGET) -> np.ndarray:
    """Normalise uint8 pixels [..., 3]. `StainTransfer` is the cheaper way for many tiles of one slide."""
    return StainTransfer(source, target)(rgb)
