"""What a slide library must offer, and the libraries behind it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import openslide
import tifffile
import tiffslide
from PIL import Image, UnidentifiedImageError

from pipeline.contracts.errors import MachineError, SlideError
from pipeline.remote_files import RemoteFile, remote_file
from pipeline.resolution import positive

BACKGROUND = (255, 255, 255)  #: put where the file holds no pixels (sparse or outside)
FIELD_SUFFIXES = (".png", ".jpg", ".jpeg")
_SHOWN = (1, 2, 6)  # photometric interpretations: grey, RGB, YCbCr
_ATTEMPTS = 3  # at reading a part of a remote file
_MAX_FIELD_PX = 400_000_000


class Backend(Protocol):
    """What a file format must offer; see `jpeg_tiles` for one that needs no library."""

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


def open_library(path: Path) -> Backend:
    """Open a file with the library that reads it best. Raises SlideError where none does."""
    if path.suffix.lower() in FIELD_SUFFIXES:
        return FieldBackend(path)
    try:
        backend: Backend = OpenSlideBackend(path)
    except (openslide.OpenSlideError, OSError) as first:
        try:
            return TiffSlideBackend(path)
        except Exception as second:
            raise SlideError(
                f"{path}: not readable as a slide (OpenSlide: {first}; TiffSlide: {second})."
                " Fix: copy the file again from its source, or convert it to a pyramidal TIFF."
            ) from second
    return _prefer_pyramid(path, backend)


def open_remote(url: str) -> Backend:
    """Open a remote file: a plain field is fetched whole, of a TIFF the parts that are asked for.

    Raises SlideError for anything else, a file that is not there, or a protocol whose package is missing.
    """
    if url.partition("::")[0].lower().endswith(FIELD_SUFFIXES):
        with remote_file(url) as file:
            return FieldBackend(url, file.handle)
    file = remote_file(url)
    try:
        if file.size == 0:
            raise SlideError(f"{url}: the file is empty (0 bytes). Fix: copy it again from its source.")
        return TiffSlideBackend(url, file)
    except SlideError:
        raise
    except Exception as error:  # whatever a protocol or a damaged file raises
        raise SlideError(
            f"{url}: not readable as a remote slide (TiffSlide: {error}). Fix: copy it to this machine, where OpenSlide"
            " reads more formats, or convert it to a pyramidal TIFF."
        ) from error


def _prefer_pyramid(path: Path, backend: Backend) -> Backend:
    """OpenSlide sees only the first level of a TIFF whose pyramid lies in SubIFDs; TiffSlide sees all."""
    if backend.vendor != "generic-tiff" or len(backend.sizes) > 1 or not _has_subifds(path):
        return backend
    try:
        other = TiffSlideBackend(path)
    except Exception:
        return backend
    better = other.sizes[0] == backend.sizes[0] and len(other.sizes) > 1
    (backend if better else other).close()
    return other if better else backend


def _has_subifds(path: Path) -> bool:
    try:
        with tifffile.TiffFile(path) as tiff:
            return bool(tiff.pages.first.subifds)
    except Exception:  # whatever a damaged directory makes the parser raise
        return False


class OpenSlideBackend:
    name = "openslide"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._slide = openslide.OpenSlide(path)
        self.properties = {key: str(value) for key, value in self._slide.properties.items()}
        self.vendor = self.properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")
        self.sizes = tuple(self._slide.level_dimensions)
        # The library places regions by its own mean of both axes: corners must be converted with it.
        self._downsamples = tuple(self._slide.level_downsamples)
        self.mpp = _mpp(self.properties, "openslide", self.vendor)
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
            raise unreadable(self._path, level, x, y, width, height, error) from error
        return np.asarray(region)

    def close(self) -> None:
        self._slide.close()


class TiffSlideBackend:
    name = "tiffslide"

    def __init__(self, path: str | Path, file: RemoteFile | None = None) -> None:
        """`file` is the open one where `path` is remote."""
        self._path, self._file = path, file
        name = {"tifffile_options": {"name": str(path)}} if file else {}
        self._slide = tiffslide.TiffSlide(file.handle if file else path, **name)
        images = _images(self._slide.ts_tifffile)
        for image in images:
            image.nodata = BACKGROUND[0]  # tiles that the file does not hold come as black otherwise
        known = {key: str(value) for key, value in self._slide.properties.items() if value is not None}
        self.properties = {**known, **_tiff_properties(self._slide.ts_tifffile)}
        self.vendor = known.get("tiffslide.vendor", "generic-tiff")
        self.sizes = tuple((int(w), int(h)) for w, h in self._slide.level_dimensions)
        self._downsamples = tuple(self._slide.level_downsamples)
        self.mpp = _mpp(known, "tiffslide", self.vendor)
        self.objective = positive(known.get("tiffslide.objective-power"))
        self.bounds = _bounds(known, "tiffslide")
        for image in images:
            if (image.imagewidth, image.imagelength) in self.sizes and image.photometric not in _SHOWN:
                name = getattr(image.photometric, "name", image.photometric)  # shown as stored, which is not RGB
                raise SlideError(f"{path}: its colours are {name}. Fix: convert it to 8-bit RGB.")
        if self.read(len(self.sizes) - 1, 0, 0, 1, 1).dtype != np.uint8:
            raise SlideError(f"{path}: not an 8-bit image. Fix: convert it to 8-bit RGB.")

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        corner = _before_truncation(x, self._downsamples[level]), _before_truncation(y, self._downsamples[level])
        try:
            pixels = self._region(corner, level, (width, height))
        except MachineError:
            raise
        except Exception as error:  # whatever a codec raises
            raise unreadable(self._path, level, x, y, width, height, error) from error
        if pixels.ndim == 2 or pixels.shape[2] == 1:
            pixels = np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
        return pixels

    def _region(self, corner: tuple[int, int], level: int, size: tuple[int, int]) -> np.ndarray:
        """As the library reads it. A connection that fails is tried again, and then stops the job: no tile's fault."""
        for attempt in range(_ATTEMPTS):
            try:
                return self._slide.read_region(corner, level, size, as_array=True)
            except OSError as error:
                if self._file is None:
                    raise
                fault = error
                time.sleep(attempt)
        raise MachineError(f"{self._path}: the connection failed ({fault}). Fix: rerun when it is back.") from fault

    def close(self) -> None:
        self._slide.close()
        if self._file is not None:
            self._file.handle.close()


