"""One table as it was found to one row per case and one column per gene: orient, match, name, check, merge,
normalise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.contracts.errors import InputError
from pipeline.expression.aliases import Aliases
from pipeline.expression.barcodes import SampleMatch, match_samples
from pipeline.expression.duplicates import Rows, gene_rows, merge_genes, pick_samples
from pipeline.expression.normalise import normalise, to_tpm
from pipeline.expression.orientation import GENES_IN_ROWS, find_orientation
from pipeline.expression.params import ExpressionParams
from pipeline.expression.raw_table import ENSEMBL_COLUMNS, SYMBOL_COLUMNS, RawTable
from pipeline.expression.symbols import fold_case, is_par_y, is_spreadsheet_date, is_summary, parse_gene
from pipeline.expression.units import check_unit, detect_unit
from pipeline.signatures import builtin_symbols

EXAMPLES = 5  #: ids of a kind that the report names
CASES_AT_ONCE = 256


@dataclass
class CaseTable:
    """Expression of the cases of one table.

    Parameters
    ----------
    cases, symbols : sorted, each once
    values : float32 [cases, genes], normalised case by case
    raw : float32 [cases, genes], before normalisation, in `unit`
    ensembl : Ensembl id with its version per gene, "" where unknown
    unit : what `raw` holds
    report : what was decided and counted
    """

    cases: tuple[str, ...]
    symbols: tuple[str, ...]
    values: np.ndarray
    raw: np.ndarray
    ensembl: tuple[str, ...]
    unit: str
    report: dict[str, Any]


def case_table(raw: RawTable, params: ExpressionParams, cases: Sequence[str], aliases: Aliases) -> CaseTable:
    """Bring one table to cases x genes; every value of a case comes from that case's samples alone.

    Raises InputError naming the file, gene and sample for anything that cannot be used as it is.
    """
    report: dict[str, Any] = {"table": Path(raw.path).name}
    way = find_orientation(raw.rows, raw.columns, cases, builtin_symbols(), params.orientation, raw.path)
    report["orientation"] = way
    raw = raw if way == GENES_IN_ROWS else raw.transposed()
    match = _matched(raw, cases, params, report)
    rows, symbols, ensembl = _named(raw, params, aliases, report)
    used = sorted({column for columns in match.columns.values() for column in columns})
    samples = _checked(raw, rows, symbols, used)
    names = [raw.columns[column] for column in used]
    place = {column: position for position, column in enumerate(used)}
    chosen = {case: [place[column] for column in columns] for case, columns in match.columns.items()}
    unit = _unit(samples.T, raw, params, symbols, names, report)
    if params.duplicates == "sum" and unit in ("log2", "zscore"):
        raise InputError("config.yaml expression.duplicates", f"{unit} values cannot be summed.", "use mean.")
    genes = gene_rows(symbols, params.duplicates, raw.path)
    report["duplicate_symbols"] = len(genes.repeated)
    report["duplicate_rule"] = params.duplicates
    target = params.common_unit if params.common_unit and unit != params.common_unit else unit
    merged, values, n_clipped = _blocks(samples, chosen, genes, names, unit, target, params, raw.path)
    if target != unit:
        report["unit_brought_to"] = target
    report["values_clipped"] = n_clipped
    report["cases"] = len(chosen)
    report["genes"] = len(genes.symbols)
    idents = tuple(ensembl[row] for row in genes.first)
    return CaseTable(tuple(chosen), genes.symbols, values, merged, idents, target, report)


def _blocks(
    samples: np.ndarray,
    chosen: dict[str, list[int]],
    genes: Rows,
    names: Sequence[str],
    unit: str,
    target: str,
    params: ExpressionParams,
    where: str,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Raw and normalised values, float32 [cases, genes], some cases at a time: no float64 copy of a large table."""
    cases = list(chosen)
    raw = np.empty((len(cases), len(genes.symbols)), dtype=np.float32)
    values = np.empty_like(raw)
    clipped = 0
    for start in range(0, len(cases), CASES_AT_ONCE):
        part = cases[start : start + CASES_AT_ONCE]
        block = pick_samples(samples, {case: chosen[case] for case in part}, params.aliquots, unit, names, where)
        block = merge_genes(block, genes, params.duplicates, unit)
        if target != unit:
            block = to_tpm(block, unit, part, where)
        here = slice(start, start + len(part))
        raw[here] = block
        # from the single-precision values, so that the artefact's own raw layer gives the same bytes again
        values[here], n = normalise(raw[here], target, params.target_sum, params.clip, part, where)
        clipped += n
    return raw, values, clipped


def _matched(raw: RawTable, cases: Sequence[str], params: ExpressionParams, report: dict[str, Any]) -> SampleMatch:
    match = match_samples(raw.columns, cases)
    several = {case: columns for case, columns in match.columns.items() if len(columns) > 1}
    report["samples_in_table"] = len(raw.columns)
    report["samples_of_no_case"] = some(match.unmatched)
    report["samples_not_tumour"] = some(match.normal)
    report["cases_with_several_samples"] = some(list(several))
    report["several_samples_rule"] = params.aliquots
    if params.aliquots == "first":
        report["samples_not_chosen"] = some([raw.columns[c] for columns in several.values() for c in columns[1:]])
    report["cases_without_rna"] = some([case for case in cases if case not in match.columns])
    if not match.columns:
        raise InputError(
            raw.path,
            f"all {len(match.normal)} samples that belong to cases are normal tissue, such as {match.normal[0]}.",
            "give tumour samples (TCGA sample types 01-09).",
        )
    return match


