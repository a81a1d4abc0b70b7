"""Pixels of a tiled JPEG TIFF (SVS included) straight from the file's own tiles."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

from pipeline.contracts.errors import SlideError
from pipeline.decoded_tiles import DecodedTiles
from pipeline.jpeg_streams import BLOCK_ROWS, ran_out, taller
from pipeline.slide_backends import Backend, over_background, unreadable

_VENDORS = ("aperio", "generic-tiff")  # others place their tiles with overlaps or gaps that the tags do not tell
_COLOURS = {2: "RGB", 6: "YCBCR"}  # TIFF photometric interpretation -> colour space of the JPEG stream
_CONTIGUOUS, _JPEG, _NO_PREDICTOR = 1, 7, 1
_MOST_BYTES = 4  # of a JPEG stream per byte of its pixels; noise at the best quality takes 2
_HEADER_BYTES = 2**16
_END_OF_IMAGE = b"\xff\xd9"


class NotJpegTiles(Exception):
    """The file is not one whose tiles can be decoded here; the text says why."""


@dataclass(frozen=True)
class TiledLevel:
    """Where the tiles of a level lie in the file, row-major; a tile of 0 bytes is not stored.

    `offsets` and `counts` are int64 [tiles] in bytes, `tables` are the JPEG tables that the tiles share.
    """

    columns: int
    width: int
    height: int
    offsets: np.ndarray
    counts: np.ndarray
    tables: bytes | None
    colours: str

    def covering(self, x: int, y: int, width: int, height: int) -> Iterator[tuple[int, int, int]]:
        """(index, left, top) of the tiles under a region, corners in pixels of the level."""
        for row in range(y // self.height, (y + height - 1) // self.height + 1):
            for column in range(x // self.width, (x + width - 1) // self.width + 1):
                yield row * self.columns + column, column * self.width, row * self.height

    def corner(self, index: int) -> tuple[int, int]:
        """Upper-left corner (x, y) of a tile, in pixels of the level."""
        row, column = divmod(index, self.columns)
        return column * self.width, row * self.height


class JpegTilesBackend:
    """Decodes the file's own tiles; `library` tells all that is not pixels.

    Tiles that the file does not store, and levels that are not of JPEG tiles, are read by the library. Decoded tiles
    are kept in `tiles`, which readers of the same slide may share, while regions to come may want a part of them.

    Raises
    ------
    NotJpegTiles : the finest level is not made of such tiles, or the vendor is not known to lay them edge to edge
    """

    name = "jpeg-tiles"

    def __init__(self, path: Path, library: Backend, tiles: DecodedTiles | None = None) -> None:
        if library.name != "openslide" or library.vendor not in _VENDORS:
            raise NotJpegTiles(f"a {library.vendor} file opened with {library.name}")
        self._path, self._library = path, library
        self.vendor, self.sizes, self.bounds = library.vendor, library.sizes, library.bounds
        self.properties, self.mpp, self.objective = library.properties, library.mpp, library.objective
        self.levels = _tiled_levels(path, library.sizes)
        self._tiles = tiles or DecodedTiles()
        self._file = os.open(path, os.O_RDONLY)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        tiled = self.levels[level]
        if tiled is None:
            return self._library.read(level, x, y, width, height)
        columns, rows = self.sizes[level]
        out = np.empty((height, width, 3), np.uint8)
        for index, left, top in tiled.covering(x, y, width, height):
            right, bottom = min(left + tiled.width, columns), min(top + tiled.height, rows)
            x0, x1, y0, y1 = max(x, left), min(x + width, right), max(y, top), min(y + height, bottom)
            into = out[y0 - y : y1 - y, x0 - x : x1 - x]
            if tiled.counts[index] == 0:
                into[:] = over_background(self._library.read(level, x0, y0, x1 - x0, y1 - y0))
                continue
            pixels, corners = self._tiles.take((level, index))
            if pixels is None:
                pixels = self._decode(level, tiled, index)
            into[:] = pixels[y0 - top : y1 - top, x0 - left : x1 - left]
            sides = (x0 == left) | (x1 == right) << 1
            corners |= sides * (y0 == top) | (sides * (y1 == bottom)) << 2
            self._tiles.put((level, index), pixels, corners)
        return out

    def _decode(self, level: int, tiled: TiledLevel, index: int) -> np.ndarray:
        shape = tiled.height, tiled.width, 3
        try:
            # Sizes in a damaged file may be anything: neither the stream nor its pixels get more room than they need.
            room = min(int(tiled.counts[index]), int(np.prod(shape)) * _MOST_BYTES + _HEADER_BYTES)
            stream = os.pread(self._file, room, int(tiled.offsets[index]))
            if stream.rfind(_END_OF_IMAGE) < 0:  # the codec would fill what is missing with grey and say nothing
                raise ValueError("the JPEG stream has no end")
            more = taller(stream, tiled.height)
            pixels = imagecodecs.jpeg8_decode(
                more.stream if more else stream,
                tables=tiled.tables,
                colorspace=tiled.colours,
                outcolorspace="RGB",
                out=self._tiles.room((tiled.height + BLOCK_ROWS, *shape[1:]) if more else shape),
            )
            if more and ran_out(pixels, tiled.height, more.width):
                self._confirm(level, tiled, index)
            return pixels
        except SlideError:
            raise
        except (OSError, OverflowError, MemoryError, ValueError, RuntimeError) as error:
            raise unreadable(self._path, level, *tiled.corner(index), tiled.width, tiled.height, error) from error

    def _confirm(self, level: int, tiled: TiledLevel, index: int) -> None:
        """Ask the library, which takes its decoder's warnings for errors. Raises SlideError if it refuses the tile."""
        x, y = tiled.corner(index)
        width, height = self.sizes[level]
        self._library.read(level, x, y, min(tiled.width, width - x), min(tiled.height, height - y))

    def release(self) -> None:
        """Give up the file and leave the library open."""
        os.close(self._file)

    def close(self) -> None:
        self.release()
        self._library.close()


