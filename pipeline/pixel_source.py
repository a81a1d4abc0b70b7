"""Who decodes a slide's pixels: its own JPEG tiles where a sample proves them equal to the library's, else the library.

The check of a slide decides once and records it; every later stage opens the slide as recorded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.contracts.errors import SlideError
from pipeline.decoded_tiles import DecodedTiles
from pipeline.jpeg_tiles import JpegTilesBackend, NotJpegTiles, TiledLevel
from pipeline.slide_backends import Backend, open_library, over_background

_REGIONS = 3  # compared on each level, beside its last corner
_CANDIDATES = 16  # places drawn for each: the one with the most bytes is compared, since empty glass proves little
_REGION_PX = 128
_SEED = 20230915
_ALIGNED_PX = 1e-3  # the library blends neighbouring pixels where a corner falls further than this between them


@dataclass(frozen=True)
class PixelSource:
    """An open backend, `reason` why it is not the file's own tiles (empty if it is), and what to warn of."""

    backend: Backend
    reason: str = ""
    warnings: tuple[str, ...] = ()


def open_source(path: Path, recorded: str | None = None, tiles: DecodedTiles | None = None) -> PixelSource:
    """Open a slide file.

    Parameters
    ----------
    recorded : backend that an earlier check chose for this very file; None tries and compares
    tiles : where decoded tiles are kept, shared with other readers of the file; None keeps them apart

    Raises
    ------
    SlideError : no library reads the file
    """
    library = open_library(path)
    try:
        return _source(path, library, recorded, tiles)
    except BaseException:
        library.close()
        raise


def _source(path: Path, library: Backend, recorded: str | None, tiles: DecodedTiles | None) -> PixelSource:
    if recorded not in (None, JpegTilesBackend.name):
        return PixelSource(library)
    try:
        direct = JpegTilesBackend(path, library, tiles)
    except NotJpegTiles as reason:
        return PixelSource(library, str(reason))
    except Exception as error:  # whatever a damaged directory makes the parser raise; the library may still cope
        return PixelSource(library, f"the tiles cannot be listed ({error})")
    difference = "" if recorded else compare(direct, library)
    if not difference:
        return PixelSource(direct)
    direct.release()
    warning = f"read through {library.name}, more slowly: {difference}"
    return PixelSource(library, difference, (warning,))


def compare(direct: JpegTilesBackend, library: Backend) -> str:
    """What differs between both in a seeded sample of every level, or an empty string.

    A region that either cannot decode is damage to the file and proves nothing about the decoders.
    """
    rng = np.random.default_rng(_SEED)
    for level, tiled in enumerate(direct.levels):
        if tiled is None:
            continue
        compared = 0
        for x, y in _corners(tiled, library.sizes, level, rng):
            width, height = (min(_REGION_PX, side - at) for side, at in zip(library.sizes[level], (x, y), strict=True))
            try:
                ours = direct.read(level, x, y, width, height)
                theirs = over_background(library.read(level, x, y, width, height))
            except SlideError:
                continue
            compared += 1
            worst = int(np.abs(ours.astype(int) - theirs).max())
            if worst:
                return f"its own tiles differ by up to {worst} grey levels at level {level}, x {x}, y {y}"
        if not compared:
            return f"none of the sampled regions of level {level} could be decoded"
    return ""


def _corners(
    tiled: TiledLevel, sizes: tuple[tuple[int, int], ...], level: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Upper-left corners (x, y) of the regions to compare, in pixels of the level."""
    columns, rows = _aligned(sizes, level)
    chosen = [(int(columns[-1]), int(rows[-1]))]
    for _ in range(_REGIONS):
        places = list(zip(rng.choice(columns, _CANDIDATES), rng.choice(rows, _CANDIDATES), strict=True))
        weight = [tiled.counts[(y // tiled.height) * tiled.columns + x // tiled.width] for x, y in places]
        x, y = places[int(np.argmax(weight))]
        chosen.append((int(x), int(y)))
    return chosen


def _aligned(sizes: tuple[tuple[int, int], ...], level: int) -> list[np.ndarray]:
    """Positions on each axis at which the library can start a region exactly: it takes whole level-0 pixels."""
    downsample = sum(full / side for full, side in zip(sizes[0], sizes[level], strict=True)) / 2
    axes = []
    for side in sizes[level]:
        position = np.arange(max(1, side - _REGION_PX + 1))
        off = np.abs(np.rint(position * downsample) / downsample - position)
        axes.append(position[off <= _ALIGNED_PX])
    return axes
