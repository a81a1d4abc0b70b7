"""Feature bags: one HDF5 file per slide, encoder and magnification, and the index that is their only list.

The file is a superset of the layout that TRIDENT writes, so tools made for that layout read it as it is:

========================  =================================================================================
``features``  [N, D]      float32 (float16 on request), in chunks of up to 256 rows, each with a checksum
``coords``  [N, 2] int64  upper-left corner (x, y) of each tile, level-0 pixels
``cell``  [N, 2] int32    (column, row) on the magnification's grid
``parent``  [N] int64     row of the next coarser file of the same slide and encoder, -1 where there is none
``tissue_fraction``  [N]  float32
``failed_cells``  [F, 2]  int32, (column, row) of tiles that could not be read and so have no row
========================  =================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.contracts.errors import FormatError
from pipeline.contracts.files import check_version, read_table, whole_file, write_table

KIND = "features"
FORMAT_VERSION = 1
CHUNK_ROWS = 256
WEIGHTS = ("pretrained", "file", "random")


@dataclass(frozen=True)
class BagSource:
    """What a bag was made from. Pairs are (x, y).

    `um_per_px` is what the magnification asks for (10 / magnification), `achieved_um_per_px` what the tiles
    have, `level0_um_per_px` the slide's. `savetodir` is the folder relative to ``results/``, so that a file
    is the same wherever the results lie. `weights` is one of `WEIGHTS`; `stain` the normalisation of the tiles.
    """

    slide_id: str
    encoder: str
    encoder_name: str
    weights: str
    weights_digest: str
    magnification: float
    size_px: int
    size_level0_px: tuple[float, float]
    um_per_px: float
    achieved_um_per_px: tuple[float, float]
    level0_um_per_px: tuple[float, float]
    level0_magnification: int
    level0_size_px: tuple[int, int]
    stain: str
    savetodir: str
    revision: int
    digest: str
    overlap: int = 0


@dataclass(frozen=True)
class Bag:
    """One feature file in memory; the arrays are those of the module's table, `features` always float32."""

    features: np.ndarray
    coords: np.ndarray
    cell: np.ndarray
    parent: np.ndarray
    tissue_fraction: np.ndarray
    failed_cells: np.ndarray
    source: BagSource


@dataclass(frozen=True)
class BagRecord:
    """One row of ``features/{encoder}/index.tsv``. `path` is absolute or relative to the working folder."""

    slide_id: str
    case_id: str
    magnification: float
    path: Path
    n_tiles: int
    um_per_px: float
    digest: str
    weights: str


def write_bag(path: str | Path, bag: Bag, dtype: str = "float32") -> None:
    """Write a bag whole. `dtype` is that of ``features`` on disk: float32 or float16.

    Raises ValueError for arrays that do not fit each other or for a feature that is not finite: such a file
    must not exist, since later stages trust every file under a final name.
    """
    _check(bag)
    features = bag.features.astype(dtype)
    if not np.isfinite(features).all():
        raise ValueError(f"{bag.source.slide_id}: features are not finite as {dtype}.")
    n, width = features.shape
    chunks = (min(n, CHUNK_ROWS), width) if n and width else None
    with whole_file(path) as part, h5py.File(part, "w", track_order=False) as file:
        for key, value in _root_attributes(bag.source, n).items():
            file.attrs[key] = value
        stored = file.create_dataset(
            "features", data=features, chunks=chunks, fletcher32=chunks is not None, track_times=False
        )
        for key, value in _features_attributes(bag.source).items():
            stored.attrs[key] = value
        coords = file.create_dataset("coords", data=bag.coords.astype(np.int64), track_times=False)
        for key, value in _coords_attributes(bag.source).items():
            coords.attrs[key] = value
        for name, kind in _COLUMNS.items():
            file.create_dataset(name, data=getattr(bag, name).astype(kind), track_times=False)


_COLUMNS = {"cell": np.int32, "parent": np.int64, "tissue_fraction": np.float32, "failed_cells": np.int32}


def _check(bag: Bag) -> None:
    n = len(bag.features)
    expected = {"coords": (n, 2), "cell": (n, 2), "parent": (n,), "tissue_fraction": (n,)}
    for name, shape in expected.items():
        if getattr(bag, name).shape != shape:
            raise ValueError(f"{name} has shape {getattr(bag, name).shape}, expected {shape}.")
    if bag.features.ndim != 2 or bag.failed_cells.ndim != 2 or bag.failed_cells.shape[1] != 2:
        raise ValueError(
            f"features {bag.features.shape} must be [N, D], failed_cells {bag.failed_cells.shape} [F, 2]."
        )
    if bag.source.weights not in WEIGHTS:
        raise ValueError(f"weights '{bag.source.weights}' is none of {', '.join(WEIGHTS)}.")


def _root_attributes(source: BagSource, n_tiles: int) -> dict[str, Any]:
    """Everything of `source`, so that reading back needs no other attributes, which are for other tools."""
    return {"kind": KIND, "format_version": FORMAT_VERSION, "n_tiles": n_tiles, **asdict(source)}


