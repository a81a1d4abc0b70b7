"""Does expression follow the site, or the cohort, as much as the label? Principal components against known factors.

A description of all cases that have a label, held-out ones among them: nothing here is fitted for a model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

COMPONENTS = 10  #: that are looked at together
SHUFFLES = 499
SEED = 0


@dataclass(frozen=True)
class Components:
    """Principal components of cases: scores float64 [cases, components], and each one's share of the variance."""

    scores: np.ndarray
    shares: np.ndarray


def principal_components(values: np.ndarray) -> Components | None:
    """Up to ten components of `values`, float [cases, genes]; None where nothing varies."""
    centred = values.astype(np.float64) - values.mean(axis=0, dtype=np.float64)
    if min(centred.shape, default=0) < 2 or not centred.any():
        return None
    left, spread, right = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])  # so that a picture is not mirrored
    shares = spread**2 / (spread**2).sum()
    kept = min(COMPONENTS, int((shares > 1e-12).sum()))
    return Components((left * spread * signs)[:, :kept], shares[:kept])


def explained(components: Components, levels: Sequence[str]) -> np.ndarray:
    """Share of each component's variance between the levels of a factor, less what chance gives (epsilon squared of
    Kelley, PNAS 21, 554 (1935)); 0 where that is negative. float64 [components]"""
    codes = np.unique(np.asarray(levels), return_inverse=True)[1]
    n, k = len(codes), int(codes.max()) + 1
    if n <= k:
        return np.zeros(len(components.shares))
    means = np.zeros((k, components.scores.shape[1]))
    np.add.at(means, codes, components.scores)
    means /= np.bincount(codes)[:, None]
    within = ((components.scores - means[codes]) ** 2).sum(axis=0)
    total = (components.scores**2).sum(axis=0)
    return np.maximum(0, 1 - within / total * (n - 1) / (n - k))


def overall(components: Components, levels: Sequence[str]) -> float:
    """Share of the components' joint variance between the levels."""
    return float(explained(components, levels) @ components.shares / components.shares.sum())


def chance(components: Components, levels: Sequence[str]) -> float:
    """How often shuffled levels explain as much: a permutation p-value, 0.002 at least."""
    draw, observed = np.random.default_rng(SEED), overall(components, levels)
    levels = np.asarray(levels)
    hits = sum(overall(components, draw.permutation(levels)) >= observed - 1e-12 for _ in range(SHUFFLES))
    return (hits + 1) / (SHUFFLES + 1)


def association(one: Sequence[str], other: Sequence[str]) -> float:
    """Cramér's V of two factors, corrected for chance (Bergsma, J Korean Stat Soc 42, 323 (2013)): 0 to 1."""
    rows, columns = (np.unique(np.asarray(f), return_inverse=True)[1] for f in (one, other))
    table = np.zeros((rows.max() + 1, columns.max() + 1))
    np.add.at(table, (rows, columns), 1)
    n, (r, c) = len(rows), table.shape
    if n < 2 or min(r, c) < 2:
        return 0.0
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / n
    phi = max(0.0, float(((table - expected) ** 2 / expected).sum()) / n - (r - 1) * (c - 1) / (n - 1))
    smaller = min(r - (r - 1) ** 2 / (n - 1), c - (c - 1) ** 2 / (n - 1)) - 1
    return min(1.0, (phi / smaller) ** 0.5) if smaller > 0 else 0.0


def batch_table(components: Components, factors: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """A row per factor; the first is the label. Levels with a single case are left out of that factor's row."""
    from sklearn.metrics import silhouette_score

    rows = []
    label = next(iter(factors.values()), ())
    for name, levels in factors.items():
        counts = Counter(levels)
        kept = [k for k, level in enumerate(levels) if level and counts[level] > 1]
        used = [levels[k] for k in kept]
        if len(set(used)) < 2 or len(used) <= len(set(used)):
            continue
        part = Components(components.scores[kept] - components.scores[kept].mean(axis=0), components.shares)
        rows.append(
            {
                "factor": name,
                "levels": len(set(used)),
                "cases": len(used),
                "explained": overall(part, used),
                "components": [float(share) for share in explained(part, used)[:5]],
                "p": chance(part, used),
                "silhouette": float(silhouette_score(part.scores, used)),
                "with_label": None if levels is label else association(used, [label[k] for k in kept]),
            }
        )
    return rows
