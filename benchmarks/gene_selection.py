"""How long does choosing the genes of five folds take, and how much faster is elimination on inner products?

The cohort is simulated: 20,000 genes of 500 cases, two classes. The plain path is scikit-learn's RFECV around its
LinearSVC, with the settings of the published method, on a smaller table, where both must keep the same genes.

One command, ``python -m benchmarks.gene_selection``; one line per figure: name, ours, what it is compared with, and how
many times better ours is. CPU seconds of one thread. Exit status 1 if a figure is missed.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np

from benchmarks.tile_reading import Figure
from pipeline.contracts.expression import Expression
from pipeline.genes import GeneParams, select_genes
from pipeline.genes.elimination import eliminate
from pipeline.signatures import Signatures

FOLDS = 5
SECONDS = 60.0  #: of CPU for the folds of one task: "in seconds"
PLAIN = (120, 2000)  #: cases and genes of the table that the plain path gets
CHOICES = {
    "variance": {},
    "seurat": {"flavour": "seurat"},
    "cell_ranger": {"flavour": "cell_ranger"},
    "seurat_v3": {"flavour": "seurat_v3"},
    "rfe_svm": {"selection": "rfe_svm", "cancer_genes": "none"},
}


def cohort(n_cases: int, n_genes: int, seed: int = 0) -> tuple[Expression, dict[str, str]]:
    """Counts on the log scale, and a class per case that fifty genes follow."""
    draw = np.random.default_rng(seed)
    codes = np.arange(n_cases) % 2
    level = draw.lognormal(3, 1.5, n_genes)
    shift = np.zeros(n_genes)
    shift[draw.choice(n_genes, min(50, n_genes), replace=False)] = draw.normal(0, 0.8, min(50, n_genes))
    counts = draw.poisson(draw.gamma(3, level / 3, (n_cases, n_genes)) * np.exp(codes[:, None] * shift))
    cases = tuple(f"c{k:05d}" for k in range(n_cases))
    flags = np.zeros(n_genes, bool)
    table = Expression(
        cases=cases,
        symbols=tuple(f"G{k:05d}" for k in range(n_genes)),
        values=np.log1p(counts).astype(np.float32),
        unit="counts",
        raw=counts.astype(np.float32),
        ensembl=("",) * n_genes,
        tumour=flags,
        tme=flags,
    )
    return table, {case: "ab"[code] for case, code in zip(cases, codes, strict=True)}


def seconds(work: Callable[[], object]) -> tuple[float, object]:
    """CPU seconds of a call, and what it gave."""
    before = time.process_time()
    found = work()
    return time.process_time() - before, found


def five_folds(table: Expression, classes: dict[str, str], change: dict[str, object]) -> None:
    """The genes of five folds, a fifth of the cases held out of each."""
    sets = Signatures(table.symbols[:800], table.symbols[800:2000])
    params = GeneParams(order="hvg_then_signatures", **change)
    for fold in range(FOLDS):
        training = [case for k, case in enumerate(table.cases) if k // 2 % FOLDS != fold]
        select_genes(table, training, params, "grade", fold, sets, classes=classes)


def plain(values: np.ndarray, labels: list[str], tolerance: float = 1e-4, steps: int = 5000) -> np.ndarray:
    """Positions that scikit-learn keeps; by default with the tolerance of the published settings."""
    from sklearn.feature_selection import RFECV
    from sklearn.svm import LinearSVC

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 5000 steps do not always suffice
        svm = LinearSVC(C=1, loss="squared_hinge", tol=tolerance, max_iter=steps, random_state=42)
        return np.flatnonzero(RFECV(svm, step=0.05, cv=5, scoring="accuracy").fit(values, labels).support_)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--plain", type=int, nargs=2, default=PLAIN, metavar=("CASES", "GENES"))
    options = parser.parse_args(arguments)
    import scanpy  # noqa: F401  # loading and compiling are paid once per job, not per fold

    table, classes = cohort(options.cases, options.genes)
    size = f"{options.genes:,} genes x {options.cases} cases, {FOLDS} folds"
    figures = []
    for name, change in CHOICES.items():
        took, _ = seconds(lambda change=change: five_folds(table, classes, change))
        figures.append(Figure(f"{size}: {name}", took, "limit", SECONDS, "s"))
    small, small_classes = cohort(*options.plain, seed=1)
    values, labels = small.values.astype(np.float64), [small_classes[case] for case in small.cases]
    eliminate(values[:20, :40], labels[:20], 0.05, 5, "warm-up")
    ours, found = seconds(lambda: eliminate(values, labels, 0.05, 5, "benchmark").kept)
    theirs, loose = seconds(lambda: plain(values, labels))
    longer, solved = seconds(lambda: plain(values, labels, 1e-10, 10**6))
    size = f"{options.plain[1]:,} genes x {options.plain[0]} cases"
    figures.append(Figure(f"{size}: elimination", ours, "LinearSVC", theirs, "s", 10))
    figures.append(Figure("the same: LinearSVC solved to the end", ours, "LinearSVC", longer, "s", 10))
    apart = len(np.setxor1d(found, solved))
    name = f"the same: genes that only one of the two keeps, of {len(found)}"
    figures.append(Figure(name, float(apart), "LinearSVC", 0.0, "genes"))
    print(f"LinearSVC with its default tolerance differs from itself in {len(np.setxor1d(loose, solved))} genes.")
    for figure in figures:
        print(figure)
    return int(any(not figure.holds for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
