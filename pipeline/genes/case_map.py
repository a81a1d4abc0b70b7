"""Cases on a plane by UMAP (McInnes et al., arXiv 1802.03426), by scanpy: a picture, and no input of any model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.contracts.expression import read_expression
from pipeline.contracts.files import write_table

MIN_GENES = 50  #: of fewer tumour and microenvironment genes, all genes of the table are taken
COMPONENTS, NEIGHBOURS, SEED = 30, 15, 0


def write_case_map(expression: str | Path, out: str | Path) -> None:
    """Write case_id, umap1, umap2 of every case; no row for a table of fewer than five cases.

    Tumour and microenvironment genes are standardised over all cases, held-out ones among them, and reduced to their
    principal components first.
    """
    table = read_expression(expression)
    chosen = table.tumour | table.tme
    values = table.values[:, chosen if chosen.sum() >= MIN_GENES else slice(None)].astype(np.float64)
    spread = values.std(axis=0)
    values = ((values - values.mean(axis=0)) / np.where(spread > 0, spread, 1))[:, spread > 0]
    places = _umap(values) if len(values) >= 5 and values.shape[1] > 1 else np.zeros((0, 2))
    cases = table.cases[: len(places)]
    rows = [
        {"case_id": case, "umap1": f"{x:.6g}", "umap2": f"{y:.6g}"} for case, (x, y) in zip(cases, places, strict=True)
    ]
    write_table(out, ["case_id", "umap1", "umap2"], rows)


def _umap(values: np.ndarray) -> np.ndarray:
    import anndata
    import scanpy

    cases = anndata.AnnData(X=values)
    scanpy.pp.pca(cases, n_comps=min(COMPONENTS, min(values.shape) - 1), random_state=SEED)
    scanpy.pp.neighbors(cases, n_neighbors=min(NEIGHBOURS, len(values) - 1), random_state=SEED)
    scanpy.tl.umap(cases, random_state=SEED)
    return np.asarray(cases.obsm["X_umap"])
