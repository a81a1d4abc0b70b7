"""Polygons -> aligned tile grids at several magnifications: one origin, float pitches, a parent for every tile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np

from pipeline.batches import Void
from pipeline.contracts import layout
from pipeline.contracts.batches import BatchRow
from pipeline.contracts.errors import FormatError
from pipeline.contracts.files import digest_of
from pipeline.contracts.magnifications import ordered, plain
from pipeline.contracts.revisions import REVISIONS
from pipeline.contracts.settings import require
from pipeline.contracts.slides import read_slide_facts
from pipeline.contracts.tiles import TileGrid, TileSet, read_tiles, write_tiles
from pipeline.contracts.tissue import read_tissue
from pipeline.outlines import fill
from pipeline.slide import SlideReader, open_checked

UM_PER_PX_AT_1X = 10.0  #: a magnification m means 10 / m um per pixel
_ROUNDING = 1e-9  # relative slack of comparisons between computed floats


@dataclass(frozen=True)
class TilingParams:
    """Section `tiles` of the configuration.

    size_px : side of a tile
    magnifications : kept from the finest to the coarsest; each a whole multiple of the next
    min_tissue : a tile is kept if at least this share of its cell is tissue (or if it holds a kept finer
        tile)
    min_inside : and at least this share of its cell lies in the scanned area
    max_upsampling : a magnification may ask for pixels this many times finer than the slide's
    """

    size_px: int = 224
    magnifications: Sequence[float] = (20, 10)
    min_tissue: float = 0.5
    min_inside: float = 0.5
    max_upsampling: float = 1.1

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
        max(1, int(np.ceil(side / step * (1 - _ROUNDING)))) for side, step in zip((width, height), pitch, strict=True)
    )
    return Lattice((float(x), float(y)), pitch, columns, rows)


def cell_means(values: np.ndarray, x_edges: np.ndarray, y_edges: np.ndarray) -> np.ndarray:
    """Exact means of a raster over rectangular cells; what lies outside the raster counts as 0.

    Parameters
    ----------
    values : float or bool [raster rows, raster columns]
    x_edges, y_edges : ascending cell edges in raster pixels, fractions allowed; pixel i spans i..i + 1

    Returns
    -------
    float64 [cell rows, cell columns]
    """
    sums = np.zeros((values.shape[0] + 1, values.shape[1] + 1))
    np.cumsum(values, axis=0, out=sums[1:, 1:], dtype=np.float64)
    np.cumsum(sums[1:, 1:], axis=1, out=sums[1:, 1:])
    at = _interpolated(_interpolated(sums, y_edges).T, x_edges).T
    area = np.diff(y_edges)[:, None] * np.diff(x_edges)[None, :]
    return np.diff(np.diff(at, axis=0), axis=1) / area


def _interpolated(sums: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Rows of `sums` at fractional positions: the running sum of a raster is linear within each pixel."""
    position = np.clip(edges, 0, len(sums) - 1)
    low = np.minimum(position.astype(np.int64), len(sums) - 2)
    share = (position - low)[:, None]
    return sums[low] * (1 - share) + sums[low + 1] * share


def allowed_magnifications(
    um_per_px: tuple[float, float], params: TilingParams
) -> tuple[list[float], dict[float, str]]:
    """Magnifications that a slide of `um_per_px` (x, y) allows, finest first, and the reasons for the others."""
    coarsest = max(um_per_px)
    allowed, refused = [], {}
    for magnification in params.magnifications:
        asked = UM_PER_PX_AT_1X / magnification
        if asked * params.max_upsampling * (1 + _ROUNDING) >= coarsest:
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


def parent_rows(cells: np.ndarray, coarser: np.ndarray, ratio: int) -> np.ndarray:
    """Row in `coarser` of the cell that holds each of `cells`, int64 [cells]; both row-major and complete."""
    width = int(max(coarser[:, 0].max(), 0)) + 1 if len(coarser) else 1
    keys = coarser[:, 1].astype(np.int64) * width + coarser[:, 0]
    wanted = (cells[:, 1] // ratio).astype(np.int64) * width + cells[:, 0] // ratio
    return np.searchsorted(keys, wanted).astype(np.int64)


@dataclass(frozen=True)
class Rasters:
    """What tiles are judged by, all [rows, columns] over the whole slide at `px_per_raster_px` (x, y) level-0
    pixels.

    `tissue` and `ink` are bool; `edges` float32 is the Laplacian of brightness in grey levels.
    """

    tissue: np.ndarray
    ink: np.ndarray
    edges: np.ndarray
    px_per_raster_px: tuple[float, float]


def make_grids(
    um_per_px: tuple[float, float],
    bounds: tuple[int, int, int, int],
    rasters: Rasters,
    sources: Mapping[float, tuple[int, tuple[float, float]]],
    params: TilingParams,
) -> dict[float, TileGrid]:
    """Aligned grids of the magnifications in `sources`, finest first.

    Parameters
    ----------
    um_per_px : (x, y) of the slide at level 0
    bounds : scanned area (x, y, width, height) in level-0 pixels
    sources : magnification -> stored level that its pixels come from and that level's um/px (x, y)
    """
    magnifications = sorted(sources, reverse=True)
    lattices = [lattice(m, params.size_px, um_per_px, bounds) for m in magnifications]
    ratios = [round(a / b) for a, b in pairwise(magnifications)]
    tissue = [_fractions(rasters.tissue, rasters, cells) for cells in lattices]
    inside = [_inside(cells, bounds) for cells in lattices]
    passing = [
        (t >= params.min_tissue - _ROUNDING) & (i >= params.min_inside - _ROUNDING)
        for t, i in zip(tissue, inside, strict=True)
    ]
    kept = select_cells(passing, ratios)
    grids = {}
    for index, magnification in enumerate(magnifications):
        cell, cells = kept[index], lattices[index]
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
            tissue_fraction=tissue[index][row, column].astype(np.float32),
            inside_fraction=inside[index][row, column].astype(np.float32),
            parent=np.full(len(cell), -1, np.int64) if last else parent_rows(cell, kept[index + 1], ratios[index]),
            qc={name: values[row, column].astype(np.float32) for name, values in _quality(rasters, cells).items()},
        )
    return grids


