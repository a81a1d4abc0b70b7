"""The known stain matrices of the simulated laboratories; stain amounts to colour by Beer-Lambert."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STEPS_PER_UNIT = 100  #: amounts are stored as uint8 in hundredths: 0 to 2.55


@dataclass(frozen=True)
class StainBasis:
    """Optical density (natural logarithm) per unit of haematoxylin and eosin, RGB; white point 0-255."""

    haematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]
    white: tuple[float, float, float]

    def matrix(self) -> np.ndarray:
        """float64 [stain (H, E), channel (R, G, B)], rows of unit length."""
        rows = np.array([self.haematoxylin, self.eosin])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


#: Two laboratories whose colours differ as those of real ones do; the numbers are our own choice.
BASES = {
    "north": StainBasis((0.62, 0.70, 0.35), (0.14, 0.90, 0.36), (244.0, 243.0, 245.0)),
    "south": StainBasis((0.50, 0.77, 0.39), (0.22, 0.87, 0.44), (241.0, 240.0, 239.0)),
}


def colour_table(basis: StainBasis) -> np.ndarray:
    """uint8 [haematoxylin step, eosin step, RGB]: the colour of every pair of amounts (hundredths)."""
    amount = np.arange(256) / STEPS_PER_UNIT
    h, e = basis.matrix()
    density = amount[:, None, None] * h + amount[None, :, None] * e
    return np.rint(np.array(basis.white) * np.exp(-density)).astype(np.uint8)


def paint(haematoxylin: np.ndarray, eosin: np.ndarray, basis: StainBasis) -> np.ndarray:
    """Stain amounts in hundredths (uint8 [height, width] each) -> colour, uint8 [height, width, RGB]."""
    table = colour_table(basis).reshape(-1, 3)
    return table[haematoxylin.astype(np.uint16) * 256 + eosin]
