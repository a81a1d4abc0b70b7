"""Thumbnail -> where the tissue is: H&E colours by optical density, without ink, dark borders and glass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from pipeline.annotations import annotated
from pipeline.artefacts import find_ink
from pipeline.batches import Void
from pipeline.contracts import layout
from pipeline.contracts.batches import BatchRow
from pipeline.contracts.errors import FormatError, SlideError
from pipeline.contracts.files import bytes_digest, digest_of
from pipeline.contracts.revisions import REVISIONS
from pipeline.contracts.settings import require, require_choice
from pipeline.contracts.slides import read_slide_facts
from pipeline.contracts.tissue import Tissue, read_tissue, write_tissue
from pipeline.outlines import Polygon, trace, without_diagonals
from pipeline.overlays import draw_tissue, write_picture
from pipeline.pieces import centres_and_areas, disc, large_pieces, small_holes
from pipeline.slide import SlideReader, open_checked
from pipeline.staining import DARK_GREY, MIN_CHROMA, doubt, fluorescence, hues, immunohistochemistry

MIN_SIDE_PX = 512  # of the thumbnail's longer side: small slides and fields are looked at more closely than asked
SMOOTHING_UM = 8.0  # sigma; the same tissue is found whatever the thumbnail's resolution
CLOSING_UM = 20.0  # radius; cracks and lumina narrower than twice this belong to the tissue
MIN_FIELD_SHARE = 0.05  # of a small field: a piece this large is kept whatever `min_area_mm2`


@dataclass(frozen=True)
class TissueParams:
    """Section `tissue` of the configuration.

    um_per_px : of the thumbnail that is searched; finer where the slide is small
    min_area_mm2 : smaller pieces are dropped and listed; 0.01 is less than one 224-px tile at 0.5 um/px
    min_hole_mm2 : smaller holes are filled
    min_density, max_density : limits of the automatic threshold on the optical density of green light
    accept_not_he : go on with slides that do not look like H&E (fluorescence, brown immunohistochemistry)
    annotations : GeoJSON files of the user's own outlines, ``{slide_id}`` standing for the slide; None for none
    annotation_mode : ``restrict`` keeps the detected tissue inside the outlines, ``replace`` takes the outlines as
        they are
    annotation_classes : classes that count, None for all
    annotation_missing : a slide without a file ``fail``s, or its tissue is ``detect``ed as if there were no outlines
    """

    um_per_px: float = 8.0
    min_area_mm2: float = 0.01
    min_hole_mm2: float = 0.01
    min_density: float = 0.04
    max_density: float = 0.10
    accept_not_he: bool = False
    annotations: str | None = None
    annotation_mode: str = "restrict"
    annotation_classes: Sequence[str] | None = None
    annotation_missing: str = "fail"

    def __post_init__(self) -> None:
        require(0.25 <= self.um_per_px <= 40, "tissue.um_per_px", self.um_per_px, "0.25 to 40")
        for name in ("min_area_mm2", "min_hole_mm2"):
            require(0 <= getattr(self, name) <= 100, f"tissue.{name}", getattr(self, name), "0 to 100")
        require(0.005 <= self.min_density <= 1, "tissue.min_density", self.min_density, "0.005 to 1")
        bounds = f"min_density ({self.min_density}) to 1"
        require(self.min_density <= self.max_density <= 1, "tissue.max_density", self.max_density, bounds)
        require(isinstance(self.accept_not_he, bool), "tissue.accept_not_he", self.accept_not_he, "true or false")
        named = self.annotations is None or "{slide_id}" in self.annotations
        require(named, "tissue.annotations", self.annotations, "null, or a path with {slide_id} in it")
        require_choice("tissue.annotation_mode", self.annotation_mode, ("restrict", "replace"))
        require_choice("tissue.annotation_missing", self.annotation_missing, ("fail", "detect"))
        require(
            self.annotation_classes != [], "tissue.annotation_classes", "[]", "null for all classes, or their names"
        )

    def annotation(self, slide_id: str) -> Path | None:
        """The slide's file of outlines; None where it may do without. Raises SlideError where it may not."""
        if self.annotations is None:
            return None
        path = Path(self.annotations.replace("{slide_id}", slide_id))
        if path.is_file():
            return path
        if self.annotation_missing == "detect":
            return None
        raise SlideError(
            f"{path}: no annotations for this slide. Fix: draw them, exclude the slide in slides.tsv, or set"
            " tissue.annotation_missing: detect."
        )


