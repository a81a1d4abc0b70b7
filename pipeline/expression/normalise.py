"""Normalise expression case by case. Nothing here is fitted across cases: no held-out case can leak through it."""

from __future__ import annotations

import numpy as np

from pipeline.contracts.errors import InputError


def normalise(
    raw: np.ndarray, unit: str, target_sum: float, clip: float, cases: list[str], where: str
) -> tuple[np.ndarray, int]:
    """Values on the scale of `unit` and the number of values that were clipped.

    ``counts`` and ``expected_counts``: each case scaled to `target_sum`, then natural log(1 + x), by scanpy.
    ``tpm``, ``fpkm``, ``fpkm_uq``, ``linear``: natural log(1 + x). ``log2``: kept. ``zscore``: clipped to [-clip,
    clip].

    Parameters
    ----------
    raw : float [cases, genes]

    Returns
    -------
    float32 [cases, genes], int

    Raises
    ------
    InputError for a case whose counts are all zero.
    """
    if unit in ("counts", "expected_counts"):
        return _by_library_size(raw, target_sum, cases, where), 0
    if unit == "log2":
        return raw.astype(np.float32), 0
    if unit == "zscore":
        return np.clip(raw, -clip, clip).astype(np.float32), int((np.abs(raw) > clip).sum())
    return np.log1p(raw, dtype=np.float64).astype(np.float32), 0


def to_tpm(raw: np.ndarray, unit: str, cases: list[str], where: str) -> np.ndarray:
    """Transcripts per million from TPM, FPKM or FPKM-UQ, float64 [cases, genes]: every case scaled to sum to a million.

    Within a case all three are proportional to transcripts per kilobase, so this is exact where the table holds the
    whole transcriptome (Li and Dewey, BMC Bioinformatics 12, 323 (2011)).

    Raises InputError for another unit, and for a case whose values are all zero.
    """
    if unit not in ("tpm", "fpkm", "fpkm_uq"):
        raise InputError(
            where,
            f"{unit} values cannot be brought to tpm: gene lengths and pseudocounts are not known.",
            "give TPM, FPKM or FPKM-UQ, or the same unit in every table with expression.common_unit: null.",
        )
    total = raw.sum(axis=1, keepdims=True, dtype=np.float64)
    _refuse_empty(total[:, 0], "value", cases, where)
    return raw * (1e6 / total)


def _refuse_empty(totals: np.ndarray, what: str, cases: list[str], where: str) -> None:
    empty = np.flatnonzero(totals == 0)
    if len(empty):
        raise InputError(
            f"{where} sample {cases[empty[0]]}", f"every {what} is 0.", "leave this sample out of the table."
        )


def _by_library_size(raw: np.ndarray, target_sum: float, cases: list[str], where: str) -> np.ndarray:
    _refuse_empty(raw.sum(axis=1, dtype=np.float64), "count", cases, where)
    # scanpy compiles with numba and takes seconds to load: only a table of counts pays for it.
    import anndata
    import scanpy

    table = anndata.AnnData(X=raw.astype(np.float64))
    scanpy.pp.normalize_total(table, target_sum=target_sum)
    scanpy.pp.log1p(table)
    return np.asarray(table.X, dtype=np.float32)
