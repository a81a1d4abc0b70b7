"""Thumbnail -> where the tissue is: H&E colours by optical density, without ink, dark borders and glass."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from pipeline.batches import Void
from pipeline.contracts import layout
from pipeline.contracts.batches import BatchRow
from pipeline.contracts.errors import FormatError
from pipeline.contracts.files import digest_of, whole_file
from pipeline.contracts.revisions import REVISIONS
from pipeline.contracts.settings import require
from pipeline.contracts.slides import read_slide_facts
from pipeline.contracts.tissue import Tissue, read_tissue, write_tissue
from pipeline.outlines import Polygon, trace, without_diagonals
from pipeline.slide import SlideReader, open_checked

MIN_SIDE_PX = 512  # of the thumbnail's longer side: small slides and fields are looked at more closely than asked
SMOOTHING_UM = 8.0  # sigma; the same tissue is found whatever the thumbnail's resolution
CLOSING_UM = 20.0  # radius; cracks and lumina narrower than twice this belong to the tissue
MIN_CHROMA = 0.2  # (largest - smallest) / largest optical density of the channels; glass edges and dust have less
INK_HALO_UM = 30.0
MIN_INK_MM2 = 0.01
MIN_INK_PX = 16
MIN_RED_INK_MM2 = 0.05  # smaller red spots are vessels full of blood
MIN_FIELD_SHARE = 0.05  # of a small field: a piece this large is kept whatever `min_area_mm2`
DARK_GREY = 40  # brightest channel below this: black
OVERLAY_PX = 1200


@dataclass(frozen=True)
class TissueParams:
    """Section `tissue` of the configuration.

    um_per_px : of the thumbnail that is searched; finer where the slide is small
    min_area_mm2 : smaller pieces are dropped; 0.01 is less than one 224-px tile at 0.5 um/px
    min_hole_mm2 : smaller holes are filled
    min_density, max_density : limits of the automatic threshold on the optical density of green light
    accept_not_he : go on with slides that do not look like H&E (dark background, as in fluorescence)
    """

    um_per_px: float = 8.0
    min_area_mm2: float = 0.01
    min_hole_mm2: float = 0.01
    min_density: float = 0.04
    max_density: float = 0.10
    accept_not_he: bool = False

    def __post_init__(self) -> None:
        require(0.25 <= self.um_per_px <= 40, "tissue.um_per_px", self.um_per_px, "0.25 to 40")
        for name in ("min_area_mm2", "min_hole_mm2"):
            require(0 <= getattr(self, name) <= 100, f"tissue.{name}", getattr(self, name), "0 to 100")
        require(0.005 <= self.min_density <= 1, "tissue.min_density", self.min_density, "0.005 to 1")
        bounds = f"min_density ({self.min_density}) to 1"
        require(self.min_density <= self.max_density <= 1, "tissue.max_density", self.max_density, bounds)
        require(isinstance(self.accept_not_he, bool), "tissue.accept_not_he", self.accept_not_he, "true or false")


@dataclass(frozen=True)
class Detection:
    """Masks bool [rows, columns], the density threshold used, and a verdict when the image is not H&E."""

    tissue: np.ndarray
    ink: np.ndarray
    threshold: float
    not_he: str = ""


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
    and the pixel is coloured. Green and blue ink absorb red more than green, red ink takes blue along with
    green and leaves red, black ink has no colour.
    """
    not_he = _not_he(rgb)
    if not_he and not params.accept_not_he:
        nothing = np.zeros(rgb.shape[:2], bool)
        return Detection(nothing, nothing.copy(), 0.0, not_he)
    if not_he:
        bright = rgb.max(axis=2)
        threshold = float(np.clip(cv2.threshold(bright, 0, 255, cv2.THRESH_OTSU)[0], 8, 60))
        mask, ink = bright > threshold, np.zeros(rgb.shape[:2], bool)
        return Detection(_tidy(mask, ink, um_per_px, params), ink, threshold, not_he)
    density = _density(rgb, um_per_px)
    green = density[..., 1]
    threshold = float(np.clip(_otsu(green), params.min_density, params.max_density))
    largest = density.max(axis=2)
    coloured = largest - density.min(axis=2) >= MIN_CHROMA * largest
    ink = _ink(density, um_per_px)
    mask = (green >= threshold) & coloured & ~_dark(rgb)
    return Detection(_tidy(mask, ink, um_per_px, params), ink, threshold)


