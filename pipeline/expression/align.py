"""Several tables to one: the same unit, the genes that all of them have, every case once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.contracts.errors import InputError
from pipeline.contracts.expression_tables import TableSource
from pipeline.expression.case_table import CaseTable, some


def align(sources: Sequence[TableSource], tables: list[CaseTable], cases: Sequence[str]) -> CaseTable:
    """Join tables by gene symbol; cases sorted. One table is returned as it is.

    Genes that a table lacks are left out and counted: nothing is filled in. Each table was normalised on its own,
    counts by the library size over all of its genes.

    Raises InputError for different units, a case in two tables, or tables without a common gene.
    """
    if len(tables) == 1:
        return tables[0]
    _check_units(sources, tables)
    _check_cases(sources, tables)
    symbols = sorted(set.intersection(*(set(table.symbols) for table in tables)))
    if not symbols:
        raise InputError(
            "config.yaml inputs.expression",
            f"the tables {', '.join(source.name for source in sources)} have no gene in common: symbols such as"
            f" {', '.join(table.symbols[0] for table in tables)}.",
            "give gene symbols in all of them, or set expression.aliases for Ensembl ids.",
        )
    order = np.argsort([case for table in tables for case in table.cases], kind="stable")
    joined = sorted(case for table in tables for case in table.cases)
    first = {symbol: column for column, symbol in enumerate(tables[0].symbols)}
    return CaseTable(
        tuple(joined),
        tuple(symbols),
        _stacked(tables, symbols, "values", order),
        _stacked(tables, symbols, "raw", order),
        tuple(tables[0].ensembl[first[symbol]] for symbol in symbols),
        tables[0].unit,
        _report(sources, tables, joined, symbols, cases),
    )


def _check_units(sources: Sequence[TableSource], tables: Sequence[CaseTable]) -> None:
    units = {source.name: table.unit for source, table in zip(sources, tables, strict=True)}
    if len(set(units.values())) > 1:
        raise InputError(
            "config.yaml inputs.expression",
            f"the tables are in different units ({', '.join(f'{name}: {unit}' for name, unit in units.items())}); their"
            " numbers cannot be compared.",
            "give the same unit in all, or for TPM, FPKM and FPKM-UQ set expression.common_unit: tpm.",
        )


def _check_cases(sources: Sequence[TableSource], tables: Sequence[CaseTable]) -> None:
    seen: dict[str, str] = {}
    for source, table in zip(sources, tables, strict=True):
        for case in table.cases:
            if case in seen:
                raise InputError(
                    f"{source.path} case {case}",
                    f"the table of {seen[case]} has samples of it as well.",
                    "keep each case in one table.",
                )
            seen[case] = source.name


def _stacked(tables: Sequence[CaseTable], symbols: Sequence[str], layer: str, order: np.ndarray) -> np.ndarray:
    parts = []
    for table in tables:
        position = {symbol: column for column, symbol in enumerate(table.symbols)}
        parts.append(getattr(table, layer)[:, [position[symbol] for symbol in symbols]])
    return np.concatenate(parts)[order]


def _report(
    sources: Sequence[TableSource],
    tables: Sequence[CaseTable],
    joined: Sequence[str],
    symbols: Sequence[str],
    cases: Sequence[str],
) -> dict[str, Any]:
    known, kept = set(joined), set(symbols)
    report: dict[str, Any] = {
        "tables": len(tables),
        "unit": tables[0].unit,
        "cases": len(joined),
        "genes": len(symbols),
        "cases_without_rna": some([case for case in cases if case not in known]),
    }
    for source, table in zip(sources, tables, strict=True):
        own = {key: value for key, value in table.report.items() if key != "cases_without_rna"}
        own["genes_not_in_all_tables"] = some([symbol for symbol in table.symbols if symbol not in kept])
        report[f"table {source.name}"] = own
    if tables[0].unit == "zscore":
        report["standardised_remark"] = (
            "z-scores of several tables: differences between their cohorts are lost or made up"
        )
    return report
