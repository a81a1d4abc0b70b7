"""Tiny slides with tiles, stains and a prepared encoder, and an encoder without torch, for the embedding's tests.

Run as a script it embeds a cohort, so that tests can kill it: ``python embedding_cohort.py RESULTS SECONDS_PER_BATCH``.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.batches import Lack
from pipeline.contracts import layout
from pipeline.contracts.batches import BatchRow
from pipeline.contracts.encoders import EncoderFacts, write_facts
from pipeline.contracts.slides import SlideFacts, write_slide_facts
from pipeline.contracts.stains import StainFit, colours_from, write_stain
from pipeline.contracts.tiles import TileGrid, TileSet, write_tiles
from pipeline.embedding import EmbeddingJob, EmbeddingParams, EmbeddingStage, embed_batch
from pipeline.embedding_pass import embed_all
from pipeline.encoders import EncoderSpec
from pipeline.stain import StainParams

SIZE_PX = 16
WIDTH = 6
UM_PER_PX = 0.4  # of the slide; tiles are at 0.5 and 1.0
FACTS = EncoderFacts(
    "tiny", "stub", "stub", "random", "weights-digest", "", "", WIDTH, None, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
)


class StubEncoder:
    """Features are the mean and spread of each channel: cheap, exact to check, and different for every tile."""

    def __init__(self, seconds: float = 0) -> None:
        self.seconds, self.sizes = seconds, []

    def encode(self, tiles: np.ndarray) -> np.ndarray:
        self.sizes.append(len(tiles))
        print("batch", flush=True)
        time.sleep(self.seconds)
        pixels = tiles.reshape(len(tiles), -1, 3).astype(np.float32)
        return np.concatenate([pixels.mean(axis=1), pixels.std(axis=1)], axis=1)

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        return self.encode(tiles)


@dataclass(frozen=True)
class Arrived:
    values: np.ndarray

    def array(self) -> np.ndarray:
        return self.values


class StubDevice:
    """The host's memory, without torch."""

    stages_tiles = False

    def send(self, tiles: np.ndarray) -> np.ndarray:
        return tiles

    def fetch(self, features: np.ndarray) -> Arrived:
        return Arrived(features)

    def __str__(self) -> str:
        return "stub"


class StubJob(EmbeddingJob):
    @cached_property
    def device(self) -> StubDevice:
        return StubDevice()


class StubStage(EmbeddingStage):
    """The stage with an encoder that never imports torch."""

    @cached_property
    def encoder(self) -> StubEncoder:
        return self.stub

    def make(self, slide_id: str, digest: str) -> str:
        return make(self, slide_id, digest)


def make(stage: EmbeddingStage, slide_id: str, digest: str) -> str:
    """Embed one slide whatever its batch says; its remark. Raises what is the slide's fault."""
    (made,) = embed_all([stage], [Lack(slide_id, {0: digest}, 1)], [True])
    if isinstance(made.outcome, Exception):
        raise made.outcome
    return made.outcome


def run_batch(stage: EmbeddingStage, upstream: dict[str, BatchRow], index_path: Path) -> list[BatchRow]:
    return embed_batch([stage], upstream, [index_path])[0]


def stub_stage(results: Path, stain: str = "none", threads: int = 2, seconds: float = 0, **params: object) -> StubStage:
    job = StubJob(results, StainParams(method=stain), EmbeddingParams(**{"batch_size": 8, **params}), threads)
    return stub_of(job, "tiny", seconds)


def stub_of(job: EmbeddingJob, slug: str, seconds: float = 0) -> StubStage:
    """A stage of a job, for an encoder of `make_cohort`."""
    stage = StubStage(job, EncoderSpec(slug, "stub", weights="random"))
    object.__setattr__(stage, "stub", StubEncoder(seconds))
    return stage


def make_cohort(
    results: Path, slides: int = 1, columns: int = 6, rows: int = 4, seed: int | None = None, stain: str = "none"
) -> dict[str, BatchRow]:
    """Write slides s0, s1, ... of ``columns x rows`` cells at 20x; returns the batch rows of their stains."""
    write_facts(layout.encoder_facts(results, "tiny"), FACTS)
    rng = np.random.default_rng(seed)
    for index in range(slides):
        _make_slide(results, f"s{index}", columns, rows + index, stain, rng)
    return {f"s{i}": BatchRow(f"s{i}", f"c{i}", "ok", "stain", digest=f"stain-{i}") for i in range(slides)}


