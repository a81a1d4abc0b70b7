"""What the numbers of an expression table are: told from them by stated rules, or checked against a declaration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from pipeline.contracts.errors import InputError
from pipeline.contracts.expression import UNITS

LOG2_HIGHEST = 50.0  #: 2^50 exceeds any count; declared log2 values above this are refused
LOG2_SURE = 30.0  #: a table that stays below is taken for log2: 2^30 = 1e9
LINEAR_SURE = 100.0  #: a table that reaches this is taken for linear; in between the user must say
TRANSCRIPTOME = 1000  #: from so many genes on, a linear table must contain a highly expressed one
WHOLE_TRANSCRIPTOME = 15_000  #: from so many genes on, transcripts per million must sum to most of a million
MILLION_TOLERANCE = 0.02  #: transcripts per million of a case may sum to this much more than a million
FEW_CASES = 10  #: below, means over cases say nothing of how a table was standardised
CASES_AT_ONCE = 256


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
    values : float [genes, cases], finite
    """
    highest, lowest = float(values.max()), float(values.min())
    if lowest < 0:
        centre, spread = centre_and_spread(values)
        if values.shape[1] > 1 and centre < 0.5 and 0.5 <= spread <= 2:
            return "zscore", f"genes are centred (median |mean| {centre:.2g}) with spread {spread:.2g}"
        if highest <= LOG2_HIGHEST:
            return "log2", f"values from {lowest:.4g} to {highest:.4g}, genes not centred"
        gene, case = _first(values, lambda block: block < 0, genes, cases)
        raise InputError(
            f"{where} gene {gene}, sample {case}",
            f"a negative value in a table that reaches {highest:.4g}: neither counts nor logarithms nor z-scores.",
            "correct it, or declare expression.unit.",
        )
    if highest >= LOG2_SURE and not _count(values, _fractional):
        return "counts", f"whole numbers up to {highest:.0f}"
    if highest <= LOG2_SURE:
        return "log2", f"values from {lowest:.4g} to {highest:.4g}"
    if _sums_to_a_million(values):
        return "tpm", "every case sums to a million"
    if highest >= LINEAR_SURE:
        return "linear", f"fractional values from {lowest:.4g} to {highest:.4g}"
    raise InputError(
        where,
        f"the unit cannot be told from values of {lowest:.4g} to {highest:.4g}.",
        f"declare expression.unit: one of {', '.join(UNITS)}.",
    )


def check_unit(values: np.ndarray, unit: str, genes: Sequence[str], cases: Sequence[str], where: str) -> None:
    """Raise InputError, naming gene and sample where one is at fault, if the numbers contradict a declared unit."""
    if unit == "zscore":
        _check_zscore(values, where)
    elif unit == "log2":
        _check_log2(values, genes, cases, where)
    else:
        _check_linear(values, unit, genes, cases, where)


def centre_and_spread(values: np.ndarray) -> tuple[float, float]:
    """Median over genes of |mean| and of the standard deviation. `values` float [genes, cases]."""
    mean = values.mean(axis=1, dtype=np.float64)
    square = np.zeros(len(values))
    for _, block in _blocks(values):
        square += ((block - mean[:, None]) ** 2).sum(axis=1)
    return float(np.median(np.abs(mean))), float(np.median(np.sqrt(square / values.shape[1])))


def _check_zscore(values: np.ndarray, where: str) -> None:
    if values.min() >= 0:
        raise InputError(where, "unit zscore, but no value is negative.", "declare the unit that it is.")
    centre, _ = centre_and_spread(values)
    if values.shape[1] >= FEW_CASES and centre > 2:
        raise InputError(
            where,
            f"unit zscore, but the genes are not centred (median |mean| {centre:.3g}): these look like logarithms.",
            "declare log2.",
        )


def _check_log2(values: np.ndarray, genes: Sequence[str], cases: Sequence[str], where: str) -> None:
    highest = float(values.max())
    if highest > LOG2_HIGHEST:
        gene, case = _first(values, lambda block: block == highest, genes, cases)
        raise InputError(
            f"{where} gene {gene}, sample {case}",
            f"unit log2, but the value is {highest:.6g}.",
            "declare counts, tpm, fpkm or linear.",
        )
    if values.shape[1] < FEW_CASES or values.min() >= 0:
        return
    centre, spread = centre_and_spread(values)
    if centre < 0.1 and 0.9 <= spread <= 1.1:
        raise InputError(
            where,
            f"unit log2, but every gene has a mean near 0 and a standard deviation near 1 (medians {centre:.2g} and"
            f" {spread:.2g}): these look like z-scores.",
            "declare zscore.",
        )


