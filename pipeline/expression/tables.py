"""Read expression tables of every usual shape into one: values, row ids, column ids, gene annotations."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.contracts.errors import InputError
from pipeline.expression.gdc import SHEET, folder_files, sheet_samples

#: columns that describe genes (or rows) and hold no sample, by lower-case name
ANNOTATIONS = frozenset(
    {
        "gene_id", "gene_name", "gene_type", "gene", "symbol", "gene_symbol", "hugo_symbol", "ensembl", "ensembl_id",
        "ensembl_gene_id", "entrez_gene_id", "entrezid", "entrez_id", "entrez", "description", "gene_description",
        "gene_biotype", "biotype", "chromosome", "chrom", "chr", "start", "end", "strand", "length", "transcript_id(s)",
        "transcript_ids",
    }
)  # fmt: skip
SYMBOL_COLUMNS = ("gene_name", "symbol", "gene_symbol", "hugo_symbol", "gene")
ENSEMBL_COLUMNS = ("ensembl", "ensembl_id", "ensembl_gene_id", "gene_id", "gene_ids")
STAR_COLUMNS = (
    "unstranded", "stranded_first", "stranded_second", "tpm_unstranded", "fpkm_unstranded", "fpkm_uq_unstranded",
)  # fmt: skip
STAR_UNITS = {"tpm_unstranded": "tpm", "fpkm_unstranded": "fpkm", "fpkm_uq_unstranded": "fpkm"}
TABLE_ENDINGS = (".tsv", ".csv", ".txt", ".tsv.gz", ".csv.gz", ".txt.gz", ".counts", ".counts.gz")


@dataclass
class RawTable:
    """A table as it was found: rows and columns not yet known to be genes or samples.

    Parameters
    ----------
    path : the file, for messages
    values : float64 [rows, columns], NaN where a cell is empty or no number
    rows, columns : ids as they are written
    annotations : lower-case name of a descriptive column -> its text for every row
    bad_cells : column -> (row, text) of its first cell that is no number
    unit : the unit that the file itself declares, "" for most
    """

    path: str
    values: np.ndarray
    rows: list[str]
    columns: list[str]
    annotations: dict[str, list[str]] = field(default_factory=dict)
    bad_cells: dict[int, tuple[int, str]] = field(default_factory=dict)
    unit: str = ""


def read_raw(path: str | Path, star_column: str = "unstranded") -> RawTable:
    """Read a TSV, CSV (gzip too) or h5ad file, or a folder of single-sample STAR files.

    The files of a folder may lie in subfolders. They must be named by case or sample barcode (up to the first dot), or
    the folder must hold GDC's sample sheet, which names the sample of each file: see `gdc.sheet_samples`.

    Raises InputError for a missing, empty or ragged file and for a table without numbers.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(
            str(path), "the file does not exist.", "correct inputs.expression in config.yaml, or create it."
        )
    if path.is_dir():
        return _read_folder(path, star_column)
    return _read_h5ad(path) if path.suffix == ".h5ad" else _read_text(path, star_column)


def _read_text(path: Path, star_column: str) -> RawTable:
    with _opened(path) as handle:
        try:
            header, delimiter = _header(handle, path)
            body = handle.read()
        except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, OSError) as error:
            raise InputError(
                str(path), f"not readable as text ({error}).", "give an intact UTF-8 TSV or CSV."
            ) from error
    first = next(csv.reader(io.StringIO(body[: body.find("\n") + 1] or body), delimiter=delimiter), [])
    if not first:
        raise InputError(str(path), "the table has a header and no rows.", "give genes and samples.")
    if len(first) == len(header) + 1:  # R's write.table names no row-id column
        header = ["id", *header]
    if len(first) != len(header):
        raise InputError(
            f"{path} first row after the header",
            f"{len(first)} fields under {len(header)} column names.",
            "give every row one field per column.",
        )
    try:
        frame = pd.read_csv(
            io.StringIO(body), sep=delimiter, header=None, names=range(len(header)), dtype={0: str}, low_memory=False
        )  # fmt: skip
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(
            str(path), f"not a rectangular table ({error}).", "give every row one field per column."
        ) from error
    return _from_frame(path, frame, header, star_column)


def _opened(path: Path) -> io.TextIOWrapper:
    with open(path, "rb") as handle:
        packed = handle.read(2) == b"\x1f\x8b"
    return io.TextIOWrapper(
        gzip.open(path, "rb") if packed else open(path, "rb"),  # type: ignore[arg-type]
        encoding="utf-8-sig",
    )


