"""How variable is each gene over the training cases? The variance, or one of scanpy's three flavours."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.contracts.errors import InputError, MachineError

COUNTS = ("counts", "expected_counts")  #: units that the flavour seurat_v3 is defined for


def n_kept(n_genes: int, top_fraction: float, n_top: int | None, where: str) -> int:
    """How many of `n_genes` the number keeps, or else the share, rounded down but one at least.

    Raises InputError for a number larger than there are genes.
    """
    if n_top is None:
        return max(1, math.floor(top_fraction * n_genes + 1e-9))
    if n_top > n_genes:
        raise InputError(
            where, f"genes.n_top asks for {n_top} genes, there are {n_genes} to choose from.", "ask for fewer."
        )
    return n_top


def variability(
    values: np.ndarray, raw: Callable[[], np.ndarray], flavour: str, unit: str, scale: str, where: str
) -> np.ndarray:
    """Score per gene, higher is more variable, float64 [genes].

    Parameters
    ----------
    values : float [training cases, genes], normalised; centred for "variance" where cohorts are
    raw : gives float [training cases, genes] as the table holds them
    unit, scale : of the expression artefact

    Raises
    ------
    InputError for a flavour that is not defined for these numbers or finds too few genes to fit, MachineError where
    scikit-misc is not installed.
    """
    if flavour == "variance":
        return values.astype(np.float64).var(axis=0)
    if flavour == "seurat_v3":
        return _seurat_v3(raw(), unit, where)
    if values.min(initial=0) < 0:
        raise InputError(
            where,
            f"flavour {flavour} divides by the mean of values from 0 up, which negative logarithms do not give.",
            "set genes.flavour: variance.",
        )
    base = {"base": 2.0 if scale == "log2" else None}
    varies = np.ones(values.shape[1], bool)
    if flavour == "cell_ranger":  # its bins are quantiles of the means, which genes without expression would collapse
        varies = values.max(axis=0, initial=0) > values.min(axis=0, initial=np.inf)
    score = np.full(values.shape[1], -np.inf)
    found = _scanpy(values[:, varies], flavour, where, base, n_top_genes=1)
    score[varies] = found["dispersions_norm"].fillna(-np.inf)
    return score


def _seurat_v3(raw: np.ndarray, unit: str, where: str) -> np.ndarray:
    if unit not in COUNTS:
        raise InputError(
            where,
            f"flavour seurat_v3 models the variance of counts; the table is in {unit}.",
            "set genes.flavour: variance, seurat or cell_ranger, or give counts.",
        )
    if importlib.util.find_spec("skmisc") is None:
        raise MachineError(
            f"{where}: flavour seurat_v3 needs the package scikit-misc, which is not installed."
            " Fix: install what requirements.txt pins, or set another genes.flavour."
        )
    found = _scanpy(raw, "seurat_v3", where, n_top_genes=raw.shape[1], check_values=unit == "counts")
    return found["variances_norm"].fillna(-np.inf).to_numpy(dtype=np.float64)


def _scanpy(
    values: np.ndarray, flavour: str, where: str, log1p: dict[str, Any] | None = None, **options: object
) -> Any:
    # scanpy compiles with numba and takes seconds to load: only its own flavours pay for it.
    import anndata
    import scanpy

    table = anndata.AnnData(X=values.astype(np.float64))
    if log1p:
        table.uns["log1p"] = log1p
    try:
        return scanpy.pp.highly_variable_genes(table, flavor=flavour, inplace=False, **options)
    except ValueError as error:  # bins of equal mean, and the local regression of seurat_v3, need some spread
        raise InputError(
            where,
            f"flavour {flavour} cannot be fitted to {values.shape[1]} genes of {values.shape[0]} training cases"
            f" ({str(error).partition(':')[0]}).",
            "set genes.order: hvg_then_signatures, which looks at all genes, or genes.flavour: variance.",
        ) from error
