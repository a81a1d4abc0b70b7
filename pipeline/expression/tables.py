"""Read expression tables of every usual shape into one: values, row ids, column ids, gene annotations."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pipeline.contracts.errors import InputError
from pipeline.expression.barcodes import case_of
from pipeline.expression.gdc import SHEET, TABLE_ENDINGS, folder_files, sheet_samples
from pipeline.expression.raw_table import ANNOTATIONS, RawTable
from pipeline.expression.text_tables import read_text, text_columns, text_rows, texts_of

FIRST_ROWS = 200  #: where none of so many row ids is a case and a column is one, rows are taken for genes


def read_raw(path: str | Path, star_column: str = "unstranded") -> RawTable:
    """Read a TSV, CSV (gzip too) or h5ad file, or a folder of single-sample STAR files.

    The files of a folder may lie in subfolders. They must be named by case or sample barcode (up to the first dot), or
    the folder must hold GDC's sample sheet, which names the sample of each file: see `gdc.sheet_samples`.

    Raises InputError for a missing, empty or ragged file and for a table without numbers.
    """
    path = _existing(path)
    if path.is_dir():
        return _read_folder(path, star_column)
    return _read_h5ad(path) if path.suffix == ".h5ad" else read_text(path, star_column)


def read_ids(path: str | Path, star_column: str, cases: Iterable[str]) -> tuple[list[str], list[str]]:
    """Row and column ids of a table, without its values.

    Of a text table whose columns hold cases and whose first rows do not, only those rows are read.

    Raises InputError as `read_raw` does for a file that is missing or has no head of a table.
    """
    path = _existing(path)
    if path.is_dir():
        files, samples = _folder_samples(path)
        return text_rows(files[0], FIRST_ROWS), samples
    if path.suffix == ".h5ad":
        table = _open_h5ad(path, backed=True)
        return list(map(str, table.var_names)), list(map(str, table.obs_names))
    known = frozenset(cases)
    rows, columns = text_rows(path, FIRST_ROWS), text_columns(path, star_column)
    across = any(case_of(name, known) is not None for name in columns)
    if across and not any(case_of(name, known) is not None for name in rows):
        return rows, columns
    return text_rows(path), columns


def _existing(path: str | Path) -> Path:
    if not Path(path).exists():
        raise InputError(
            str(path), "the file does not exist.", "correct inputs.expression in config.yaml, or create it."
        )
    return Path(path)


def _folder_samples(path: Path) -> tuple[list[Path], list[str]]:
    """The tables of a folder, and the sample of each."""
    files = folder_files(path, TABLE_ENDINGS)
    if not files:
        raise InputError(
            str(path),
            "the folder and its subfolders hold no table (.tsv, .csv, .txt, .counts, gzip too).",
            f"give one file per sample, named by case or sample barcode, or with GDC's sample sheet ({SHEET}) beside.",
        )
    return files, sheet_samples(path, files) or [file.name.split(".")[0] for file in files]


def _read_folder(path: Path, star_column: str) -> RawTable:
    files, samples = _folder_samples(path)
    first = read_text(files[0], star_column)
    values = np.empty((len(files), len(first.rows)), dtype=np.float32)
    bad = {}
    for column, file in enumerate(files):
        table = read_text(file, star_column) if column else first
        if len(table.columns) != 1 or table.rows != first.rows:
            raise InputError(
                table.path,
                f"a folder must hold STAR files of one sample each with the genes of {files[0].name}.",
                "give one table of all samples instead.",
            )
        values[column] = table.values[:, 0]
        if table.bad_cells:
            bad[column] = table.bad_cells[0]
    return RawTable(str(path), values.T, first.rows, samples, first.annotations, bad, first.unit)


def _read_h5ad(path: Path) -> RawTable:
    from pipeline.contracts.expression import KIND

    table = _open_h5ad(path)
    ours = table.uns.get("kind") == KIND  # our own artefact: begin again from its raw values
    matrix = table.layers["raw"] if ours else table.X
    if matrix is None:
        raise InputError(str(path), "the AnnData file has no X.", "store the expression values in X.")
    dense = matrix.toarray() if hasattr(matrix, "toarray") else np.asarray(matrix)
    annotations = {str(name).casefold(): texts_of(table.var[name]) for name in table.var.columns}
    annotations = {name: text for name, text in annotations.items() if name in ANNOTATIONS or name == "gene_ids"}
    return RawTable(
        str(path),
        np.ascontiguousarray(dense, dtype=np.float32).T,
        list(map(str, table.var_names)),
        list(map(str, table.obs_names)),
        annotations,
        unit=str(table.uns["unit"]) if ours else "",
    )


def _open_h5ad(path: Path, backed: bool = False):
    import anndata  # a second to load, for this one format

    try:
        return anndata.read_h5ad(path, backed="r" if backed else None)
    except Exception as error:  # h5py and anndata raise many types for a damaged file
        raise InputError(str(path), f"not readable as h5ad ({error}).", "give an intact AnnData file.") from error
