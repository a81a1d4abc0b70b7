"""Several rows of one gene, several samples of one case: stated rules that look at one case at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.contracts.errors import InputError

GENE_RULES = ("mean", "sum", "max", "first", "error")
ALIQUOT_RULES = ("first", "mean", "error")


def merge_genes(
    values: np.ndarray, symbols: Sequence[str], rule: str, unit: str, where: str
) -> tuple[np.ndarray, list[int], int]:
    """One row per symbol, sorted by symbol.

    ``mean`` (default) averages on the linear scale, so log2 values are raised first: log2(mean(2^x)), which is right
    for any pseudocount; z-scores are averaged as they are. ``sum`` is for linear units only. ``max`` is taken within
    each case. ``first`` keeps the row that comes first in the table.

    Returns
    -------
    float64 [symbols, cases]; the first table row of each symbol; the number of symbols that had several rows
    """
    rows: dict[str, list[int]] = {}
    for row, symbol in enumerate(symbols):
        rows.setdefault(symbol, []).append(row)
    ordered = sorted(rows)
    first = [rows[symbol][0] for symbol in ordered]
    repeated = [symbol for symbol in ordered if len(rows[symbol]) > 1]
    if repeated and rule == "error":
        raise InputError(
            f"{where} gene {repeated[0]}",
            f"the gene has {len(rows[repeated[0]])} rows; {len(repeated)} genes have several.",
            "keep one row per gene, or set expression.duplicates: mean.",
        )
    merged = values[first]
    if rule != "first":
        position = {symbol: place for place, symbol in enumerate(ordered)}
        for symbol in repeated:
            merged[position[symbol]] = _merge(values[rows[symbol]], rule, unit)
    return merged, first, len(repeated)


def pick_samples(
    values: np.ndarray, columns: Mapping[str, Sequence[int]], rule: str, unit: str, names: Sequence[str], where: str
) -> np.ndarray:
    """One column per case: the first choice, the mean on the linear scale, or an error when there are several."""
    picked = values[:, [choices[0] for choices in columns.values()]]
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
        picked[:, place] = _merge(values[:, list(choices)].T, "mean", unit)
    return picked


def _merge(rows: np.ndarray, rule: str, unit: str) -> np.ndarray:
    if rule == "max":
        return rows.max(axis=0)
    if rule == "sum":
        return rows.sum(axis=0)
    if unit == "log2":
        return np.log2(np.mean(np.exp2(rows), axis=0))
    return rows.mean(axis=0)
