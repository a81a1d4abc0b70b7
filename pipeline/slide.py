"""Open a slide: levels, um per pixel, pixels. The only importer of slide libraries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
import openslide
import tifffile
import tiffslide
from PIL import Image, UnidentifiedImageError

from pipeline.contracts.errors import SlideError
from pipeline.contracts.slides import SlideFacts
from pipeline.resampling import area_average
from pipeline.resolution import positive, resolve

LEVEL_TOLERANCE = 1.05  #: a stored level may be this much coarser than asked: 4.001 x 0.25 um/px serves 1 um/px
BACKGROUND = (255, 255, 255)  #: put where the file holds no pixels (sparse or outside)
FIELD_SUFFIXES = (".png", ".jpg", ".jpeg")
_BLOCK_PX = 2048  # source pixels per side that a thumbnail decodes at a time
_MAX_FIELD_PX = 400_000_000


@dataclass(frozen=True)
class Level:
    """A stored level: size in its own pixels and exact level-0 pixels per pixel on each axis."""

    width: int
    height: int
    downsample_x: float
    downsample_y: float


class _Backend(Protocol):
    """What a file format must offer; a direct decoder of JPEG tiles can stand in for any of these."""

    @property
    def name(self) -> str: ...
    @property
    def vendor(self) -> str: ...
    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each level in its own pixels, the finest first."""

    @property
    def properties(self) -> Mapping[str, str]:
        """Resolution tags and free text under OpenSlide's names."""

    @property
    def mpp(self) -> tuple[float, float] | None:
        """um/px (x, y) as the vendor's own metadata state it."""

    @property
    def objective(self) -> float | None: ...
    @property
    def bounds(self) -> tuple[int, int, int, int] | None:
        """Scanned area (x, y, width, height) in level-0 pixels where the vendor gives one."""

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """uint8 [height, width, 3 or 4] of a region within the level; alpha 0 where there are no pixels."""

    def close(self) -> None: ...


