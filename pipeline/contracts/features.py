"""Feature bags: one HDF5 file per slide, encoder and magnification, and the index that is their only list.

The file is a superset of the layout that TRIDENT writes, so tools made for that layout read it as it is:

========================  =================================================================================
``features``  [N, D]      float32 (float16 on request), in chunks of up to 256 rows, each with a checksum
``coords``  [N, 2] int64  upper-left corner (x, y) of each tile, level-0 pixels
``cell``  [N, 2] int32    (column, row) on the magnification's grid
``parent``  [N] int64     row of the next coarser file of the same slide and encoder, -1 where there is none
``tissue_fraction``  [N]  float32, NaN in imported bags
``failed_cells``  [F, 2]  int32, (column, row) of tiles that could not be read and so have no row
========================  =================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from pipeline.contracts.encoders import IMPORTED
from pipeline.contracts.errors import FormatError, SlideError
from pipeline.contracts.files import check_version, read_table, whole_file, write_table

KIND = "features"
FORMAT_VERSION = 1
CHUNK_ROWS = 256
WEIGHTS = ("pretrained", "file", "random")


@dataclass(frozen=True)
class BagSource:
    """What a bag was made from. Pairs are (x, y).

    `um_per_px` is what the magnification asks for (10 / magnification), `achieved_um_per_px` what the tiles
    have, `level0_um_per_px` the slide's, `source_um_per_px` the stored level's that they were read from (empty
    if that is not known). `savetodir` is the folder relative to ``results/``, so that a file is the same wherever
    the results lie. `weights` is one of `WEIGHTS` or `IMPORTED`; `stain` the normalisation of the tiles. For an
    imported bag it is "unknown", `weights_digest` is empty and `level0_size_px` may be (0, 0).
    `slide_magnifications` are those of all the slide's files, so that a missing sibling is noticed. `digest` is of
    everything the file comes from, its siblings included; `rows_digest` of what decides the features and their order
    (empty if that is not known): where it is unchanged, tiles need not be encoded anew.
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
    slide_magnifications: tuple[float, ...] = ()
    source_um_per_px: tuple[float, ...] = ()
    rows_digest: str = ""


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
class BagSummary:
    """A feature file without its arrays; `n_failed` tiles of its grid could not be read."""

    source: BagSource
    n_tiles: int
    n_failed: int


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


