"""How large is a pixel? One answer from the sheet, the vendor, the TIFF tags or the text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.contracts.errors import SlideError

SHEET, VENDOR, TIFF_TAGS, TEXT = "sheet", "vendor", "TIFF tags", "text"

BOUNDS = (0.05, 40.0)  #: um/px, beyond which no slide is accepted
MAX_ANISOTROPY = 1.05  #: x and y may differ by this factor
FIELD_UM = (6.0, 16.0)  #: um/px times objective, beyond which one of the two must be wrong (10 is nominal)
USUAL_FIELD_UM = (8.0, 12.5)  #: beyond which a warning is due
AGREEMENT = 1.05  #: sources that differ by more than this factor are reported

_FIX = "give the right um_per_px for this slide in slides.tsv."
_NUMBER = r"([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)"
_UNIT_UM = {"µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
_TAG_UNIT_UM = {"inch": 25400.0, "2": 25400.0, "centimeter": 1e4, "cm": 1e4, "3": 1e4}


@dataclass(frozen=True)
class Resolution:
    """um/px (x, y) at level 0, where it came from, the objective's magnification or None, and remarks."""

    um_per_px: tuple[float, float]
    source: str
    objective: float | None
    warnings: tuple[str, ...]


def resolve(
    properties: Mapping[str, str],
    vendor: tuple[float, float] | None,
    objective: float | None,
    override: float | None,
    where: str,
) -> Resolution:
    """Choose um/px by the order sheet, vendor, TIFF tags, text, and check it.

    Parameters
    ----------
    properties : the file's properties, ``tiff.XResolution`` and free text among them
    vendor : um/px (x, y) as the vendor's own metadata state it, or None
    objective : magnification as the vendor's metadata state it, or None (then the text is searched)
    override : the sheet's um_per_px or None
    where : the file, for messages

    Raises
    ------
    SlideError : nothing found; outside 0.05-40 um/px; x and y more than 5 % apart; um/px times objective
        outside 6-16 um. The last does not stop a value from the sheet: whoever gives one has seen the
        conflict.
    """
    text = "\n".join(v for k, v in properties.items() if k in ("tiff.ImageDescription", "openslide.comment"))
    objective = objective or _objective_in(text)
    found: dict[str, tuple[float, float]] = {}
    warnings: list[str] = []
    if override is not None:
        found[SHEET] = (float(override), float(override))
    if vendor is not None:
        found[VENDOR] = vendor
    for source, value in ((TIFF_TAGS, _from_tags(properties)), (TEXT, _from_text(text, properties))):
        if value is not None:
            found[source] = value
    printing = found.get(TIFF_TAGS)
    if printing and not _in_bounds(printing) and len(found) > 1:
        # 72 or 300 dpi is an instruction to printers that many writers leave in; it measures nothing.
        warnings.append(f"TIFF resolution tags say {_show(printing)} um/px, a print resolution: ignored")
        del found[TIFF_TAGS]
    if not found:
        raise SlideError(f"{where}: no um per pixel in the file. Fix: {_FIX}")
    source, value = next(iter(found.items()))
    _check(value, source, where)
    for other, elsewhere in list(found.items())[1:]:
        if max(_factor(value[0], elsewhere[0]), _factor(value[1], elsewhere[1])) > AGREEMENT:
            warnings.append(f"um per pixel: {source} says {_show(value)} (used), {other} says {_show(elsewhere)}")
    if objective:
        warnings += _check_objective(value, source, objective, where)
    return Resolution(value, source, objective, tuple(warnings))


def _check(value: tuple[float, float], source: str, where: str) -> None:
    if not _in_bounds(value):
        raise SlideError(
            f"{where}: {_show(value)} um per pixel (from {source}) is outside {BOUNDS[0]:g}-{BOUNDS[1]:g}. Fix: {_FIX}"
        )
    if _factor(*value) > MAX_ANISOTROPY:
        raise SlideError(
            f"{where}: um per pixel differs by more than 5 % in x and y ({_show(value)}, from {source}). Fix: {_FIX}"
        )


def _check_objective(value: tuple[float, float], source: str, objective: float, where: str) -> list[str]:
    field = (value[0] + value[1]) / 2 * objective
    text = (
        f"{_show(value)} um per pixel (from {source}) does not fit the objective {objective:g}x (product {field:.3g},"
    )
    low, high = FIELD_UM
    if not low <= field <= high and source != SHEET:
        raise SlideError(f"{where}: {text} accepted {low:g}-{high:g}). Fix: {_FIX}")
    low, high = USUAL_FIELD_UM
    return [] if low <= field <= high else [f"{text} usual {low:g}-{high:g})"]


def _in_bounds(value: tuple[float, float]) -> bool:
    return all(BOUNDS[0] <= v <= BOUNDS[1] for v in value)


def _factor(a: float, b: float) -> float:
    return max(a, b) / min(a, b)


def _show(value: tuple[float, float]) -> str:
    return f"{value[0]:.6g}" if value[0] == value[1] else f"{value[0]:.6g} x {value[1]:.6g}"


def positive(text: str | float | None) -> float | None:
    """A finite number above 0, or None."""
    try:
        value = float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and value > 0 else None


def _from_tags(properties: Mapping[str, str]) -> tuple[float, float] | None:
    unit = _TAG_UNIT_UM.get(str(properties.get("tiff.ResolutionUnit", "")).lower())
    x, y = positive(properties.get("tiff.XResolution")), positive(properties.get("tiff.YResolution"))
    return (unit / x, unit / y) if unit and x and y else None


def _from_text(text: str, properties: Mapping[str, str]) -> tuple[float, float] | None:
    """um/px in free text: OME-XML, ImageJ's unit beside unitless tags, or ``MPP = 0.25`` in any spelling."""
    sizes = [_ome_size(text, axis) for axis in "XY"]
    if sizes[0]:
        return sizes[0], sizes[1] or sizes[0]
    match = re.search(
        r"\b(?:mpp|microns?[ _]?per[ _]?pixel|um[ _/]?(?:per[ _]?)?(?:px|pixel))\s*[=:]?\s*" + _NUMBER,
        text,
        re.I,
    )
    if match and positive(match[1]):
        return float(match[1]), float(match[1])
    unit = re.search(r"^unit=(\S+)", text, re.M)
    scale = _UNIT_UM.get(unit[1].replace("\\u00B5", "µ").lower()) if unit and text.startswith("ImageJ") else None
    x, y = positive(properties.get("tiff.XResolution")), positive(properties.get("tiff.YResolution"))
    return (scale / x, scale / y) if scale and x and y else None


def _ome_size(text: str, axis: str) -> float | None:
    size = re.search(rf'\bPhysicalSize{axis}\s*=\s*"{_NUMBER}"', text)
    unit = re.search(rf'\bPhysicalSize{axis}Unit\s*=\s*"([^"]+)"', text)
    scale = _UNIT_UM.get(unit[1].replace("&#181;", "µ")) if unit else 1.0
    value = positive(size[1]) if size else None
    return value * scale if value and scale else None


def _objective_in(text: str) -> float | None:
    match = re.search(r"\b(?:AppMag|NominalMagnification)\s*=\s*\"?" + _NUMBER, text, re.I)
    return positive(match[1]) if match else None