class SlideReader:
    """An open slide.

    Use one reader per thread. `um_per_px` is (x, y) at level 0; `bounds` (x, y, width, height) is the scanned
    area in level-0 pixels, the whole slide where the vendor gives none. `read` may raise SlideError for a
    damaged region; the reader stays usable for the others.
    """

    def __init__(self, path: str | Path, backend: _Backend, um_per_px: float | None) -> None:
        self.path = str(path)
        self._backend = backend
        self.backend = backend.name
        self.vendor = backend.vendor
        self.background = BACKGROUND
        width, height = backend.sizes[0]
        self.dimensions = (width, height)
        self.levels = tuple(Level(w, h, width / w, height / h) for w, h in backend.sizes)
        self.bounds = _within(backend.bounds or (0, 0, width, height), width, height)
        resolution = resolve(backend.properties, backend.mpp, backend.objective, um_per_px, self.path)
        self.um_per_px = resolution.um_per_px
        self.um_per_px_source = resolution.source
        self.objective = resolution.objective
        self.warnings = resolution.warnings

    def level_um_per_px(self, level: int) -> tuple[float, float]:
        """um/px (x, y) of a stored level."""
        chosen = self.levels[level]
        return self.um_per_px[0] * chosen.downsample_x, self.um_per_px[1] * chosen.downsample_y

    def source_level(self, um_per_px: float) -> int:
        """The coarsest stored level that is not coarser than `um_per_px` (5 % tolerance), else level 0."""
        best = 0
        for index in range(len(self.levels)):
            here = max(self.level_um_per_px(index))
            if here <= um_per_px * LEVEL_TOLERANCE and here >= max(self.level_um_per_px(best)):
                best = index
        return best

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Read a region of a stored level.

        Parameters
        ----------
        level : index into `levels`
        x, y : upper-left corner in pixels of that level; the region may stick out of the slide
        width, height : size in pixels of that level

        Returns
        -------
        uint8 [height, width, 3], RGB; `background` where the file holds no pixels

        Raises
        ------
        SlideError : the region cannot be decoded
        """
        out = np.empty((height, width, 3), np.uint8)
        out[:] = self.background
        x0, y0 = max(x, 0), max(y, 0)
        x1, y1 = min(x + width, self.levels[level].width), min(y + height, self.levels[level].height)
        if x0 < x1 and y0 < y1:
            pixels = self._backend.read(level, x0, y0, x1 - x0, y1 - y0)
            out[y0 - y : y1 - y, x0 - x : x1 - x] = _over_background(pixels, self.background)
        return out

    def read_field(self, x0: float, y0: float, um_per_px: float, size_px: int) -> np.ndarray:
        """Read a square field at any um/px.

        Parameters
        ----------
        x0, y0 : upper-left corner in level-0 pixels, fractions included
        um_per_px : of the result, the same on both axes
        size_px : side of the result

        Returns
        -------
        uint8 [size_px, size_px, 3], exact area averages of the pixels of ``source_level(um_per_px)``
        """
        level = self.source_level(um_per_px)
        um = self.level_um_per_px(level)
        left, top = x0 / self.levels[level].downsample_x, y0 / self.levels[level].downsample_y
        edges = left, left + size_px * um_per_px / um[0], top, top + size_px * um_per_px / um[1]
        return self._average(level, edges, size_px, size_px)

    def thumbnail(self, um_per_px: float) -> tuple[np.ndarray, tuple[float, float]]:
        """The whole slide at about `um_per_px`.

        Returns
        -------
        rgb : uint8 [rows, columns, 3] that covers the slide exactly
        scale : level-0 pixels per pixel of it (x, y), exact
        """
        columns, rows = (
            max(1, round(side * um / um_per_px)) for side, um in zip(self.dimensions, self.um_per_px, strict=True)
        )
        level = self.source_level(um_per_px)
        chosen = self.levels[level]
        step_x, step_y = chosen.width / columns, chosen.height / rows
        side = max(1, math.floor(_BLOCK_PX / max(step_x, step_y)))
        out = np.empty((rows, columns, 3), np.uint8)
        for top in range(0, rows, side):
            for left in range(0, columns, side):
                bottom, right = min(top + side, rows), min(left + side, columns)
                edges = left * step_x, right * step_x, top * step_y, bottom * step_y
                out[top:bottom, left:right] = self._average(level, edges, right - left, bottom - top)
        return out, (self.dimensions[0] / columns, self.dimensions[1] / rows)

    def _average(self, level: int, edges: tuple[float, float, float, float], width: int, height: int) -> np.ndarray:
        """Area average of a rectangle (x0, x1, y0, y1 in pixels of `level`) as ``height x width`` pixels."""
        x, y = math.floor(edges[0]), math.floor(edges[2])
        region = self.read(level, x, y, math.ceil(edges[1]) - x, math.ceil(edges[3]) - y)
        return area_average(region, edges[0] - x, edges[1] - x, edges[2] - y, edges[3] - y, width, height)

    def close(self) -> None:
        self._backend.close()

    def __enter__(self) -> SlideReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_slide(path: str | Path, um_per_px: float | None = None) -> SlideReader:
    """Open a slide or a plain PNG/JPEG field.

    OpenSlide comes first, TiffSlide where OpenSlide cannot read a TIFF or sees one level of a pyramid only.

    Parameters
    ----------
    path : the file (for DICOM, any instance of the series; for MIRAX, the .mrxs file)
    um_per_px : overrides the file's own value; required for PNG and JPEG fields

    Raises
    ------
    SlideError : missing, empty or unreadable file, or no sane um/px; names the path and the fix
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a slide file" if path.is_dir() else "the file does not exist"
        raise SlideError(f"{path}: {what}. Fix: correct its path in slides.tsv, or exclude the slide there.")
    if path.stat().st_size == 0:
        raise SlideError(f"{path}: the file is empty (0 bytes). Fix: copy it again from its source.")
    backend = _open_backend(path)
    try:
        return SlideReader(path, backend, um_per_px)
    except BaseException:
        backend.close()
        raise