@dataclass(frozen=True)
class Detection:
    """Masks bool [rows, columns], the density threshold used, and a verdict when the image is not H&E.

    `dropped` are pieces that are too small; `doubt` a remark on the stain.
    """

    tissue: np.ndarray
    ink: np.ndarray
    dropped: np.ndarray
    threshold: float
    not_he: str = ""
    doubt: str = ""


def detect(rgb: np.ndarray, um_per_px: float, params: TissueParams) -> Detection:
    """Find tissue and ink in a brightfield H&E image.

    Parameters
    ----------
    rgb : uint8 [rows, columns, 3]
    um_per_px : of `rgb`

    Notes
    -----
    Optical density is ``-log10(value / white)`` (Beer-Lambert), with the white point taken from the glass
    where there is any. Both stains absorb green most, so tissue is where the density of green exceeds a
    threshold (Otsu 1979 within fixed limits, so that a field full of tissue, or of glass, is not cut in two)
    and the pixel is coloured. Ink is told by its hue, see `find_ink`; what is not H&E by its hues, see
    `pipeline.staining`.
    """
    nothing = np.zeros(rgb.shape[:2], bool)
    not_he = fluorescence(rgb)
    if not_he:
        if not params.accept_not_he:
            return Detection(nothing, nothing, nothing, 0.0, not_he)
        bright = rgb.max(axis=2)
        threshold = float(np.clip(cv2.threshold(bright, 0, 255, cv2.THRESH_OTSU)[0], 8, 60))
        return Detection(*_tidy(bright > threshold, nothing, um_per_px, params), threshold, not_he)
    sharp = optical_density(rgb)
    density = smoothed(sharp, um_per_px)
    ink = find_ink(density, um_per_px)
    shares = hues(sharp, ink, um_per_px)
    not_he = immunohistochemistry(shares)
    if not_he and not params.accept_not_he:
        return Detection(nothing, ink, nothing, 0.0, not_he)
    green = density[..., 1]
    threshold = float(np.clip(_otsu(green), params.min_density, params.max_density))
    largest = density.max(axis=2)
    coloured = largest - density.min(axis=2) >= MIN_CHROMA * largest
    mask = (green >= threshold) & coloured & ~_dark(rgb)
    return Detection(*_tidy(mask, ink, um_per_px, params), threshold, not_he, doubt(shares))


def _dark(rgb: np.ndarray) -> np.ndarray:
    """Nearly black pixels without hue: borders, bubbles' rims, black ink."""
    largest = rgb.max(axis=2).astype(np.int16)
    return (largest < DARK_GREY) & (largest - rgb.min(axis=2) < 12)


def optical_density(rgb: np.ndarray) -> np.ndarray:
    """``-log10(value / white)``, float32 [rows, columns, 3]; below 0 where brighter than the white point."""
    return (np.log10(white_point(rgb)) - np.log10(np.maximum(rgb, 1).astype(np.float32))).astype(np.float32)


def smoothed(density: np.ndarray, um_per_px: float) -> np.ndarray:
    """Optical density as tissue and artefacts are searched in it: smoothed over `SMOOTHING_UM`, at least 0."""
    return np.maximum(cv2.GaussianBlur(density, (0, 0), max(SMOOTHING_UM / um_per_px, 0.3)), 0)