class BagWriter:
    """Writes one bag as it grows: only `CHUNK_ROWS` rows of features are held, however large the slide.

    A context manager. `append` features in order, then `finish` with the other columns; the file appears under its
    name when the context ends well, and not at all otherwise.

    Parameters
    ----------
    path : the file
    source : what the bag is made from
    most : upper bound of the number of rows, such as the tiles of the grid
    dtype : of ``features`` on disk, float32 or float16
    """

    def __init__(self, path: str | Path, source: BagSource, most: int, dtype: str = "float32") -> None:
        if source.weights not in (*WEIGHTS, IMPORTED):
            raise ValueError(f"weights '{source.weights}' is none of {', '.join(WEIGHTS)}, {IMPORTED}.")
        self._source, self._most, self._dtype = source, most, np.dtype(dtype)
        self._waiting: list[np.ndarray] = []
        self._n_written = self._n_appended = 0
        self._finished = False
        self._stack = ExitStack()
        self._path = path

    def __enter__(self) -> BagWriter:
        part = self._stack.enter_context(whole_file(self._path))
        self._file = self._stack.enter_context(h5py.File(part, "w", track_order=False))
        return self

    def append(self, features: np.ndarray) -> None:
        """Add rows [B, D]. Raises SlideError for a value that is not finite in the file's type."""
        with np.errstate(over="ignore"):
            stored = features.astype(self._dtype)
        if not np.isfinite(stored).all():
            raise SlideError(
                f"{self._source.slide_id}: features are not finite as {self._dtype.name}."
                " Fix: float32 for embedding.dtype and embedding.precision."
            )
        self._waiting.append(stored)
        self._n_appended += len(stored)
        if sum(map(len, self._waiting)) >= CHUNK_ROWS:
            rows = np.concatenate(self._waiting)
            whole = len(rows) // CHUNK_ROWS * CHUNK_ROWS
            for start in range(0, whole, CHUNK_ROWS):  # one by one: the file's bytes do not depend on who appends
                self._write(rows[start : start + CHUNK_ROWS])
            self._waiting = [rows[whole:]]

    def _write(self, rows: np.ndarray) -> None:
        if "features" not in self._file:
            n, width = min(max(self._most, len(rows), 1), CHUNK_ROWS), rows.shape[1]
            stored = self._file.create_dataset(
                "features", (0, width), self._dtype, chunks=(n, width), maxshape=(None, width), fletcher32=True,
                track_times=False,
            )  # fmt: skip
            for key, value in _features_attributes(self._source).items():
                stored.attrs[key] = value
        end = self._n_written + len(rows)
        self._file["features"].resize(end, axis=0)
        self._file["features"][self._n_written : end] = rows
        self._n_written = end

    def finish(
        self,
        coords: np.ndarray,
        cell: np.ndarray,
        parent: np.ndarray,
        tissue_fraction: np.ndarray,
        failed_cells: np.ndarray,
        width: int | None = None,
    ) -> None:
        """Write the other columns (see the module's table). `width` is D where no row was appended.

        Raises ValueError for columns of other lengths than the features.
        """
        if width is not None:
            self._waiting.append(np.empty((0, width), self._dtype))
        columns = {"coords": coords, "cell": cell, "parent": parent, "tissue_fraction": tissue_fraction}
        _check_columns(self._n_appended, columns, failed_cells)
        self._write(np.concatenate(self._waiting))
        for key, value in _root_attributes(self._source, self._n_written).items():
            self._file.attrs[key] = value
        for name, values in {**columns, "failed_cells": failed_cells}.items():
            self._file.create_dataset(name, data=values.astype(_COLUMNS[name]), track_times=False)
        for key, value in coords_attributes(self._source).items():
            self._file["coords"].attrs[key] = value
        self._finished = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and not self._finished:
            error = RuntimeError(f"{self._path}: a bag was left without `finish`.")
            self._stack.__exit__(RuntimeError, error, None)
            raise error
        self._stack.__exit__(kind, error, trace)


def write_bag(path: str | Path, bag: Bag, dtype: str = "float32") -> None:
    """Write a bag that is in memory whole. `dtype` is that of ``features`` on disk: float32 or float16.

    Raises ValueError for columns that do not fit each other, SlideError for a feature that is not finite: such a file
    must not exist, since later stages trust every file under a final name.
    """
    with BagWriter(path, bag.source, len(bag.features), dtype) as writer:
        writer.append(bag.features)
        writer.finish(bag.coords, bag.cell, bag.parent, bag.tissue_fraction, bag.failed_cells)


_COLUMNS = {
    "coords": np.int64,
    "cell": np.int32,
    "parent": np.int64,
    "tissue_fraction": np.float32,
    "failed_cells": np.int32,
}


def _check_columns(n: int, columns: dict[str, np.ndarray], failed_cells: np.ndarray) -> None:
    expected = {"coords": (n, 2), "cell": (n, 2), "parent": (n,), "tissue_fraction": (n,)}
    for name, shape in expected.items():
        if columns[name].shape != shape:
            raise ValueError(f"{name} has shape {columns[name].shape}, expected {shape}.")
    if failed_cells.ndim != 2 or failed_cells.shape[1] != 2:
        raise ValueError(f"failed_cells has shape {failed_cells.shape}, expected [F, 2].")


def _root_attributes(source: BagSource, n_tiles: int) -> dict[str, Any]:
    """Everything of `source`, so that reading back needs no other attributes, which are for other tools."""
    return {"kind": KIND, "format_version": FORMAT_VERSION, "n_tiles": n_tiles, **asdict(source)}


def _features_attributes(source: BagSource) -> dict[str, Any]:
    return {"name": source.slide_id, "savetodir": source.savetodir, "encoder": source.encoder}


