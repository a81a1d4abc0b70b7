"""Repaint tiles in the stains of a target: stain normalisation in closed form, both stain matrices given."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.contracts.stains import StainColours, colours_from
from pipeline.stain_separation import CODE_LASSO

CHUNK_PIXELS = 16384  # temporaries of a chunk stay in the processor's cache; remap takes rows below 32,767
TABLE_PIXELS = 600 * 224**2  # about as many as repay the making of a table of colours

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

    Where many pixels are to come, every colour is repainted once into a table (48 MiB), in which pixels are then looked
    up. What a colour becomes depends on nothing else, so the table changes no pixel; threads may share a transfer.

    Parameters
    ----------
    source, target : the stains that pixels have, and those that they get
    pixels : how many will come, as far as is known; from `TABLE_PIXELS` on the table pays
    """

    def __init__(self, source: StainColours | None, target: StainColours, pixels: int = 0) -> None:
        self._numbers = None if source is None else Coefficients.of(source, target)
        self._is_table_worth_it = pixels >= TABLE_PIXELS
        self._table: np.ndarray | None = None
        self._making = threading.Lock()

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """Repaint uint8 [..., 3] into a new array of that shape; a source of None returns `rgb` itself."""
        if self._numbers is None:
            return rgb
        if self._is_table_worth_it and self._table is None:
            with self._making:
                self._table = colour_table(self._numbers) if self._table is None else self._table
        pixels = np.ascontiguousarray(rgb).reshape(1, -1, 3)
        painted = np.empty_like(pixels)
        for start in range(0, pixels.shape[1], CHUNK_PIXELS):
            part = slice(start, start + CHUNK_PIXELS)
            planes = cv2.split(pixels[:, part])
            if self._table is None:
                cv2.merge(_repaint(self._numbers, planes), dst=painted[:, part])
            else:
                cv2.remap(self._table, _places(planes), None, cv2.INTER_NEAREST, dst=painted[:, part])
        return painted.reshape(rgb.shape)


def _repaint(numbers: Coefficients, planes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The closed form on uint8 planes [1, pixels] of red, green and blue. Each pixel by itself, whatever its place."""
    density = [cv2.LUT(plane, table[None]) for plane, table in zip(planes, numbers.density, strict=True)]
    first, second = (
        _weighted(density, row) - offset for row, offset in zip(numbers.linear, numbers.offset, strict=True)
    )
    haematoxylin = np.maximum(first + numbers.cosine * np.minimum(second, 0), 0)
    eosin = np.maximum(second + numbers.cosine * np.minimum(first, 0), 0)
    painted = []
    for channel in range(3):
        value = _weighted((haematoxylin, eosin), numbers.paint[:, channel])
        np.exp(value, out=value)
        value *= numbers.white[channel]
        value += np.float32(0.5)
        painted.append(value.astype(np.uint8))
    return painted


def _weighted(planes: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """The weighted sum of float32 planes, from left to right."""
    total = planes[0] * weights[0]
    for plane, weight in zip(planes[1:], weights[1:], strict=True):
        total += plane * weight
    return total


def colour_table(numbers: Coefficients) -> np.ndarray:
    """What each of the 2**24 colours becomes, uint8 [4096 cells, 4096 colours of a cell, 3 channels].

    A cell holds colours of equal high halves of their three bytes: the colours of a tile lie close together, which
    is what a processor's cache is good at. Red counts fastest, then green, then blue, in a cell and among cells.
    """
    table = np.empty((4096, 4096, 3), np.uint8)
    number = np.arange(4096, dtype=np.int32)
    low = [number >> shift & 15 for shift in (0, 4, 8)]
    for start in range(0, 4096, 8):
        cells = number[start : start + 8, None]
        planes = [((cells >> shift & 15) << 4 | low[k]).astype(np.uint8) for k, shift in enumerate((0, 4, 8))]
        cv2.merge(_repaint(numbers, planes), dst=table[start : start + 8])
    return table


def _places(planes: Sequence[np.ndarray]) -> np.ndarray:
    """Where in `colour_table` the colours of uint8 planes [1, pixels] lie: int16 [1, pixels, (colour, cell)]."""
    place = cv2.LUT(planes[0], _PLACES[0])
    place += cv2.LUT(planes[1], _PLACES[1])
    place += cv2.LUT(planes[2], _PLACES[2])
    return place.view("<i2").reshape(1, -1, 2)


_PLACES = [
    ((np.arange(256) & 15) << shift | (np.arange(256) >> 4) << shift + 16).astype("<i4")[None] for shift in (0, 4, 8)
]


def apply(rgb: np.ndarray, source: StainColours | None, target: StainColours = BUILTIN_TARGET) -> np.ndarray:
    """Normalise uint8 pixels [..., 3]. `StainTransfer` is the cheaper way for many tiles of one slide."""
    return StainTransfer(source, target)(rgb)
