"""Read TSV and CSV tables, gzip too: a regular one in blocks by Arrow, any other by pandas, which can say what is
wrong.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from pipeline.contracts.errors import InputError
from pipeline.expression.gdc import STAR_UNITS
from pipeline.expression.raw_table import ANNOTATIONS, RawTable

ROWS_PER_BLOCK = 256
BLOCK_BYTES = (2**22, 2**27)  #: smallest and largest block of text that Arrow parses at once
NOT_TEXT = (UnicodeDecodeError, gzip.BadGzipFile, EOFError, OSError)


@dataclass(frozen=True)
class _Layout:
    """The head of a table: column names, delimiter, lines before the first row, length of that row (bytes), and whether
    fields are quoted in the header or that row."""

    names: list[str]
    delimiter: str
    skip: int
    row_bytes: int
    quoted: bool
    star_column: str

    @property
    def keys(self) -> list[str]:
        return [name.casefold() for name in self.names]

    @property
    def star(self) -> bool:
        """Whether this is a GDC STAR file of one sample."""
        return "unstranded" in self.keys and "gene_id" in self.keys

    def described(self) -> list[int]:
        """Positions of the descriptive columns, the row ids not among them."""
        return [p for p, key in enumerate(self.keys) if p and key in ANNOTATIONS]

    def chosen(self, path: Path) -> list[int]:
        """Positions of the columns that hold values. Raises InputError where there is none."""
        described = {0, *self.described()}
        found = [p for p, name in enumerate(self.names) if p not in described]
        if not self.star:
            if not found:
                raise InputError(str(path), "the table has no column of values.", "give a column per sample (or gene).")
            return found
        found = [p for p in found if self.names[p] == self.star_column]
        if not found:
            raise InputError(
                str(path), f"a STAR table without column '{self.star_column}'.", "set expression.star_column."
            )
        return found


def read_text(path: Path, star_column: str) -> RawTable:
    """Read one table. Raises InputError for an empty, ragged or damaged file and for a table without numbers."""
    layout = _layout(path, star_column)
    chosen = layout.chosen(path)
    return _read_blocks(path, layout, chosen) or _read_whole(path, layout, chosen)


def text_columns(path: Path, star_column: str) -> list[str]:
    """Ids of the columns that hold values, by reading the head of the file only."""
    layout = _layout(path, star_column)
    return _column_names(path, layout, layout.chosen(path))


def text_rows(path: Path, limit: int | None = None) -> list[str]:
    """Ids of the first `limit` rows, or of all, without parsing their values."""
    layout = _layout(path, "")
    rows = []
    try:
        with _opened(path) as handle:
            for line in islice(handle, layout.skip, None if limit is None else layout.skip + limit):
                if line.strip():
                    rows.append(next(csv.reader([line[:4096]], delimiter=layout.delimiter))[0].strip())
    except NOT_TEXT as error:
        raise _not_text(path, error) from error
    return rows


def _opened(path: Path) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        gzip.open(path, "rb") if _packed(path) else open(path, "rb"),  # type: ignore[arg-type]
        encoding="utf-8-sig",
    )


def _packed(path: Path) -> bool:
    with open(path, "rb") as handle:
        return handle.read(2) == b"\x1f\x8b"


def _not_text(path: Path, error: Exception) -> InputError:
    return InputError(str(path), f"not readable as text ({error}).", "give an intact UTF-8 TSV or CSV.")


def _layout(path: Path, star_column: str) -> _Layout:
    """Comment lines such as GDC's ``# gene-model`` are skipped."""
    try:
        with _opened(path) as handle:
            skip, line = 1, handle.readline()
            while line and (line.startswith("# ") or not line.strip()):
                skip, line = skip + 1, handle.readline()
            second = handle.readline()
            while second and not second.strip():
                second = handle.readline()
    except NOT_TEXT as error:
        raise _not_text(path, error) from error
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
    first = next(csv.reader([second.rstrip("\r\n")], delimiter=delimiter), [])
    if not first:
        raise InputError(str(path), "the table has a header and no rows.", "give genes and samples.")
    if len(first) == len(names) + 1:  # R's write.table names no row-id column
        names = ["id", *names]
    if len(first) != len(names):
        raise InputError(
            f"{path} first row after the header",
            f"{len(first)} fields under {len(names)} column names.",
            "give every row one field per column.",
        )
    return _Layout(names, delimiter, skip, len(second), '"' in line + second, star_column)