def open_checked(facts: SlideFacts) -> SlideReader:
    """Open a slide as it was checked, the sheet's um/px included."""
    return open_slide(facts.path, facts.um_per_px_override)


def _open_backend(path: Path) -> _Backend:
    if path.suffix.lower() in FIELD_SUFFIXES:
        return _FieldBackend(path)
    try:
        backend: _Backend = _OpenSlideBackend(path)
    except (openslide.OpenSlideError, OSError) as first:
        try:
            return _TiffSlideBackend(path)
        except Exception as second:
            raise SlideError(
                f"{path}: not readable as a slide (OpenSlide: {first}; TiffSlide: {second})."
                " Fix: copy the file again from its source, or convert it to a pyramidal TIFF."
            ) from second
    return _prefer_pyramid(path, backend)


def _prefer_pyramid(path: Path, backend: _Backend) -> _Backend:
    """OpenSlide sees only the first level of a TIFF whose pyramid lies in SubIFDs; TiffSlide sees all."""
    if backend.vendor != "generic-tiff" or len(backend.sizes) > 1:
        return backend
    try:
        other = _TiffSlideBackend(path)
    except Exception:
        return backend
    better = other.sizes[0] == backend.sizes[0] and len(other.sizes) > 1
    (backend if better else other).close()
    return other if better else backend


class _OpenSlideBackend:
    name = "openslide"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._slide = openslide.OpenSlide(path)
        self.properties = {key: str(value) for key, value in self._slide.properties.items()}
        self.vendor = self.properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")
        self.sizes = tuple(self._slide.level_dimensions)
        # The library places regions by its own mean of both axes: corners must be converted with it.
        self._downsamples = tuple(self._slide.level_downsamples)
        mpp = [positive(self.properties.get(f"openslide.mpp-{axis}")) for axis in "xy"]
        # For generic TIFF the library's um/px are the resolution tags, which `resolve` reads itself.
        self.mpp = (mpp[0], mpp[1]) if mpp[0] and mpp[1] and self.vendor != "generic-tiff" else None
        self.objective = positive(self.properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER))
        self.bounds = _bounds(self.properties, "openslide")

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        scale = self._downsamples[level]
        try:
            region = self._slide.read_region((round(x * scale), round(y * scale)), level, (width, height))
        except openslide.OpenSlideError as error:
            # A handle that failed once refuses everything after; the other regions deserve a fresh one.
            self._slide.close()
            self._slide = openslide.OpenSlide(self._path)
            raise _unreadable(self._path, level, x, y, width, height, error) from error
        return np.asarray(region)

    def close(self) -> None:
        self._slide.close()


class _TiffSlideBackend:
    name = "tiffslide"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._slide = tiffslide.TiffSlide(path)
        known = {key: str(value) for key, value in self._slide.properties.items() if value is not None}
        self.properties = {**known, **_tiff_properties(path)}
        self.vendor = known.get("tiffslide.vendor", "generic-tiff")
        self.sizes = tuple((int(w), int(h)) for w, h in self._slide.level_dimensions)
        self._downsamples = tuple(self._slide.level_downsamples)
        mpp = [positive(known.get(f"tiffslide.mpp-{axis}")) for axis in "xy"]
        self.mpp = (mpp[0], mpp[1]) if mpp[0] and mpp[1] and self.vendor != "generic-tiff" else None
        self.objective = positive(known.get("tiffslide.objective-power"))
        self.bounds = _bounds(known, "tiffslide")
        if self.read(len(self.sizes) - 1, 0, 0, 1, 1).dtype != np.uint8:
            raise SlideError(f"{path}: not an 8-bit image. Fix: convert it to 8-bit RGB.")

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        corner = _before_truncation(x, self._downsamples[level]), _before_truncation(y, self._downsamples[level])
        try:
            pixels = self._slide.read_region(corner, level, (width, height), as_array=True)
        except Exception as error:  # whatever a codec raises
            raise _unreadable(self._path, level, x, y, width, height, error) from error
        if pixels.ndim == 2 or pixels.shape[2] == 1:
            pixels = np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
        return pixels

    def close(self) -> None:
        self._slide.close()


