"""Embedding stage: tiles -> feature bags, one file per slide, encoder and magnification."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.batches import Lack, Made, are_due, run_together
from pipeline.contracts import layout
from pipeline.contracts.batches import BatchRow
from pipeline.contracts.encoders import EncoderFacts, read_facts
from pipeline.contracts.errors import FormatError, InputError
from pipeline.contracts.features import BagSource, verify_bag
from pipeline.contracts.files import digest_of
from pipeline.contracts.revisions import REVISIONS
from pipeline.contracts.settings import require_choice
from pipeline.contracts.slides import SlideFacts
from pipeline.contracts.stains import StainColours, StainFit
from pipeline.contracts.tiles import TileGrid, TileSet, read_tiles
from pipeline.embedding_pass import embed_all, grids_with_tiles, remark
from pipeline.encoders import EncoderSpec
from pipeline.guard import UNWATCHED, Watch
from pipeline.stain import StainParams
from pipeline.stain_target import read_target

if TYPE_CHECKING:
    from pipeline.device import Device
    from pipeline.encoder_network import Encoder

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
class EmbeddingJob:
    """What all encoders of a job have in common. `threads` read tiles and as many compute."""

    results: str | Path
    stain: StainParams
    params: EmbeddingParams = field(default_factory=EmbeddingParams)
    threads: int = 1

    def __post_init__(self) -> None:
        """A wrong target is the configuration's fault: it must stop the job and not fail each slide."""
        if self.stain.method != "none":
            self.target  # noqa: B018

    @cached_property
    def target(self) -> tuple[StainColours, str]:
        """The stain that tiles are painted in, and its digest."""
        return read_target(self.stain, self.results)

    @cached_property
    def device(self) -> Device:
        """Where encoders compute; made for the first slide that needs it. Raises InputError if it is not there."""
        import torch

        from pipeline.device import Device

        torch.set_num_threads(max(1, self.threads))
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        device = Device(self.params.device)
        if self.params.precision == "float16" and device.torch.type == "cpu":
            raise InputError("config.yaml embedding.precision", "float16 needs a GPU.", "use bfloat16 or float32.")
        return device


@dataclass(frozen=True)
class EmbeddingStage:
    """The files ``features/{encoder}/{mag}x/{slide_id}.h5`` of one encoder: which are finished, and what they say.

    The encoder is loaded for the first slide that needs it, so a job that finds everything finished never imports
    torch. Its facts and weights are those that `encoders.fetch_weights` left.
    """

    job: EmbeddingJob
    spec: EncoderSpec
    name: str = "features"

    def __post_init__(self) -> None:
        """Missing facts are nobody's slide's fault."""
        self.facts  # noqa: B018

    @cached_property
    def facts(self) -> EncoderFacts:
        return read_facts(layout.encoder_facts(self.job.results, self.spec.slug))

    @cached_property
    def encoder(self) -> Encoder:
        """The loaded encoder. Raises InputError when it cannot be had, which stops the job."""
        from pipeline.encoder_network import load_encoder

        weights = layout.encoder_weights(self.job.results, self.spec.slug)
        return load_encoder(self.facts, weights, self.job.device.torch, self.job.params.precision)

    def digest(self, upstream: BatchRow) -> str:
        return digest_of(*self._settings, upstream.digest)

    @property
    def _settings(self) -> tuple[object, ...]:
        """What the features of every slide depend on."""
        target = "none" if self.job.stain.method == "none" else self.job.target[1]
        return self.name, REVISIONS[self.name], asdict(self.facts), target, self.job.params.computed

    def rows_digest(self, grid: TileGrid, slide: SlideFacts, fit: StainFit) -> str:
        """Digest of what the rows of one file depend on: unlike `digest`, on no other magnification of the slide."""
        cells = hashlib.sha256(grid.cell.astype("<i4").tobytes()).hexdigest()
        colours = None if fit.colours is None else asdict(fit.colours)
        place = cells, grid.origin.tolist(), float(grid.um_per_px), int(grid.size_px)
        return digest_of(*self._settings, slide.digest, slide.backend, colours, place)

    def find(self, slide_id: str, digest: str) -> str | None:
        try:
            grids = grids_with_tiles(read_tiles(layout.tiles(self.job.results, slide_id)))
        except (FileNotFoundError, FormatError):
            return None
        failed = {}
        for magnification, grid in grids.items():
            n_failed = self.n_failed(slide_id, magnification, grid, digest)
            if n_failed is None:
                return None
            failed[magnification] = n_failed
        return remark(failed)

    def path(self, slide_id: str, magnification: float) -> str:
        return layout.features(self.job.results, self.spec.slug, magnification, slide_id)

    def n_failed(
        self, slide_id: str, magnification: float, grid: TileGrid, digest: str, name: str = "digest"
    ) -> int | None:
        """Tiles that could not be read, of a finished file whose digest `name` verifies; None where there is none."""
        found = verify_bag(self.path(slide_id, magnification), digest, name)
        return found.n_failed if found is not None and found.n_tiles + found.n_failed == len(grid) else None

    def source(self, tiles: TileSet, magnification: float, slide: SlideFacts, fit: StainFit, digest: str) -> BagSource:
        """What the file of one magnification says of itself."""
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
            slide_magnifications=tuple(float(m) for m in grids_with_tiles(tiles)),
            source_um_per_px=grid.source_um_per_px,
            rows_digest=self.rows_digest(grid, slide, fit),
        )


def embed_batch(
    stages: Sequence[EmbeddingStage],
    upstream: Mapping[str, BatchRow],
    index_paths: Sequence[str | Path],
    watch: Watch = UNWATCHED,
) -> list[list[BatchRow]]:
    """Embed the slides of a batch with several encoders of one job, each with its own index.

    A slide is read once for all encoders that lack it, and the next one is read while it is encoded and written.
    Finished files are verified and kept. A killed job leaves whole files. `watch` hears which slides are being read.
    """
    watched = [watch.stage(stage) for stage in stages]

    def make_all(lacking: Iterable[Lack]) -> Iterator[Made]:
        return embed_all(stages, lacking, are_due(upstream), watch)

    return run_together(watched, make_all, upstream, index_paths)
