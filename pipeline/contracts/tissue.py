"""tissue/{slide_id}.geojson: where the tissue is and where the pen is, as polygons that QuPath opens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.contracts.errors import FormatError
from pipeline.contracts.files import check_version, write_text
from pipeline.contracts.revisions import REVISIONS

KIND = "tissue"
FORMAT_VERSION = 2

_CLASSES = {"tissue": ("Tissue", [40, 160, 60]), "ink": ("Ink", [220, 40, 40])}


@dataclass(frozen=True)
class Tissue:
    """Tissue and ink of one slide.

    Attributes
    ----------
    tissue, ink : polygons, each a list of rings (the outline, then its holes) of float64 vertices [vertices,
        2], (x, y) in level-0 pixels, not closed; they run along the pixel edges of the mask they were traced
        from
    mask_size : (width, height) of that mask, which covers the slide exactly
    px_per_mask_px : (x, y), level-0 pixels per pixel of the mask
    um_per_px : (x, y), of the mask
    dropped : float64 [pieces, 3], pieces too small to be kept: centre (x, y) in level-0 pixels and area in mm2,
        largest first
    threshold : optical density of green light above which a pixel counted as tissue
    source : ``detected``, or the user's file of outlines and how it was used
    remark : what there is to say about the slide, or empty
    void : why there is nothing to work on (no tissue, not H&E), or empty
    """

    slide_id: str
    tissue: list[list[np.ndarray]]
    ink: list[list[np.ndarray]]
    dropped: np.ndarray
    mask_size: tuple[int, int]
    px_per_mask_px: tuple[float, float]
    um_per_px: tuple[float, float]
    threshold: float
    tissue_mm2: float
    ink_mm2: float
    source: str
    digest: str
    remark: str = ""
    void: str = ""

    def in_mask_px(self, polygons: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
        """`polygons` of this object in pixels of the mask."""
        return [[ring / self.px_per_mask_px for ring in polygon] for polygon in polygons]


def write_tissue(path: str | Path, tissue: Tissue) -> None:
    """Write a GeoJSON FeatureCollection; what is ours beyond the polygons lies in its member ``histoweave``."""
    own = {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "revision": REVISIONS["tissue"],
        "digest": tissue.digest,
        "slide_id": tissue.slide_id,
        "void": tissue.void,
        "mask_size": list(tissue.mask_size),
        "px_per_mask_px": list(tissue.px_per_mask_px),
        "um_per_px": list(tissue.um_per_px),
        "threshold": tissue.threshold,
        "tissue_mm2": tissue.tissue_mm2,
        "ink_mm2": tissue.ink_mm2,
        "source": tissue.source,
        "remark": tissue.remark,
        "dropped": [[round(x, 1), round(y, 1), float(f"{mm2:.4g}")] for x, y, mm2 in tissue.dropped.tolist()],
    }
    features = [
        _feature(kind, polygon) for kind in ("tissue", "ink") for polygon in getattr(tissue, kind)
    ]  # the order of pieces is the order in which they were found
    body = {"type": "FeatureCollection", "histoweave": own, "features": features}
    write_text(path, json.dumps(body, allow_nan=False, separators=(",", ":")) + "\n")


def _feature(kind: str, polygon: list[np.ndarray]) -> dict[str, Any]:
    name, colour = _CLASSES[kind]
    rings = [[*ring.tolist(), ring[0].tolist()] for ring in (np.asarray(r, np.float64) for r in polygon)]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": rings},
        "properties": {"objectType": "annotation", "classification": {"name": name, "color": colour}},
    }


def read_tissue(path: str | Path) -> Tissue:
    """Read a slide's tissue.

    Raises
    ------
    FileNotFoundError : the slide's tissue has not been looked for
    FormatError : damaged, not ours, or of an unknown format version
    """
    try:
        body = json.loads(Path(path).read_text(encoding="utf-8"))
        own = body["histoweave"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise FormatError(f"{path}: not our GeoJSON ({error}). Fix: delete it and rerun tissue detection.") from error
    check_version(path, KIND, FORMAT_VERSION, own.get("kind"), own.get("format_version"))
    try:
        polygons: dict[str, list[list[np.ndarray]]] = {"Tissue": [], "Ink": []}
        for feature in body["features"]:
            rings = [np.asarray(ring, np.float64)[:-1] for ring in feature["geometry"]["coordinates"]]
            if not all(ring.ndim == 2 and ring.shape[1] == 2 and np.isfinite(ring).all() for ring in rings):
                raise ValueError("a ring is not a list of x, y")
            polygons[feature["properties"]["classification"]["name"]].append(rings)
        return Tissue(
            slide_id=own["slide_id"],
            tissue=polygons["Tissue"],
            ink=polygons["Ink"],
            dropped=np.asarray(own["dropped"], np.float64).reshape(-1, 3),
            mask_size=(int(own["mask_size"][0]), int(own["mask_size"][1])),
            px_per_mask_px=(float(own["px_per_mask_px"][0]), float(own["px_per_mask_px"][1])),
            um_per_px=(float(own["um_per_px"][0]), float(own["um_per_px"][1])),
            threshold=float(own["threshold"]),
            tissue_mm2=float(own["tissue_mm2"]),
            ink_mm2=float(own["ink_mm2"]),
            source=own["source"],
            remark=own["remark"],
            digest=own["digest"],
            void=own["void"],
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise FormatError(f"{path}: damaged ({error}). Fix: delete it and rerun tissue detection.") from error
