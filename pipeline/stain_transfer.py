"""Repaint tiles in the stains of a target: stain normalisation in closed form, both stain matrices given."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.contracts.stains import StainColours, colours_from
from pipeline.stain_separation import CODE_LASSO

_REFERENCE = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])

#: The reference H&E appearance of the published implementation of Macenko et al. (ISBI 2009), which most
#: stain normalisers share: stain vectors, and 99th-percentile concentrations in natural optical density.
#: Its rows are made unit length here, and glass is painted pure white (the original leaves it at 240).
BUILTIN_TARGET = colours_from(
    _REFERENCE / np.sqrt((_REFERENCE**2).sum(axis=1, keepdims=True)),
    np.array([1.9705, 1.0308]),
    np.full(3, 255.0),
)


class Coefficients(NamedTuple):
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
    paint : [2 stains, 3 channels], the power of 2 that a unit of each concentration multiplies light with
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
            paint=(-ratio[:, None] * np.array(target.matrix) / np.log(2)).astype(np.float32),
            white=np.array(target.white, np.float32),
        )


class StainTransfer:
    """Repaints uint8 pixels from one pair of stains to another; None as the source leaves them as they are.

    What a colour becomes depends on nothing else; threads may share a transfer.
    """

    def __init__(self, source: StainColours | None, target: StainColours) -> None:
        self._numbers = None if source is None else Coefficients.of(source, target)

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """Repaint uint8 [..., 3] into a new array of that shape; a source of None returns `rgb` itself."""
        if self._numbers is None:
            return rgb
        from pipeline.stain_kernel import repaint

        painted = np.empty(rgb.shape, np.uint8)
        repaint(np.ascontiguousarray(rgb).reshape(-1, 3), *self._numbers, painted.reshape(-1, 3))
        return painted


def apply(rgb: np.ndarray, source: StainColours | None, target: StainColours = BUILTIN_TARGET) -> np.ndarray:
    """Normalise uint8 pixels [..., 3]. `StainTransfer` is the cheaper way for many tiles of one slide."""
    return StainTransfer(source, target)(rgb)
