"""tiles/{slide_id}.h5: the aligned tile grids of one slide, a group per magnification."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from pipeline.contracts.errors import FormatError
from pipeline.contracts.files import canonical, check_version, whole_file
from pipeline.contracts.magnifications import plain
from pipeline.contracts.revisions import REVISIONS

KIND = "tiles"
FORMAT_VERSION = 2


@dataclass(frozen=True)
class TileGrid:
    """The kept tiles of one magnification, in row-major order of their cells.

    Attributes
    ----------
    cell : int32 [tiles, 2], (column, row) on the lattice
    coords : int64 [tiles, 2], upper-left corner (x, y) in level-0 pixels, ``rint(origin + cell * pitch)``
    origin : float64 [2], (x, y) of cell (0, 0) in level-0 pixels; the same at every magnification
    pitch : float64 [2], (x, y) size of a cell in level-0 pixels
    size_px : side of a tile as the encoder sees it
    um_per_px : what was asked for
    achieved_um_per_px : (x, y) of a tile of `size_px` that spans exactly one cell
    source_level : stored level that the pixels are read from
    source_um_per_px : (x, y) of that level
    tissue_fraction, inside_fraction : float32 [tiles], share of the cell that is tissue, that lies in the
        scanned area
    parent : int64 [tiles], row in the next coarser magnification of the file, -1 in the coarsest
    qc : float32 [tiles] each. `pen`, `dark`, `fold`: share of the cell under ink (with a rim of 30 um), that is dark
        without hue (borders, coverslip edges, bubbles), that is folded. `focus`: sharpness, a ratio of amplitudes at 1
        um/px (or the slide's own um/px where that is coarser): detail finer than about 2 um over structure up to
        about 25 um; sharp H&E has 0.2 and more, featureless tissue about 1
    excluded : reason (a column of `qc`) -> int32 [cells, 2], (column, row) of the cells, row-major, whose tissue would
        do but whose value is beyond its threshold; each cell stands under the first such reason in the order pen, dark,
        fold, focus. Reasons whose threshold is switched off are not there. A coarser cell that holds a kept finer tile
        is kept and not listed
    """

    cell: np.ndarray
    coords: np.ndarray
    origin: np.ndarray
    pitch: np.ndarray
    size_px: int
    um_per_px: float
    achieved_um_per_px: tuple[float, float]
    source_level: int
    source_um_per_px: tuple[float, float]
    tissue_fraction: np.ndarray
    inside_fraction: np.ndarray
    parent: np.ndarray
    qc: dict[str, np.ndarray] = field(default_factory=dict)
    excluded: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.cell)

    @property
    def upper_left(self) -> np.ndarray:
        """float64 [tiles, 2], upper-left corners (x, y) in level-0 pixels, before rounding."""
        return self.origin + self.cell * self.pitch


@dataclass(frozen=True)
class TileSet:
    """All grids of a slide, finest first. `refused` maps a magnification to its reason; `void` a verdict."""

    slide_id: str
    magnifications: dict[float, TileGrid]
    refused: dict[float, str]
    dimensions: tuple[int, int]
    um_per_px: tuple[float, float]
    digest: str
    void: str = ""


_COLUMNS = {
    "cell": np.int32,
    "coords": np.int64,
    "parent": np.int64,
    "tissue_fraction": np.float32,
    "inside_fraction": np.float32,
}


def write_tiles(path: str | Path, tiles: TileSet) -> None:
    """Write the grids of a slide, the same bytes for the same content."""
    with whole_file(path) as part, h5py.File(part, "w", libver="latest") as file:
        file.attrs["kind"] = KIND
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["revision"] = REVISIONS["tiles"]
        file.attrs["digest"] = tiles.digest
        file.attrs["slide_id"] = tiles.slide_id
        file.attrs["void"] = tiles.void
        file.attrs["refused"] = canonical([[plain(m), reason] for m, reason in tiles.refused.items()])
        file.attrs["magnifications"] = canonical([plain(m) for m in tiles.magnifications])
        file.attrs["dimensions"] = np.asarray(tiles.dimensions, np.int64)
        file.attrs["um_per_px"] = np.asarray(tiles.um_per_px, np.float64)
        for magnification, grid in tiles.magnifications.items():
            _write_grid(file.create_group(f"{plain(magnification)}x"), grid)


def _write_grid(group: h5py.Group, grid: TileGrid) -> None:
    for name, dtype in _COLUMNS.items():
        group.create_dataset(name, data=np.asarray(getattr(grid, name), dtype), track_times=False)
    for name, values in sorted(grid.qc.items()):
        group.create_dataset(f"qc/{name}", data=np.asarray(values, np.float32), track_times=False)
    for reason, cells in grid.excluded.items():
        group.create_dataset(f"excluded/{reason}", data=np.asarray(cells, np.int32), track_times=False)
    group.attrs["reasons"] = canonical(list(grid.excluded))
    group.attrs["origin"] = np.asarray(grid.origin, np.float64)
    group.attrs["pitch"] = np.asarray(grid.pitch, np.float64)
    group.attrs["size_px"] = grid.size_px
    group.attrs["um_per_px"] = grid.um_per_px
    group.attrs["achieved_um_per_px"] = np.asarray(grid.achieved_um_per_px, np.float64)
    group.attrs["source_level"] = grid.source_level
    group.attrs["source_um_per_px"] = np.asarray(grid.source_um_per_px, np.float64)


def read_tiles(path: str | Path) -> TileSet:
    """Read and verify the grids of a slide.

    Raises
    ------
    FileNotFoundError : the slide has not been tiled
    FormatError : damaged (unequal rows, a value that is not finite, a parent that is not there) or unknown
        version
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        with h5py.File(path, "r") as file:
            check_version(path, KIND, FORMAT_VERSION, file.attrs.get("kind"), file.attrs.get("format_version"))
            names = json.loads(file.attrs["magnifications"])
            grids = {plain(m): _read_grid(file[f"{plain(m)}x"]) for m in names}
            tiles = TileSet(
                slide_id=file.attrs["slide_id"],
                magnifications=grids,
                refused={plain(m): reason for m, reason in json.loads(file.attrs["refused"])},
                dimensions=(int(file.attrs["dimensions"][0]), int(file.attrs["dimensions"][1])),
                um_per_px=(float(file.attrs["um_per_px"][0]), float(file.attrs["um_per_px"][1])),
                digest=file.attrs["digest"],
                void=file.attrs["void"],
            )
    except FormatError:
        raise
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise FormatError(f"{path}: damaged ({error}). Fix: delete it and rerun the tiling.") from error
    problem = _problem(tiles)
    if problem:
        raise FormatError(f"{path}: {problem}. Fix: delete it and rerun the tiling.")
    return tiles


def _read_grid(group: h5py.Group) -> TileGrid:
    columns = {name: group[name][()].astype(dtype, copy=False) for name, dtype in _COLUMNS.items()}
    return TileGrid(
        **columns,
        origin=np.array(group.attrs["origin"]),
        pitch=np.array(group.attrs["pitch"]),
        size_px=int(group.attrs["size_px"]),
        um_per_px=float(group.attrs["um_per_px"]),
        achieved_um_per_px=(
            float(group.attrs["achieved_um_per_px"][0]),
            float(group.attrs["achieved_um_per_px"][1]),
        ),
        source_level=int(group.attrs["source_level"]),
        source_um_per_px=(
            float(group.attrs["source_um_per_px"][0]),
            float(group.attrs["source_um_per_px"][1]),
        ),
        qc={name: group["qc"][name][()] for name in sorted(group["qc"])} if "qc" in group else {},
        excluded={reason: group["excluded"][reason][()] for reason in json.loads(group.attrs["reasons"])},
    )


def _problem(tiles: TileSet) -> str:
    """What is wrong with the content of a file, or an empty string."""
    grids = list(tiles.magnifications.items())
    for index, (magnification, grid) in enumerate(grids):
        columns = [
            grid.cell,
            grid.coords,
            grid.parent,
            grid.tissue_fraction,
            grid.inside_fraction,
            *grid.qc.values(),
        ]
        if len({len(column) for column in columns}) != 1 or grid.cell.shape[1:] != (2,):
            return f"columns of unequal length at {magnification}x"
        if not all(np.isfinite(column).all() for column in columns):
            return f"values that are not finite at {magnification}x"
        if any(cells.ndim != 2 or cells.shape[1] != 2 for cells in grid.excluded.values()):
            return f"cells left out that are no (column, row) at {magnification}x"
        coarser = len(grids[index + 1][1]) if index + 1 < len(grids) else 0
        lowest = 0 if coarser else -1
        if len(grid) and not (lowest <= grid.parent.min() and grid.parent.max() < max(coarser, 0)):
            return f"parents that do not exist at {magnification}x"
    return ""