def _header(handle: io.TextIOWrapper, path: Path) -> tuple[list[str], str]:
    """Names of the columns and the delimiter; comment lines such as GDC's ``# gene-model`` are skipped."""
    line = handle.readline()
    while line and (line.startswith("# ") or not line.strip()):
        line = handle.readline()
    if not line.strip():
        raise InputError(str(path), "the file is empty.", "give a table of genes and samples.")
    delimiter = "\t" if "\t" in line else ","
    names = [name.strip() for name in next(csv.reader([line.rstrip("\r\n")], delimiter=delimiter))]
    if len(names) < 2:
        raise InputError(
            str(path),
            f"the header '{line.strip()[:60]}' holds one column only.",
            "separate columns by tabs or commas.",
        )
    return names, delimiter


def _from_frame(path: Path, frame: pd.DataFrame, header: list[str], star_column: str) -> RawTable:
    keys = [name.casefold() for name in header]
    rows = frame[0].fillna("").str.strip().tolist()
    star = "unstranded" in keys and "gene_id" in keys
    annotations = {keys[0]: rows}
    chosen: list[int] = []
    for position in range(1, len(header)):
        if keys[position] in ANNOTATIONS:
            annotations[keys[position]] = _text(frame[position])
        elif not star or header[position] == star_column:
            chosen.append(position)
    if star and not chosen:
        raise InputError(str(path), f"a STAR table without column '{star_column}'.", "set expression.star_column.")
    if not chosen:
        raise InputError(str(path), "the table has no column of values.", "give a column per sample (or per gene).")
    numbers, bad_cells = _numbers(frame, chosen)
    columns = [path.name.split(".")[0]] if star else [header[position] for position in chosen]
    unit = STAR_UNITS.get(star_column, "counts") if star else ""
    return RawTable(str(path), numbers, rows, columns, annotations, bad_cells, unit)


def _text(column: pd.Series) -> list[str]:
    return ["" if pd.isna(value) else str(value).strip() for value in column]


def _numbers(frame: pd.DataFrame, chosen: Sequence[int]) -> tuple[np.ndarray, dict[int, tuple[int, str]]]:
    values = np.empty((len(frame), len(chosen)))
    dtypes = frame.dtypes.tolist()
    kinds = np.array([dtypes[position].kind for position in chosen])
    plain = np.flatnonzero(np.isin(kinds, list("iuf"))).tolist()
    values[:, plain] = frame[[chosen[column] for column in plain]].to_numpy(dtype=np.float64)
    bad_cells: dict[int, tuple[int, str]] = {}
    for column in np.flatnonzero(~np.isin(kinds, list("iuf"))).tolist():
        text = frame[chosen[column]].map(str, na_action="ignore")
        values[:, column] = pd.to_numeric(text, errors="coerce").astype(np.float64)
        wrong = np.flatnonzero(np.isnan(values[:, column]) & text.notna().to_numpy())
        if len(wrong):
            bad_cells[column] = (int(wrong[0]), str(text.iloc[wrong[0]]))
    return values, bad_cells


def _read_folder(path: Path, star_column: str) -> RawTable:
    files = folder_files(path, TABLE_ENDINGS)
    if not files:
        raise InputError(
            str(path),
            "the folder and its subfolders hold no table (.tsv, .csv, .txt, .counts, gzip too).",
            f"give one file per sample, named by case or sample barcode, or with GDC's sample sheet ({SHEET}) beside.",
        )
    samples = sheet_samples(path, files)
    tables = [_read_text(file, star_column) for file in files]
    for table in tables:
        if len(table.columns) != 1 or table.rows != tables[0].rows:
            raise InputError(
                table.path,
                f"a folder must hold STAR files of one sample each with the genes of {files[0].name}.",
                "give one table of all samples instead.",
            )
    first = tables[0]
    bad = {column: table.bad_cells[0] for column, table in enumerate(tables) if table.bad_cells}
    values = np.concatenate([table.values for table in tables], axis=1)
    names = samples or [table.columns[0] for table in tables]
    return RawTable(str(path), values, first.rows, names, first.annotations, bad, first.unit)


def _read_h5ad(path: Path) -> RawTable:
    import anndata  # a second to load, for this one format

    from pipeline.contracts.expression import KIND

    try:
        table = anndata.read_h5ad(path)
    except Exception as error:  # h5py and anndata raise many types for a damaged file
        raise InputError(str(path), f"not readable as h5ad ({error}).", "give an intact AnnData file.") from error
    ours = table.uns.get("kind") == KIND  # our own artefact: begin again from its raw values
    matrix = table.layers["raw"] if ours else table.X
    if matrix is None:
        raise InputError(str(path), "the AnnData file has no X.", "store the expression values in X.")
    dense = matrix.toarray() if hasattr(matrix, "toarray") else np.asarray(matrix)
    annotations = {str(name).casefold(): _text(table.var[name]) for name in table.var.columns}
    annotations = {name: text for name, text in annotations.items() if name in ANNOTATIONS or name == "gene_ids"}
    return RawTable(
        str(path),
        np.ascontiguousarray(dense.T, dtype=np.float64),
        list(map(str, table.var_names)),
        list(map(str, table.obs_names)),
        annotations,
        unit=str(table.uns["unit"]) if ours else "",
    )
