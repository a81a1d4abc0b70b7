"""Stain stage: fit the two stains of a slide from pixels pooled over its tissue (Vahadane, or Macenko)."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.contracts import layout
from pipeline.contracts.batches import BatchRow
from pipeline.contracts.errors import FormatError, InputError, SlideError
from pipeline.contracts.files import digest_of
from pipeline.contracts.revisions import REVISIONS
from pipeline.contracts.settings import require_choice
from pipeline.contracts.slides import read_slide_facts
from pipeline.contracts.stains import BACKENDS, METHODS, StainFit, colours_from, read_stain, write_stain
from pipeline.contracts.tiles import TileSet, read_tiles
from pipeline.slide import SlideReader, open_checked
from pipeline.stain_fit import backend_versions, estimate_white, fit_pixels, pool_pixels

logger = logging.getLogger(__name__)

FIELD_PX = 256


@dataclass(frozen=True)
class StainParams:
    """Section ``stain`` of the configuration.

    `backend` is whose Vahadane or Macenko fits: native, or staintools. `um_per_px` is where pixels are read (or the
    slide's own, where coarser); `pixels` are pooled over up to `fields` tiles drawn with `seed`. `target`,
    which fits do not depend on, is explained in `pipeline.stain_references`.
    """

    method: str = "vahadane"
    backend: str = "native"
    target: str = "builtin"
    um_per_px: float = 0.5
    pixels: int = 50_000
    fields: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        require_choice("stain.method", self.method, METHODS)
        require_choice("stain.backend", self.backend, BACKENDS)
        for key, low, high in (("um_per_px", 0.1, 4), ("pixels", 2000, 2_000_000), ("fields", 1, 2000)):
            if not low <= getattr(self, key) <= high:
                raise InputError(f"config.yaml stain.{key}", f"{getattr(self, key)} is not from {low} to {high}.")

    @property
    def fitted(self) -> dict[str, Any]:
        """The fields that a slide's fit depends on: a new target must not fit every slide anew."""
        if self.method == "none":
            return {"method": "none"}
        return {key: value for key, value in asdict(self).items() if key != "target"}


@dataclass(frozen=True)
class StainStage:
    """Writes ``stain/{slide_id}.json`` from the slide's tiles."""

    results: Path
    params: StainParams
    name: str = "stain"

    def __post_init__(self) -> None:
        """A backend that is not there must stop the job and not fail each slide."""
        self._versions  # noqa: B018

    @cached_property
    def _versions(self) -> dict[str, str]:
        return {} if self.params.method == "none" else backend_versions(self.params.backend)

    def digest(self, upstream: BatchRow) -> str:
        return digest_of(self.name, REVISIONS[self.name], self.params.fitted, self._versions, upstream.digest)

    def find(self, slide_id: str, digest: str) -> str | None:
        try:
            fit = read_stain(layout.stain_fit(self.results, slide_id))
        except (FileNotFoundError, FormatError):
            return None
        return _remark(fit) if fit.digest == digest else None

    def make(self, slide_id: str, digest: str) -> str:
        if self.params.method == "none":
            fit = StainFit(slide_id, "none", "none", "", None, "", None, {}, digest)
        else:
            facts = read_slide_facts(layout.slide_facts(self.results, slide_id))
            tiles = read_tiles(layout.tiles(self.results, slide_id))
            with open_checked(facts) as slide:
                fit = fit_slide(slide, tiles, self.params, digest)
        write_stain(layout.stain_fit(self.results, slide_id), fit)
        return _remark(fit)


def _remark(fit: StainFit) -> str:
    remarks = [fit.fallback] if fit.fallback else []
    if fit.white_source == "assumed":
        remarks.append("no glass seen, white assumed to be 255")
    if fit.diagnostics.get("fields_with_ink", 0):
        remarks.append(f"fields left out of the stain fit for ink: {fit.diagnostics['fields_with_ink']:g}")
    unreadable = int(fit.diagnostics.get("fields_unreadable", 0))
    if unreadable:
        remarks.append(f"fields left out of the stain fit as unreadable: {unreadable}")
    return "; ".join(remarks)


def fit_slide(slide: SlideReader, tiles: TileSet, params: StainParams, digest: str) -> StainFit:
    """Fit the stains of an open slide. Raises SlideError when neither method gives plausible stains."""
    white, white_source = estimate_white(_overview(slide))
    um_per_px = max(params.um_per_px, *slide.um_per_px)
    fields, unreadable = _read_fields(slide, tiles, um_per_px, params)
    if not fields:
        raise SlideError(f"none of {unreadable} tissue fields could be read for the stain fit.")
    rgb, counts = pool_pixels(fields, white, params.pixels, params.seed)
    method, fallback, separation = fit_pixels(rgb, white, params.method, _left_out(counts, len(fields)), params.backend)
    return StainFit(
        slide_id=tiles.slide_id,
        requested=params.method,
        method=method,
        fallback=fallback,
        colours=colours_from(separation.matrix, separation.concentrations, white),
        white_source=white_source,
        um_per_px=um_per_px,
        diagnostics={
            "angle_degrees": separation.angle_degrees,
            "residual": separation.residual,
            "iterations": separation.iterations,
            "negative": separation.negative,
            "pixels": len(rgb),
            "fields": len(fields),
            "fields_unreadable": unreadable,
            **counts,
        },
        digest=digest,
        backend=params.backend,
        versions=backend_versions(params.backend),
    )


def _left_out(counts: dict[str, float], n_fields: int) -> str:
    inked = counts["fields_with_ink"]
    return f" ({inked:g} of {n_fields} fields left out because of ink or pen)" if inked else ""


def _overview(slide: SlideReader) -> np.ndarray:
    """The whole slide as at most a million pixels or so."""
    (width, height), (um_x, um_y) = slide.dimensions, slide.um_per_px
    return slide.thumbnail(max(um_x, um_y, float(np.sqrt(width * um_x * height * um_y / 1e6))))[0]


def _read_fields(
    slide: SlideReader, tiles: TileSet, um_per_px: float, params: StainParams
) -> tuple[list[np.ndarray], int]:
    """Pixels of randomly drawn tiles of the finest grid at `um_per_px`, and how many could not be read."""
    grid = next(iter(tiles.magnifications.values()))
    rows = np.random.default_rng(params.seed).permutation(len(grid))[: params.fields]
    size = max(1, min(FIELD_PX, round(grid.size_px * grid.um_per_px / um_per_px)))
    fields, unreadable = [], 0
    for x, y in grid.upper_left[np.sort(rows)]:
        try:
            fields.append(slide.read_field(float(x), float(y), um_per_px, size))
        except SlideError as error:
            logger.warning("stain: %s: %s", tiles.slide_id, error)
            unreadable += 1
    return fields, unreadable
