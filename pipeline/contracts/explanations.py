"""Tables of ``histoweave explain`` (standard library only); ``index.tsv`` in the folder is their only list.

- ``index.tsv``: a row per case: the fold whose model held it out, the output that was explained, its `value`, its
  value at the `baseline`, the `residual` (sum of all attributions less value - baseline), what the case lacks though
  the model can read it, its files, and `reason`: why it was not explained, or what of it could not be drawn;
- ``{case_id}/genes.tsv``: a row per gene, the largest attribution first: groups that hold it, the standardised value
  that the model saw, attribution;
- ``{case_id}/{slide_id}_{magnification}x.tsv``: a row per tile, by row and column of the slide's lattice: upper-left
  corner (x, y) in level-0 pixels, ``attention_{map}`` per attention map, attribution;
- ``{case_id}/{slide_id}_{magnification}x.png``: the tiles on the slide's thumbnail.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.contracts.errors import FormatError
from pipeline.contracts.files import check_version, read_table, write_table

KIND = "explanations"
FORMAT_VERSION = 1
INDEX = "index.tsv"
ATTENTION = "attention_"  #: before the name of a map, in the columns of a table of tiles
GENE_COLUMNS = ("gene", "groups", "value", "attribution")
PLACE_COLUMNS = ("x", "y", "column", "row")


@dataclass(frozen=True)
class ExplainedCase:
    """One row of the index. A case without `files` was not explained, and `reason` says why; numbers are then None.

    `files` are relative to the index's folder.
    """

    case_id: str
    fold: int | None = None
    output: str = ""
    value: float | None = None
    baseline: float | None = None
    residual: float | None = None
    lacking: str = ""
    files: tuple[str, ...] = ()
    reason: str = ""
    checkpoint: str = ""


_COLUMNS = [f.name for f in fields(ExplainedCase)]


def genes_file(case_id: str) -> str:
    return f"{case_id}/genes.tsv"


def tiles_file(case_id: str, slide_id: str, magnification: float, suffix: str = "tsv") -> str:
    return f"{case_id}/{slide_id}_{magnification:g}x.{suffix}"


def write_genes_table(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows of `GENE_COLUMNS`, in any order."""
    write_table(path, GENE_COLUMNS, sorted(rows, key=lambda row: (-abs(row["attribution"]), row["gene"])))


def write_tiles_table(path: str | Path, maps: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows of `PLACE_COLUMNS`, a column per attention map, and ``attribution``."""
    write_table(path, [*PLACE_COLUMNS, *(f"{ATTENTION}{name}" for name in maps), "attribution"], rows)


def write_index(path: str | Path, rows: Iterable[ExplainedCase]) -> None:
    """Sorted by case."""
    ordered = sorted(rows, key=lambda row: row.case_id)
    table = [{**asdict(row), "files": " ".join(row.files), "format_version": FORMAT_VERSION} for row in ordered]
    write_table(path, [*_COLUMNS, "format_version"], table)


def read_index(path: str | Path) -> list[ExplainedCase]:
    """Raises FormatError for an unknown version or a field that is no number."""
    rows = []
    for record in read_table(path, [*_COLUMNS, "format_version"]):
        check_version(path, KIND, FORMAT_VERSION, KIND, int(record.pop("format_version") or 0))
        try:
            row = ExplainedCase(
                record["case_id"],
                int(record["fold"]) if record["fold"] else None,
                record["output"],
                _number(record["value"]),
                _number(record["baseline"]),
                _number(record["residual"]),
                record["lacking"],
                tuple(record["files"].split()),
                record["reason"],
                record["checkpoint"],
            )
        except ValueError as error:
            raise FormatError(f"{path}: {error}. Fix: run histoweave explain again.") from error
        rows.append(row)
    return rows


def _number(text: str) -> float | None:
    return float(text) if text else None
