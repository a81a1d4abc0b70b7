"""Embedding stage: tiles -> feature bags, one file per slide and magnification."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.contracts import layout
from pipeline.contracts.batches import BatchRow
from pipeline.contracts.encoders import EncoderFacts, read_facts
from pipeline.contracts.errors import FormatError, InputError, MachineError, SlideError, nearest
from pipeline.contracts.features import BagSource, BagWriter, read_cells, verify_bag
from pipeline.contracts.files import digest_of
from pipeline.contracts.revisions import REVISIONS
from pipeline.contracts.slides import SlideFacts, read_slide_facts
from pipeline.contracts.stains import StainColours, StainFit, read_stain
from pipeline.contracts.tiles import TileGrid, TileSet, read_tiles
from pipeline.encoders import EncoderSpec
from pipeline.stain import StainParams, read_target
from pipeline.stain_transfer import BUILTIN_TARGET, StainTransfer
from pipeline.tile_stream import TileStream

if TYPE_CHECKING:
    from pipeline.encoder_network import Encoder

logger = logging.getLogger(__name__)

_PROGRESS_SECONDS = 30.0
_CHOICES = {
    "precision": ("float32", "bfloat16", "float16"),
    "dtype": ("float32", "float16"),
    "device": ("auto", "cpu", "cuda"),
}


@dataclass(frozen=True)
class EmbeddingParams:
    """Section ``embedding`` of the configuration.

    `batch_size` tiles go through the encoder at a time, never of two slides. `precision` is that of the computation
    (bfloat16 and float16 are faster and less exact), `dtype` that of the stored features. `device`: auto takes a GPU
    where there is one. `ahead` batches are read in advance. A slide with a larger share of unreadable tiles than
    `max_failed_fraction` at any magnification fails.
    """

    batch_size: int = 32
    precision: str = "float32"
    dtype: str = "float32"
    device: str = "auto"
    ahead: int = 3
    max_failed_fraction: float = 0.05

    def __post_init__(self) -> None:
        for key, known in _CHOICES.items():
            value = getattr(self, key)
            if value not in known:
                problem = f"'{value}' is none of {', '.join(known)}{nearest(value, known)}."
                raise InputError(f"config.yaml embedding.{key}", problem)
        for key, low, high in (("batch_size", 1, 4096), ("ahead", 1, 64), ("max_failed_fraction", 0, 1)):
            if not low <= getattr(self, key) <= high:
                raise InputError(f"config.yaml embedding.{key}", f"{getattr(self, key)} is not from {low} to {high}.")

    @property
    def computed(self) -> dict[str, object]:
        """The fields that the features depend on."""
        return {key: getattr(self, key) for key in ("batch_size", "precision", "dtype", "max_failed_fraction")}


@dataclass(frozen=True)
class EmbeddingStage:
    """Writes ``features/{encoder}/{mag}x/{slide_id}.h5`` for every magnification of a slide.

    The encoder is loaded for the first slide that needs it, so a job that finds everything finished never imports
    torch. `threads` read tiles and as many compute. Each file is written whole when its magnification is done; a
    killed job leaves the finished ones, which the next run verifies and keeps.
    """

    results: str | Path
    spec: EncoderSpec
    encoder_facts: str | Path
    stain: StainParams
    params: EmbeddingParams = field(default_factory=EmbeddingParams)
    threads: int = 1
    name: str = "features"

    @cached_property
    def facts(self) -> EncoderFacts:
        return read_facts(self.encoder_facts)

    @cached_property
    def _target(self) -> tuple[StainColours, str]:
        return read_target(self.stain)

    def __post_init__(self) -> None:
        """A wrong target or encoder is the configuration's fault: it must stop the job and not fail each slide."""
        if self.stain.method != "none":
            self._target  # noqa: B018
        self.facts  # noqa: B018

    @cached_property
    def encoder(self) -> Encoder:
        """The loaded encoder. Raises InputError when it cannot be had, which stops the job."""
        import torch

        from pipeline.encoder_network import load_encoder

        torch.set_num_threads(max(1, self.threads))
        device = self.params.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        if self.params.precision == "float16" and device == "cpu":
            raise InputError("config.yaml embedding.precision", "float16 needs a GPU.", "use bfloat16 or float32.")
        return load_encoder(self.spec, self.facts, device, self.params.precision)

    def digest(self, upstream: BatchRow) -> str:
        target = "none" if self.stain.method == "none" else self._target[1]
        return digest_of(
            self.name, REVISIONS[self.name], asdict(self.facts), target, self.params.computed, upstream.digest
        )  # fmt: skip

    def find(self, slide_id: str, digest: str) -> str | None:
        try:
            grids = _grids(read_tiles(layout.tiles(self.results, slide_id)))
        except (FileNotFoundError, FormatError):
            return None
        failed = {}
        for magnification, grid in grids.items():
            found = verify_bag(layout.features(self.results, self.spec.slug, magnification, slide_id), digest)
            if found is None or found.n_tiles + found.n_failed != len(grid):
                return None
            failed[magnification] = found.n_failed
        return _remark(failed)

    def make(self, slide_id: str, digest: str) -> str:
        tiles = read_tiles(layout.tiles(self.results, slide_id))
        facts = read_slide_facts(layout.slide_facts(self.results, slide_id))
        fit = read_stain(layout.stain_fit(self.results, slide_id))
        if fit.requested != self.stain.method:
            raise SlideError(f"its stain file is of method '{fit.requested}'. Fix: rerun the stain stage (fit_stains).")
        transfer = StainTransfer(fit.colours, self._target[0] if fit.colours else BUILTIN_TARGET)
        failed: dict[float, int] = {}
        coarser: tuple[np.ndarray, np.ndarray] | None = None
        with TileStream(facts, transfer, self.threads, self.params.ahead) as stream:
            # The coarsest first: the rows of a file name their parents' rows in the next coarser one.
            for magnification, grid in reversed(_grids(tiles).items()):
                path = layout.features(self.results, self.spec.slug, magnification, slide_id)
                found = verify_bag(path, digest)
                if found is None or found.n_tiles + found.n_failed != len(grid):
                    source = self._source(tiles, magnification, facts, fit, digest)
                    with BagWriter(path, source, len(grid), self.params.dtype) as writer:
                        self._embed(stream, grid, _parents(grid, coarser), source, writer)
                coarser = read_cells(path)
                failed[magnification] = len(coarser[1])
        return _remark(failed)

    def _embed(
        self, stream: TileStream, grid: TileGrid, parents: np.ndarray, source: BagSource, writer: BagWriter
    ) -> None:
        """Read, encode and write one grid. Raises SlideError when too many tiles cannot be read."""
        progress = _Progress(f"{source.slide_id} {source.magnification:g}x", len(grid))
        kept = np.zeros(len(grid), bool)
        failed: list[tuple[int, str]] = []
        for batch in stream.batches(grid, self.params.batch_size):
            failed += batch.failed
            if len(failed) > self.params.max_failed_fraction * len(grid):
                raise SlideError(
                    f"{source.magnification:g}x: {len(failed)} tiles could not be read so far, at most"
                    f" {self.params.max_failed_fraction:.0%} of {len(grid)} may fail (embedding.max_failed_fraction)."
                    f" The first: {failed[0][1]}"
                )
            if len(batch.rows):
                writer.append(self._encoded(batch.pixels))
                kept[batch.rows] = True
            progress.add(len(batch.rows) + len(batch.failed))
        progress.end()
        writer.finish(
            coords=grid.coords[kept],
            cell=grid.cell[kept],
            parent=parents[kept],
            tissue_fraction=grid.tissue_fraction[kept],
            failed_cells=grid.cell[~kept],
            width=self.facts.width,
        )

    def _encoded(self, pixels: np.ndarray) -> np.ndarray:
        """Features of a batch. Raises MachineError when torch fails: that is never the slide's fault."""
        try:
            return self.encoder.encode(pixels)
        except RuntimeError as error:
            raise MachineError(f"encoder {self.spec.slug}: {error}. Fix: free the device and rerun.") from error

    def _source(self, tiles: TileSet, magnification: float, slide: SlideFacts, fit: StainFit, digest: str) -> BagSource:
        grid = tiles.magnifications[magnification]
        return BagSource(
            slide_id=tiles.slide_id,
            encoder=self.spec.slug,
            encoder_name=self.facts.title,
            weights=self.facts.weights,
            weights_digest=self.facts.weights_digest,
            magnification=float(magnification),
            size_px=int(grid.size_px),
            size_level0_px=(float(grid.pitch[0]), float(grid.pitch[1])),
            um_per_px=float(grid.um_per_px),
            achieved_um_per_px=grid.achieved_um_per_px,
            level0_um_per_px=tiles.um_per_px,
            level0_magnification=round(slide.objective or 10 / tiles.um_per_px[0]),
            level0_size_px=tiles.dimensions,
            stain=fit.method,
            savetodir=f"features/{self.spec.slug}/{magnification:g}x",
            revision=REVISIONS[self.name],
            digest=digest,
            slide_magnifications=tuple(float(m) for m in _grids(tiles)),
        )


