"""The benchmark of gene selection runs, on tables of no size."""

from benchmarks.gene_selection import main


def test_it_prints_a_line_per_figure(capsys):
    main(["--cases", "60", "--genes", "2100", "--plain", "40", "60"])
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[1].split()[0] for line in said[1:6]] == [
        "variance", "seurat", "cell_ranger", "seurat_v3", "rfe_svm",
    ]  # fmt: skip
    assert len(said) == 9
