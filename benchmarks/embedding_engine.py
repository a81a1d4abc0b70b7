"""Does the embedding engine keep its slower side busy, in memory that does not grow? All but the network is real.

Slides of H&E-like JPEG tiles go from the file to finished feature files. In place of a network an encoder waits off the
interpreter's lock, as the host does for a GPU:

- waiting 0.5, 1 and 2 times as long as reading takes: time against that of the slower side alone, once with real
  reading, which needs a free core, and once with reading that waits too, which shows the same on a busy machine;
- CPU seconds against those of a plain loop that reads the same tiles and writes the same files, on one core, and on all
  of them, where threads beside each other cost each other time;
- peak memory of a process against the slide's area, CPU time against the number of tiles.

One command, ``python -m benchmarks.embedding_engine``; one line per figure, as in ``benchmarks.tile_reading``. Exit
status 1 if a figure is missed. Of several rounds the best counts, of the pairs for CPU time the median.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from unittest import mock

import cv2
import numpy as np

from benchmarks.generated_slide import write_slide
from benchmarks.tile_reading import TILE_PX, WIDTH, Figure, full_grids, one_core
from pipeline.check import check_slide
from pipeline.contracts import layout
from pipeline.contracts.batches import BatchRow
from pipeline.contracts.cohort import Slide
from pipeline.contracts.encoders import EncoderFacts, write_facts
from pipeline.contracts.features import BagWriter
from pipeline.contracts.slides import read_slide_facts, write_slide_facts
from pipeline.contracts.stains import StainFit, write_stain
from pipeline.contracts.tiles import TileSet, read_tiles, write_tiles
from pipeline.embedding import EmbeddingJob, EmbeddingParams, EmbeddingStage, embed_batch
from pipeline.encoders import EncoderSpec
from pipeline.slide import SlideReader, Window, open_checked
from pipeline.stain import StainParams

ROUNDS = 3
BATCH = 32
READ_SECONDS = 0.004  # of a tile, where reading waits
SLUG = "stand-in"


class Waiting:
    """An encoder whose batches take `seconds` each and no processor."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        time.sleep(self.seconds * len(tiles) / BATCH)
        return np.zeros((len(tiles), WIDTH), np.float32)


@dataclass(frozen=True)
class Here:
    values: np.ndarray

    def array(self) -> np.ndarray:
        return self.values


class Host:
    stages_tiles = False

    def send(self, tiles: np.ndarray) -> np.ndarray:
        return tiles

    def fetch(self, features: np.ndarray) -> Here:
        return Here(features)


class Job(EmbeddingJob):
    @cached_property
    def device(self) -> Host:
        return Host()


class Stage(EmbeddingStage):
    @cached_property
    def encoder(self) -> Waiting:
        return Waiting(0)


def make_cohort(folder: Path, sides: list[int]) -> dict[str, BatchRow]:
    """Slides of ``side x side`` px at 0.5 um/px, tiles all over them; the rows of their stains."""
    half = (0.5, 0.5, 0.5)
    facts = EncoderFacts(SLUG, SLUG, SLUG, "random", "none", "", "", WIDTH, None, half, half)
    write_facts(layout.encoder_facts(folder, SLUG), facts)
    rows = {}
    for k, side in enumerate(sides):
        slide_id = f"s{k}"
        path = write_slide(folder / f"{slide_id}.tif", side, side, 0.5, (1, 4), seed=k)
        slide = check_slide(Slide(slide_id, "c", str(path)))
        write_slide_facts(layout.slide_facts(folder, slide_id), slide)
        tiles = TileSet(slide_id, full_grids(slide, (20,)), {}, slide.dimensions, slide.um_per_px, "tiles")
        write_tiles(layout.tiles(folder, slide_id), tiles)
        stain = StainFit(slide_id, "none", "none", "", None, "", None, {}, "stain")
        write_stain(layout.stain_fit(folder, slide_id), stain)
        rows[slide_id] = BatchRow(slide_id, "c", "ok", "stain", digest="stain")
    return rows


def stage_of(folder: Path, seconds: float) -> Stage:
    """One reader thread, so that reading takes the same time in every figure."""
    job = Job(folder, StainParams(method="none"), EmbeddingParams(batch_size=BATCH), threads=1)
    stage = Stage(job, EncoderSpec(SLUG, SLUG, weights="random"))
    object.__setattr__(stage, "encoder", Waiting(seconds))
    return stage


def embed(folder: Path, rows: dict[str, BatchRow], seconds: float = 0) -> tuple[float, float]:
    """Wall and CPU seconds of embedding all slides anew, `seconds` of waiting per batch."""
    for path in (folder / "features").rglob("*.h5"):
        path.unlink()
    stage = stage_of(folder, seconds)
    started = time.perf_counter(), time.process_time()
    (done,) = embed_batch([stage], rows, [folder / "batch.tsv"])
    taken = time.perf_counter() - started[0], time.process_time() - started[1]
    assert all(row.status == "ok" for row in done), done
    return taken