def some(names: Sequence[str]) -> dict[str, Any]:
    """A number and a few examples, for a report."""
    return {"number": len(names), "examples": list(names[:EXAMPLES])}


def _named(
    raw: RawTable, params: ExpressionParams, aliases: Aliases, report: dict[str, Any]
) -> tuple[list[int], list[str], list[str]]:
    """Rows that are genes, their symbols and their Ensembl ids."""
    symbols, ensembl = _symbols(raw, aliases, report)
    summary = [is_summary(name) for name in raw.rows]
    dates = [is_spreadsheet_date(symbol) for symbol in symbols]
    twins = _par_y(ensembl)
    report["rows_in_table"] = len(raw.rows)
    report["summary_rows"] = sum(summary)
    report["pseudoautosomal_rows_of_y"] = len(twins)
    report["names_turned_into_dates"] = some([s for s, date in zip(symbols, dates, strict=True) if date])
    rows = [r for r in range(len(raw.rows)) if not summary[r] and r not in twins]
    unknown = [r for r in rows if dates[r] or not symbols[r]]
    only_ensembl = sum(bool(ensembl[r]) for r in unknown)
    report["rows_without_symbol"] = some([raw.rows[r] for r in unknown])
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
            "add a column gene_name with the symbols beside the Ensembl ids, or set expression.aliases to HGNC's table"
            " or to a GDC STAR file, which name them.",
        )
    names = [symbols[r] for r in rows]
    if params.symbols == "auto":
        names, report["symbols_folded_to_upper_case"] = fold_case(names, builtin_symbols(), raw.path)
        renamed = aliases.rename(names)
        names = renamed.symbols
        report["previous_symbols_renamed"] = len(renamed.previous)
        report["synonyms_renamed"] = some(renamed.aliases)
        report["ambiguous_symbols_kept"] = some(renamed.ambiguous)
        if aliases.complete:
            report["symbols_unknown_to_the_alias_file"] = some(renamed.unknown)
    return rows, names, [ensembl[r] for r in rows]


def _symbols(raw: RawTable, aliases: Aliases, report: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Symbol and Ensembl id of every row, each "" where unknown: by the row's id, else by the table's own columns,
    else, for an Ensembl id, by the alias file."""
    parsed = [parse_gene(name) for name in raw.rows]
    named = next((raw.annotations[key] for key in SYMBOL_COLUMNS if key in raw.annotations), None)
    idents = next((raw.annotations[key] for key in ENSEMBL_COLUMNS if key in raw.annotations), None)
    symbols = [parse_gene(text)[0] for text in named] if named else [symbol for symbol, _ in parsed]
    ensembl = [found for _, found in parsed]
    if idents:
        ensembl = [own or parse_gene(text)[1] for own, text in zip(ensembl, idents, strict=True)]
    found = [symbol or aliases.of_ensembl(ident) for symbol, ident in zip(symbols, ensembl, strict=True)]
    report["named_by_ensembl_id"] = sum(not old and bool(new) for old, new in zip(symbols, found, strict=True))
    return found, ensembl


def _par_y(ensembl: Sequence[str]) -> set[int]:
    """Rows of genes in the pseudoautosomal region of Y that the table also has on X. They hold zeros, which a mean over
    rows of one symbol would mix in."""
    on_x = {ident.partition(".")[0] for ident in ensembl if ident and not is_par_y(ident)}
    copies = [row for row, ident in enumerate(ensembl) if is_par_y(ident)]
    return {row for row in copies if ensembl[row].removesuffix("_PAR_Y").partition(".")[0] in on_x}


def _checked(raw: RawTable, rows: list[int], symbols: list[str], used: list[int]) -> np.ndarray:
    """Values of the used samples, float32 [samples, genes]. Raises InputError for a cell that is no finite number."""
    position = {row: place for place, row in enumerate(rows)}
    for column in used:
        row, text = raw.bad_cells.get(column, (-1, ""))
        if row in position:
            raise InputError(
                f"{raw.path} gene {symbols[position[row]]}, sample {raw.columns[column]}",
                f"'{text}' is not a number.",
                "write numbers with a decimal point; leave out columns that are not samples or genes.",
            )
    values = raw.values.T
    if len(used) < len(raw.columns):
        values = values[used]
    if len(rows) < len(raw.rows):
        values = values[:, rows]
    wrong = [place for place, sample in enumerate(values) if not np.isfinite(sample).all()]
    if wrong:
        place = wrong[0]
        row = int(np.flatnonzero(~np.isfinite(values[place]))[0])
        number = int((~np.isfinite(values[wrong])).sum())
        what = "empty or NaN" if np.isnan(values[place, row]) else "infinite"
        raise InputError(
            f"{raw.path} gene {symbols[row]}, sample {raw.columns[used[place]]}",
            f"the value is {what}; {number} such cells.",
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
    report["lowest_value"], report["highest_value"] = float(values.min()), float(values.max())
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
