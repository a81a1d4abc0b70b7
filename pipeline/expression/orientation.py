"""Which way round a table lies: genes in rows or samples in rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set

from pipeline.contracts.errors import InputError
from pipeline.expression.barcodes import case_of
from pipeline.expression.gdc import SHEET
from pipeline.expression.symbols import ENSEMBL, parse_gene

GENES_IN_ROWS = "genes_in_rows"
SAMPLES_IN_ROWS = "samples_in_rows"


def find_orientation(
    rows: Sequence[str],
    columns: Sequence[str],
    cases: Iterable[str],
    known_symbols: Set[str],
    declared: str,
    where: str,
) -> str:
    """Orientation of a table, from the ids that are cases of the sheet; gene ids decide between equals.

    Raises InputError if no id is a case (with examples of both), or if a declared orientation contradicts the ids.
    """
    known = frozenset(cases)
    samples = {
        SAMPLES_IN_ROWS: sum(case_of(name, known) is not None for name in rows),
        GENES_IN_ROWS: sum(case_of(name, known) is not None for name in columns),
    }
    if not any(samples.values()):
        raise InputError(
            where,
            f"no row and no column is a case of the sheet. Rows: {_examples(rows)}; columns: {_examples(columns)};"
            f" cases: {_examples(sorted(known))}.",
            "use the same case ids in both (TCGA barcodes are cut to the case by themselves). Files of a folder must be"
            f" named by case or sample barcode, or lie beside GDC's sample sheet ({SHEET}).",
        )
    genes = {
        SAMPLES_IN_ROWS: sum(_is_gene(name, known_symbols) for name in columns),
        GENES_IN_ROWS: sum(_is_gene(name, known_symbols) for name in rows),
    }
    found = max(sorted(samples), key=lambda way: (samples[way], genes[way]))
    if declared not in ("auto", found) and samples[found] > samples[declared]:
        raise InputError(
            where,
            f"expression.orientation is {declared}, but {samples[found]} case ids stand in the "
            f"{'rows' if found == SAMPLES_IN_ROWS else 'columns'}.",
            f"set expression.orientation: {found} (or auto).",
        )
    return found if declared == "auto" else declared


def _is_gene(name: str, known: Set[str]) -> bool:
    symbol, ensembl = parse_gene(name)
    return bool(ensembl) or symbol in known or symbol.upper() in known or ENSEMBL.match(name) is not None


def _examples(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:3]) + (" ..." if len(names) > 3 else "")
