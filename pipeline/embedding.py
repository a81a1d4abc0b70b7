"""Embedding stage: tiles -> feature bags, one file per slide and magnification."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.contracts import layout
from pipeline.contracts.batches import BatchRow
from pipeline.contracts.encoders import EncoderFacts, read_facts
from pipeline.contracts.errors import FormatError, InputError, MachineError, SlideError
from pipeline.contracts.features import BagSource, BagWriter, read_cells, verify_bag
from pipeline.contracts.files import digest_of
from pipeline.contracts.revisions import REVISIONS
from pipeline.contracts.settings import require_choice
from pipeline.contracts.slides import SlideFacts, read_slide_facts
from pipeline.contracts.stains import StainColours, StainFit, read_stain
from pipeline.contracts.tiles import TileGrid, TileSet, read_tiles
from pipeline.encoders import EncoderSpec
from pipeline.shared_cells import groups
from pipeline.stain import StainParams, read_target
from pipeline.stain_transfer import BUILTIN_TARGET, StainTransfer
from pipeline.tile_stream import TileStream

if TYPE_CHECKING:
    from pipeline.encoder_network import Encoder

logger = logging.getLogger(__name__)

_Cells = tuple[np.ndarray, np.ndarray]  # (column, row) of a file's tiles, in order, and of those that failed

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
            require_choice(f"embedding.{key}", getattr(self, key), known)
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
    torch. `threads` read tiles and as many compute. Magnifications that come from one stored level are read in one
    pass and their files appear at its end, whole; a killed job leaves the finished ones, which the next run verifies
    and keeps.
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
        coarser: _Cells | None = None
        with TileStream(facts, transfer, self.threads, self.params.ahead) as stream:
            # The coarsest first: the rows of a file name their parents' rows in the next coarser one.
            for group in reversed(groups(_grids(tiles))):
                sources = {m: self._source(tiles, m, facts, fit, digest) for m in group}
                cells = self._embed(stream, group, sources, coarser)
                failed |= {magnification: len(lost) for magnification, (_, lost) in cells.items()}
                coarser = cells[max(cells)]
        return _remark(failed)

    def _embed(
        self, stream: TileStream, group: dict[float, TileGrid], sources: dict[float, BagSource], coarser: _Cells | None
    ) -> dict[float, _Cells]:
        """Write the files of `group` that are not finished yet; the cells of each of its files.

        Raises SlideError when too many tiles cannot be read.
        """
        paths = {m: layout.features(self.results, self.spec.slug, m, source.slide_id) for m, source in sources.items()}
        cells: dict[float, _Cells] = {}
        with ExitStack() as stack:
            bags: dict[float, _GrowingBag] = {}
            for magnification, grid in group.items():
                found = verify_bag(paths[magnification], sources[magnification].digest)
                if found is None or found.n_tiles + found.n_failed != len(grid):
                    source = sources[magnification]
                    writer = BagWriter(paths[magnification], source, len(grid), self.params.dtype)
                    bags[magnification] = _GrowingBag(grid, source, stack.enter_context(writer))
            for batch in stream.batches({m: group[m] for m in bags}, self.params.batch_size):
                bag = bags[batch.magnification]
                bag.refuse_too_many(batch.failed, self.params.max_failed_fraction)
                bag.add(batch.rows, self._encoded(batch.pixels) if len(batch.rows) else None)
            for magnification, grid in reversed(group.items()):
                if magnification in bags:
                    bags[magnification].finish(_parents(grid, coarser), self.facts.width)
                    coarser = bags[magnification].cells
                else:
                    coarser = read_cells(paths[magnification])
                cells[magnification] = coarser
        return cells

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
            source_um_per_px=grid.source_um_per_px,
        )


def _grids(tiles: TileSet) -> dict[float, TileGrid]:
    """Grids with tiles, the finest first."""
    return {magnification: grid for magnification, grid in tiles.magnifications.items() if len(grid)}


class _GrowingBag:
    """The bag of one grid while its tiles are embedded."""

    def __init__(self, grid: TileGrid, source: BagSource, writer: BagWriter) -> None:
        self._grid, self._writer, self._label = grid, writer, f"{source.magnification:g}x"
        self._kept = np.zeros(len(grid), bool)
        self._failed: list[tuple[int, str]] = []
        self._progress = _Progress(f"{source.slide_id} {self._label}", len(grid))

    def refuse_too_many(self, failed: tuple[tuple[int, str], ...], most: float) -> None:
        """Count tiles that could not be read. Raises SlideError when they are more than the share `most`."""
        self._failed += failed
        if len(self._failed) > most * len(self._grid):
            raise SlideError(
                f"{self._label}: {len(self._failed)} tiles could not be read so far, at most {most:.0%} of"
                f" {len(self._grid)} may fail (embedding.max_failed_fraction). The first: {self._failed[0][1]}"
            )

    def add(self, rows: np.ndarray, features: np.ndarray | None) -> None:
        """Append the features of `rows` of the grid; None where there are no rows."""
        if features is not None:
            self._writer.append(features)
            self._kept[rows] = True
        self._progress.show(int(self._kept.sum()) + len(self._failed))

    def finish(self, parents: np.ndarray, width: int) -> None:
        grid, kept = self._grid, self._kept
        self._progress.end()
        self._writer.finish(
            coords=grid.coords[kept],
            cell=grid.cell[kept],
            parent=parents[kept],
            tissue_fraction=grid.tissue_fraction[kept],
            failed_cells=grid.cell[~kept],
            width=width,
        )

    @property
    def cells(self) -> _Cells:
        """Cells with features, in the order of the file, and those that failed."""
        return self._grid.cell[self._kept], self._grid.cell[~self._kept]


def _parents(grid: TileGrid, coarser: _Cells | None) -> np.ndarray:
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

    def show(self, done: int) -> None:
        self._done = done
        if time.monotonic() - self._reported > _PROGRESS_SECONDS:
            self._reported = time.monotonic()
            self.end()

    def end(self) -> None:
        seconds = time.monotonic() - self._started
        speed = self._done / max(seconds, 1e-9)
        logger.info("%s: %d of %d tiles, %.1f tiles/s", self._label, self._done, self._total, speed)


def _remark(failed: dict[float, int]) -> str:
    return "; ".join(f"tiles that could not be read at {m:g}x: {n}" for m, n in sorted(failed.items()) if n)
