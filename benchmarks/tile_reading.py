"""What do tiles cost, from the file to the encoder's door? CPU time of one thread, side by side with OpenSlide.

On a generated slide of 16384 x 12288 px and, where it is at hand, on the real CMU-1-Small-Region.svs:

- tiles of 256 px at a stored level, at least 5 times as fast as OpenSlide's ``read_region`` and equal to it, beside
  what the JPEG codec alone takes, and beside TiffSlide, which reads with tifffile;
- the pipeline's cost per 256-px tile at 0.5 um/px (read, average, normalise, write; neither stain nor encoder), with
  that level in the file and without it;
- 20x, 10x and 5x together against 20x alone.

One command, ``python -m benchmarks.tile_reading``; one line per figure: name, ours, what it is compared with, and how
many times better ours is. Exit status 1 if a figure is missed. Of several rounds the fastest counts.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import openslide
import tiffslide

from benchmarks.generated_slide import write_slide
from pipeline.check import check_slide
from pipeline.contracts.cohort import Slide
from pipeline.contracts.features import BagSource, BagWriter
from pipeline.contracts.slides import SlideFacts
from pipeline.contracts.tiles import TileGrid
from pipeline.decoded_tiles import DecodedTiles
from pipeline.jpeg_tiles import JpegTilesBackend
from pipeline.rasters import Raster
from pipeline.shared_cells import groups
from pipeline.slide import open_checked
from pipeline.slide_backends import OpenSlideBackend
from pipeline.stain_transfer import BUILTIN_TARGET, StainTransfer
from pipeline.tile_stream import Reading, TileBatch, TileReader
from pipeline.tiling import UM_PER_PX_AT_1X, TilingParams, make_grids

REAL = Path(__file__).resolve().parents[1].parent / "shared/data/slides/CMU-1-Small-Region.svs"
TILE_PX = 256
WIDTH = 1024  # features per tile that the stand-in for an encoder gives
ROUNDS = 3
TIFFSLIDE_TILES = 200
_MEAN, _STD = np.float32([0.485, 0.456, 0.406]) * 255, np.float32([0.229, 0.224, 0.225]) * 255


@dataclass(frozen=True)
class Figure:
    """`ours` against `other`, both in `unit`, lower is better; `needed` is how many times better it must be."""

    name: str
    ours: float
    against: str
    other: float
    unit: str
    needed: float = 1.0

    @property
    def ratio(self) -> float:
        return self.other / self.ours if self.ours else float("inf") if self.other else 1.0

    @property
    def holds(self) -> bool:
        return self.ratio >= self.needed

    def __str__(self) -> str:
        verdict = "" if self.holds else f"  MISSED (needed {self.needed:g})"
        return (
            f"{self.name:<72} {self.ours:7.3f} {self.unit:<9} {self.against:<9} {self.other:7.3f}"
            f"  ratio {self.ratio:5.2f}{verdict}"
        )


def fastest(*works: Callable[[], float]) -> list[float]:
    """Least of the CPU seconds that each work returns, over rounds in which they take turns."""
    seconds = [[work() for work in works] for _ in range(ROUNDS)]
    return [min(taken) for taken in zip(*seconds, strict=True)]


@contextmanager
def one_core() -> Iterator[None]:
    """All threads on one processor: CPU time has no part then that grows because others run beside, or spin."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def cpu_seconds(work: Callable[..., object], *arguments: object) -> float:
    started = time.process_time()
    work(*arguments)
    return time.process_time() - started