def _features_attributes(source: BagSource) -> dict[str, Any]:
    return {"name": source.slide_id, "savetodir": source.savetodir, "encoder": source.encoder}


def _coords_attributes(source: BagSource) -> dict[str, Any]:
    """Other tools expect whole numbers here; the exact values stand beside them, one per axis."""
    magnification = source.magnification
    return {
        "patch_size": source.size_px,
        "patch_size_level0": round(sum(source.size_level0_px) / 2),
        "level0_magnification": source.level0_magnification,
        "target_magnification": int(magnification) if magnification == int(magnification) else magnification,
        "overlap": source.overlap,
        "name": source.slide_id,
        "savetodir": source.savetodir,
        "level0_width": source.level0_size_px[0],
        "level0_height": source.level0_size_px[1],
        "um_per_px": source.um_per_px,
        "achieved_um_per_px": source.achieved_um_per_px,
        "level0_um_per_px": source.level0_um_per_px,
    }


def read_bag(path: str | Path) -> Bag:
    """Read a bag. Raises FormatError for a missing, damaged or foreign file or an unknown version."""
    try:
        with h5py.File(path, "r") as file:
            source, n_tiles = _read_source(path, file)
            arrays = {name: file[name][()] for name in ("coords", *_COLUMNS)}
            bag = Bag(features=file["features"][()].astype(np.float32, copy=False), source=source, **arrays)
        _check(bag)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error
    if len(bag.features) != n_tiles:
        raise _damaged(path, f"{len(bag.features)} rows, expected {n_tiles}")
    return bag


def read_source(path: str | Path) -> tuple[BagSource, int]:
    """What a bag was made from and its number of tiles, without the features. Raises as `read_bag`."""
    try:
        with h5py.File(path, "r") as file:
            source, n_tiles = _read_source(path, file)
            lengths = {
                len(file[name]) for name in ("features", "coords", "cell", "parent", "tissue_fraction")
            }
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error
    if lengths != {n_tiles}:
        raise _damaged(path, f"{sorted(lengths)} rows, expected {n_tiles}")
    return source, n_tiles


def _read_source(path: str | Path, file: h5py.File) -> tuple[BagSource, int]:
    attributes = dict(file.attrs)
    check_version(path, KIND, FORMAT_VERSION, attributes.get("kind"), attributes.get("format_version"))
    values = {}
    for field in fields(BagSource):
        value = attributes[field.name]
        if isinstance(value, np.ndarray):
            value = tuple(value.tolist())
        values[field.name] = value.item() if isinstance(value, np.generic) else value
    return BagSource(**values), int(attributes["n_tiles"])


def _damaged(path: str | Path, problem: object) -> FormatError:
    """Errors that already explain themselves pass unchanged."""
    if isinstance(problem, FormatError):
        return problem
    return FormatError(
        f"{path}: not readable as a feature file ({problem}). Fix: delete it and rerun its stage."
    )


def verify_bag(path: str | Path, digest: str) -> BagSource | None:
    """The source of a finished bag made from exactly `digest`, every row present and finite; else None.

    Reads every chunk (their checksums are verified on the way) and holds no more than one of them.
    """
    try:
        source, n_tiles = read_source(path)
        if source.digest != digest:
            return None
        with h5py.File(path, "r") as file:
            stored = file["features"]
            for start in range(0, n_tiles, CHUNK_ROWS):
                if not np.isfinite(stored[start : start + CHUNK_ROWS]).all():
                    return None
            for name in ("coords", *_COLUMNS):
                file[name][()]
    except (FormatError, OSError, KeyError):
        return None
    return source


def write_index(path: str | Path, records: Iterable[BagRecord]) -> None:
    """Write the index of one encoder. Bag paths are stored relative to the index's own folder."""
    folder = Path(path).resolve().parent
    ordered = sorted(records, key=lambda record: (record.slide_id, -record.magnification))
    rows = [{**asdict(r), "path": Path(r.path).resolve().relative_to(folder).as_posix()} for r in ordered]
    for row in rows:
        row["magnification"] = f"{row['magnification']:g}"
    write_table(path, [field.name for field in fields(BagRecord)], rows)


def read_index(path: str | Path) -> list[BagRecord]:
    """Read the index: sorted by slide_id, then finest magnification first; paths joined to its folder."""
    records = []
    for row in read_table(path, [field.name for field in fields(BagRecord)]):
        try:
            numbers = {key: float(row[key]) for key in ("magnification", "um_per_px")}
            n_tiles = int(row["n_tiles"])
        except ValueError as error:
            raise FormatError(f"{path}: {error}. Fix: delete it and rerun its stage.") from error
        place = Path(path).parent / row["path"]
        records.append(BagRecord(**{**row, **numbers, "path": place, "n_tiles": n_tiles}))
    return records
