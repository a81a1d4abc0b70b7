"""A fold's genes are all it takes to bring a new table to a model's input, equal to the training input to the bit."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from models.data import Cohort
from pipeline.contracts.errors import InputError
from pipeline.contracts.expression import read_expression
from pipeline.contracts.genes import read_genes, write_genes
from pipeline.expression import ExpressionParams, prepare_expression
from pipeline.expression.apply import apply_genes, apply_selection
from pipeline.expression.tables import read_raw
from pipeline.genes import GeneParams, select_genes
from pipeline.signatures import Signatures
from workflow.cli.main import main

GENES = [f"G{i:02d}" for i in range(40)]
CASES = [f"c{i}" for i in range(9)]


def numbers(unit):
    draw = np.random.default_rng()
    values = draw.lognormal(2, 1.5, (40, 9)) * 20
    return {"counts": np.rint(values), "tpm": values / values.sum(0) * 1e6, "log2": np.log2(values + 1)}[unit]


def write(path, values, rows=GENES, columns=CASES):
    lines = ["\t".join(["gene", *columns])]
    lines += ["\t".join([row, *map(repr, line)]) for row, line in zip(rows, np.asarray(values).tolist(), strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


def fitted(tmp_path, values, params=None, cohorts=None, **settings):
    """The artefact and the genes of a fold that trains on seven of nine cases; the table itself is at t.tsv."""
    table = write(tmp_path / "t.tsv", values)
    prepare_expression(table, tmp_path / "e.h5ad", ExpressionParams(**settings), CASES, cohorts=cohorts)
    expression = read_expression(tmp_path / "e.h5ad")
    sets = Signatures(tuple(GENES[:25]), tuple(GENES[25:]))
    params = params or GeneParams(top_fraction=0.8, min_genes=1)
    write_genes(tmp_path / "fold0.json", select_genes(expression, CASES[:7], params, "grade", 0, sets))
    return expression, tmp_path / "fold0.json"


def written(path):
    with open(path, newline="") as handle:
        header, *rows = csv.reader(handle, delimiter="\t")
    return [row[0] for row in rows], header[1:], np.array([row[1:] for row in rows]).astype(np.float32)


@pytest.mark.parametrize("unit", ["counts", "tpm", "log2"])
def test_the_training_table_gives_the_training_inputs(tmp_path, unit):
    _, genes = fitted(tmp_path, numbers(unit), unit=unit, target_sum=5e3)
    inputs = Cohort(expression=tmp_path / "e.h5ad").genes(CASES, read_genes(genes))
    applied = apply_genes(genes, tmp_path / "t.tsv", tmp_path / "x.tsv")
    np.testing.assert_array_equal(applied.values, inputs)
    cases, columns, values = written(tmp_path / "x.tsv")
    assert cases == CASES and columns == list(read_genes(genes).genes)
    np.testing.assert_array_equal(values, inputs)  # the text reads back to the bit
    again = apply_genes(genes, tmp_path / "e.h5ad", tmp_path / "y.tsv")  # the artefact's raw layer will do as well
    np.testing.assert_array_equal(again.values, inputs)


def test_a_case_does_not_depend_on_the_others_nor_on_the_shape_of_the_table(tmp_path):
    values = numbers("counts")
    _, genes = fitted(tmp_path, values)
    whole = apply_genes(genes, tmp_path / "t.tsv", tmp_path / "x.tsv")
    order = np.random.default_rng().permutation(40)
    one = write(tmp_path / "one.csv", values[order][:, 4:5].T, ["c4"], [GENES[i] for i in order])
    one.write_text(one.read_text().replace("\t", ","))
    alone = apply_genes(genes, one, tmp_path / "y.tsv")
    np.testing.assert_array_equal(alone.values[0], whole.values[4])
    assert alone.report["orientation"] == "genes_in_rows"


def test_centred_cohorts_and_a_new_one(tmp_path):
    cohorts = {case: "A" if i % 2 else "B" for i, case in enumerate(CASES)}
    params = GeneParams(selection="all", centre="cohort")
    values = numbers("log2")
    _, genes = fitted(tmp_path, values, params, cohorts, unit="log2")
    inputs = Cohort(expression=tmp_path / "e.h5ad").genes(CASES, read_genes(genes))
    b = [i for i in range(9) if i % 2 == 0]
    table = write(tmp_path / "b.tsv", values[:, b], columns=[CASES[i] for i in b])
    applied = apply_genes(genes, table, tmp_path / "x.tsv", cohort="B")
    np.testing.assert_array_equal(applied.values, inputs[b])
    with pytest.raises(InputError, match="cohort 'C' was not among"):
        apply_genes(genes, table, tmp_path / "x.tsv", cohort="C")
    with pytest.raises(InputError, match="a case without a cohort"):
        apply_genes(genes, table, tmp_path / "x.tsv")
    itself = replace(read_genes(genes), unseen="itself")
    new = apply_selection(itself, read_raw(table), cohort="C")
    assert new.report["cohort_is_new"] is True
    np.testing.assert_allclose((new.values * itself.std + itself.mean).mean(axis=0), 0, atol=1e-5)


def test_missing_genes_are_counted_and_too_many_refused(tmp_path):
    values = numbers("tpm")
    _, genes = fitted(tmp_path, values, GeneParams(selection="all", max_missing=0.1), unit="tpm")
    whole = apply_genes(genes, tmp_path / "t.tsv", tmp_path / "x.tsv")
    fewer = apply_genes(genes, write(tmp_path / "f.tsv", values[4:], GENES[4:]), tmp_path / "x.tsv")
    assert fewer.report["genes_at_the_training_mean"] == {"number": 4, "examples": GENES[:4]}
    absent = np.isin(fewer.genes, GENES[:4])
    assert (fewer.values[:, absent] == 0).all()
    np.testing.assert_array_equal(fewer.values[:, ~absent], whole.values[:, ~absent])
    report = json.loads((tmp_path / "x.tsv.json").read_text())
    assert report["report"]["genes_at_the_training_mean"]["number"] == 4
    with pytest.raises(InputError, match=r"5 of 40 selected genes"):
        apply_genes(genes, write(tmp_path / "f.tsv", values[5:], GENES[5:]), tmp_path / "x.tsv")
    with pytest.raises(InputError, match="no row and no column is one of the 40 selected genes"):
        apply_genes(genes, write(tmp_path / "f.tsv", values, [f"X{g}" for g in GENES]), tmp_path / "x.tsv")


@pytest.mark.parametrize(
    ("trained", "given", "message"),
    [
        ("counts", "tpm", "no whole number under unit counts"),
        ("counts", "log2", "no whole number under unit counts"),
        ("tpm", "counts", "unit tpm, but"),
        ("log2", "counts", "unit log2, but the value is"),
    ],
)
def test_numbers_of_another_unit_are_refused(tmp_path, trained, given, message):
    _, genes = fitted(tmp_path, numbers(trained), unit=trained)
    with pytest.raises(InputError, match=message):
        apply_genes(genes, write(tmp_path / "new.tsv", numbers(given)), tmp_path / "x.tsv")
    with pytest.raises(
        InputError, match=f"it is in fpkm, but the genes of task grade, fold 0 were fitted on {trained}"
    ):
        apply_genes(genes, write(tmp_path / "new.tsv", numbers(trained)), tmp_path / "x.tsv", unit="fpkm")


def test_old_symbols_and_tcga_samples_by_the_command(tmp_path, capsys):
    values = numbers("counts")[:3, :4]
    table = write(tmp_path / "t.tsv", values, ["RBFOX1", "TP53", "CXCL8"], CASES[:4])
    prepare_expression(table, tmp_path / "e.h5ad", ExpressionParams(), CASES)
    selection = select_genes(
        read_expression(tmp_path / "e.h5ad"), CASES[:4], GeneParams(selection="all"), "grade", 0, Signatures((), ())
    )
    write_genes(tmp_path / "fold0.json", selection)
    samples = ["TCGA-AA-0001-02A-11R", "TCGA-AA-0001-01A-11R", "TCGA-AA-0001-11A-11R", "c9"]
    new = write(tmp_path / "new.tsv", values, ["A2BP1|54715", "TP53|7157", "IL8|3576"], samples)
    command = ["apply-genes", "--genes", str(tmp_path / "fold0.json"), "--table", str(new), "--out"]
    assert main([*command, str(tmp_path / "x.tsv")]) == 0
    said = capsys.readouterr().out
    assert "samples not tumour: 1" in said and "genes at the training mean: 0" in said and "2 cases, 3 genes" in said
    cases, _, found = written(tmp_path / "x.tsv")
    assert cases == ["TCGA-AA-0001", "c9"]
    expected = apply_selection(selection, read_raw(table)).values
    np.testing.assert_array_equal(found, expected[[1, 3]])
    assert main([*command, str(tmp_path / "x.tsv"), "--unit", "tpm"]) == 1
    assert "it is in tpm" in capsys.readouterr().err
