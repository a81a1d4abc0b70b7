"""Several tables, one cohort each: joined by symbol in one unit, centred on training cases, no label in disguise."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.contracts.errors import InputError
from pipeline.contracts.expression import Expression, read_expression, write_expression
from pipeline.contracts.expression_tables import TableSource, table_sources
from pipeline.contracts.genes import read_genes, write_genes
from pipeline.contracts.splits import SplitRow, write_splits
from pipeline.expression import ExpressionParams, prepare_expression
from pipeline.expression.centring import check_label_against_cohorts
from pipeline.genes import GeneParams, select_genes, select_genes_for_folds
from pipeline.signatures import Signatures

GENES = [f"G{i:02d}" for i in range(30)]
PARAMS = GeneParams(selection="all", centre="cohort")


def write(path, values, rows, columns):
    lines = ["\t".join(["gene", *columns])]
    lines += ["\t".join([row, *map(repr, line)]) for row, line in zip(rows, np.asarray(values).tolist(), strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def prepared(tmp_path, tables, cases, cohorts=None, **params):
    report = prepare_expression(tables, tmp_path / "out.h5ad", ExpressionParams(**params), cases, cohorts=cohorts)
    return read_expression(tmp_path / "out.h5ad"), report


# --- several tables -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ()),
        ("a.tsv", (TableSource("a.tsv"),)),
        (["a.tsv", {"path": "b.tsv", "unit": "tpm"}], (TableSource("a.tsv"), TableSource("b.tsv", "", "tpm"))),
        ({"brca": "a.tsv", "luad": {"path": "b.tsv"}}, (TableSource("a.tsv", "brca"), TableSource("b.tsv", "luad"))),
    ],
)
def test_what_the_config_may_name(value, expected):
    assert table_sources(value) == expected


@pytest.mark.parametrize(("value", "message"), [(["a", "a"], "named twice"), ({"x": {"unit": "tpm"}}, "x: .*no path")])
def test_what_it_may_not(value, message):
    with pytest.raises(InputError, match=message):
        table_sources(value)


def counts(n_genes, n_cases):
    return np.random.default_rng().integers(0, 4000, (n_genes, n_cases))


def test_tables_are_joined_by_symbol_and_lost_genes_are_counted(tmp_path):
    first, second = counts(20, 3), counts(25, 2)
    order = np.random.default_rng().permutation(25)
    tables = {
        "one": write(tmp_path / "a.tsv", first, GENES[:20], ["c5", "c1", "c3"]),
        "two": write(tmp_path / "b.tsv", second[order].T, ["c4", "c2"], [GENES[5 + i] for i in order]),
    }
    found, report = prepared(tmp_path, tables, [f"c{i}" for i in range(1, 7)])
    assert found.cases == ("c1", "c2", "c3", "c4", "c5")
    assert found.cohorts == ("one", "two", "one", "two", "one")
    assert found.symbols == tuple(GENES[5:20])
    np.testing.assert_array_equal(found.raw[0], first[5:20, 1])
    np.testing.assert_array_equal(found.raw[3], second[:15, 0])
    assert report["table one"]["genes_not_in_all_tables"]["number"] == 5
    assert report["table two"]["genes_not_in_all_tables"]["number"] == 10
    assert report["cases_without_rna"] == {"number": 1, "examples": ["c6"]}
    # each table by the library size over its own genes, as if it stood alone
    alone, _ = prepared(tmp_path, tables["one"], ["c1"])
    np.testing.assert_array_equal(found.values[0], alone.values[0, 5:20])


def test_a_case_in_two_tables_and_cohorts_that_disagree(tmp_path):
    tables = {
        "one": write(tmp_path / "a.tsv", counts(20, 2), GENES[:20], ["c1", "c2"]),
        "two": write(tmp_path / "b.tsv", counts(20, 2), GENES[:20], ["c2", "c3"]),
    }
    with pytest.raises(InputError, match=r"b\.tsv case c2: the table of one has samples of it as well"):
        prepared(tmp_path, tables, ["c1", "c2", "c3"])
    with pytest.raises(InputError, match=r"case c1: column cohort .* says 'uno', .* in 'one'"):
        prepared(tmp_path, tables, ["c1", "c3"], {"c1": "uno"})
    assert prepared(tmp_path, list(tables.values()), ["c1", "c3"], {"c1": "uno"})[0].cohorts == ("uno", "")


def test_tables_without_a_common_gene(tmp_path):
    paths = [write(tmp_path / f"{i}.tsv", counts(9, 2), GENES[i : i + 9], [f"c{i}", f"d{i}"]) for i in (0, 9)]
    with pytest.raises(InputError, match="no gene in common"):
        prepared(tmp_path, paths, ["c0", "c9"])


def test_different_units_are_refused_or_brought_to_one(tmp_path):
    fpkm, uq = (np.random.default_rng().lognormal(3, 2, (30, 3)) for _ in range(2))
    tpm = np.random.default_rng().lognormal(3, 2, (30, 2))
    tpm *= 1e6 / tpm.sum(axis=0)
    tables = {
        "a": {"path": write(tmp_path / "a.tsv", fpkm, GENES, ["a1", "a2", "a3"]), "unit": "fpkm"},
        "b": {"path": write(tmp_path / "b.tsv", uq, GENES, ["b1", "b2", "b3"]), "unit": "fpkm_uq"},
        "c": {"path": write(tmp_path / "c.tsv", tpm, GENES, ["c1", "c2"]), "unit": "tpm"},
    }
    cases = ["a1", "a2", "a3", "b1", "b2", "b3", "c1", "c2"]
    with pytest.raises(InputError, match=r"different units \(a: fpkm, b: fpkm_uq, c: tpm\).*common_unit: tpm"):
        prepared(tmp_path, tables, cases)
    found, report = prepared(tmp_path, tables, cases, common_unit="tpm")
    assert found.unit == "tpm" and report["table b"]["unit_brought_to"] == "tpm"
    expected = np.concatenate([(x / x.sum(axis=0) * 1e6).T for x in (fpkm, uq, tpm)])
    np.testing.assert_allclose(found.raw, expected, rtol=1e-6)
    tables["c"] = {"path": write(tmp_path / "d.tsv", np.log2(tpm + 1), GENES, ["c1", "c2"])}
    with pytest.raises(InputError, match=r"d\.tsv: log2 values cannot be brought to tpm"):
        prepared(tmp_path, tables, cases, common_unit="tpm")


# --- centring -------------------------------------------------------------------------------------


def cohort_table(n=(12, 9, 7), shift=4.0, seed=None, unit="log2"):
    """Three cohorts far apart; cases c00 ... by cohort."""
    draw = np.random.default_rng(seed)
    centres = draw.normal(0, shift, (len(n), len(GENES))) + 8 * (unit == "log2")
    values = np.concatenate([draw.normal(centre, 1, (k, len(GENES))) for centre, k in zip(centres, n, strict=True)])
    flags = np.zeros(len(GENES), bool)
    return Expression(
        cases=tuple(f"c{i:02d}" for i in range(sum(n))),
        symbols=tuple(GENES),
        values=values.astype(np.float32),
        unit=unit,
        raw=values.astype(np.float32),
        ensembl=("",) * len(GENES),
        tumour=flags,
        tme=flags,
        cohorts=tuple(name for name, k in zip("ABC", n, strict=False) for _ in range(k)),
    )


def choose(table, training, params=PARAMS, validation=()):
    sets = Signatures(tuple(GENES[:10]), tuple(GENES[10:]))
    return select_genes(table, training, params, "grade", 0, sets, validation)


def test_each_cohort_is_centred_on_its_training_cases(tmp_path):
    table = cohort_table()
    training = [*table.cases[:8], *table.cases[12:18], *table.cases[21:26]]
    found = choose(table, training)
    rows = table.rows(training)
    values, names = table.values.astype(np.float64), np.array(table.cohorts)
    centred = values.copy()
    for cohort in "ABC":
        own = values[[r for r in rows if names[r] == cohort]].mean(axis=0)
        np.testing.assert_allclose(found.centres[cohort], own, rtol=1e-12)
        centred[names == cohort] -= own
    np.testing.assert_allclose(found.std, centred[rows].std(axis=0), rtol=1e-9)
    expected = (centred - centred[rows].mean(axis=0)) / centred[rows].std(axis=0)
    order = [GENES.index(gene) for gene in found.genes]
    np.testing.assert_allclose(found.apply(table.values, GENES, table.cohorts), expected[:, order], atol=1e-5)
    write_genes(tmp_path / "fold0.json", found)
    again = read_genes(tmp_path / "fold0.json")
    np.testing.assert_array_equal(
        again.apply(table.values, GENES, table.cohorts), found.apply(table.values, GENES, table.cohorts)
    )


def test_variable_genes_are_those_within_cohorts():
    table = cohort_table(shift=0.5, seed=3)
    values = table.values.copy()
    values[:12, :5] += 50  # between cohorts only
    values[::2, 5:9] += 6  # within every cohort
    table = replace(table, values=values)
    params = GeneParams(top_fraction=4 / 30, min_genes=1, both="keep", centre="cohort")
    sets = Signatures(tuple(GENES), tuple(GENES))
    within = select_genes(table, table.cases, params, "grade", 0, sets)
    between = select_genes(table, table.cases, replace(params, centre="none"), "grade", 0, sets)
    assert set(within.genes) == set(GENES[5:9])
    assert set(between.genes) < set(GENES[:5])


def test_an_unseen_cohort_is_refused_or_centred_on_itself():
    table = cohort_table()
    training = table.cases[:18]  # A and B
    found = choose(table, training)
    with pytest.raises(
        InputError, match=r"cohort 'C' was not among the training cases' \(A, B\).*unseen_cohort: itself"
    ):
        found.apply(table.values, GENES, table.cohorts)
    with pytest.raises(InputError, match="cohort 'C'"):
        found.with_own_centres(table.values, GENES, table.cohorts, {"A", "C"})
    with pytest.raises(InputError, match="a case without a cohort"):
        found.apply(table.values[:2], GENES)
    found = choose(table, training, replace(PARAMS, unseen_cohort="itself"))
    fitted = found.with_own_centres(table.values, GENES, table.cohorts, {"A", "C"})
    assert sorted(fitted.centres) == ["A", "B", "C"] and sorted(found.centres) == ["A", "B"]
    np.testing.assert_allclose(
        fitted.apply(table.values, GENES, table.cohorts)[21:].mean(axis=0),
        -found.mean / found.std,
        atol=1e-5,
    )


def test_a_cohort_of_validation_cases_is_not_centred_on_test_cases():
    table = cohort_table()
    params = replace(PARAMS, unseen_cohort="itself")
    found = choose(table, table.cases[:18], params, validation=["c21", "c22"])
    np.testing.assert_allclose(found.centres["C"], table.values[21:23].astype(np.float64).mean(axis=0)[
        [GENES.index(gene) for gene in found.genes]
    ])  # fmt: skip
    assert found.with_own_centres(table.values, GENES, table.cohorts, {"C"}) is found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: replace(t, cohorts=("", *t.cohorts[1:])), r"case c00: .* 1 training cases have no cohort"),
        (lambda t: replace(t, cohorts=("Z", *t.cohorts[1:])), r"cohort Z: 1 training case"),
    ],
)
def test_cohorts_that_cannot_be_centred(change, message):
    table = change(cohort_table())
    with pytest.raises(InputError, match=message):
        choose(table, table.cases)


def artefact(folder, table, selector=select_genes):
    """Bytes of fold 0's genes, with centring; c05, c15 and the last two cases are held out."""
    folder.mkdir()
    write_expression(folder / "e.h5ad", table)
    held_out = {"c05", "c15", *table.cases[-2:]}
    rows = [
        SplitRow(case, 0, "test" if case in held_out else "val" if case == "c01" else "train") for case in table.cases
    ]
    write_splits(folder / "s.tsv", [*rows, *(SplitRow(case, 1, "train") for case in table.cases)])
    out = [folder / "fold0.json", folder / "fold1.json"]
    lists = folder.parent / "lists.tsv"
    lists.write_text("symbol\tset\n" + "".join(f"{g}\t{'tumour' if i < 15 else 'tme'}\n" for i, g in enumerate(GENES)))
    params = GeneParams(centre="cohort", tumour=str(lists), tme=str(lists), top_fraction=0.5, min_genes=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.genes.fold.select_genes", selector)
        select_genes_for_folds(folder / "e.h5ad", folder / "s.tsv", table.cases, params, out, "grade")
    return [path.read_bytes() for path in out]


def test_centres_do_not_see_held_out_cases(tmp_path):
    table = cohort_table()
    values = table.values.copy()
    values[[1, 5, 15, 26, 27]] = np.random.default_rng().uniform(0, 15, (5, len(GENES)))
    other = replace(table, values=values)

    def leaky(table, training, params, *rest):
        return select_genes(table, table.cases, params, *rest)

    before, after = artefact(tmp_path / "a", table), artefact(tmp_path / "b", other)
    assert before[0] == after[0] and before[1] != after[1]
    assert artefact(tmp_path / "c", table, leaky)[0] != artefact(tmp_path / "d", other, leaky)[0]


# --- labels that follow separately standardised cohorts --------------------------------------------


def standardised(values):
    return (values - values.mean(axis=0)) / values.std(axis=0)


def zscored(how, **names):
    table = cohort_table((40, 30, 25), unit="zscore", **names)
    groups = [np.array(table.cohorts) == name for name in "ABC"] if how == "separately" else [np.full(95, True)]
    values = np.empty((95, len(GENES)))
    for rows in groups:
        values[rows] = standardised(table.values[rows].astype(np.float64))
    return replace(table, values=values.astype(np.float32))


def organs(table):
    return {case: f"organ {cohort}" for case, cohort in zip(table.cases, table.cohorts, strict=True)}


def test_subtypes_of_separately_standardised_cohorts_are_refused():
    table = zscored("separately")
    with pytest.raises(
        InputError, match=r"task organ: its label follows the cohort \(lambda 1\.00\).*standardised on its"
    ):
        check_label_against_cohorts(table, organs(table), "organ", False)
    mixed = organs(table) | dict.fromkeys(table.cases[:6], "organ B")  # predicts, does not coincide
    with pytest.raises(InputError, match=r"lambda 0\.9"):
        check_label_against_cohorts(table, mixed, "organ", False)
    nameless = replace(table, cohorts=())
    with pytest.raises(InputError, match="two classes or more have gene means of exactly 0"):
        check_label_against_cohorts(nameless, organs(table), "organ", False)


def test_other_labels_and_other_scales_pass():
    draw = np.random.default_rng()
    table = zscored("separately")
    grade = {case: str(draw.choice(["low", "high"])) for case in table.cases}
    check_label_against_cohorts(table, grade, "grade", False)
    check_label_against_cohorts(table, {}, "survival", False)
    together = zscored("together", shift=0.6)
    check_label_against_cohorts(together, organs(together), "organ", False)
    check_label_against_cohorts(replace(together, cohorts=()), grade, "grade", False)
    absolute = cohort_table()
    check_label_against_cohorts(absolute, organs(absolute), "organ", False)


def test_centring_away_the_label_is_refused():
    table = cohort_table()
    with pytest.raises(InputError, match=r"genes\.centre is cohort.*genes\.centre: none"):
        check_label_against_cohorts(table, organs(table), "organ", True)


def test_selection_for_folds_refuses_such_a_task(tmp_path):
    table = zscored("separately")
    write_expression(tmp_path / "e.h5ad", table)
    write_splits(tmp_path / "s.tsv", [SplitRow(case, 0, "train") for case in table.cases])
    with pytest.raises(InputError, match="task organ: its label follows the cohort"):
        select_genes_for_folds(
            tmp_path / "e.h5ad", tmp_path / "s.tsv", table.cases, GeneParams(selection="all"), [tmp_path / "x"],
            "organ", organs(table),
        )  # fmt: skip
