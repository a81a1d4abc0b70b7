"""stain/{slide_id}.json: a slide's stains, how they were found and what speaks for them (standard library only)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.contracts.errors import FormatError
from pipeline.contracts.files import read_json, write_json
from pipeline.contracts.revisions import REVISIONS

if TYPE_CHECKING:
    import numpy as np

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
        colours = None if body["colours"] is None else read_colours(body["colours"])
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


def read_colours(body: Mapping[str, Any]) -> StainColours:
    """Stains as `asdict` wrote them. Raises KeyError, TypeError or ValueError for what cannot be stains."""
    colours = colours_from(body["matrix"], body["concentrations"], body["white"])
    if [len(row) for row in body["matrix"]] != [3, 3] or (len(body["concentrations"]), len(body["white"])) != (2, 3):
        raise ValueError("the stain matrix or the levels are of the wrong size")
    if not all(_is_stain(row) for row in colours.matrix):
        raise ValueError("the stain matrix is not made of two non-negative unit rows")
    if not all(isfinite(level) and level > 0 for level in (*colours.concentrations, *colours.white)):
        raise ValueError("concentrations and white must be positive")
    return colours


def _is_stain(row: Sequence[float]) -> bool:
    return all(isfinite(entry) and entry >= 0 for entry in row) and abs(sum(entry**2 for entry in row) - 1) < 1e-5


def colours_from(
    matrix: Sequence[Sequence[float]] | np.ndarray,
    concentrations: Sequence[float] | np.ndarray,
    white: Sequence[float] | np.ndarray,
) -> StainColours:
    """Plain numbers from arrays [2, 3], [2] and [3]."""
    first, second = ((float(row[0]), float(row[1]), float(row[2])) for row in matrix)
    return StainColours(
        matrix=(first, second),
        concentrations=(float(concentrations[0]), float(concentrations[1])),
        white=(float(white[0]), float(white[1]), float(white[2])),
    )
