"""From a slide's fields to its stains: white point, pixels that count, method, and whether to believe it."""

from __future__ import annotations

import numpy as np

from pipeline.contracts.errors import SlideError
from pipeline.stain_separation import (
    MIN_PIXELS,
    Separation,
    classify_pixels,
    fit_macenko,
    fit_vahadane,
    optical_density,
)
from pipeline.stain_staintools import fit_staintools, require_staintools
from pipeline.stain_transfer import BUILTIN_TARGET

MAX_INK = 0.05  #: a field with a larger share of ink is left out whole: stain and ink mix at its edges
MIN_ANGLE, MAX_ANGLE = 4.0, 60.0  #: degrees between the two stains of a plausible fit
MAX_FROM_REFERENCE = 45.0  #: degrees from each stain of the built-in reference
MAX_RESIDUAL = 0.3  #: relative; more means that two stains do not describe the pixels
MAX_NEGATIVE = 0.1  #: no stain makes a channel brighter; a little is noise of the extremes and set to 0
MIN_CONCENTRATION = 0.05  #: optical density of the 99th percentile; with less, a stain is absent


def estimate_white(rgb: np.ndarray) -> tuple[np.ndarray, str]:
    """Grey levels (float64 [3]) of unstained glass in an overview; ``slide``, or ``assumed`` if none is seen.

    Glass is bright and nearly grey, above all not pink, which is pale tissue. Pure white is also what fills
    places without pixels, so it counts only where nothing else is glass. The median is taken within 12
    levels of the brightest, so pale tissue does not darken it.
    """
    pixels = rgb.reshape(-1, 3)
    low, high = pixels.min(axis=1).astype(np.int16), pixels.max(axis=1).astype(np.int16)
    glass = pixels[(low >= 180) & (high - low <= 30) & (high - pixels[:, 1] <= 15)]
    scanned = glass[(glass < 255).any(axis=1)]
    enough = max(50, len(pixels) // 1000)
    chosen = scanned if len(scanned) >= enough else glass
    if len(chosen) < enough:
        return np.full(3, 255.0), "assumed"
    brightness = chosen.mean(axis=1)
    brightest = chosen[brightness >= np.percentile(brightness, 99) - 12]
    return np.median(brightest, axis=0).astype(np.float64), "slide"


def pool_pixels(
    fields: list[np.ndarray], white: np.ndarray, most: int, seed: int
) -> tuple[np.ndarray, dict[str, float]]:
    """At most `most` stained pixels uint8 [pixels, 3] of the fields without ink, and what was left out."""
    stained, fields_with_ink = [], 0
    pixels = dict.fromkeys(("background", "ink", "saturated"), 0)
    for field in fields:
        classes = classify_pixels(field, white)
        pixels["ink"] += int(classes.ink.sum())
        pixels["saturated"] += int(classes.saturated.sum())
        pixels["background"] += int((~(classes.stained | classes.ink | classes.saturated)).sum())
        if classes.ink.mean() > MAX_INK:
            fields_with_ink += 1
        else:
            stained.append(field[classes.stained])
    total = max(1, sum(field[..., 0].size for field in fields))
    counts = {f"{name}_fraction": count / total for name, count in pixels.items()}
    counts["fields_with_ink"] = fields_with_ink
    rgb = np.concatenate(stained) if stained else np.empty((0, 3), np.uint8)
    if len(rgb) > most:
        chosen = np.random.default_rng(seed).choice(len(rgb), most, replace=False)
        rgb = rgb[np.sort(chosen)]
    return rgb, counts


def fit_pixels(
    rgb: np.ndarray, white: np.ndarray, method: str, left_out: str = "", backend: str = "native"
) -> tuple[str, str, Separation]:
    """Fit stained pixels uint8 [pixels, 3] by `method` of `backend`, or by its Macenko where that is implausible.

    `left_out` is said of missing pixels. Returns the method that was used, why it is not `method` (else
    empty), and the fit. Raises SlideError for fewer than `MIN_PIXELS` pixels and when Macenko's method, the
    last resort, is implausible too.
    """
    if len(rgb) < MIN_PIXELS:
        raise SlideError(
            f"{len(rgb)} stained pixels{left_out}, expected at least {MIN_PIXELS}: no stain can be fitted. Fix: look at"
            " the tissue overlay (pale, inked or not H&E?) and exclude the slide, or set stain.method: none."
        )
    fit_by = fit_staintools if backend == "staintools" else fit_native
    problems: list[str] = []
    for name in ("vahadane", "macenko") if method == "vahadane" else (method,):
        fit = fit_by(rgb, white, name)
        problem = implausible(fit)
        if not problem:
            return name, "; ".join(f"{p}, {name} used instead" for p in problems), fit
        problems.append(f"{name} stain fit implausible ({problem})")
    raise SlideError(
        f"{'; '.join(problems)}. Fix: look at the slide (H&E? ink? one stain only?) and exclude it,"
        " or set stain.method: none."
    )


def backend_versions(backend: str) -> dict[str, str]:
    """Versions of the packages that a backend is made of. Raises InputError where they cannot be used."""
    return require_staintools() if backend == "staintools" else {}


def fit_native(rgb: np.ndarray, white: np.ndarray, method: str) -> Separation:
    """Fit stained pixels uint8 [pixels, 3] by this package's own Vahadane or Macenko."""
    od = optical_density(rgb, white)
    return fit_macenko(od) if method == "macenko" else fit_vahadane(od, np.array(BUILTIN_TARGET.matrix))


def implausible(fit: Separation) -> str:
    """Why a fit cannot be haematoxylin and eosin, or an empty string."""
    if not (np.isfinite(fit.matrix).all() and np.isfinite(fit.concentrations).all()):
        return "not finite"
    if not MIN_ANGLE <= fit.angle_degrees <= MAX_ANGLE:
        return f"{fit.angle_degrees:.1f} degrees between the stains, expected {MIN_ANGLE:g} to {MAX_ANGLE:g}"
    cosines = np.clip((fit.matrix * np.array(BUILTIN_TARGET.matrix)).sum(axis=1), -1, 1)
    for stain, angle in zip(("haematoxylin", "eosin"), np.degrees(np.arccos(cosines)), strict=True):
        if angle > MAX_FROM_REFERENCE:
            return f"{stain} {angle:.0f} degrees from the reference, expected at most {MAX_FROM_REFERENCE:g}"
    if fit.negative > MAX_NEGATIVE:
        return f"a stain that makes a channel brighter ({-fit.negative:.2f}, expected at least {-MAX_NEGATIVE:g})"
    if fit.concentrations.min() < MIN_CONCENTRATION:
        return f"one stain is all but absent (99th percentile {fit.concentrations.min():.3f})"
    if fit.residual > MAX_RESIDUAL:
        return f"{fit.residual:.0%} of the optical density unexplained, expected at most {MAX_RESIDUAL:.0%}"
    return ""
