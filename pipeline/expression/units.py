"""What the numbers of an expression table are: told from them by stated rules, or checked against a declaration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.contracts.errors import InputError
from pipeline.contracts.expression import UNITS

LOG2_HIGHEST = 50.0  #: 2^50 exceeds any count; declared log2 values above this are refused
LOG2_SURE = 30.0  #: a table that stays below is taken for log2: 2^30 = 1e9
LINEAR_SURE = 100.0  #: a table that reaches this is taken for linear; in between the user must say
TRANSCRIPTOME = 1000  #: from so many genes on, a linear table must contain a highly expressed one
MILLION_TOLERANCE = 0.02  #: transcripts per million of a case may sum to this much more than a million


def detect_unit(values: np.ndarray, genes: Sequence[str], cases: Sequence[str], where: str) -> tuple[str, str]:
    """Unit of a table and why, by these rules in this order.

    1. Negative values, nothing above 50 unless the genes are centred: ``zscore`` if the genes' means have a median
       magnitude below 0.5 and their standard deviations a median of 0.5 to 2, else ``log2``.
    2. Negative values otherwise: refused.
    3. Whole numbers that reach 30: ``counts``.
    4. Nothing above 30: ``log2``.
    5. Every case sums to a million (2 %): ``tpm``. Something above 100: ``linear``.
    6. Else refused: the user must declare the unit.

    Parameters
    ----------
    values : float64 [genes, cases], finite
    """
    highest, lowest = float(values.max()), float(values.min())
    if lowest < 0:
        centre = float(np.median(np.abs(values.mean(axis=1))))
        spread = float(np.median(values.std(axis=1)))
        if values.shape[1] > 1 and centre < 0.5 and 0.5 <= spread <= 2:
            return "zscore", f"genes are centred (median |mean| {centre:.2g}) with spread {spread:.2g}"
        if highest <= LOG2_HIGHEST:
            return "log2", f"values from {lowest:.4g} to {highest:.4g}, genes not centred"
        gene, case = _first(values < 0, genes, cases)
        raise InputError(
            f"{where} gene {gene}, sample {case}",
            f"a negative value in a table that reaches {highest:.4g}: neither counts nor logarithms nor z-scores.",
            "correct it, or declare expression.unit.",
        )
    if highest >= LOG2_SURE and not _fractional(values).any():
        return "counts", f"whole numbers up to {highest:.0f}"
    if highest <= LOG2_SURE:
        return "log2", f"values from {lowest:.4g} to {highest:.4g}"
    if np.all(np.abs(values.sum(axis=0) / 1e6 - 1) <= MILLION_TOLERANCE):
        return "tpm", "every case sums to a million"
    if highest >= LINEAR_SURE:
        return "linear", f"fractional values from {lowest:.4g} to {highest:.4g}"
    raise InputError(
        where,
        f"the unit cannot be told from values of {lowest:.4g} to {highest:.4g}.",
        f"declare expression.unit: one of {', '.join(UNITS)}.",
    )


def check_unit(values: np.ndarray, unit: str, genes: Sequence[str], cases: Sequence[str], where: str) -> None:
    """Raise InputError, naming gene and sample, where the numbers contradict a declared unit."""
    highest = float(values.max())
    if unit == "zscore":
        if values.min() >= 0:
            raise InputError(where, "unit zscore, but no value is negative.", "declare the unit that it is.")
        return
    if unit == "log2":
        if highest > LOG2_HIGHEST:
            gene, case = _first(values == highest, genes, cases)
            raise InputError(
                f"{where} gene {gene}, sample {case}",
                f"unit log2, but the value is {highest:.6g}.",
                "declare counts, tpm, fpkm or linear.",
            )
        return
    _refuse(values < 0, values, f"a negative value under unit {unit}", genes, cases, where)
    if unit == "counts":
        _refuse(_fractional(values), values, "no whole number under unit counts", genes, cases, where)
    if highest <= LOG2_SURE and len(genes) >= TRANSCRIPTOME and unit != "counts":
        raise InputError(
            where,
            f"unit {unit}, but the largest of {values.size} values is {highest:.4g}: these look like logarithms.",
            "declare log2.",
        )
    if unit in ("tpm", "fpkm") and highest >= LINEAR_SURE and not _fractional(values).any():
        raise InputError(where, f"unit {unit}, but all values are whole numbers.", "declare counts.")
    sums = values.sum(axis=0)
    if unit == "tpm" and sums.max() > 1e6 * (1 + MILLION_TOLERANCE):
        raise InputError(
            f"{where} sample {cases[int(sums.argmax())]}",
            f"unit tpm, but the sample sums to {sums.max():.6g} and not to a million at most.",
            "declare fpkm, linear, counts or expected_counts.",
        )


def _fractional(values: np.ndarray) -> np.ndarray:
    return np.abs(values - np.rint(values)) > 1e-6


def _refuse(
    wrong: np.ndarray,
    values: np.ndarray,
    problem: str,
    genes: Sequence[str],
    cases: Sequence[str],
    where: str,
) -> None:
    if not wrong.any():
        return
    row, column = np.argwhere(wrong)[0]
    hint = (
        "declare expected_counts (RSEM), tpm, fpkm or linear"
        if "whole" in problem
        else "correct it, or declare log2 or zscore"
    )
    raise InputError(
        f"{where} gene {genes[row]}, sample {cases[column]}",
        f"{problem}: {values[row, column]:.6g} ({int(wrong.sum())} such cells).",
        f"{hint}.",
    )


def _first(wrong: np.ndarray, genes: Sequence[str], cases: Sequence[str]) -> tuple[str, str]:
    row, column = np.argwhere(wrong)[0]
    return genes[row], cases[column]