def _not_he(rgb: np.ndarray) -> str:
    """Why an image cannot be a brightfield H&E slide, or an empty string."""
    brightest = rgb.max(axis=2)
    dark, bright = float((brightest < DARK_GREY).mean()), float((rgb.min(axis=2) > 150).mean())
    if dark > 0.5 and bright < 0.01:
        return f"not H&E: dark background ({dark:.0%} of the image is black), as in fluorescence"
    return ""


def _dark(rgb: np.ndarray) -> np.ndarray:
    """Nearly black pixels without hue: borders, bubbles' rims, black ink."""
    largest = rgb.max(axis=2).astype(np.int16)
    return (largest < DARK_GREY) & (largest - rgb.min(axis=2) < 12)


def _density(rgb: np.ndarray, um_per_px: float) -> np.ndarray:
    """Optical density float32 [rows, columns, 3], smoothed, relative to the white point, at least 0."""
    density = np.log10(white_point(rgb)) - np.log10(np.maximum(rgb, 1).astype(np.float32))
    smooth = cv2.GaussianBlur(density.astype(np.float32), (0, 0), max(SMOOTHING_UM / um_per_px, 0.3))
    return np.maximum(smooth, 0)


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


def _ink(density: np.ndarray, um_per_px: float) -> np.ndarray:
    """Pen marks with the blurred rim around them, bool [rows, columns]."""
    red, green, blue = density[..., 0], density[..., 1], density[..., 2]
    largest = density.max(axis=2)
    cold = _grown((red > 1.25 * green) & (red > 0.15), (red > 1.05 * green) & (red > 0.08))
    red_pen = (green > 0.45) & (blue > 0.72 * green) & (red < 0.32 * green)
    black = (density.min(axis=2) > 0.75 * largest) & (largest > 0.5)
    pixel_mm2 = (um_per_px / 1000) ** 2
    smallest = max(MIN_INK_MM2 / pixel_mm2, MIN_INK_PX)
    smallest_red = max(MIN_RED_INK_MM2 / pixel_mm2, MIN_INK_PX)
    ink = _pieces(cold, smallest) | _pieces(red_pen, smallest_red) | _without_border(_pieces(black, smallest))
    return _dilated(ink, INK_HALO_UM / um_per_px) if ink.any() else ink


