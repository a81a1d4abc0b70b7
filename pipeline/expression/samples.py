"""Which cases an expression table has samples of, for the cohort report before any compute."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.expression.barcodes import match_samples
from pipeline.expression.orientation import GENES_IN_ROWS, find_orientation
from pipeline.expression.prepare import EXAMPLES, ExpressionParams
from pipeline.expression.tables import read_raw
from pipeline.signatures import builtin_symbols


def table_cases(path: str | Path, params: ExpressionParams, cases: Sequence[str]) -> tuple[list[str], list[str]]:
    """The cases with a tumour sample, and remarks on samples that were left out or compete for one case.

    Raises InputError as `prepare_expression` does for a table that cannot be read or matches no case.
    """
    raw = read_raw(path, params.star_column)
    way = find_orientation(raw.rows, raw.columns, cases, builtin_symbols(), params.orientation, raw.path)
    samples = raw.columns if way == GENES_IN_ROWS else raw.rows
    match = match_samples(samples, cases)
    several = [case for case, columns in match.columns.items() if len(columns) > 1]
    remarks = [
        _remark(match.unmatched, "samples belong to no case of the sheet"),
        _remark(match.normal, "samples are normal tissue and are left out"),
        _remark(several, f"cases have several samples (rule: {params.aliquots})"),
    ]
    return list(match.columns), [remark for remark in remarks if remark]


def _remark(names: Sequence[str], text: str) -> str:
    shown = ", ".join(names[:EXAMPLES]) + (", ..." if len(names) > EXAMPLES else "")
    return f"{len(names)} {text}: {shown}" if names else ""
