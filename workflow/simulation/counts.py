"""Simulated raw counts: negative-binomial, with real gene symbols and two hidden factors."""

from __future__ import annotations

import gzip
import io
from collections.abc import Sequence

import numpy as np

SEEN = 0.4  #: correlation of what tumour genes show with the tumour factor


def simulate_counts(
    tumour: np.ndarray, tme: np.ndarray, is_tumour_gene: np.ndarray, is_tme_gene: np.ndarray, seed: int
) -> np.ndarray:
    """Draw counts.

    Parameters
    ----------
    tumour, tme : float [cases], hidden factors
    is_tumour_gene, is_tme_gene : bool [genes]; a gene may be neither or both
    seed : seed of the draw

    Returns
    -------
    int64 [genes, cases]. Log2 mean = baseline + library size + loading x factor + a gene's own noise. TME
    genes load 0.9 +- 0.25 on `tme`. Tumour genes load 0.5 +- 0.15 on a factor that correlates only 0.4 with
    `tumour`, which is therefore seen mostly in the image. Dispersion falls from 0.6 at low counts to 0.08
    at high ones (variance = mean + dispersion x mean^2).
    """
    rng = np.random.default_rng([seed, 2])
    n_genes, n_cases = len(is_tumour_gene), len(tumour)
    baseline = np.clip(rng.normal(7.0, 2.6, n_genes), 0, 15)
    baseline[is_tumour_gene | is_tme_gene] = rng.normal(8.5, 1.2, int((is_tumour_gene | is_tme_gene).sum()))
    sign = np.where(rng.random(n_genes) < 0.85, 1, -1)
    on_tme = np.where(is_tme_gene, sign * rng.normal(0.9, 0.25, n_genes), 0)
    on_tumour = np.where(is_tumour_gene, sign * rng.normal(0.5, 0.15, n_genes), 0)
    seen_tumour = SEEN * tumour + np.sqrt(1 - SEEN**2) * _unrelated(rng, tumour)
    own = rng.normal(0, 0.35, (n_genes, n_cases))
    library = rng.normal(0, 0.4, n_cases)
    mean = 2 ** (baseline[:, None] + library + np.outer(on_tme, tme) + np.outer(on_tumour, seen_tumour) + own)
    dispersion = np.clip(4.0 / 2 ** (baseline / 2), 0.08, 0.6)[:, None]
    return rng.poisson(rng.gamma(1 / dispersion, mean * dispersion))


def _unrelated(rng: np.random.Generator, factor: np.ndarray) -> np.ndarray:
    """Noise of unit variance without any correlation with `factor`, which small samples would have by chance."""
    centred = factor - factor.mean()
    noise = rng.normal(0, 1, len(factor))
    noise -= noise.mean() + centred * (noise @ centred) / (centred @ centred)
    return noise / noise.std()


def table_bytes(symbols: Sequence[str], samples: Sequence[str], counts: np.ndarray) -> bytes:
    """A gzipped TSV of `counts` (int [genes, samples]), genes in rows, without a time stamp."""
    text = io.StringIO()
    text.write("\t".join(["gene", *samples]) + "\n")
    for symbol, row in zip(symbols, counts.tolist(), strict=True):
        text.write("\t".join([symbol, *map(str, row)]) + "\n")
    return gzip.compress(text.getvalue().encode(), compresslevel=6, mtime=0)