def _grown(seeds: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Pieces of `region` that hold a seed."""
    count, labels = cv2.connectedComponents((seeds | region).astype(np.uint8), connectivity=8)
    keep = np.zeros(count, bool)
    keep[np.unique(labels[seeds])] = True
    keep[0] = False
    return keep[labels]


def _pieces(mask: np.ndarray, min_px: float, connectivity: int = 8) -> np.ndarray:
    """`mask` without pieces smaller than `min_px`."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=connectivity)
    keep = stats[:, cv2.CC_STAT_AREA] >= max(min_px, 1)
    keep[0] = False
    return keep[labels]


def _without_border(mask: np.ndarray) -> np.ndarray:
    """`mask` without pieces that cover half of a side of the image: frames, not pen."""
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    keep = np.ones(count, bool)
    for side in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        keep &= np.bincount(side, minlength=count) < 0.5 * len(side)
    keep[0] = False
    return keep[labels]


def _small_holes(background: np.ndarray, min_px: float) -> np.ndarray:
    """Pieces of `background` below `min_px` that tissue surrounds; what reaches the image's edge is no hole."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(background.astype(np.uint8), connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] < min_px
    for side in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        small[side] = False
    small[0] = False
    return small[labels]


def _dilated(mask: np.ndarray, radius_px: float) -> np.ndarray:
    return cv2.dilate(mask.astype(np.uint8), _disc(radius_px)).astype(bool)


def _disc(radius_px: float) -> np.ndarray:
    radius = max(1, round(radius_px))
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def _tidy(mask: np.ndarray, ink: np.ndarray, um_per_px: float, params: TissueParams) -> np.ndarray:
    """Close cracks, take out ink, fill small holes, drop small pieces, leave no contacts at corners."""
    disc = _disc(CLOSING_UM / um_per_px)
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, disc, borderType=cv2.BORDER_REPLICATE).astype(
        bool
    )
    pixel_mm2 = (um_per_px / 1000) ** 2
    filled = (closed | _small_holes(~closed, params.min_hole_mm2 / pixel_mm2)) & ~ink
    # A field of view may be smaller than the smallest piece worth keeping on a whole slide.
    min_px = min(params.min_area_mm2 / pixel_mm2, MIN_FIELD_SHARE * mask.size)
    return without_diagonals(_pieces(filled, min_px, connectivity=4))


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
    ink = without_diagonals(found.ink)
    pixel_mm2 = um[0] * um[1] / 1e6
    void = found.not_he if not params.accept_not_he else ""
    if not void and not found.tissue.any():
        void = f"no tissue: no H&E-coloured piece of at least {params.min_area_mm2:g} mm2"
    tissue = Tissue(
        slide_id=slide_id,
        tissue=_in_level0(trace(found.tissue), scale),
        ink=_in_level0(trace(ink), scale),
        mask_size=(rgb.shape[1], rgb.shape[0]),
        px_per_mask_px=scale,
        um_per_px=um,
        threshold=found.threshold,
        tissue_mm2=float(found.tissue.sum() * pixel_mm2),
        ink_mm2=float(ink.sum() * pixel_mm2),
        digest=digest,
        void=void,
    )
    return tissue, rgb, found


def _in_level0(polygons: list[Polygon], scale: tuple[float, float]) -> list[Polygon]:
    return [[ring * np.asarray(scale) for ring in polygon] for polygon in polygons]


def draw_overlay(rgb: np.ndarray, detection: Detection) -> np.ndarray:
    """The thumbnail with tissue outlined in green and ink in red, uint8 [rows, columns, 3], at most 1200 px."""
    factor = min(1.0, OVERLAY_PX / max(rgb.shape[:2]))
    size = (max(1, round(rgb.shape[1] * factor)), max(1, round(rgb.shape[0] * factor)))
    picture = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    for mask, colour in ((detection.tissue, (20, 150, 40)), (detection.ink, (220, 30, 30))):
        small = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        outlines, _ = cv2.findContours(small, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, colour, 2)
    return picture


class TissueStage:
    """Stage `tissue`: results/slides/{id}.json -> results/tissue/{id}.geojson and .png."""

    name = "tissue"

    def __init__(self, results: str | Path, params: TissueParams) -> None:
        self._results = Path(results)
        self._params = params

    def digest(self, upstream: BatchRow) -> str:
        return digest_of(self.name, REVISIONS[self.name], asdict(self._params), upstream.digest)

    def find(self, slide_id: str, digest: str) -> str | None:
        try:
            tissue = read_tissue(self._shape(slide_id))
        except (FileNotFoundError, FormatError):
            return None
        if tissue.digest != digest or not self._overlay(slide_id).exists():
            return None
        if tissue.void:
            raise Void(tissue.void)
        return _remark(tissue)

    def make(self, slide_id: str, digest: str) -> str:
        facts = read_slide_facts(layout.slide_facts(self._results, slide_id))
        with open_checked(facts) as reader:
            tissue, rgb, detection = find_tissue(reader, slide_id, self._params, digest)
            tissue = replace(tissue, remark="; ".join(filter(None, [tissue.remark, reader.remark])))
        self._shape(slide_id).unlink(missing_ok=True)  # never beside a newer picture
        with whole_file(self._overlay(slide_id)) as part:
            part.write_bytes(cv2.imencode(".png", draw_overlay(rgb, detection)[..., ::-1])[1].tobytes())
        write_tissue(self._shape(slide_id), tissue)
        if tissue.void:
            raise Void(tissue.void)
        return _remark(tissue)

    def _shape(self, slide_id: str) -> Path:
        return Path(layout.tissue_shape(self._results, slide_id))

    def _overlay(self, slide_id: str) -> Path:
        return Path(layout.tissue_overlay(self._results, slide_id))


def _remark(tissue: Tissue) -> str:
    ink = f"{tissue.ink_mm2:.2g} mm2 of ink left out" if tissue.ink_mm2 else ""
    return "; ".join(filter(None, [ink, tissue.remark]))