def _column_names(path: Path, layout: _Layout, chosen: Sequence[int]) -> list[str]:
    return [path.name.split(".")[0]] if layout.star else [layout.names[position] for position in chosen]


def _table(path: Path, layout: _Layout, chosen: Sequence[int], values, rows, annotations, bad_cells=None) -> RawTable:
    unit = STAR_UNITS.get(layout.star_column, "counts") if layout.star else ""
    columns = _column_names(path, layout, chosen)
    return RawTable(str(path), values, rows, columns, annotations, bad_cells or {}, unit)


def _read_blocks(path: Path, layout: _Layout, chosen: Sequence[int]) -> RawTable | None:
    """None where Arrow finds a cell that is no number, a ragged row or a damaged file, or a quote only further down."""
    import pyarrow
    from pyarrow import csv as arrow_csv

    names = [str(position) for position in range(len(layout.names))]
    texts = [0, *layout.described()]
    types = {names[p]: pyarrow.string() for p in texts} | {names[p]: pyarrow.float32() for p in chosen}
    block = min(max(ROWS_PER_BLOCK * layout.row_bytes, BLOCK_BYTES[0]), BLOCK_BYTES[1])
    blocks: list[np.ndarray] = []
    found: list[list[str]] = [[] for _ in texts]
    try:
        with pyarrow.OSFile(str(path)) as file:
            stream = pyarrow.CompressedInputStream(file, "gzip") if _packed(path) else file
            reader = arrow_csv.open_csv(
                stream,
                read_options=arrow_csv.ReadOptions(
                    block_size=block, column_names=names, skip_rows=layout.skip, use_threads=False
                ),
                parse_options=arrow_csv.ParseOptions(
                    delimiter=layout.delimiter, quote_char='"' if layout.quoted else False
                ),
                convert_options=arrow_csv.ConvertOptions(
                    column_types=types, include_columns=[names[p] for p in (*texts, *chosen)], null_values=[""]
                ),
            )
            for batch in reader:
                for place, texts_of_column in enumerate(found):
                    texts_of_column += [text.strip() for text in batch.column(place).to_pylist()]
                numbers = batch.select(range(len(texts), batch.num_columns))
                blocks.append(numbers.to_tensor(null_to_nan=True, row_major=False).to_numpy().T)
    except (pyarrow.ArrowException, OSError):
        return None
    if not found[0] or (not layout.quoted and any('"' in text for column in found for text in column)):
        return None
    values = np.empty((len(chosen), len(found[0])), dtype=np.float32)
    place = values.shape[1]
    while blocks:  # from the last one on, each freed when it is copied
        part = blocks.pop()
        values[:, place - part.shape[1] : place] = part
        place -= part.shape[1]
    annotations = {layout.keys[p]: texts_of_column for p, texts_of_column in zip(texts, found, strict=True)}
    return _table(path, layout, chosen, values.T, found[0], annotations)


def _read_whole(path: Path, layout: _Layout, chosen: Sequence[int]) -> RawTable:
    import pandas as pd

    try:
        with _opened(path) as handle:
            frame = pd.read_csv(
                handle, sep=layout.delimiter, header=None, names=range(len(layout.names)), dtype={0: str},
                skiprows=layout.skip, low_memory=False, float_precision="round_trip",
            )  # fmt: skip
    except NOT_TEXT as error:
        raise _not_text(path, error) from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(
            str(path), f"not a rectangular table ({error}).", "give every row one field per column."
        ) from error
    rows = frame[0].fillna("").str.strip().tolist()
    annotations = {layout.keys[0]: rows} | {layout.keys[p]: texts_of(frame[p]) for p in layout.described()}
    values = np.empty((len(chosen), len(frame)), dtype=np.float32)
    bad_cells: dict[int, tuple[int, str]] = {}
    for column, position in enumerate(chosen):
        text = frame[position]
        if text.dtype.kind not in "iuf":
            text = text.map(str, na_action="ignore")
        with np.errstate(over="ignore"):
            values[column] = pd.to_numeric(text, errors="coerce").astype(np.float64)
        wrong = np.flatnonzero(np.isnan(values[column]) & text.notna().to_numpy())
        if len(wrong):
            bad_cells[column] = (int(wrong[0]), str(text.iloc[wrong[0]]))
    return _table(path, layout, chosen, values.T, rows, annotations, bad_cells)


def texts_of(column) -> list[str]:
    """The cells of a pandas column as text, "" for a missing one."""
    import pandas as pd

    return ["" if pd.isna(value) else str(value).strip() for value in column]
