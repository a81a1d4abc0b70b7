"""Which cases the expression tables have samples of, for the cohort report before any compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.contracts.expression_tables import TableSource, table_sources
from pipeline.expression.barcodes import match_samples
from pipeline.expression.case_table import EXAMPLES
from pipeline.expression.orientation import GENES_IN_ROWS, find_orientation
from pipeline.expression.params import ExpressionParams
from pipeline.expression.tables import read_ids
from pipeline.signatures import builtin_symbols


def table_cases(tables: Any, params: ExpressionParams, cases: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The cases with a tumour sample, and (table, remark) on samples that were left out or compete for one case.

    Reads the ids of a table, not its values. Raises InputError as `prepare_expression` does for a table that cannot be
    read or matches no case.
    """
    found: set[str] = set()
    remarks = []
    for source in table_sources(tables):
        columns, said = _source_cases(source, params, cases)
        found.update(columns)
        remarks += [(source.name, remark) for remark in said if remark]
    return sorted(found), remarks


def _source_cases(source: TableSource, params: ExpressionParams, cases: Sequence[str]) -> tuple[list[str], list[str]]:
    rows, columns = read_ids(source.path, params.star_column, cases)
    way = find_orientation(rows, columns, cases, builtin_symbols(), params.orientation, source.path)
    match = match_samples(columns if way == GENES_IN_ROWS else rows, cases)
    several = [case for case, chosen in match.columns.items() if len(chosen) > 1]
    remarks = [
        _remark(match.unmatched, "samples belong to no case of the sheet"),
        _remark(match.normal, "samples are normal tissue and are left out"),
        _remark(several, f"cases have several samples (rule: {params.aliquots})"),
    ]
    return list(match.columns), remarks


def _remark(names: Sequence[str], text: str) -> str:
    shown = ", ".join(names[:EXAMPLES]) + (", ..." if len(names) > EXAMPLES else "")
    return f"{len(names)} {text}: {shown}" if names else ""
