"""From ``stain.target`` to a file of stains: a slide's, an image's, or the median of the whole cohort's.

``builtin`` needs no file. The cohort's median is made once and kept: slides that are added later are painted in the
same colours, and nothing is embedded anew. It is made again when fits are made in another way, or when its file is
deleted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from pipeline.batches import Stage, run_batch
from pipeline.check import CheckStage
from pipeline.contracts import layout
from pipeline.contracts.batches import OK, BatchRow, read_batch
from pipeline.contracts.cohort import Slide
from pipeline.contracts.errors import FormatError, InputError, SlideError
from pipeline.contracts.files import digest_of
from pipeline.contracts.revisions import REVISIONS
from pipeline.contracts.stain_targets import StainTarget, read_target_file, write_target
from pipeline.contracts.stains import StainColours, StainFit, colours_from, read_stain
from pipeline.stain import StainParams, StainStage
from pipeline.stain_fit import backend_versions, estimate_white, fit_pixels, pool_pixels
from pipeline.tiling import TilingParams, TilingStage
from pipeline.tissue import TissueParams, TissueStage

logger = logging.getLogger(__name__)

WHERE = "config.yaml stain.target"


def make_target(
    params: StainParams,
    kind: str,
    results: str | Path,
    indexes: Iterable[str | Path] = (),
    tissue: TissueParams | None = None,
    tiling: TilingParams | None = None,
) -> StainTarget:
    """Write ``stain/_target/target.json`` for `params.target`, which is of `kind` (`stain_targets.target_kind`).

    `indexes` are those of the stain batches: all of them for ``cohort``, the slide's own for ``slide``. `tissue` and
    `tiling` say where on a ``slide_file`` to look. Raises InputError for a target that cannot be used.
    """
    rows = {slide_id: row for index in indexes for slide_id, row in read_batch(index).items()}
    basis = digest_of(REVISIONS["stain"], params.fitted, backend_versions(params.backend))
    try:
        if kind == "cohort":
            target = _kept_or_median(results, rows, basis)
        elif kind == "slide":
            colours = _of_slide(params.target, results, rows)
            target = StainTarget(params.target, kind, colours, (params.target,), {}, basis)
        else:
            colours = _of_file(kind, params, tissue or TissueParams(), tiling or TilingParams())
            target = StainTarget(params.target, kind, colours, (), {}, basis)
    except (OSError, FormatError, SlideError) as error:
        raise InputError(WHERE, f"{params.target} cannot be a target: {error}", "name another, or builtin.") from error
    write_target(layout.stain_target(results), target)
    return target


def _kept_or_median(results: str | Path, rows: Mapping[str, BatchRow], basis: str) -> StainTarget:
    path = layout.cohort_stains(results)
    fitted = sorted(slide_id for slide_id, row in rows.items() if row.status == OK)
    try:
        kept = read_target_file(path)
    except FileNotFoundError:
        kept = None
    if kept and kept.basis == basis:
        new = set(fitted) - set(kept.slides) - set(kept.left_out)
        logger.info("cohort target: kept, of %d slides; %d came later", len(kept.slides), len(new))
        return kept
    target = median_target([read_stain(layout.stain_fit(results, slide_id)) for slide_id in fitted], basis)
    logger.info("cohort target: made of %d slides, %d left out", len(target.slides), len(target.left_out))
    write_target(path, target)
    return target


def median_target(fits: Iterable[StainFit], basis: str) -> StainTarget:
    """The median of the stains of slides.

    Element by element: of unit stain vectors, made unit again; of concentrations; of white. Fits that fell back to
    another method take no part. Raises InputError where none is left.
    """
    used: dict[str, StainColours] = {}
    left_out: dict[str, str] = {}
    for fit in fits:
        if fit.colours is None or fit.fallback:
            left_out[fit.slide_id] = fit.fallback or "no stains (method none)"
        else:
            used[fit.slide_id] = fit.colours
    if not used:
        raise InputError(
            WHERE, f"cohort: no slide with plausible stains among {len(left_out)}.", "name another target."
        )
    matrix = np.median([colours.matrix for colours in used.values()], axis=0)
    colours = colours_from(
        matrix / np.sqrt((matrix**2).sum(axis=1, keepdims=True)),
        np.median([colours.concentrations for colours in used.values()], axis=0),
        np.median([colours.white for colours in used.values()], axis=0),
    )
    return StainTarget("cohort", "cohort", colours, tuple(used), left_out, basis)


def _of_slide(slide_id: str, results: str | Path, rows: Mapping[str, BatchRow]) -> StainColours:
    row = rows.get(slide_id)
    if row is None or row.status != OK:
        raise SlideError("no such slide." if row is None else f"{row.status} at stage {row.stage}: {row.reason}")
    fit = read_stain(layout.stain_fit(results, slide_id))
    if fit.colours is None:
        raise SlideError("it holds no stains (method none).")
    return fit.colours


def _of_file(kind: str, params: StainParams, tissue: TissueParams, tiling: TilingParams) -> StainColours:
    if kind == "stains":
        return _of_json(Path(params.target))
    if kind == "image":
        return _of_image(Path(params.target), params)
    return _of_slide_file(params, tissue, tiling)


def _of_json(path: Path) -> StainColours:
    """Stains of a slide, or a target, of an earlier run."""
    try:
        return read_target_file(path).colours
    except FormatError:
        colours = read_stain(path).colours
    if colours is None:
        raise SlideError("it holds no stains (method none).")
    return colours


def _of_image(path: Path, params: StainParams) -> StainColours:
    with Image.open(path) as image:
        rgb = np.asarray(image.convert("RGB"))
    white, _ = estimate_white(rgb)
    pixels, _ = pool_pixels([rgb], white, params.pixels, params.seed)
    _, fallback, fit = fit_pixels(pixels, white, params.method, backend=params.backend)
    if fallback:
        logger.warning("%s: %s", path, fallback)
    return colours_from(fit.matrix, fit.concentrations, white)


def _of_slide_file(params: StainParams, tissue: TissueParams, tiling: TilingParams) -> StainColours:
    """Stains of a slide that is not of the cohort, by the stages that a slide of the cohort goes through."""
    slide = Slide("reference", "reference", params.target)
    rows = {slide.slide_id: BatchRow(slide.slide_id, slide.case_id, OK, "sheet")}
    with TemporaryDirectory() as folder:
        stages: tuple[Stage, ...] = (
            CheckStage({slide.slide_id: slide}, folder),
            TissueStage(folder, tissue),
            TilingStage(folder, tiling),
            StainStage(Path(folder), params),
        )
        for stage in stages:
            rows = {row.slide_id: row for row in run_batch(stage, rows, Path(folder) / f"{stage.name}.tsv")}
        return _of_slide(slide.slide_id, folder, rows)
