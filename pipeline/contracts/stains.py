"""stain/{slide_id}.json: the stains of one slide, how they were found and what speaks for them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.contracts.errors import FormatError
from pipeline.contracts.files import read_json, write_json
from pipeline.contracts.revisions import REVISIONS

KIND = "stain"
FORMAT_VERSION = 2
METHODS = ("vahadane", "macenko", "none")
BACKENDS = ("native", "staintools")


@dataclass(frozen=True)
class StainColours:
    """What turning pixels into stains, and back, needs.

    Attributes
    ----------
    matrix : [2 stains][3 channels (red, green, blue)], haematoxylin first, non-negative rows of unit length
    concentrations : [2 stains], the 99th percentile over stained pixels, in natural optical density
    white : [3 channels], the grey levels of unstained glass
    """

    matrix: tuple[tuple[float, float, float], tuple[float, float, float]]
    concentrations: tuple[float, float]
    white: tuple[float, float, float]


@dataclass(frozen=True)
class StainFit:
    """The stains of one slide. `colours` is None where `method` is none: its tiles stay as they are.

    `method` is what was used, `requested` what the configuration asked for and `fallback` why they differ
    (else empty). `white_source` is slide or assumed. `um_per_px` is where the pixels were read.
    `diagnostics` holds numbers: angle_degrees, residual, iterations, negative, pixels, fields, fields_unreadable,
    fields_with_ink and the shares of pixels that are background, ink or saturated. `backend` is whose code fitted,
    with the `versions` of the packages that it belongs to (empty for native).
    """

    slide_id: str
    requested: str
    method: str
    fallback: str
    colours: StainColours | None
    white_source: str
    um_per_px: float | None
    diagnostics: dict[str, float]
    digest: str
    backend: str = "native"
    versions: dict[str, str] = field(default_factory=dict)


def write_stain(path: str | Path, fit: StainFit) -> None:
    write_json(path, KIND, FORMAT_VERSION, {"revision": REVISIONS["stain"], **asdict(fit)})


def read_stain(path: str | Path) -> StainFit:
    """Read a slide's stains.

    Raises
    ------
    FileNotFoundError : no stain was fitted for the slide
    FormatError : damaged, not finite, impossible as stains, or of an unknown format version
    """
    body = read_json(path, KIND, FORMAT_VERSION)
    try:
        colours = None if body["colours"] is None else _read_colours(body["colours"])
        if body["method"] not in METHODS or (colours is None) != (body["method"] == "none"):
            raise ValueError(f"method '{body['method']}' does not fit the rest")
        return StainFit(
            slide_id=body["slide_id"],
            requested=body["requested"],
            method=body["method"],
            fallback=body["fallback"],
            colours=colours,
            white_source=body["white_source"],
            um_per_px=body["um_per_px"],
            diagnostics=body["diagnostics"],
            digest=body["digest"],
            backend=body["backend"],
            versions=body["versions"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path}: damaged ({error}). Fix: delete it and rerun the stain stage.") from error


def _read_colours(body: dict[str, Any]) -> StainColours:
    matrix = np.array(body["matrix"], np.float64)
    levels = np.array([*body["concentrations"], *body["white"]], np.float64)
    if matrix.shape != (2, 3) or levels.shape != (5,):
        raise ValueError(f"stain matrix {matrix.shape} or levels {levels.shape} of the wrong size")
    if not (np.isfinite(matrix).all() and (matrix >= 0).all() and np.allclose((matrix**2).sum(axis=1), 1, atol=1e-6)):
        raise ValueError("the stain matrix is not made of two non-negative unit rows")
    if not (np.isfinite(levels).all() and (levels > 0).all()):
        raise ValueError("concentrations and white must be positive")
    return colours_from(matrix, levels[:2], levels[2:])


def colours_from(matrix: np.ndarray, concentrations: np.ndarray, white: np.ndarray) -> StainColours:
    """Plain numbers from arrays [2, 3], [2] and [3]."""
    first, second = ((float(row[0]), float(row[1]), float(row[2])) for row in matrix)
    return StainColours(
        matrix=(first, second),
        concentrations=(float(concentrations[0]), float(concentrations[1])),
        white=(float(white[0]), float(white[1]), float(white[2])),
    )
