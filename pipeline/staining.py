"""Is it H&E? Fluorescence and immunohistochemistry are told by brightness and hue, with the evidence in words."""

from __future__ import annotations

import cv2
import numpy as np

HUE_SMOOTHING_UM = 2.0  # sigma; wide enough for the codec's colour noise, narrow enough for single brown nuclei
MIN_STAINED_DENSITY = 0.15
MIN_STAINED_PX = 400  # fewer prove nothing
MIN_CHROMA = 0.2  # (largest - smallest) / largest optical density of the channels; glass edges and dust have less
DARK_GREY = 40  # brightest channel below this: black

MIN_BROWN = 0.02  # of the stained pixels
MAX_PINK = 0.10
MIN_BLUE = 0.5  # of the stained pixels that are not brown


def fluorescence(rgb: np.ndarray) -> str:
    """Why an image cannot be brightfield, or an empty string."""
    brightest = rgb.max(axis=2)
    dark, bright = float((brightest < DARK_GREY).mean()), float((rgb.min(axis=2) > 150).mean())
    if dark > 0.5 and bright < 0.01:
        return f"not H&E: dark background ({dark:.0%} of the image is black), as in fluorescence"
    return ""


def hues(density: np.ndarray, ink: np.ndarray, um_per_px: float) -> dict[str, float] | None:
    """Shares of brown and pink among the stained pixels, and of blue among those not brown; None if too few.

    With optical densities R, G, B, a pixel is brown (DAB) where blue is absorbed about as much as green or more and
    red is too (``B > 0.8 G, R > 0.3 G, B > R``), pink (eosin) where red is not (``R < 0.5 G, B < 0.8 G``), blue
    (haematoxylin alone) where red is absorbed nearly as much as green (``R > 0.75 G``). Vectors of Ruifrok and
    Johnston (2001): haematoxylin (0.65, 0.70, 0.29), eosin (0.07, 0.99, 0.11), DAB (0.27, 0.57, 0.78).

    Parameters
    ----------
    density : float32 [rows, columns, 3], optical density, not smoothed
    ink : bool [rows, columns], left out
    """
    density = cv2.GaussianBlur(density, (0, 0), max(HUE_SMOOTHING_UM / um_per_px, 0.3))
    largest = density.max(axis=2)
    stained = (largest > MIN_STAINED_DENSITY) & (largest - density.min(axis=2) >= MIN_CHROMA * largest) & ~ink
    red, green, blue = density[stained].T
    if len(red) < MIN_STAINED_PX:
        return None
    brown = (blue > 0.8 * green) & (red > 0.3 * green) & (blue > red)
    pink = (red < 0.5 * green) & (blue < 0.8 * green)
    bluish = (red > 0.75 * green) & ~brown
    others = max(int((~brown).sum()), 1)
    return {"brown": float(brown.mean()), "pink": float(pink.mean()), "blue": float(bluish.sum()) / others}


def immunohistochemistry(shares: dict[str, float] | None) -> str:
    """Why the colours are those of brown immunohistochemistry (DAB), or an empty string.

    All three must hold, so that melanin, old blood and formalin pigment, which lie among pink, leave H&E what it is.
    """
    if shares is None:
        return ""
    if shares["brown"] >= MIN_BROWN and shares["pink"] <= MAX_PINK and shares["blue"] >= MIN_BLUE:
        return (
            f"not H&E: {shares['brown']:.0%} of the stained area is brown, {shares['blue']:.0%} of the rest blue and"
            f" {shares['pink']:.0%} pink, as in immunohistochemistry (DAB and haematoxylin, no eosin)"
        )
    return ""


def doubt(shares: dict[str, float] | None) -> str:
    """A remark on a slide that may lack eosin, or an empty string."""
    if shares is not None and shares["pink"] < 0.01 and shares["blue"] > 0.95:
        return "hardly any eosin: if this is a negative immunohistochemistry slide, exclude it"
    return ""
