"""Expression stage: read, orient, match to cases, check, merge, normalise, write."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.contracts.errors import InputError
from pipeline.contracts.expression import UNITS, Expression, write_expression
from pipeline.contracts.files import bytes_digest, digest_of
from pipeline.contracts.revisions import REVISIONS
from pipeline.contracts.settings import require_choice
from pipeline.expression.barcodes import SampleMatch, match_samples
from pipeline.expression.duplicates import ALIQUOT_RULES, GENE_RULES, merge_genes, pick_samples
from pipeline.expression.normalise import normalise
from pipeline.expression.orientation import GENES_IN_ROWS, SAMPLES_IN_ROWS, find_orientation
from pipeline.expression.symbols import (
    bring_up_to_date,
    fold_case,
    is_spreadsheet_date,
    is_summary,
    parse_gene,
)
from pipeline.expression.tables import (
    ENSEMBL_COLUMNS,
    STAR_COLUMNS,
    SYMBOL_COLUMNS,
    RawTable,
    read_raw,
)
from pipeline.expression.units import check_unit, detect_unit
from pipeline.signatures import BUILTIN, builtin_symbols, current_symbols, load_signatures

logger = logging.getLogger(__name__)
CHOICES = {
    "unit": ("auto", *UNITS),
    "orientation": ("auto", GENES_IN_ROWS, SAMPLES_IN_ROWS),
    "duplicates": GENE_RULES,
    "aliquots": ALIQUOT_RULES,
    "unknown": ("drop", "error"),
    "symbols": ("auto", "as_is"),
    "star_column": STAR_COLUMNS,
}
EXAMPLES = 5  #: ids of a kind that the report names


@dataclass(frozen=True)
class ExpressionParams:
    """Section ``expression`` of the config.

    Parameters
    ----------
    unit : what the numbers are; "auto" tells it by the rules of `units.detect_unit`
    orientation : which way round the table lies; "auto" looks for the case ids
    duplicates : how several rows of one gene become one (`duplicates.merge_genes`)
    aliquots : how several samples of one case become one; "first" takes the first by sorted barcode
    unknown : rows without a gene symbol are dropped and counted, or refused
    symbols : "auto" folds lower-case symbols and brings previous symbols up to date; "as_is" changes none
    star_column : the column of single-sample STAR files to read
    target_sum : library size to which counts are scaled
    clip : z-scores beyond it are clipped, and counted
    """

    unit: str = "auto"
    orientation: str = "auto"
    duplicates: str = "mean"
    aliquots: str = "first"
    unknown: str = "drop"
    symbols: str = "auto"
    star_column: str = "unstranded"
    target_sum: float = 1e4
    clip: float = 10.0

    def __post_init__(self) -> None:
        for key, known in CHOICES.items():
            require_choice(f"expression.{key}", getattr(self, key), known)
        for key in ("target_sum", "clip"):
            if not 0 < getattr(self, key) < float("inf"):
                raise InputError(f"config.yaml expression.{key}", "it must be a number above 0.", "correct it.")


def prepare_expression(
    table: str | Path,
    out: str | Path,
    params: ExpressionParams,
    cases: Iterable[str],
    tumour: str = BUILTIN,
    tme: str = BUILTIN,
) -> dict[str, Any]:
    """Write the expression artefact of a cohort and return the report of what was decided and counted.

    Every step looks at one case at a time, so nothing of a held-out case enters another. (The unit and the orientation
    are properties of the whole file; the report says how they were told.)

    Parameters
    ----------
    table : TSV, CSV, gzip, h5ad, or a folder of STAR files named by case or sample barcode, or with GDC's sample sheet;
        see `tables.read_raw`
    cases : case ids of the clinical sheet; samples of other cases are left out and counted
    tumour, tme : gene lists for the flags of the artefact; see `signatures.load_signatures`

    Raises
    ------
    InputError naming the file, gene and sample for anything that cannot be used as it is.
    """
    cases = sorted(set(cases))
    expression = build_expression(read_raw(table, params.star_column), params, cases, tumour, tme)
    digest = digest_of(
        "expression", REVISIONS["expression"], asdict(params), _content(Path(table)), cases,
        expression.tumour.tolist(), expression.tme.tolist(),
    )  # fmt: skip
    expression = Expression(**{**vars(expression), "revision": REVISIONS["expression"], "digest": digest})
    write_expression(out, expression)
    for key, value in expression.report.items():
        logger.info("expression: %s: %s", key, f"{len(value)}" if isinstance(value, list) else value)
    return dict(expression.report)


def _content(path: Path) -> list[Any]:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return [[file.relative_to(path).as_posix(), bytes_digest(file)] for file in files]
    return [bytes_digest(path)]


def build_expression(
    raw: RawTable, params: ExpressionParams, cases: Sequence[str], tumour: str = BUILTIN, tme: str = BUILTIN
) -> Expression:
    """The whole stage on a table in memory. See `prepare_expression`."""
    report: dict[str, Any] = {"table": Path(raw.path).name}
    raw = _oriented(raw, params, cases, report)
    match = _matched(raw, cases, params, report)
    rows, symbols, ensembl = _named(raw, params, report)
    values = _checked(raw, rows, symbols, match)
    used = sorted({column for columns in match.columns.values() for column in columns})
    unit = _unit(values[:, used], raw, params, symbols, [raw.columns[c] for c in used], report)
    if params.duplicates == "sum" and unit in ("log2", "zscore"):
        raise InputError("config.yaml expression.duplicates", f"{unit} values cannot be summed.", "use mean.")
    values = pick_samples(values, match.columns, params.aliquots, unit, raw.columns, raw.path)
    values, first, n_repeated = merge_genes(values, symbols, params.duplicates, unit, raw.path)
    report["duplicate_symbols"] = n_repeated
    report["duplicate_rule"] = params.duplicates
    names = [symbols[row] for row in first]
    matrix = np.ascontiguousarray(values.T)
    scaled, n_clipped = normalise(matrix, unit, params.target_sum, params.clip, list(match.columns), raw.path)
    report["values_clipped"] = n_clipped
    flags = load_signatures(tumour, tme)
    report["cases"] = len(match.columns)
    report["genes"] = len(names)
    report["tumour_genes_missing"] = sorted(set(flags.tumour) - set(names))
    report["tme_genes_missing"] = sorted(set(flags.tme) - set(names))
    return Expression(
        cases=tuple(match.columns),
        symbols=tuple(names),
        values=scaled,
        unit=unit,
        raw=_compact(matrix),
        ensembl=tuple(ensembl[row] for row in first),
        tumour=np.isin(names, flags.tumour),
        tme=np.isin(names, flags.tme),
        report=report,
    )


def _oriented(raw: RawTable, params: ExpressionParams, cases: Sequence[str], report: dict[str, Any]) -> RawTable:
    """The table with genes in rows."""
    way = find_orientation(raw.rows, raw.columns, cases, builtin_symbols(), params.orientation, raw.path)
    report["orientation"] = way
    if way == GENES_IN_ROWS:
        return raw
    by_row: dict[int, tuple[int, str]] = {}
    for column, (row, text) in raw.bad_cells.items():
        by_row.setdefault(row, (column, text))
    return RawTable(raw.path, raw.values.T, raw.columns, raw.rows, {}, by_row, raw.unit)


def _matched(raw: RawTable, cases: Sequence[str], params: ExpressionParams, report: dict[str, Any]) -> SampleMatch:
    match = match_samples(raw.columns, cases)
    several = {case: columns for case, columns in match.columns.items() if len(columns) > 1}
    report["samples_in_table"] = len(raw.columns)
    report["samples_of_no_case"] = _some(match.unmatched)
    report["samples_not_tumour"] = _some(match.normal)
    report["cases_with_several_samples"] = _some(list(several))
    report["several_samples_rule"] = params.aliquots
    report["cases_without_rna"] = _some([case for case in cases if case not in match.columns])
    if not match.columns:
        raise InputError(
            raw.path,
            f"all {len(match.normal)} samples that belong to cases are normal tissue, such as {match.normal[0]}.",
            "give tumour samples (TCGA sample types 01-09).",
        )
    return match


def _some(names: Sequence[str]) -> dict[str, Any]:
    return {"number": len(names), "examples": list(names[:EXAMPLES])}


def _named(raw: RawTable, params: ExpressionParams, report: dict[str, Any]) -> tuple[list[int], list[str], list[str]]:
    """Rows that are genes, their symbols and their Ensembl ids."""
    parsed = [parse_gene(name) for name in raw.rows]
    named = next((raw.annotations[key] for key in SYMBOL_COLUMNS if key in raw.annotations), None)
    idents = next((raw.annotations[key] for key in ENSEMBL_COLUMNS if key in raw.annotations), None)
    symbols = [parse_gene(text)[0] for text in named] if named else [symbol for symbol, _ in parsed]
    ensembl = [found for _, found in parsed]
    if idents:
        ensembl = [own or parse_gene(text)[1] for own, text in zip(ensembl, idents, strict=True)]
    summary = [is_summary(name) for name in raw.rows]
    dates = [is_spreadsheet_date(symbol) for symbol in symbols]
    report["rows_in_table"] = len(raw.rows)
    report["summary_rows"] = sum(summary)
    report["names_turned_into_dates"] = _some([s for s, date in zip(symbols, dates, strict=True) if date])
    rows = [r for r in range(len(raw.rows)) if not summary[r]]
    unknown = [r for r in rows if dates[r] or not symbols[r]]
    only_ensembl = sum(bool(ensembl[r]) for r in unknown)
    report["rows_without_symbol"] = _some([raw.rows[r] for r in unknown])
    if unknown and params.unknown == "error":
        raise InputError(
            f"{raw.path} row '{raw.rows[unknown[0]]}'",
            f"no gene symbol; {len(unknown)} such rows.",
            "name them, or set expression.unknown: drop.",
        )
    left = set(unknown)
    rows = [r for r in rows if r not in left]
    if not rows:
        raise InputError(
            raw.path,
            f"no row has a gene symbol{f' ({only_ensembl} Ensembl ids)' if only_ensembl else ''}.",
            "add a column gene_name with the symbols beside the Ensembl ids.",
        )
    names = [symbols[r] for r in rows]
    if params.symbols == "auto":
        names, report["symbols_folded_to_upper_case"] = fold_case(names, builtin_symbols(), raw.path)
        names, report["previous_symbols_renamed"] = bring_up_to_date(names, current_symbols())
    return rows, names, [ensembl[r] for r in rows]


def _checked(raw: RawTable, rows: list[int], symbols: list[str], match: SampleMatch) -> np.ndarray:
    """Values of the gene rows. Raises InputError if a sample that is used has a cell that is no finite number."""
    used = sorted({column for columns in match.columns.values() for column in columns})
    position = {row: place for place, row in enumerate(rows)}
    for column in used:
        row, text = raw.bad_cells.get(column, (-1, ""))
        if row in position:
            raise InputError(
                f"{raw.path} gene {symbols[position[row]]}, sample {raw.columns[column]}",
                f"'{text}' is not a number.",
                "write numbers with a decimal point; leave out columns that are not samples or genes.",
            )
    values = raw.values if len(rows) == len(raw.rows) else raw.values[rows]
    wrong = ~np.isfinite(values[:, used])
    if wrong.any():
        row, place = np.argwhere(wrong)[0]
        what = "empty or NaN" if np.isnan(values[row, used[place]]) else "infinite"
        raise InputError(
            f"{raw.path} gene {symbols[row]}, sample {raw.columns[used[place]]}",
            f"the value is {what}; {int(wrong.sum())} such cells.",
            "fill it in, or leave the gene or the sample out.",
        )
    return values


def _unit(
    values: np.ndarray,
    raw: RawTable,
    params: ExpressionParams,
    symbols: list[str],
    samples: list[str],
    report: dict[str, Any],
) -> str:
    declared = raw.unit if params.unit == "auto" else params.unit
    if declared:
        check_unit(values, declared, symbols, samples, raw.path)
        report["unit"] = declared
        report["unit_told_by"] = "the config" if params.unit != "auto" else "the file"
        return declared
    report["unit"], report["unit_told_by"] = detect_unit(values, symbols, samples, raw.path)
    if report["unit"] == "linear":
        report["unit_remark"] = (
            "if these are RSEM expected counts, declare expression.unit: expected_counts; linear values are not"
            " corrected for library size"
        )
    return str(report["unit"])


def _compact(values: np.ndarray) -> np.ndarray:
    """Single precision where that loses nothing, as for counts up to 16.7 million."""
    single = values.astype(np.float32)
    return single if np.array_equal(single, values) else values