def _tiled_levels(path: Path, sizes: tuple[tuple[int, int], ...]) -> tuple[TiledLevel | None, ...]:
    """Tiles of each level by its size in pixels; None for a level that is not made of JPEG tiles."""
    levels: list[TiledLevel | None] = []
    with tifffile.TiffFile(path) as tiff:
        for size in sizes:
            whole = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage)]
            pages = [page for page in whole if page.is_tiled and (page.imagewidth, page.imagelength) == size]
            reason = _unfit(pages)
            if reason and not levels:
                raise NotJpegTiles(reason)
            levels.append(None if reason else _tiled_level(pages[0]))
    return tuple(levels)


def _unfit(pages: list[tifffile.TiffPage]) -> str:
    """Why the images of a level's size are not that level in JPEG tiles, or an empty string."""
    if len(pages) != 1:
        return f"{len(pages)} tiled images of the size of level 0"
    page = pages[0]
    if page.compression != _JPEG:
        return f"tiles are compressed with {tifffile.COMPRESSION(page.compression).name}, not JPEG"
    if page.bitspersample != 8 or page.samplesperpixel != 3 or page.photometric not in _COLOURS:
        return "tiles are not of three 8-bit colours, RGB or YCbCr"
    if page.planarconfig != _CONTIGUOUS or page.predictor != _NO_PREDICTOR or page.imagedepth != 1:
        return "tiles do not hold their pixels' colours together"
    tiles = -(-page.imagewidth // page.tilewidth) * -(-page.imagelength // page.tilelength)
    if not len(page.dataoffsets) == len(page.databytecounts) == tiles:
        return f"{len(page.dataoffsets)} tiles are listed, the size needs {tiles}"
    return ""


def _tiled_level(page: tifffile.TiffPage) -> TiledLevel:
    offsets, counts = np.asarray(page.dataoffsets, np.int64), np.asarray(page.databytecounts, np.int64)
    return TiledLevel(
        columns=-(-page.imagewidth // page.tilewidth),
        width=page.tilewidth,
        height=page.tilelength,
        offsets=offsets,
        counts=np.where(offsets > 0, counts, 0),
        tables=page.jpegtables,
        colours=_COLOURS[page.photometric],
    )
