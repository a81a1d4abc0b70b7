"""Open a slide: levels, um per pixel, pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from pipeline.contracts.errors import SlideError
from pipeline.contracts.slide_files import is_remote
from pipeline.contracts.slides import SlideFacts
from pipeline.decoded_tiles import DecodedTiles
from pipeline.lost_pixels import fill_lost
from pipeline.pixel_source import PixelSource, open_source
from pipeline.resampling import area_average
from pipeline.resolution import resolve
from pipeline.slide_backends import BACKGROUND, open_remote, over_background

LEVEL_TOLERANCE = 1.05  #: a stored level may be this much coarser than asked: 4.001 x 0.25 um/px serves 1 um/px
_WHOLE_PX = 1e-3  # lattice lines this close to whole pixels count as whole
MAX_LOST = 0.5  #: share of an overview that may be undecodable
_PIECE_PX = 64  # source pixels per side of the pieces of a thumbnail that are lost or not
_BLOCK_PX = 2048  # source pixels per side that are decoded at a time


@dataclass(frozen=True)
class Level:
    """A stored level: size in its own pixels and level-0 pixels per pixel on each axis, fractions included."""

    width: int
    height: int
    downsample_x: float
    downsample_y: float


@dataclass(frozen=True)
class PixelLattice:
    """Pixels of one resolution over a whole slide, averaged from a stored level.

    `origin` is the corner of pixel (0, 0) and `step` the size of a pixel, (x, y) in pixels of `level`.
    """

    level: int
    origin: tuple[float, float]
    step: tuple[float, float]


@dataclass(frozen=True)
class Window:
    """A square of ``size x size`` pixels of a lattice, from pixel (`column`, `row`)."""

    lattice: PixelLattice
    column: int
    row: int
    size: int

    def lines(self) -> tuple[np.ndarray, np.ndarray]:
        """float64 [size + 1] each, lines around its pixels (x and y) in pixels of the level.

        They are counted from the lattice's origin, so that windows side by side have one line between them.
        """
        (x, y), (step_x, step_y), count = self.lattice.origin, self.lattice.step, np.arange(self.size + 1)
        return x + (self.column + count) * step_x, y + (self.row + count) * step_y


class SlideReader:
    """An open slide.

    Use one reader per thread. `um_per_px` is (x, y) at level 0; `bounds` (x, y, width, height) is the scanned
    area in level-0 pixels, the whole slide where the vendor gives none. `read` may raise SlideError for a
    damaged region; the reader stays usable for the others. `backend` names who decodes the pixels, and
    `backend_reason` why that is not this code itself from the file's own tiles (empty if it is).
    """

    def __init__(self, path: str | Path, source: PixelSource, um_per_px: float | None) -> None:
        self.path = str(path)
        self._backend = backend = source.backend
        self.backend = backend.name
        self.backend_reason = source.reason
        self.vendor = backend.vendor
        self.background = BACKGROUND
        width, height = backend.sizes[0]
        self.dimensions = (width, height)
        self.levels = tuple(Level(w, h, _downsample(width, w), _downsample(height, h)) for w, h in backend.sizes)
        self.bounds = _within(backend.bounds or (0, 0, width, height), width, height)
        resolution = resolve(backend.properties, backend.mpp, backend.objective, um_per_px, self.path)
        self.um_per_px = resolution.um_per_px
        self.um_per_px_source = resolution.source
        self.objective = resolution.objective
        self.warnings = (*resolution.warnings, *source.warnings)
        self.remark = ""  # what a thumbnail had to do without

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
        x0, y0 = max(x, 0), max(y, 0)
        x1, y1 = min(x + width, self.levels[level].width), min(y + height, self.levels[level].height)
        if (x0, y0, x1, y1) == (x, y, x + width, y + height) and width > 0 and height > 0:
            return over_background(self._backend.read(level, x, y, width, height), self.background)
        out = np.empty((height, width, 3), np.uint8)
        out[:] = self.background
        if x0 < x1 and y0 < y1:
            pixels = self._backend.read(level, x0, y0, x1 - x0, y1 - y0)
            out[y0 - y : y1 - y, x0 - x : x1 - x] = over_background(pixels, self.background)
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
        return self.read_windows([Window(self.lattice(x0, y0, um_per_px), 0, 0, size_px)])[0]

    def lattice(self, x0: float, y0: float, um_per_px: float) -> PixelLattice:
        """Pixels of `um_per_px` over the slide, the first one's upper-left corner at level-0 (x0, y0)."""
        level = self.source_level(um_per_px)
        chosen = self.levels[level]
        um = self.level_um_per_px(level)
        x = _snapped(x0 / chosen.downsample_x, um_per_px / um[0], chosen.width)
        y = _snapped(y0 / chosen.downsample_y, um_per_px / um[1], chosen.height)
        return PixelLattice(level, (x[0], y[0]), (x[1], y[1]))

    def read_windows(self, windows: Sequence[Window]) -> list[np.ndarray]:
        """Read several windows of one stored level, whose pixels are read once for all of them.

        Returns
        -------
        uint8 [size, size, 3] of each window, exact area averages; the same to the last bit in whatever company, and
        whether a field is read as one window or as several

        Raises
        ------
        SlideError : a pixel of one of them cannot be decoded
        """
        level, lines = windows[0].lattice.level, [window.lines() for window in windows]
        if any(axis[-1] - axis[0] > _BLOCK_PX for lattice in lines for axis in lattice):
            return [self._average(level, x, y) for x, y in lines]
        return self._averages(level, lines)

    def thumbnail(self, um_per_px: float) -> tuple[np.ndarray, tuple[float, float]]:
        """The whole slide at about `um_per_px`.

        Parts that cannot be decoded come from a finer level; where there is none, they are coloured like what lies
        around them, and `remark` says how much that is.

        Returns
        -------
        rgb : uint8 [rows, columns, 3] that covers the slide exactly
        scale : level-0 pixels per pixel of it (x, y), exact

        Raises
        ------
        SlideError : more than `MAX_LOST` of it cannot be decoded at any level
        """
        columns, rows = (
            max(1, round(side * um / um_per_px)) for side, um in zip(self.dimensions, self.um_per_px, strict=True)
        )
        level = self.source_level(um_per_px)
        chosen = self.levels[level]
        step_x, step_y = chosen.width / columns, chosen.height / rows
        side = max(1, math.floor(_BLOCK_PX / max(step_x, step_y)))
        out = np.empty((rows, columns, 3), np.uint8)
        lost = np.zeros((rows, columns), bool)
        for part in _parts((slice(0, rows), slice(0, columns)), side):
            error = self._fill(out, lost, level, part, (step_x, step_y))
            if lost.sum() > MAX_LOST * lost.size:
                raise SlideError(f"{error} More than {MAX_LOST:.0%} of the slide is like that.")
        if lost.any():
            self.remark = f"{lost.mean():.2%} of the overview could not be read and is coloured like its surroundings"
            fill_lost(out, lost)
        return out, (self.dimensions[0] / columns, self.dimensions[1] / rows)

    def _average(self, level: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Area averages between lines (x, y) of a level, a block at a time: memory does not grow with the field."""
        side = max(1, math.floor(_BLOCK_PX / max(x[1] - x[0], y[1] - y[0])))
        out = np.empty((len(y) - 1, len(x) - 1, 3), np.uint8)
        for top in range(0, len(out), side):
            for left in range(0, out.shape[1], side):
                lines = x[left : left + side + 1], y[top : top + side + 1]
                out[top : top + side, left : left + side] = self._averages(level, [lines])[0]
        return out

    def _overview(self, level: int, part: tuple[slice, slice], step: tuple[float, float]) -> np.ndarray:
        """Part (rows, columns) of a thumbnail whose pixels are `step` (x, y) pixels of a level."""
        y, x = (np.arange(where.start, where.stop + 1) for where in part)
        return self._averages(level, [(x * step[0], y * step[1])])[0]

    def _fill(
        self, out: np.ndarray, lost: np.ndarray, level: int, part: tuple[slice, slice], step: tuple[float, float]
    ) -> SlideError | None:
        """Fill a part of the thumbnail `out`: whole, else by quarters, else from finer levels, else it is `lost`."""
        try:
            out[part] = self._overview(level, part, step)
            return None
        except SlideError as error:
            side = max(where.stop - where.start for where in part)
            if side > max(1, _PIECE_PX / max(step)):
                for quarter in _parts(part, -(-side // 2)):
                    self._fill(out, lost, level, quarter, step)
            elif level:
                here, finer = self.levels[level], self.levels[level - 1]
                scaled = step[0] * finer.width / here.width, step[1] * finer.height / here.height
                self._fill(out, lost, level - 1, part, scaled)
            else:
                lost[part] = True
            return error

    def _averages(self, level: int, lattices: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        """Area averages between lines (x, y) of a level, read once for all."""
        left, top = (math.floor(min(lines[axis][0] for lines in lattices)) for axis in (0, 1))
        right, bottom = (math.ceil(max(lines[axis][-1] for lines in lattices)) for axis in (0, 1))
        region = self.read(level, left, top, right - left, bottom - top)
        return [area_average(region, x - left, y - top) for x, y in lattices]

    def close(self) -> None:
        self._backend.close()

    def __enter__(self) -> SlideReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_slide(
    path: str | Path, um_per_px: float | None = None, backend: str | None = None, tiles: DecodedTiles | None = None
) -> SlideReader:
    """Open a slide or a plain PNG/JPEG field.

    OpenSlide comes first, TiffSlide where OpenSlide cannot read a TIFF or sees one level of a pyramid only. JPEG tiles
    of a TIFF or SVS are decoded here where a sample of them equals what OpenSlide reads.

    Parameters
    ----------
    path : the file, or the address of a remote one, which TiffSlide reads through fsspec (for DICOM, any instance of
        the series; for MIRAX, the .mrxs file)
    um_per_px : overrides the file's own value; required for PNG and JPEG fields
    backend : as an earlier check of this file recorded it, which saves the comparison
    tiles : where decoded tiles are kept, for readers of one file in several threads to share

    Raises
    ------
    SlideError : missing, empty or unreadable file, or no sane um/px; names the path and the fix
    """
    if is_remote(path):
        source = PixelSource(open_remote(str(path)), "it is not on this machine")
        return _reader(path, source, um_per_px)
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a slide file" if path.is_dir() else "the file does not exist"
        raise SlideError(f"{path}: {what}. Fix: correct its path in slides.tsv, or exclude the slide there.")
    if path.stat().st_size == 0:
        raise SlideError(f"{path}: the file is empty (0 bytes). Fix: copy it again from its source.")
    return _reader(path, open_source(path, backend, tiles), um_per_px)


def _reader(path: str | Path, source: PixelSource, um_per_px: float | None) -> SlideReader:
    try:
        return SlideReader(path, source, um_per_px)
    except BaseException:
        source.backend.close()
        raise


def open_checked(facts: SlideFacts, tiles: DecodedTiles | None = None) -> SlideReader:
    """Open a slide as it was checked: the sheet's um/px, the same pixel source."""
    return open_slide(facts.path, facts.um_per_px_override, facts.backend, tiles)


def _downsample(full: int, side: int) -> float:
    """Level-0 pixels per pixel of a level, from the length of an axis in pixels of each.

    Lengths are whole, so near a whole factor they do not tell whether the writer averaged whole blocks, and dropped or
    padded the last, or squeezed all of the slide into the level. The mean of both factors puts no pixel of the level
    further than half of its size from where it is, whichever was done.
    """
    ratio = full / side
    whole = max(1, round(ratio))
    return (ratio + whole) / 2 if abs(full / whole - side) < 1 else ratio


def _parts(whole: tuple[slice, slice], side: int) -> Iterator[tuple[slice, slice]]:
    """Squares of at most `side` (rows, columns) that make up `whole`, row-major."""
    rows, columns = whole
    for top in range(rows.start, rows.stop, side):
        for left in range(columns.start, columns.stop, side):
            yield slice(top, min(top + side, rows.stop)), slice(left, min(left + side, columns.stop))


def _snapped(origin: float, step: float, length: int) -> tuple[float, float]:
    """Origin and step of a lattice over `length` pixels, in whole pixels if all its lines are nearly so."""
    whole = round(origin), max(1, round(step))
    drift = abs(origin - whole[0]) + abs(step - whole[1]) * length / step
    return (float(whole[0]), float(whole[1])) if drift <= _WHOLE_PX else (origin, step)


def _within(bounds: tuple[int, int, int, int], width: int, height: int) -> tuple[int, int, int, int]:
    """`bounds` cut to the slide; the whole slide if nothing remains."""
    x0, y0 = max(bounds[0], 0), max(bounds[1], 0)
    x1, y1 = min(bounds[0] + bounds[2], width), min(bounds[1] + bounds[3], height)
    return (x0, y0, x1 - x0, y1 - y0) if x0 < x1 and y0 < y1 else (0, 0, width, height)