def _check_linear(values: np.ndarray, unit: str, genes: Sequence[str], cases: Sequence[str], where: str) -> None:
    highest = float(values.max())
    _refuse(values, lambda block: block < 0, f"a negative value under unit {unit}", genes, cases, where)
    if unit == "counts":
        _refuse(values, _fractional, "no whole number under unit counts", genes, cases, where)
        return
    if highest <= LOG2_SURE and len(genes) >= TRANSCRIPTOME:
        raise InputError(
            where,
            f"unit {unit}, but the largest of {values.size} values is {highest:.4g}: these look like logarithms.",
            "declare log2.",
        )
    normalised = unit in ("tpm", "fpkm", "fpkm_uq")
    if normalised and highest >= LINEAR_SURE and not _count(values, _fractional):
        raise InputError(where, f"unit {unit}, but all values are whole numbers.", "declare counts.")
    if unit == "tpm":
        _check_sums(values, cases, where)
    elif unit != "linear" and len(genes) >= TRANSCRIPTOME and _sums_to_a_million(values):
        raise InputError(where, f"unit {unit}, but every sample sums to a million.", "declare tpm.")


def _check_sums(values: np.ndarray, cases: Sequence[str], where: str) -> None:
    sums = values.sum(axis=0, dtype=np.float64)
    fix = "declare fpkm, fpkm_uq, linear, counts or expected_counts."
    if sums.max() > 1e6 * (1 + MILLION_TOLERANCE):
        raise InputError(
            f"{where} sample {cases[int(sums.argmax())]}",
            f"unit tpm, but the sample sums to {sums.max():.6g} and not to a million at most.",
            fix,
        )
    if len(values) >= WHOLE_TRANSCRIPTOME and np.median(sums) < 5e5:
        raise InputError(
            where,
            f"unit tpm, but half of the samples sum to {np.median(sums):.6g} or less over {len(values)} genes.",
            fix,
        )


def _blocks(values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Columns of `values` some at a time: no temporary of the size of a large table."""
    for start in range(0, values.shape[1], CASES_AT_ONCE):
        yield start, values[:, start : start + CASES_AT_ONCE]


def _fractional(values: np.ndarray) -> np.ndarray:
    whole = np.rint(values)
    off = values != whole
    return off & (np.abs(values - whole) > 1e-6) if off.any() else off


def _count(values: np.ndarray, wrong: Callable[[np.ndarray], np.ndarray]) -> int:
    return sum(int(wrong(block).sum()) for _, block in _blocks(values))


def _sums_to_a_million(values: np.ndarray) -> bool:
    return bool(np.all(np.abs(values.sum(axis=0, dtype=np.float64) / 1e6 - 1) <= MILLION_TOLERANCE))


def _refuse(
    values: np.ndarray,
    wrong: Callable[[np.ndarray], np.ndarray],
    problem: str,
    genes: Sequence[str],
    cases: Sequence[str],
    where: str,
) -> None:
    number = _count(values, wrong)
    if not number:
        return
    gene, case = _first(values, wrong, genes, cases)
    hint = (
        "declare expected_counts (RSEM), tpm, fpkm or linear"
        if "whole" in problem
        else "correct it, or declare log2 or zscore"
    )
    value = values[list(genes).index(gene), list(cases).index(case)]
    raise InputError(
        f"{where} gene {gene}, sample {case}", f"{problem}: {value:.6g} ({number} such cells).", f"{hint}."
    )


def _first(
    values: np.ndarray, wrong: Callable[[np.ndarray], np.ndarray], genes: Sequence[str], cases: Sequence[str]
) -> tuple[str, str]:
    """Gene and case of the first wrong value, by gene."""
    places = [
        (int(row), start + int(column))
        for start, block in _blocks(values)
        for row, column in np.argwhere(wrong(block))[:1]
    ]
    row, column = min(places)
    return genes[row], cases[column]
