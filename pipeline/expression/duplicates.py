"""Several rows of one gene, several samples of one case: stated rules that look at one case at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.contracts.errors import InputError

GENE_RULES = ("mean", "sum", "max", "first", "error")
ALIQUOT_RULES = ("first", "mean", "error")


@dataclass(frozen=True)
class Rows:
    """Which rows of a table are one gene: symbols sorted, each once; the first row of each; and, by position in
    `symbols`, all rows of those that have several."""

    symbols: tuple[str, ...]
    first: list[int]
    repeated: dict[int, list[int]]


def gene_rows(symbols: Sequence[str], rule: str, where: str) -> Rows:
    """Group the rows of a table by symbol. Raises InputError for several rows of one symbol under the rule error."""
    rows: dict[str, list[int]] = {}
    for row, symbol in enumerate(symbols):
        rows.setdefault(symbol, []).append(row)
    ordered = sorted(rows)
    repeated = {place: rows[symbol] for place, symbol in enumerate(ordered) if len(rows[symbol]) > 1}
    if repeated and rule == "error":
        symbol = ordered[min(repeated)]
        raise InputError(
            f"{where} gene {symbol}",
            f"the gene has {len(rows[symbol])} rows; {len(repeated)} genes have several.",
            "keep one row per gene, or set expression.duplicates: mean.",
        )
    return Rows(tuple(ordered), [rows[symbol][0] for symbol in ordered], repeated)


def merge_genes(values: np.ndarray, genes: Rows, rule: str, unit: str) -> np.ndarray:
    """One column per symbol, [cases, symbols], from float [cases, rows of the table], of the same type.

    ``mean`` (default) averages on the linear scale, so log2 values are raised first: log2(mean(2^x)), which is right
    for any pseudocount; z-scores are averaged as they are. ``sum`` is for linear units only. ``max`` is taken within
    each case. ``first`` keeps the row that comes first in the table.
    """
    merged = values[:, genes.first]
    if rule != "first":
        for place, rows in genes.repeated.items():
            merged[:, place] = _merge(values[:, rows].T, rule, unit)
    return merged


def pick_samples(
    samples: np.ndarray, columns: Mapping[str, Sequence[int]], rule: str, unit: str, names: Sequence[str], where: str
) -> np.ndarray:
    """One row per case, [cases, rows of the table], from float [samples, rows of the table], of the same type: the
    first choice, the mean on the linear scale, or an error when there are several."""
    picked = samples[[choices[0] for choices in columns.values()]]
    if rule == "first":
        return picked
    for place, (case, choices) in enumerate(columns.items()):
        if len(choices) == 1:
            continue
        if rule == "error":
            raise InputError(
                f"{where} case {case}",
                f"{len(choices)} samples: {', '.join(names[choice] for choice in choices)}.",
                "keep one, or set expression.aliquots: first.",
            )
        picked[place] = _merge(samples[list(choices)], "mean", unit)
    return picked


def _merge(rows: np.ndarray, rule: str, unit: str) -> np.ndarray:
    """float64 [values], from float [rows, values]"""
    rows = rows.astype(np.float64)
    if rule == "max":
        return rows.max(axis=0)
    if rule == "sum":
        return rows.sum(axis=0)
    if unit == "log2":
        return np.log2(np.mean(np.exp2(rows), axis=0))
    return rows.mean(axis=0)