def _before_truncation(position: int, downsample: float) -> int:
    """The smallest level-0 position that TiffSlide, which divides and cuts, takes to `position` on the level."""
    start = math.ceil(position * downsample)
    while int(start / downsample) < position:
        start += 1
    return start


class _FieldBackend:
    """A PNG or JPEG image held in memory; its resolution tags are for printers and count for nothing."""

    name = "pillow"
    vendor = "field"
    objective = None
    mpp = None
    bounds = None
    properties: Mapping[str, str]

    def __init__(self, path: Path) -> None:
        self.properties = {}
        try:
            with Image.open(path) as image:
                if image.width * image.height > _MAX_FIELD_PX:
                    raise SlideError(f"{path}: too large for a plain image. Fix: convert it to a pyramidal TIFF.")
                if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
                    raise SlideError(f"{path}: image mode {image.mode}, not 8-bit RGB. Fix: save it as 8-bit RGB.")
                has_alpha = image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
                self._pixels = np.asarray(image.convert("RGBA" if has_alpha else "RGB"))
        except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise SlideError(f"{path}: not readable as an image ({error}). Fix: copy it again.") from error
        self.sizes = ((self._pixels.shape[1], self._pixels.shape[0]),)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        return self._pixels[y : y + height, x : x + width]

    def close(self) -> None:
        pass


def _tiff_properties(path: Path) -> dict[str, str]:
    """Resolution tags and description of the first page, under OpenSlide's names."""
    with tifffile.TiffFile(path) as tiff:
        tags = tiff.pages.first.tags
        found = {"tiff.ImageDescription": str(tags["ImageDescription"].value)} if "ImageDescription" in tags else {}
        if "ResolutionUnit" in tags:
            found["tiff.ResolutionUnit"] = str(int(tags["ResolutionUnit"].value))
        for name in ("XResolution", "YResolution"):
            if name in tags and tags[name].value[1]:
                found[f"tiff.{name}"] = repr(tags[name].value[0] / tags[name].value[1])
    return found


def _bounds(properties: Mapping[str, str], prefix: str) -> tuple[int, int, int, int] | None:
    try:
        x, y, width, height = (int(properties[f"{prefix}.bounds-{name}"]) for name in ("x", "y", "width", "height"))
    except (KeyError, ValueError):
        return None
    return x, y, width, height


def _within(bounds: tuple[int, int, int, int], width: int, height: int) -> tuple[int, int, int, int]:
    """`bounds` cut to the slide; the whole slide if nothing remains."""
    x0, y0 = max(bounds[0], 0), max(bounds[1], 0)
    x1, y1 = min(bounds[0] + bounds[2], width), min(bounds[1] + bounds[3], height)
    return (x0, y0, x1 - x0, y1 - y0) if x0 < x1 and y0 < y1 else (0, 0, width, height)


def _over_background(pixels: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """Drop alpha by blending over the background colour."""
    if pixels.shape[2] == 3:
        return pixels
    alpha = pixels[..., 3:]
    if (alpha == 255).all():
        return pixels[..., :3]
    share = alpha.astype(np.float32) / 255
    blended = pixels[..., :3] * share + np.asarray(background, np.float32) * (1 - share)
    return np.rint(blended).astype(np.uint8)


def _unreadable(path: Path, level: int, x: int, y: int, width: int, height: int, error: Exception) -> SlideError:
    return SlideError(
        f"{path}: level {level} cannot be decoded at x {x}, y {y} ({width} x {height} px): {error}."
        " Fix: copy the file again from its source."
    )
