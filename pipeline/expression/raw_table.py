"""An expression table as it was found, before anything is known of its rows and columns."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

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


@dataclass
class RawTable:
    """Rows and columns not yet known to be genes or samples.

    Parameters
    ----------
    path : the file, for messages
    values : float32 [rows, columns], NaN where a cell is empty or no number; columns of a text table lie together in
        memory
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

    def transposed(self) -> RawTable:
        """The same table with rows and columns exchanged. Annotations of the rows are lost."""
        by_row: dict[int, tuple[int, str]] = {}
        for column, (row, text) in self.bad_cells.items():
            by_row.setdefault(row, (column, text))
        return RawTable(self.path, self.values.T, self.columns, self.rows, {}, by_row, self.unit)
