"""Known counts on a whole microarray transcriptome: 100 gliomas of Phillips et al. 2006, 12,703 genes.

The published counts take symbols as they stand in the table and in the list, and a gene that is in both sets counts in
each (``both: keep``). The pipeline brings old symbols up to date first, on both sides, which finds three more
tumour genes and moves the share a little.
"""

from __future__ import annotations

import csv
import gzip

import numpy as np

from pipeline.contracts.expression import Expression, read_expression
from pipeline.expression import ExpressionParams, prepare_expression
from pipeline.genes import GeneParams, select_genes
from pipeline.genes.lists import load_lists
from tests.slide_files import real_file

ORDERS = {
    "top 30 % of the transcriptome, then sets": {"order": "hvg_then_signatures"},
    "sets, then top 30 %": {"order": "signatures_then_hvg"},
    "top 2000, then sets": {"order": "hvg_then_signatures", "n_top": 2000},
}
AS_THEY_STAND = dict(zip(ORDERS, [(116, 469), (97, 414), (66, 321)], strict=True))
UP_TO_DATE = dict(zip(ORDERS, [(119, 467), (100, 414), (67, 320)], strict=True))


def counts(expression, current=None):
    listed = real_file("gene-sets/tumour_tme_genes.csv")
    found = {}
    for name, order in ORDERS.items():
        params = GeneParams(tumour=listed, tme=listed, both="keep", **order)
        groups = select_genes(expression, expression.cases, params, "all", 0, load_lists(params, current)).groups
        found[name] = len(groups["tumour"]), len(groups["tme"])
    return found


def test_counts_by_symbols_as_they_stand():
    with gzip.open(real_file("glioma-geo/phillips_expr.csv.gz"), "rt", newline="") as handle:
        (_, *symbols), *rows = list(csv.reader(handle))
    order = np.argsort(symbols)
    values = np.array([row[1:] for row in rows], np.float32)[:, order]
    none = np.zeros(len(symbols), bool)
    cases, symbols = tuple(row[0] for row in rows), tuple(np.array(symbols)[order])
    table = Expression(cases, symbols, values, "log2", values, ("",) * len(symbols), none, none)
    assert counts(table, current=lambda symbol: symbol) == AS_THEY_STAND


def test_counts_by_symbols_brought_up_to_date(tmp_path):
    path = real_file("glioma-geo/phillips_expr.csv.gz")
    with gzip.open(path, "rt", newline="") as handle:
        cases = [line.partition(",")[0] for line in handle][1:]
    prepare_expression(path, tmp_path / "e.h5ad", ExpressionParams(unit="log2"), cases)
    assert counts(read_expression(tmp_path / "e.h5ad")) == UP_TO_DATE