def _images(tiff: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    return [image for page in tiff.pages for image in (page, *(page.pages or ()))]


def _before_truncation(position: int, downsample: float) -> int:
    """The smallest level-0 position that TiffSlide, which divides and cuts, takes to `position` on the level."""
    start = math.ceil(position * downsample)
    while int(start / downsample) < position:
        start += 1
    return start


class FieldBackend:
    """A PNG or JPEG image held in memory; its resolution tags are for printers and count for nothing."""

    name = "pillow"
    vendor = "field"
    objective = None
    mpp = None
    bounds = None
    properties: Mapping[str, str]

    def __init__(self, path: str | Path, handle: BinaryIO | None = None) -> None:
        """`handle` is the open file where `path` is remote."""
        self.properties = {}
        try:
            with Image.open(handle or path) as image:
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
        return self._pixels[y : y + height, x : x + width].copy()

    def close(self) -> None:
        pass


def _tiff_properties(tiff: tifffile.TiffFile) -> dict[str, str]:
    """Resolution tags and description of the first page, under OpenSlide's names."""
    tags = tiff.pages.first.tags
    found = {"tiff.ImageDescription": str(tags["ImageDescription"].value)} if "ImageDescription" in tags else {}
    # TIFF 6.0: without the tag the unit is the inch, of which the code is 2.
    found["tiff.ResolutionUnit"] = str(int(tags["ResolutionUnit"].value)) if "ResolutionUnit" in tags else "2"
    for name in ("XResolution", "YResolution"):
        if name in tags and tags[name].value[1]:
            found[f"tiff.{name}"] = repr(tags[name].value[0] / tags[name].value[1])
    return found


def _mpp(properties: Mapping[str, str], prefix: str, vendor: str) -> tuple[float, float] | None:
    """um/px (x, y) of a vendor. For generic TIFF they are the resolution tags, which `resolve` reads itself."""
    x, y = (positive(properties.get(f"{prefix}.mpp-{axis}")) for axis in "xy")
    return (x, y) if x and y and vendor != "generic-tiff" else None


def _bounds(properties: Mapping[str, str], prefix: str) -> tuple[int, int, int, int] | None:
    try:
        x, y, width, height = (int(properties[f"{prefix}.bounds-{name}"]) for name in ("x", "y", "width", "height"))
    except (KeyError, ValueError):
        return None
    return x, y, width, height


def over_background(pixels: np.ndarray, background: tuple[int, int, int] = BACKGROUND) -> np.ndarray:
    """Drop alpha by blending over the background colour."""
    if pixels.shape[2] == 3:
        return pixels
    alpha = pixels[..., 3:]
    if (alpha == 255).all():
        return pixels[..., :3]
    share = alpha.astype(np.float32) / 255
    blended = pixels[..., :3] * share + np.asarray(background, np.float32) * (1 - share)
    return np.rint(blended).astype(np.uint8)


def unreadable(path: str | Path, level: int, x: int, y: int, width: int, height: int, error: Exception) -> SlideError:
    return SlideError(
        f"{path}: level {level} cannot be decoded at x {x}, y {y} ({width} x {height} px): {error}."
        " Fix: copy the file again from its source."
    )
