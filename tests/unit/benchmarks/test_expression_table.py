"""The benchmark of large tables runs, and its works do what they say, on a table that takes no time."""

import gzip

from benchmarks import expression_table
from pipeline.contracts.expression import read_expression


def test_every_work_on_a_small_table(tmp_path, capsys):
    path = tmp_path / "simulated.tsv.gz"
    expression_table.write_table(path, 30, 11)
    for work in expression_table.WORKS:
        assert expression_table.main(["--work", work, "--table", str(path)]) == 0
        assert '"memory"' in capsys.readouterr().out
    with gzip.open(path, "rt") as handle:
        first = handle.readlines()[1].rstrip("\n").split("\t")
    found = read_expression(tmp_path / "expression.h5ad")
    assert found.values.shape == (11, 30) and found.unit == "counts"
    assert found.raw[:, found.symbols.index(first[0])].tolist() == [float(v) for v in first[1:]]


def test_figures_compare_with_the_faster_reader(monkeypatch, tmp_path):
    taken = {"prepare": 3.0, "join": 0.5, "arrow": 4.0, "arrow_blocks": 2.0}
    monkeypatch.setattr(
        expression_table,
        "measured",
        lambda work, path: {"cpu": taken[work], "wall": taken[work], "memory": taken[work]},
    )
    found = expression_table.figures(tmp_path / "t")
    assert [figure.holds for figure in found] == [True] * 5
    assert {figure.other for figure in found} == {2.0, 4.0}
    taken["prepare"] = 4.5
    assert not expression_table.figures(tmp_path / "t")[0].holds
