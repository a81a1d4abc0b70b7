"""Polygons -> aligned tile grids at several magnifications: one origin, float pitches, a parent for every tile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from pipeline.batches import Void
from pipeline.contracts import layout
from pipeline.contracts.batches import BatchRow
from pipeline.contracts.errors import FormatError
from pipeline.contracts.files import digest_of
from pipeline.contracts.magnifications import ROUNDING, ordered, plain
from pipeline.contracts.revisions import REVISIONS
from pipeline.contracts.settings import require
from pipeline.contracts.slides import read_slide_facts
from pipeline.contracts.tiles import TileGrid, TileSet, read_tiles, write_tiles
from pipeline.contracts.tissue import Tissue, read_tissue
from pipeline.outlines import fill
from pipeline.overlays import draw_tiles, write_picture
from pipeline.rasters import Raster
from pipeline.shared_cells import rows_of
from pipeline.slide import SlideReader, open_checked
from pipeline.tile_quality import QualityMaps, measure_quality

UM_PER_PX_AT_1X = 10.0  #: a magnification m means 10 / m um per pixel


@dataclass(frozen=True)
class TilingParams:
    """Section `tiles` of the configuration.

    size_px : side of a tile
    magnifications : kept from the finest to the coarsest; each a whole multiple of the next
    min_tissue : a tile is kept if at least this share of its cell is tissue (or if it holds a kept finer
        tile)
    min_inside : and at least this share of its cell lies in the scanned area
    max_upsampling : a magnification may ask for pixels this many times finer than the slide's
    max_pen, max_dark, max_fold : a tile is left out if more than this share of its cell is under ink, is dark without
        hue (borders, coverslip edges, bubbles), is folded; None switches it off
    min_focus : and if its sharpness is below this; None switches it off
    """

    size_px: int = 224
    magnifications: Sequence[float] = (20, 10)
    min_tissue: float = 0.5
    min_inside: float = 0.5
    max_upsampling: float = 1.1
    max_pen: float | None = 0.2
    max_dark: float | None = 0.3
    max_fold: float | None = 0.4
    min_focus: float | None = 0.12

    def __post_init__(self) -> None:
        require(
            16 <= self.size_px <= 4096 and self.size_px == int(self.size_px),
            "tiles.size_px",
            self.size_px,
            "16 to 4096",
        )
        for name in ("min_tissue", "min_inside"):
            require(0 < getattr(self, name) <= 1, f"tiles.{name}", getattr(self, name), "a number above 0, up to 1")
        require(1 <= self.max_upsampling <= 4, "tiles.max_upsampling", self.max_upsampling, "1 to 4")
        for name in ("max_pen", "max_dark", "max_fold", "min_focus"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 1, f"tiles.{name}", value, "null, or 0 to 1")
        object.__setattr__(self, "magnifications", ordered(self.magnifications))


@dataclass(frozen=True)
class Lattice:
    """The cells of one magnification: `origin` and `pitch` (x, y) in level-0 pixels, `columns` x `rows` cells."""

    origin: tuple[float, float]
    pitch: tuple[float, float]
    columns: int
    rows: int

    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """float64 [columns + 1] and [rows + 1], cell edges (x and y) in level-0 pixels."""
        return (
            self.origin[0] + np.arange(self.columns + 1) * self.pitch[0],
            self.origin[1] + np.arange(self.rows + 1) * self.pitch[1],
        )


def lattice(
    magnification: float, size_px: int, um_per_px: tuple[float, float], bounds: tuple[int, int, int, int]
) -> Lattice:
    """Cells of `magnification` that cover `bounds`.

    Parameters
    ----------
    um_per_px : (x, y) of the slide at level 0
    bounds : (x, y, width, height) of the scanned area in level-0 pixels; its corner is the origin
    """
    x, y, width, height = bounds
    um = size_px * UM_PER_PX_AT_1X / magnification
    pitch = (um / um_per_px[0], um / um_per_px[1])
    columns, rows = (
        max(1, int(np.ceil(side / step * (1 - ROUNDING)))) for side, step in zip((width, height), pitch, strict=True)
    )
    return Lattice((float(x), float(y)), pitch, columns, rows)


def allowed_magnifications(
    um_per_px: tuple[float, float], params: TilingParams
) -> tuple[list[float], dict[float, str]]:
    """Magnifications that a slide of `um_per_px` (x, y) allows, finest first, and the reasons for the others."""
    coarsest = max(um_per_px)
    allowed, refused = [], {}
    for magnification in params.magnifications:
        asked = UM_PER_PX_AT_1X / magnification
        if asked * params.max_upsampling * (1 + ROUNDING) >= coarsest:
            allowed.append(magnification)
        else:
            refused[magnification] = (
                f"{plain(magnification)}x needs {asked:g} um/px, the slide has {coarsest:.6g}"
                f" ({coarsest / asked:.3g} times coarser; max_upsampling is {params.max_upsampling:g})"
            )
    return allowed, refused


def select_cells(passing: Sequence[np.ndarray], ratios: Sequence[int]) -> list[np.ndarray]:
    """Kept cells per magnification: those that pass by themselves and those that hold a kept finer cell.

    Parameters
    ----------
    passing : bool [rows, columns] per magnification, finest first
    ratios : cells of each magnification per cell of the next, one axis

    Returns
    -------
    int32 [cells, 2] (column, row) per magnification, in row-major order
    """
    kept: list[np.ndarray] = []
    for index, own in enumerate(passing):
        keep = own.copy()
        if index:
            column, row = (kept[-1] // ratios[index - 1]).T
            keep[row, column] = True
        rows, columns = np.nonzero(keep)
        kept.append(np.stack([columns, rows], axis=1).astype(np.int32))
    return kept


def make_grids(
    um_per_px: tuple[float, float],
    bounds: tuple[int, int, int, int],
    tissue: Raster,
    sources: Mapping[float, tuple[int, tuple[float, float]]],
    params: TilingParams,
    quality: QualityMaps | None = None,
) -> dict[float, TileGrid]:
    """Aligned grids of the magnifications in `sources`, finest first.

    A cell passes by its own tissue and quality. A coarser cell that holds a kept finer one is kept whatever its own, so
    that every kept tile has its parent.

    Parameters
    ----------
    um_per_px : (x, y) of the slide at level 0
    bounds : scanned area (x, y, width, height) in level-0 pixels
    sources : magnification -> stored level that its pixels come from and that level's um/px (x, y)
    quality : None judges by tissue alone
    """
    magnifications = sorted(sources, reverse=True)
    lattices = [lattice(m, params.size_px, um_per_px, bounds) for m in magnifications]
    ratios = [round(a / b) for a, b in pairwise(magnifications)]
    judged = [_judged(cells, bounds, tissue, quality, params) for cells in lattices]
    kept = select_cells([cells.passing for cells in judged], ratios)
    grids = {}
    for index, magnification in enumerate(magnifications):
        cell, cells, own = kept[index], lattices[index], judged[index]
        column, row = cell.T
        level, source_um = sources[magnification]
        last = index + 1 == len(magnifications)
        asked = UM_PER_PX_AT_1X / magnification
        grids[magnification] = TileGrid(
            cell=cell,
            coords=np.rint(np.asarray(cells.origin) + cell * np.asarray(cells.pitch)).astype(np.int64),
            origin=np.asarray(cells.origin),
            pitch=np.asarray(cells.pitch),
            size_px=int(params.size_px),
            um_per_px=asked,
            achieved_um_per_px=(
                cells.pitch[0] * um_per_px[0] / params.size_px,
                cells.pitch[1] * um_per_px[1] / params.size_px,
            ),
            source_level=level,
            source_um_per_px=source_um,
            tissue_fraction=own.tissue[row, column].astype(np.float32),
            inside_fraction=own.inside[row, column].astype(np.float32),
            parent=np.full(len(cell), -1, np.int64) if last else rows_of(kept[index + 1], cell // ratios[index]),
            qc={name: values[row, column].astype(np.float32) for name, values in own.qc.items()},
            excluded=_left_out(own.failed, cell),
        )
    return grids


@dataclass(frozen=True)
class JudgedCells:
    """All cells of a lattice, arrays [rows, columns]: what was measured, which pass, which fail and by what.

    `failed` maps a reason to the cells (bool) whose tissue would do and whose first exceeded threshold it is.
    """

    tissue: np.ndarray
    inside: np.ndarray
    qc: dict[str, np.ndarray]
    passing: np.ndarray
    failed: dict[str, np.ndarray]


def _judged(
    cells: Lattice,
    bounds: tuple[int, int, int, int],
    tissue: Raster,
    quality: QualityMaps | None,
    params: TilingParams,
) -> JudgedCells:
    edges = cells.edges()
    fraction, inside = tissue.shares(*edges), _inside(cells, bounds)
    enough_inside = inside >= params.min_inside - ROUNDING
    qc = quality.columns(*edges) if quality else {}
    passing = enough_inside & (fraction >= params.min_tissue - ROUNDING)
    # Ink and dark things hide the tissue below them: what they leave visible decides whether there is tissue at all.
    covered = qc["pen"] + qc["dark"] if qc else np.zeros(fraction.shape)
    candidate = enough_inside & (fraction > ROUNDING) & (fraction >= params.min_tissue * (1 - covered) - ROUNDING)
    failed = {}
    for reason, exceeded in _exceeded(qc, params).items():
        failed[reason] = candidate & exceeded
        candidate, passing = candidate & ~exceeded, passing & ~exceeded
    return JudgedCells(fraction, inside, qc, passing, failed)


def _exceeded(qc: Mapping[str, np.ndarray], params: TilingParams) -> dict[str, np.ndarray]:
    """Reason -> cells beyond its threshold, in the order in which they count; what is switched off is not there."""
    limits = {"pen": params.max_pen, "dark": params.max_dark, "fold": params.max_fold}
    exceeded = {name: qc[name] > limit + ROUNDING for name, limit in limits.items() if qc and limit is not None}
    if qc and params.min_focus is not None:
        exceeded["focus"] = qc["focus"] < params.min_focus
    return exceeded


def _left_out(failed: Mapping[str, np.ndarray], kept: np.ndarray) -> dict[str, np.ndarray]:
    """Reason -> int32 [cells, 2] (column, row), row-major, without the cells that are kept as parents."""
    excluded = {}
    for reason, mask in failed.items():
        mask = mask.copy()
        mask[kept[:, 1], kept[:, 0]] = False
        excluded[reason] = np.argwhere(mask)[:, ::-1].astype(np.int32)
    return excluded


def _inside(cells: Lattice, bounds: tuple[int, int, int, int]) -> np.ndarray:
    """Share of each cell in the scanned area, float64 [rows, columns]."""
    shares = []
    for edges, start, length in zip(cells.edges(), bounds[:2], bounds[2:], strict=True):
        covered = np.minimum(edges[1:], start + length) - np.maximum(edges[:-1], start)
        shares.append(np.clip(covered / np.diff(edges), 0, 1))
    return shares[1][:, None] * shares[0][None, :]


class TilingStage:
    """Stage `tiles`: results/slides/{id}.json and tissue/{id}.geojson -> results/tiles/{id}.h5 and .png."""

    name = "tiles"

    def __init__(self, results: str | Path, params: TilingParams) -> None:
        self._results = Path(results)
        self._params = params

    def digest(self, upstream: BatchRow) -> str:
        return digest_of(self.name, REVISIONS[self.name], asdict(self._params), upstream.digest)

    def find(self, slide_id: str, digest: str) -> str | None:
        try:
            tiles = read_tiles(self._path(slide_id))
        except (FileNotFoundError, FormatError):
            return None
        return _verdict(tiles) if tiles.digest == digest and self._overlay(slide_id).exists() else None

    def make(self, slide_id: str, digest: str) -> str:
        facts = read_slide_facts(layout.slide_facts(self._results, slide_id))
        allowed, refused = allowed_magnifications(facts.um_per_px, self._params)
        with open_checked(facts) as reader:
            tissue, rgb = self._tissue(reader, slide_id)
            grids: dict[float, TileGrid] = {}
            if allowed:
                sources = {m: _source(reader, m) for m in allowed}
                raster = Raster(fill(tissue.in_mask_px(tissue.tissue), *tissue.mask_size), tissue.px_per_mask_px)
                quality = measure_quality(reader, tissue, rgb)
                grids = make_grids(facts.um_per_px, facts.bounds, raster, sources, self._params, quality)
        void = "" if any(len(grid) for grid in grids.values()) else self._nothing(allowed, refused, grids)
        self._path(slide_id).unlink(missing_ok=True)  # never beside a newer picture
        write_picture(self._overlay(slide_id), draw_tiles(rgb, facts.dimensions, grids))
        if void:
            grids = {}
        tiles = TileSet(slide_id, grids, refused, facts.dimensions, facts.um_per_px, digest, void)
        write_tiles(self._path(slide_id), tiles)
        return _verdict(tiles)

    def _tissue(self, reader: SlideReader, slide_id: str) -> tuple[Tissue, np.ndarray]:
        """The slide's tissue and the thumbnail that it was found on."""
        tissue = read_tissue(layout.tissue_shape(self._results, slide_id))
        width, height = tissue.mask_size
        rgb, _ = reader.thumbnail((tissue.um_per_px[0] * tissue.um_per_px[1]) ** 0.5)
        if rgb.shape[:2] != (height, width):
            raise FormatError(f"{reader.path}: changed since its tissue was found. Fix: rerun the tissue stage.")
        return tissue, rgb

    def _nothing(self, allowed: list[float], refused: Mapping[float, str], grids: Mapping[float, TileGrid]) -> str:
        if not allowed:
            return "no magnification that the slide allows: " + "; ".join(refused.values())
        left_out = [_exclusions(m, grid) for m, grid in grids.items()]
        share = f"no tile with at least {self._params.min_tissue:.0%} tissue"
        return "; ".join([share, *filter(None, left_out), *refused.values()])

    def _path(self, slide_id: str) -> Path:
        return Path(layout.tiles(self._results, slide_id))

    def _overlay(self, slide_id: str) -> Path:
        return Path(layout.tiles_overlay(self._results, slide_id))


def _source(reader: SlideReader, magnification: float) -> tuple[int, tuple[float, float]]:
    level = reader.source_level(UM_PER_PX_AT_1X / magnification)
    return level, reader.level_um_per_px(level)


def _verdict(tiles: TileSet) -> str:
    """The remark of a finished slide. Raises Void when nothing can be done with it."""
    if tiles.void:
        raise Void(tiles.void)
    finest = next(iter(tiles.magnifications))
    return "; ".join(filter(None, [_exclusions(finest, tiles.magnifications[finest]), *tiles.refused.values()]))


def _exclusions(magnification: float, grid: TileGrid) -> str:
    """How many tiles of one magnification were left out by which threshold, or an empty string."""
    counts = {reason: len(cells) for reason, cells in grid.excluded.items() if len(cells)}
    if not counts:
        return ""
    total = len(grid) + sum(counts.values())
    reasons = ", ".join(f"{reason} {count}" for reason, count in counts.items())
    return f"{sum(counts.values())} of {total} tiles at {plain(magnification)}x left out ({reasons})"
