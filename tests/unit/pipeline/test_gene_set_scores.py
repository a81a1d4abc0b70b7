"""Gene-set scores are scanpy's, and say which sets had too few genes."""

from __future__ import annotations

import numpy as np

from pipeline.contracts.expression import Expression, write_expression
from pipeline.contracts.files import read_table
from pipeline.genes import GeneParams
from pipeline.genes.scores import score_gene_sets, write_gene_set_scores

N_CASES, N_GENES = 12, 200
SYMBOLS = tuple(f"G{k:03d}" for k in range(N_GENES))


def table():
    draw = np.random.default_rng()
    values = draw.gamma(3, 1, (N_CASES, N_GENES)).astype(np.float32)
    values[6:, :20] += 4  # the second half of the cases stands out in the first genes
    none = np.zeros(N_GENES, bool)
    cases = tuple(f"c{k:02d}" for k in range(N_CASES))
    return Expression(cases, SYMBOLS, values, "tpm", values, ("",) * N_GENES, none, none)


def test_a_raised_set_scores_higher_and_others_do_not():
    expression = table()
    found = score_gene_sets(expression, {"up": SYMBOLS[:20], "rest": SYMBOLS[100:140], "few": SYMBOLS[:4]})
    assert found.sets == ("up", "rest")
    assert found.counts == {"up": (20, 20), "rest": (40, 40), "few": (4, 4)}
    up, rest = found.values.T
    assert up[6:].mean() - up[:6].mean() > 1.2  # 4, and 0.6 from draw to draw of cases and control genes
    assert abs(rest[6:].mean() - rest[:6].mean()) < 1.2  # 0, and 0.2
    again = score_gene_sets(expression, {"up": SYMBOLS[:20]})
    np.testing.assert_array_equal(again.values[:, 0], up)


def test_files_hold_a_row_per_case_and_a_row_per_set(tmp_path):
    write_expression(tmp_path / "e.h5ad", table())
    (tmp_path / "sets.gmt").write_text(
        "\n".join("\t".join([n, "d", *g]) for n, g in (("a", SYMBOLS[:9]), ("b", ["X"])))
    )
    lists = tmp_path / "lists.tsv"
    lists.write_text(
        "symbol\tset\n" + "".join(f"{s}\t{'tumour' if k < 50 else 'tme'}\n" for k, s in enumerate(SYMBOLS[:90]))
    )
    params = GeneParams(tumour=str(lists), tme=str(lists), families=str(tmp_path / "sets.gmt"))
    write_gene_set_scores(tmp_path / "e.h5ad", tmp_path / "s.tsv", tmp_path / "n.tsv", params)
    rows = read_table(tmp_path / "s.tsv")
    assert list(rows[0]) == ["case_id", "tumour", "tme", "a"]
    assert [row["case_id"] for row in rows] == [f"c{k:02d}" for k in range(N_CASES)]
    assert read_table(tmp_path / "n.tsv")[2:] == [
        {"set": "a", "listed": "9", "present": "9", "scored": "1"},
        {"set": "b", "listed": "1", "present": "0", "scored": "0"},
    ]