def _make_slide(results: Path, slide_id: str, columns: int, rows: int, stain: str, rng: np.random.Generator) -> None:
    pitch = SIZE_PX * 0.5 / UM_PER_PX
    width, height = int(np.ceil(columns * pitch)), int(np.ceil(rows * pitch))
    path = results / f"{slide_id}.png"
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    write_slide_facts(
        layout.slide_facts(results, slide_id),
        SlideFacts(
            slide_id=slide_id, path=str(path), identity={}, vendor="field", backend="pillow",
            dimensions=(width, height), levels=((width, height, 1.0, 1.0),), um_per_px=(UM_PER_PX, UM_PER_PX),
            um_per_px_source="sheet", um_per_px_override=UM_PER_PX, objective=None,
            bounds=(0, 0, width, height), background=(255, 255, 255),
        ),
    )  # fmt: skip
    grids = aligned_grids(columns, rows, pitch, rng)
    write_tiles(
        layout.tiles(results, slide_id),
        TileSet(slide_id, grids, {}, (width, height), (UM_PER_PX, UM_PER_PX), digest=f"tiles-{slide_id}"),
    )
    write_stain(layout.stain_fit(results, slide_id), _stain(slide_id, stain))


def _stain(slide_id: str, method: str) -> StainFit:
    if method == "none":
        return StainFit(slide_id, "none", "none", "", None, "", None, {}, f"stain-{slide_id}")
    matrix = np.array([[0.65, 0.70, 0.29], [0.2, 0.9, 0.3]])
    matrix /= np.sqrt((matrix**2).sum(axis=1, keepdims=True))
    colours = colours_from(matrix, np.array([1.4, 0.9]), np.full(3, 245.0))
    return StainFit(slide_id, method, method, "", colours, "slide", 0.5, {}, f"stain-{slide_id}")


def aligned_grids(columns: int, rows: int, pitch: float, rng: np.random.Generator) -> dict[float, TileGrid]:
    """A 20x grid that lacks some cells and the 10x grid of the parents that are left."""
    cells = np.array([(c, r) for r in range(rows) for c in range(columns)], np.int32)
    fine = cells[np.sort(rng.permutation(len(cells))[: max(1, len(cells) - 3)])]
    coarse = np.array(sorted({(int(r) // 2, int(c) // 2) for c, r in fine}), np.int32)[:, ::-1]
    row_of = {(int(c), int(r)): row for row, (c, r) in enumerate(coarse)}
    parent = np.array([row_of[int(c) // 2, int(r) // 2] for c, r in fine])
    return {
        20: _grid(fine, pitch, 0.5, parent, rng),
        10: _grid(coarse, 2 * pitch, 1.0, np.full(len(coarse), -1), rng),
    }


def _grid(cell: np.ndarray, pitch: float, um_per_px: float, parent: np.ndarray, rng: np.random.Generator) -> TileGrid:
    return TileGrid(
        cell=cell,
        coords=np.rint(cell * pitch).astype(np.int64),
        origin=np.zeros(2),
        pitch=np.full(2, pitch),
        size_px=SIZE_PX,
        um_per_px=um_per_px,
        achieved_um_per_px=(um_per_px, um_per_px),
        source_level=0,
        source_um_per_px=(UM_PER_PX, UM_PER_PX),
        tissue_fraction=rng.random(len(cell)).astype(np.float32),
        inside_fraction=np.ones(len(cell), np.float32),
        parent=parent,
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    upstream = {
        path.stem: BatchRow(path.stem, "c", "ok", "stain", digest=f"stain-{path.stem}")
        for path in sorted((folder / "tiles").glob("*.h5"))
    }
    print("ready", flush=True)
    run_batch(stub_stage(folder, "vahadane", seconds=float(sys.argv[2])), upstream, folder / "batch.tsv")
