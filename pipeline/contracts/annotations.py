"""The user's own outlines of a slide: GeoJSON as QuPath exports it, in level-0 pixels.

References: RFC 7946; https://qupath.readthedocs.io/en/stable/docs/advanced/exporting_annotations.html.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.contracts.errors import SlideError

_NOT_DRAWN = {"detection", "cell", "tile"}  # QuPath's kinds of objects that programs make, not people
_WITHOUT_AREA = {"Point", "MultiPoint", "LineString", "MultiLineString"}
_EXPORT = "export the annotations from QuPath as GeoJSON again"


@dataclass(frozen=True)
class Outline:
    """One polygon: `rings` (the outline, then its holes) float64 [vertices, 2] each, (x, y) in level-0 pixels.

    `name` is its class, empty for none; `feature` its place in the file, from 1.
    """

    rings: list[np.ndarray]
    name: str
    feature: int


def read_annotations(path: str | Path) -> list[Outline]:
    """Every polygon of a file: of features, collections of features or geometries, an array of them, or bare ones.

    Points, lines, and objects that QuPath itself detected (cells, tiles) are left out.

    Raises
    ------
    SlideError : not readable, not GeoJSON, or a ring that is none; names the file, the feature and the fix
    """
    try:
        body = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SlideError(
            f"{path}: {error.strerror or error}. Fix: give the annotations, or their right path."
        ) from error
    except ValueError as error:
        raise SlideError(f"{path}: not readable as JSON ({error}). Fix: {_EXPORT}.") from error
    outlines: list[Outline] = []
    for number, feature in enumerate(_features(body), start=1):
        try:
            outlines += _outlines(feature, number)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            what = f"member {error} is missing" if isinstance(error, KeyError) else str(error)
            raise SlideError(f"{path} feature {number}: {what}. Fix: correct it, or {_EXPORT}.") from error
    return outlines


def _features(body: Any) -> Iterator[Any]:
    """Features of any nesting; a bare geometry stands for a feature without properties."""
    if isinstance(body, list):
        for part in body:
            yield from _features(part)
    elif isinstance(body, dict) and body.get("type") == "FeatureCollection":
        yield from _features(body.get("features", []))
    elif isinstance(body, dict) and "type" in body and body["type"] != "Feature":
        yield {"type": "Feature", "geometry": body, "properties": {}}
    else:
        yield body


def _outlines(feature: Any, number: int) -> Iterator[Outline]:
    if not isinstance(feature, dict) or feature.get("type") != "Feature":
        raise ValueError("neither a GeoJSON feature nor a geometry")
    properties = feature.get("properties") or {}
    if properties.get("objectType", "annotation") in _NOT_DRAWN or feature["geometry"] is None:
        return
    for rings in _polygons(feature["geometry"]):
        yield Outline([_ring(ring) for ring in rings], _class_name(properties), number)


def _polygons(geometry: dict[str, Any]) -> Iterator[Any]:
    kind = geometry["type"]
    if kind == "Polygon":
        yield geometry["coordinates"]
    elif kind == "MultiPolygon":
        yield from geometry["coordinates"]
    elif kind == "GeometryCollection":
        for part in geometry["geometries"]:
            yield from _polygons(part)
    elif kind not in _WITHOUT_AREA:
        raise ValueError(f"unknown geometry '{kind}'")


def _ring(positions: Any) -> np.ndarray:
    """Vertices, not closed."""
    ring = np.asarray([position[:2] for position in positions], np.float64)
    if ring.ndim != 2 or ring.shape[1] != 2 or not np.isfinite(ring).all():
        raise ValueError("a ring is not a list of finite x, y")
    if len(ring) and (ring[0] == ring[-1]).all():
        ring = ring[:-1]
    if len(ring) < 3:
        raise ValueError(f"a ring has {len(ring)} corners, a polygon needs 3")
    return ring


def _class_name(properties: dict[str, Any]) -> str:
    """QuPath writes ``classification.name``, or ``names`` for derived classes such as Tumor: Positive."""
    classification = properties.get("classification") or {}
    if isinstance(classification, str):
        return classification
    return classification.get("name") or ": ".join(classification.get("names", []))