def _fractions(values: np.ndarray, rasters: Rasters, cells: Lattice) -> np.ndarray:
    x, y = cells.edges()
    return np.clip(cell_means(values, x / rasters.px_per_raster_px[0], y / rasters.px_per_raster_px[1]), 0, 1)


def _inside(cells: Lattice, bounds: tuple[int, int, int, int]) -> np.ndarray:
    """Share of each cell in the scanned area, float64 [rows, columns]."""
    shares = []
    for edges, start, length in zip(cells.edges(), bounds[:2], bounds[2:], strict=True):
        covered = np.minimum(edges[1:], start + length) - np.maximum(edges[:-1], start)
        shares.append(np.clip(covered / np.diff(edges), 0, 1))
    return shares[1][:, None] * shares[0][None, :]


def _quality(rasters: Rasters, cells: Lattice) -> dict[str, np.ndarray]:
    x, y = cells.edges()
    x, y = x / rasters.px_per_raster_px[0], y / rasters.px_per_raster_px[1]
    mean = cell_means(rasters.edges, x, y)
    variance = cell_means(rasters.edges.astype(np.float64) ** 2, x, y) - mean**2
    return {"pen": _fractions(rasters.ink, rasters, cells), "focus": np.maximum(variance, 0)}


def brightness_edges(rgb: np.ndarray) -> np.ndarray:
    """Laplacian of brightness, float32 [rows, columns], grey levels; flat or blurred areas give values near 0."""
    return cv2.Laplacian(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32), cv2.CV_32F)


class TilingStage:
    """Stage `tiles`: results/slides/{id}.json and tissue/{id}.geojson -> results/tiles/{id}.h5."""

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
        return _verdict(tiles) if tiles.digest == digest else None

    def make(self, slide_id: str, digest: str) -> str:
        facts = read_slide_facts(layout.slide_facts(self._results, slide_id))
        allowed, refused = allowed_magnifications(facts.um_per_px, self._params)
        grids: dict[float, TileGrid] = {}
        if allowed:
            with open_checked(facts) as reader:
                sources = {m: _source(reader, m) for m in allowed}
                rasters = self._rasters(reader, slide_id)
            grids = make_grids(facts.um_per_px, facts.bounds, rasters, sources, self._params)
        void = "" if any(len(grid) for grid in grids.values()) else self._nothing(allowed, refused)
        if void:
            grids = {}
        tiles = TileSet(slide_id, grids, refused, facts.dimensions, facts.um_per_px, digest, void)
        write_tiles(self._path(slide_id), tiles)
        return _verdict(tiles)

    def _rasters(self, reader: SlideReader, slide_id: str) -> Rasters:
        tissue = read_tissue(layout.tissue_shape(self._results, slide_id))
        width, height = tissue.mask_size
        rgb, scale = reader.thumbnail((tissue.um_per_px[0] * tissue.um_per_px[1]) ** 0.5)
        if rgb.shape[:2] != (height, width):
            raise FormatError(f"{reader.path}: changed since its tissue was found. Fix: rerun the tissue stage.")
        return Rasters(
            fill(tissue.in_mask_px(tissue.tissue), width, height),
            fill(tissue.in_mask_px(tissue.ink), width, height),
            brightness_edges(rgb),
            scale,
        )

    def _nothing(self, allowed: list[float], refused: Mapping[float, str]) -> str:
        if not allowed:
            return "no magnification that the slide allows: " + "; ".join(refused.values())
        share = f"{self._params.min_tissue:.0%}"
        return f"no tile with at least {share} tissue" + "".join(f"; {reason}" for reason in refused.values())

    def _path(self, slide_id: str) -> Path:
        return Path(layout.tiles(self._results, slide_id))


def _source(reader: SlideReader, magnification: float) -> tuple[int, tuple[float, float]]:
    level = reader.source_level(UM_PER_PX_AT_1X / magnification)
    return level, reader.level_um_per_px(level)


def _verdict(tiles: TileSet) -> str:
    """The remark of a finished slide. Raises Void when nothing can be done with it."""
    if tiles.void:
        raise Void(tiles.void)
    return "; ".join(tiles.refused.values())
