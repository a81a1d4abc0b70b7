"""One number per case and gene set: how much higher the set stands than genes of like expression, by scanpy.

Source: Tirosh et al., Science 352, 189 (2016), as ``scanpy.tl.score_genes``: the mean of the set less the mean of
control genes, drawn from the bins of mean expression that the genes of the set lie in. The bins are those of the whole
table, held-out cases among it: scores describe a cohort and are no input of any model.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.contracts.expression import Expression, read_expression
from pipeline.contracts.files import write_table
from pipeline.expression.aliases import read_aliases
from pipeline.genes.params import GeneParams
from pipeline.signatures import BUILTIN, load_signatures
from pipeline.signatures.families import load_families

MIN_GENES = 5  #: a set of fewer genes of the table has no score
SEED = 0  #: of the control genes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GeneSetScores:
    """Scores float64 [cases, sets] of the sets that have any, and of every set the genes listed and in the table."""

    cases: tuple[str, ...]
    sets: tuple[str, ...]
    values: np.ndarray
    counts: Mapping[str, tuple[int, int]]


def score_gene_sets(expression: Expression, sets: Mapping[str, tuple[str, ...]]) -> GeneSetScores:
    """Score every case by every set of which the table has five genes or more."""
    import anndata
    import pandas
    import scanpy

    known = set(expression.symbols)
    present = {name: [gene for gene in genes if gene in known] for name, genes in sets.items()}
    counts = {name: (len(genes), len(present[name])) for name, genes in sets.items()}
    # A set that is the whole table leaves no gene to compare it with.
    scored = tuple(name for name, genes in present.items() if MIN_GENES <= len(genes) < len(known))
    frame = pandas.DataFrame(index=pandas.Index(list(expression.symbols), dtype=object))
    values = np.zeros((len(expression.cases), len(scored)))
    for column, name in enumerate(scored):
        table = anndata.AnnData(X=expression.values, var=frame)
        scanpy.tl.score_genes(table, present[name], score_name="score", random_state=SEED, use_raw=False)
        values[:, column] = table.obs["score"].to_numpy(dtype=np.float64)
    return GeneSetScores(expression.cases, scored, values, counts)


def write_gene_set_scores(
    expression: str | Path,
    scores: str | Path,
    counts: str | Path,
    params: GeneParams,
    aliases: str | Path | None = None,
) -> None:
    """Write the scores (case_id, then a column per set) and what each set consists of (set, listed, present, scored).

    The sets are the tumour and the TME set, and the gene families; without families those that are built in.
    """
    current = read_aliases(aliases).current
    signatures = load_signatures(params.tumour, params.tme, current)
    families = load_families(params.families or BUILTIN, current)
    found = score_gene_sets(
        read_expression(expression), {"tumour": signatures.tumour, "tme": signatures.tme} | families
    )
    rows = [
        {"case_id": case, **{name: f"{value:.6g}" for name, value in zip(found.sets, row, strict=True)}}
        for case, row in zip(found.cases, found.values, strict=True)
    ]
    write_table(scores, ["case_id", *found.sets], rows)
    listed = [
        {"set": name, "listed": n, "present": there, "scored": int(name in found.sets)}
        for name, (n, there) in found.counts.items()
    ]
    write_table(counts, ["set", "listed", "present", "scored"], listed)
    logger.info("gene sets: %d of %d scored for %d cases", len(found.sets), len(found.counts), len(found.cases))