def stored_level(name: str, facts: SlideFacts, um_per_px: float, side: int = TILE_PX) -> list[Figure]:
    """Whole tiles of a stored level, row by row, by us and by OpenSlide; each round opens the file anew, untimed."""
    with open_checked(facts) as slide:
        level = slide.source_level(um_per_px)
        width, height, scale, _ = facts.levels[level]
    corners = [(x, y) for y in range(0, height - side + 1, side) for x in range(0, width - side + 1, side)]

    def ours(some: Sequence[tuple[int, int]] = corners) -> float:
        with open_checked(facts) as slide:
            return cpu_seconds(_each, some, lambda x, y: slide.read(level, x, y, side, side))

    def theirs() -> float:
        with openslide.OpenSlide(facts.path) as slide:
            return cpu_seconds(_each, corners, lambda x, y: _theirs(slide, level, scale, x, y, side))

    few = corners[:TIFFSLIDE_TILES]

    def tiffslides() -> float:
        with tiffslide.TiffSlide(facts.path) as slide:
            return cpu_seconds(_each, few, lambda x, y: _theirs(slide, level, scale, x, y, side))

    codec, decodes = codec_alone(facts, level, corners, side)
    mine, other, floor = (seconds / len(corners) * 1e3 for seconds in fastest(ours, theirs, codec))
    first, peer = (seconds / len(few) * 1e3 for seconds in fastest(lambda: ours(few), tiffslides))
    return [
        Figure(f"{name}: {side}-px tile at a stored level ({facts.backend})", mine, "openslide", other, "CPU-ms", 5.0),
        Figure(
            f"{name}: the codec alone, {decodes} decodes for {len(corners)} tiles", floor, "openslide", other, "CPU-ms"
        ),
        Figure(
            f"{name}: largest difference of {len(corners)} such tiles",
            _difference(facts, level, corners, side),
            "openslide",
            0.0,
            "levels",
        ),
        Figure(f"{name}: the first {len(few)} such tiles", first, "tiffslide", peer, "CPU-ms"),
    ]


def codec_alone(
    facts: SlideFacts, level: int, corners: list[tuple[int, int]], side: int
) -> tuple[Callable[[], float], int]:
    """What no reader of these tiles can do without: decoding each stored tile under them. And how many those are."""
    library = OpenSlideBackend(Path(facts.path))
    tiled = JpegTilesBackend(Path(facts.path), library).levels[level]
    library.close()
    found = sorted({index for x, y in corners for index, _, _ in tiled.covering(x, y, side, side)})
    content = Path(facts.path).read_bytes()
    streams = [content[tiled.offsets[k] : tiled.offsets[k] + tiled.counts[k]] for k in found]
    room = DecodedTiles().room((tiled.height, tiled.width, 3))

    def decode() -> None:
        for stream in streams:
            imagecodecs.jpeg8_decode(
                stream, tables=tiled.tables, colorspace=tiled.colours, outcolorspace="RGB", out=room
            )

    return lambda: cpu_seconds(decode), len(found)


def _each(corners: Sequence[tuple[int, int]], read: Callable[[int, int], object]) -> None:
    for x, y in corners:
        read(x, y)


def _theirs(
    slide: openslide.OpenSlide | tiffslide.TiffSlide, level: int, scale: float, x: int, y: int, side: int
) -> np.ndarray:
    corner = round(x * scale), round(y * scale)
    return np.asarray(slide.read_region(corner, level, (side, side)).convert("RGB"))


def _difference(facts: SlideFacts, level: int, corners: list[tuple[int, int]], side: int) -> float:
    scale, worst = facts.levels[level][2], 0
    with open_checked(facts) as ours, openslide.OpenSlide(facts.path) as theirs:
        for x, y in corners:
            other = _theirs(theirs, level, scale, x, y, side)
            worst = max(worst, int(cv2.absdiff(ours.read(level, x, y, side, side), other).max()))
    return float(worst)


def full_grids(facts: SlideFacts, magnifications: tuple[float, ...]) -> dict[float, TileGrid]:
    """Grids of 256-px tiles over the whole of a slide."""
    everywhere = Raster(np.ones((64, 64), bool), (facts.dimensions[0] / 64, facts.dimensions[1] / 64))
    with open_checked(facts) as slide:
        levels = {m: slide.source_level(UM_PER_PX_AT_1X / m) for m in magnifications}
        sources = {m: (level, slide.level_um_per_px(level)) for m, level in levels.items()}
    params = TilingParams(TILE_PX, magnifications, min_inside=0.999)
    return make_grids(facts.um_per_px, facts.bounds, everywhere, sources, params)


def pipeline(facts: SlideFacts, grids: dict[float, TileGrid], folder: Path, write: bool = True) -> None:
    """All that embedding does but the encoder: read, average, normalise to float32, write as many features."""
    room = np.empty((32, TILE_PX, TILE_PX, 3), np.float32)
    reading = Reading(facts, StainTransfer(None, BUILTIN_TARGET), groups(grids))
    with TileReader(batch_size=32) as reader:
        for _, batch in reader.batches([reading]):
            if write and isinstance(batch, TileBatch):
                normalise(batch.pixels, room)
    if write:
        (grid,) = grids.values()
        with BagWriter(folder / "bag.h5", _source(facts, grid), len(grid)) as writer:
            for start in range(0, len(grid), 32):
                writer.append(np.zeros((min(32, len(grid) - start), WIDTH), np.float32))
            writer.finish(grid.coords, grid.cell, grid.parent, grid.tissue_fraction, grid.cell[:0])