def _grids(tiles: TileSet) -> dict[float, TileGrid]:
    """Grids with tiles, the finest first."""
    return {magnification: grid for magnification, grid in tiles.magnifications.items() if len(grid)}


def _parents(grid: TileGrid, coarser: tuple[np.ndarray, np.ndarray] | None) -> np.ndarray:
    """Row of each tile's parent in the coarser feature file (int64 [tiles]), -1 where there is none.

    `coarser` are the cells of that file and those that failed. The grid counts its parents among all of them, in
    row-major order; the file lacks the failed.
    """
    if coarser is None:
        return np.full(len(grid), -1, np.int64)
    cells = np.concatenate(coarser).astype(np.int64)
    rows = np.concatenate([np.arange(len(coarser[0])), np.full(len(coarser[1]), -1)]).astype(np.int64)
    in_grid_order = rows[np.lexsort((cells[:, 0], cells[:, 1]))]
    return np.where(grid.parent >= 0, in_grid_order[grid.parent], -1)


class _Progress:
    """Logs tiles per second, now and then and at the end."""

    def __init__(self, label: str, total: int) -> None:
        self._label, self._total, self._done = label, total, 0
        self._started = self._reported = time.monotonic()

    def add(self, tiles: int) -> None:
        self._done += tiles
        if time.monotonic() - self._reported > _PROGRESS_SECONDS:
            self._reported = time.monotonic()
            self.end()

    def end(self) -> None:
        seconds = time.monotonic() - self._started
        speed = self._done / max(seconds, 1e-9)
        logger.info("%s: %d of %d tiles, %.1f tiles/s", self._label, self._done, self._total, speed)


def _remark(failed: dict[float, int]) -> str:
    return "; ".join(f"tiles that could not be read at {m:g}x: {n}" for m, n in sorted(failed.items()) if n)