def white_point(rgb: np.ndarray) -> np.ndarray:
    """Colour of the glass, float32 [3] within 200-255: a high percentile of bright greyish pixels, else 240."""
    smallest, largest = rgb.min(axis=2), rgb.max(axis=2)
    glass = rgb[(smallest >= 180) & (largest - smallest <= 15)]
    if len(glass) < 0.005 * rgb.shape[0] * rgb.shape[1]:
        return np.full(3, 240, np.float32)
    return np.clip(np.percentile(glass, 75, axis=0), 200, 255).astype(np.float32)


def _otsu(values: np.ndarray) -> float:
    """Otsu's threshold of densities 0..1."""
    levels = np.clip(values * 255, 0, 255).astype(np.uint8)
    return float(cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[0]) / 255


def _tidy(
    mask: np.ndarray, ink: np.ndarray, um_per_px: float, params: TissueParams
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tissue, ink and dropped pieces: cracks closed, ink taken out, small holes filled, no contacts at corners."""
    closed = cv2.morphologyEx(
        mask.astype(np.uint8), cv2.MORPH_CLOSE, disc(CLOSING_UM / um_per_px), borderType=cv2.BORDER_REPLICATE
    ).astype(bool)
    pixel_mm2 = (um_per_px / 1000) ** 2
    filled = (closed | small_holes(~closed, params.min_hole_mm2 / pixel_mm2)) & ~ink
    # A field of view may be smaller than the smallest piece worth keeping on a whole slide.
    min_px = min(params.min_area_mm2 / pixel_mm2, MIN_FIELD_SHARE * mask.size)
    large = large_pieces(filled, min_px, connectivity=4)
    tissue = without_diagonals(large)
    return tissue, ink, filled & ~large & ~tissue


def detection_um_per_px(reader: SlideReader, params: TissueParams) -> float:
    """Resolution of the thumbnail: as asked, finer for a small slide, never finer than the slide."""
    extent = max(side * um for side, um in zip(reader.dimensions, reader.um_per_px, strict=True))
    return max(max(reader.um_per_px), min(params.um_per_px, extent / MIN_SIDE_PX))


def find_tissue(
    reader: SlideReader, slide_id: str, params: TissueParams, digest: str
) -> tuple[Tissue, np.ndarray, Detection]:
    """Detect the tissue of an open slide.

    Returns
    -------
    tissue : what `write_tissue` writes, its `void` set where there is nothing to work on
    rgb : uint8 [rows, columns, 3], the thumbnail that was searched
    detection : masks on that thumbnail
    """
    rgb, scale = reader.thumbnail(detection_um_per_px(reader, params))
    um = (reader.um_per_px[0] * scale[0], reader.um_per_px[1] * scale[1])
    found = detect(rgb, (um[0] * um[1]) ** 0.5, params)
    path = params.annotation(slide_id)
    refused = bool(found.not_he) and not params.accept_not_he
    source, remarks = "detected", []
    if path is not None and not refused:
        source = f"{path} ({params.annotation_mode})"
        found, missing = _within_outlines(found, path, reader.dimensions, params)
        remarks.append(missing)
    elif path is None and params.annotations is not None:
        remarks.append("no annotations for this slide: all detected tissue is used")
    ink = without_diagonals(found.ink)
    pixel_mm2 = um[0] * um[1] / 1e6
    dropped = _dropped(found.dropped, scale, pixel_mm2)
    void = found.not_he if refused else "" if found.tissue.any() else _nothing(path, dropped, remarks, params)
    if not refused:
        ink_mm2 = float(ink.sum() * pixel_mm2)
        forced = f"{found.not_he}; forced by tissue.accept_not_he" if found.not_he else ""
        remarks = [forced, found.doubt, *remarks, f"{ink_mm2:.2g} mm2 of ink left out" if ink_mm2 else ""]
    tissue = Tissue(
        slide_id=slide_id,
        tissue=_in_level0(trace(found.tissue), scale),
        ink=_in_level0(trace(ink), scale),
        dropped=dropped,
        mask_size=(rgb.shape[1], rgb.shape[0]),
        px_per_mask_px=scale,
        um_per_px=um,
        threshold=found.threshold,
        tissue_mm2=float(found.tissue.sum() * pixel_mm2),
        ink_mm2=float(ink.sum() * pixel_mm2),
        source=source,
        remark="; ".join(filter(None, remarks)),
        digest=digest,
        void=void,
    )
    return tissue, rgb, found


def _within_outlines(
    found: Detection, path: Path, dimensions: tuple[int, int], params: TissueParams
) -> tuple[Detection, str]:
    """The detection restricted to the user's outlines or replaced by them, and the classes that do not occur."""
    height, width = found.tissue.shape
    mask, remark = annotated(path, params.annotation_classes, dimensions, (width, height))
    if params.annotation_mode == "replace":
        return replace(found, tissue=without_diagonals(mask), dropped=np.zeros_like(mask)), remark
    return replace(found, tissue=without_diagonals(found.tissue & mask), dropped=found.dropped & mask), remark


def _dropped(mask: np.ndarray, scale: tuple[float, float], pixel_mm2: float) -> np.ndarray:
    """Dropped pieces as `Tissue` lists them: centre (x, y) in level-0 pixels and area in mm2, largest first."""
    centres, areas = centres_and_areas(mask)
    return np.column_stack([centres * scale, areas * pixel_mm2])


def _nothing(path: Path | None, dropped: np.ndarray, remarks: list[str], params: TissueParams) -> str:
    if path is not None:
        reason = "no tissue inside the outlines" if params.annotation_mode == "restrict" else "no outline to work in"
        return f"{reason} of {path}" + "".join(f"; {remark}" for remark in remarks if remark)
    small = f"; {len(dropped)} smaller ones, the largest of {dropped[0, 2]:.2g} mm2" if len(dropped) else ""
    return f"no tissue: no H&E-coloured piece of at least {params.min_area_mm2:g} mm2{small}"


def _in_level0(polygons: list[Polygon], scale: tuple[float, float]) -> list[Polygon]:
    return [[ring * np.asarray(scale) for ring in polygon] for polygon in polygons]


class TissueStage:
    """Stage `tissue`: results/slides/{id}.json -> results/tissue/{id}.geojson and .png."""

    name = "tissue"

    def __init__(self, results: str | Path, params: TissueParams) -> None:
        self._results = Path(results)
        self._params = params

    def digest(self, upstream: BatchRow) -> str:
        path = self._params.annotation(upstream.slide_id)
        outlines = bytes_digest(path) if path else ""
        return digest_of(self.name, REVISIONS[self.name], asdict(self._params), outlines, upstream.digest)

    def find(self, slide_id: str, digest: str) -> str | None:
        try:
            tissue = read_tissue(self._shape(slide_id))
        except (FileNotFoundError, FormatError):
            return None
        if tissue.digest != digest or not self._overlay(slide_id).exists():
            return None
        if tissue.void:
            raise Void(tissue.void)
        return tissue.remark

    def make(self, slide_id: str, digest: str) -> str:
        facts = read_slide_facts(layout.slide_facts(self._results, slide_id))
        with open_checked(facts) as reader:
            tissue, rgb, detection = find_tissue(reader, slide_id, self._params, digest)
            tissue = replace(tissue, remark="; ".join(filter(None, [tissue.remark, reader.remark])))
        self._shape(slide_id).unlink(missing_ok=True)  # never beside a newer picture
        write_picture(self._overlay(slide_id), draw_tissue(rgb, detection.tissue, detection.ink, detection.dropped))
        write_tissue(self._shape(slide_id), tissue)
        if tissue.void:
            raise Void(tissue.void)
        return tissue.remark

    def _shape(self, slide_id: str) -> Path:
        return Path(layout.tissue_shape(self._results, slide_id))

    def _overlay(self, slide_id: str) -> Path:
        return Path(layout.tissue_overlay(self._results, slide_id))