def coords_attributes(source: BagSource) -> dict[str, Any]:
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
            arrays = {name: file[name][()] for name in _COLUMNS}
            bag = Bag(features=file["features"][()].astype(np.float32, copy=False), source=source, **arrays)
        columns = {name: arrays[name] for name in ("coords", "cell", "parent", "tissue_fraction")}
        _check_columns(len(bag.features), columns, bag.failed_cells)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _damaged(path, error) from error
    if len(bag.features) != n_tiles:
        raise _damaged(path, f"{len(bag.features)} rows, expected {n_tiles}")
    return bag


def read_cells(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """``cell`` and ``failed_cells`` (int32, (column, row) each) of a bag. Raises as `read_bag`."""
    try:
        with h5py.File(path, "r") as file:
            _read_source(path, file)
            return file["cell"][()], file["failed_cells"][()]
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _damaged(path, error) from error


def read_summary(path: str | Path) -> BagSummary:
    """What a bag was made from and its number of tiles, without the features. Raises as `read_bag`."""
    try:
        with h5py.File(path, "r") as file:
            source, n_tiles = _read_source(path, file)
            lengths = {len(file[name]) for name in ("features", *_COLUMNS) if name != "failed_cells"}
            n_failed = len(file["failed_cells"])
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _damaged(path, error) from error
    if lengths != {n_tiles}:
        raise _damaged(path, f"{sorted(lengths)} rows, expected {n_tiles}")
    return BagSummary(source, n_tiles, n_failed)


def _read_source(path: str | Path, file: h5py.File) -> tuple[BagSource, int]:
    attributes = dict(file.attrs)
    check_version(path, KIND, FORMAT_VERSION, attributes.get("kind"), attributes.get("format_version"))
    values = {}
    for field in fields(BagSource):
        if field.name not in attributes:
            continue  # those without a default are missed below
        value = attributes[field.name]
        if isinstance(value, np.ndarray):
            value = tuple(value.tolist())
        values[field.name] = value.item() if isinstance(value, np.generic) else value
    return BagSource(**values), int(attributes["n_tiles"])


def _damaged(path: str | Path, problem: object) -> FormatError:
    """Errors that already explain themselves pass unchanged."""
    if isinstance(problem, FormatError):
        return problem
    return FormatError(f"{path}: not readable as a feature file ({problem}). Fix: delete it and rerun its stage.")


def feature_chunks(path: str | Path) -> Iterator[np.ndarray]:
    """The features of a bag as they are stored, `CHUNK_ROWS` rows at a time. Raises as h5py."""
    with h5py.File(path, "r") as file:
        stored = file["features"]
        for start in range(0, len(stored), CHUNK_ROWS):
            yield stored[start : start + CHUNK_ROWS]


def verify_bag(path: str | Path, digest: str, name: str = "digest") -> BagSummary | None:
    """A finished bag that was made from exactly `digest`, every row present and finite; else None.

    Reads every chunk (their checksums are verified on the way) and holds no more than one of them. `name` is that of
    the digest: ``digest`` or ``rows_digest``.
    """
    try:
        summary = read_summary(path)
        if getattr(summary.source, name) != digest:
            return None
        if not all(np.isfinite(chunk).all() for chunk in feature_chunks(path)):
            return None
        with h5py.File(path, "r") as file:
            for column in _COLUMNS:
                file[column][()]
    except (FormatError, OSError, KeyError, RuntimeError):
        return None
    return summary


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
            record = BagRecord(
                slide_id=row["slide_id"],
                case_id=row["case_id"],
                magnification=float(row["magnification"]),
                path=Path(path).parent / row["path"],
                n_tiles=int(row["n_tiles"]),
                um_per_px=float(row["um_per_px"]),
                digest=row["digest"],
                weights=row["weights"],
            )
        except ValueError as error:
            raise FormatError(f"{path}: {error}. Fix: delete it and rerun its stage.") from error
        records.append(record)
    return records