def normalise(pixels: np.ndarray, room: np.ndarray) -> np.ndarray:
    """What an encoder's door asks for: float32 [B, size, size, 3], centred and scaled, in `room`."""
    rows = (len(pixels), TILE_PX, TILE_PX * 3)
    values = room[: len(pixels)].reshape(rows)
    values[:] = pixels.reshape(rows)
    values -= np.tile(_MEAN, TILE_PX)
    values *= np.tile(1 / _STD, TILE_PX)
    return values.reshape(pixels.shape)


def _source(facts: SlideFacts, grid: TileGrid) -> BagSource:
    return BagSource(
        slide_id=facts.slide_id, encoder="none", encoder_name="stand-in", weights="random", weights_digest="",
        magnification=20.0, size_px=TILE_PX, size_level0_px=(float(grid.pitch[0]), float(grid.pitch[1])),
        um_per_px=0.5, achieved_um_per_px=grid.achieved_um_per_px, level0_um_per_px=facts.um_per_px,
        level0_magnification=40, level0_size_px=facts.dimensions, stain="none", savetodir="", revision=0, digest="",
        slide_magnifications=(20.0,),
    )  # fmt: skip


def tile_cost(name: str, facts: SlideFacts, limit: float, folder: Path) -> Figure:
    grids = full_grids(facts, (20,))
    (seconds,) = fastest(lambda: cpu_seconds(pipeline, facts, grids, folder))
    return Figure(f"{name}: pipeline per tile at 0.5 um/px", seconds / len(grids[20]) * 1e3, "limit", limit, "CPU-ms")


def three_magnifications(name: str, facts: SlideFacts, folder: Path) -> Figure:
    grids = full_grids(facts, (20, 10, 5))
    finest = {20: grids[20]}
    alone, together = fastest(
        lambda: cpu_seconds(pipeline, facts, finest, folder, False),
        lambda: cpu_seconds(pipeline, facts, grids, folder, False),
    )
    return Figure(f"{name}: reading 20x, 10x and 5x over reading 20x", together / alone, "limit", 1.3, "times")


def run(folder: Path, real: Path, width: int = 16384, height: int = 12288) -> list[Figure]:
    """Make the slides in `folder` and measure all figures; the real slide is left out where it is absent."""

    def made(name: str, um_per_px: float, downsamples: tuple[int, ...]) -> SlideFacts:
        path = write_slide(folder / f"{name}.tif", width, height, um_per_px, downsamples)
        return check_slide(Slide(name, "c", str(path)))

    halves, quarters = made("halves", 0.25, (1, 2, 4, 8)), made("quarters", 0.25, (1, 4, 16))
    broken = made("broken", 0.2527, (1, 4, 16))
    figures = stored_level("generated", halves, 0.5)
    figures += [
        tile_cost("generated, level stored", halves, 1.5, folder),
        tile_cost("generated, level absent", quarters, 2.2, folder),
        tile_cost("generated, level absent, 0.2527 um/px", broken, 2.2, folder),
        three_magnifications("generated, levels by 2", halves, folder),
        three_magnifications("generated, levels by 4", quarters, folder),
        three_magnifications("generated, levels by 4, 0.2527 um/px", broken, folder),
    ]
    if real.exists():
        facts = check_slide(Slide("CMU-1", "c", str(real)))
        figures += stored_level("CMU-1-Small-Region", facts, 0.5)
        figures += stored_level("CMU-1-Small-Region, its own tiles", facts, 0.5, side=240)
        figures += [
            tile_cost("CMU-1-Small-Region, 0.499 um/px", facts, 1.5, folder),
        ]
    return figures


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tile_reading", description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=Path, default=REAL, help="CMU-1-Small-Region.svs, left out where absent")
    options = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = run(Path(folder), options.real)
    for figure in figures:
        print(figure)
    return 0 if all(figure.holds for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