def plain(folder: Path, rows: dict[str, BatchRow]) -> tuple[float, float]:
    """Wall and CPU seconds of a loop that does the same work and nothing else, one thing after the other."""
    stage = stage_of(folder, 0)
    started = time.perf_counter(), time.process_time()
    for slide_id in rows:
        tiles = read_tiles(layout.tiles(folder, slide_id))
        (grid,) = tiles.magnifications.values()
        facts = read_slide_facts(layout.slide_facts(folder, slide_id))
        source = stage.source(tiles, 20, facts, StainFit(slide_id, "none", "none", "", None, "", None, {}, ""), "plain")
        with open_checked(facts) as slide, BagWriter(folder / "plain.h5", source, len(grid)) as writer:
            lattice = slide.lattice(float(grid.origin[0]), float(grid.origin[1]), grid.um_per_px)
            for start in range(0, len(grid), BATCH):
                cells = grid.cell[start : start + BATCH]
                pixels = np.empty((len(cells), TILE_PX, TILE_PX, 3), np.uint8)
                for place, (column, row) in zip(pixels, cells, strict=True):
                    window = Window(lattice, int(column) * TILE_PX, int(row) * TILE_PX, TILE_PX)
                    place[:] = slide.read_windows([window])[0]
                writer.append(stage.encoder(pixels))
            writer.finish(grid.coords, grid.cell, grid.parent, grid.tissue_fraction, grid.cell[:0])
    return time.perf_counter() - started[0], time.process_time() - started[1]


def overlap(folder: Path, rows: dict[str, BatchRow], reader: str) -> list[Figure]:
    """Wall time of the engine against that of its slower side alone; `reader` is what reads, for the names."""
    batches = sum(-(-_n_tiles(folder, slide_id) // BATCH) for slide_id in rows)
    reading = min(plain(folder, rows)[0] for _ in range(ROUNDS))
    figures = []
    for share in (0.5, 1.0, 2.0):
        seconds = share * reading / batches
        wall = min(embed(folder, rows, seconds)[0] for _ in range(ROUNDS))
        name = f"{reader}, encoder waits {share:g} times as long: time per slower side's"
        figures.append(Figure(name, wall / max(reading, seconds * batches), "limit", 1 / 0.9, "times"))
    return figures


def overhead(folder: Path, rows: dict[str, BatchRow]) -> list[Figure]:
    """CPU time of the engine against the plain loop's, in turns: on one core, and on all of them.

    The median of the pairs' ratios, which differ by more than what is looked for.
    """
    figures = []
    for cores, where in ((one_core(), "on one core"), (nullcontext(), "on all cores")):
        with cores:
            pairs = [(plain(folder, rows)[1], embed(folder, rows)[1]) for _ in range(4 * ROUNDS)]
        ratio = statistics.median(engine / bare for bare, engine in pairs)
        figures.append(Figure(f"CPU time of the engine over the plain loop's, {where}", ratio, "limit", 1.05, "times"))
    return figures


@contextmanager
def waiting_reader() -> Iterator[None]:
    """Reading that takes its time without a processor, so that a busy machine shows the engine's own waiting only."""
    blank = np.zeros((TILE_PX, TILE_PX, 3), np.uint8)

    def read_windows(_: SlideReader, windows: Sequence[Window]) -> list[np.ndarray]:
        time.sleep(READ_SECONDS)
        return [blank] * len(windows)

    with mock.patch.object(SlideReader, "read_windows", read_windows):
        yield


def _n_tiles(folder: Path, slide_id: str) -> int:
    return sum(len(grid) for grid in read_tiles(layout.tiles(folder, slide_id)).magnifications.values())


def growth(folder: Path, side: int) -> list[Figure]:
    """Peak memory and CPU time of a slide against those of one with a sixteenth of its area."""
    results = []
    for part in (side // 4, side):
        place = folder / str(part)
        rows = make_cohort(place, [part])
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peak = pool.apply(_peak, (place, rows))
        cpu = min(embed(place, rows)[1] for _ in range(ROUNDS))
        results.append((peak, cpu / _n_tiles(place, "s0")))
    (peak, each), (large_peak, large_each) = results
    return [
        Figure(f"peak memory at {side} px over that at {side // 4} px", large_peak / peak, "limit", 1.1, "times"),
        Figure("CPU time per tile, the same slides", large_each / each, "limit", 1.1, "times"),
    ]


def _peak(folder: Path, rows: dict[str, BatchRow]) -> int:
    """KiB, of a process of its own that embeds; its batches wait as long as reading them takes."""
    logging.disable(logging.INFO)
    embed(folder, rows, 0.01)
    # not ru_maxrss, which a new process takes over from the one that started it
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1])


def run(folder: Path, side: int = 12288, slides: int = 2, large: int = 16384) -> list[Figure]:
    rows = make_cohort(folder / "many", [side] * slides)
    figures = overlap(folder / "many", rows, "reading")
    with waiting_reader():
        short = make_cohort(folder / "short", [min(side, 4096)] * slides)
        figures += overlap(folder / "short", short, "reading that waits")
    return [*figures, *overhead(folder / "many", rows), *growth(folder, large)]


def main(arguments: list[str] | None = None) -> int:
    argparse.ArgumentParser(
        prog="python -m benchmarks.embedding_engine", description=__doc__.splitlines()[0]
    ).parse_args(arguments)
    logging.disable(logging.INFO)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = run(Path(folder))
    for figure in figures:
        print(figure)
    return 0 if all(figure.holds for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
