"""Genes of a fold come from its training cases alone, in the promised order, or with one clear error."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pipeline.contracts.errors import FormatError, InputError, MachineError
from pipeline.contracts.expression import Expression, write_expression
from pipeline.contracts.genes import read_genes, write_genes
from pipeline.contracts.splits import SplitRow, write_splits
from pipeline.genes import GeneParams, select_genes, select_genes_for_folds
from pipeline.signatures import Signatures

N_CASES, N_GENES = 14, 60
SYMBOLS = tuple(f"G{i:02d}" for i in range(N_GENES))
SETS = Signatures(tumour=(*SYMBOLS[:20], "ABSENT"), tme=SYMBOLS[18:40])  # G18 and G19 are in both
TRAINING = [f"c{i:02d}" for i in range(9)]
PARAMS = GeneParams(min_genes=1)


def table(values, unit="log2"):
    n_cases, n_genes = values.shape
    return Expression(
        cases=tuple(f"c{i:02d}" for i in range(n_cases)),
        symbols=SYMBOLS[:n_genes],
        values=values.astype(np.float32),
        unit=unit,
        raw=values.astype(np.float32),
        ensembl=("",) * n_genes,
        tumour=np.zeros(n_genes, bool),
        tme=np.zeros(n_genes, bool),
    )


@pytest.fixture
def values():
    draw = np.random.default_rng()
    spread = draw.uniform(0.2, 3, N_GENES)
    spread[[0, 39]] = 9  # each group keeps a gene whatever is drawn
    return draw.normal(20, spread, (N_CASES, N_GENES)).clip(0)


def choose(values, training=TRAINING, params=PARAMS, unit="log2", sets=SETS):
    return select_genes(table(values, unit), training, params, "grade", 2, sets)


def most_variable(values, symbols, share):
    variance = {s: values[: len(TRAINING), SYMBOLS.index(s)].astype(np.float32).var() for s in symbols}
    return set(sorted(symbols, key=lambda s: -variance[s])[: int(share * len(symbols))])


def test_signatures_then_hvg_takes_the_share_of_the_signature_genes(values):
    found = choose(values, params=replace(PARAMS, top_fraction=0.25))
    assert set(found.genes) == most_variable(values, SYMBOLS[:40], 0.25)


def test_hvg_then_signatures_takes_the_signature_genes_of_the_share(values):
    found = choose(values, params=replace(PARAMS, top_fraction=0.6, order="hvg_then_signatures"))
    assert set(found.genes) == most_variable(values, SYMBOLS, 0.6) & set(SYMBOLS[:40])


def test_all_keeps_every_gene_of_the_table_and_the_sets_whole(values):
    found = choose(values, params=replace(PARAMS, selection="all", both="keep"))
    assert set(found.genes) == set(SYMBOLS[:N_GENES])
    assert set(found.groups["tumour"]) | set(found.groups["tme"]) == set(SYMBOLS[:40])


@pytest.mark.parametrize(
    ("both", "tumour", "tme"),
    [("exclude", 18, 20), ("keep", 20, 22), ("tumour", 20, 20), ("tme", 18, 22)],
)
def test_genes_of_both_sets(values, both, tumour, tme):
    found = choose(values, params=replace(PARAMS, selection="all", both=both))
    groups = found.groups
    assert (len(groups["tumour"]), len(groups["tme"]), len(groups["all"])) == (tumour, tme, N_GENES)
    assert groups["all"] == found.genes
    assert len(set(found.genes)) == N_GENES
    for name, group in groups.items():
        np.testing.assert_array_equal([found.genes[c] for c in found.columns(name)], group)


def test_ties_go_to_the_first_symbol(values):
    values[:] = np.linspace(0, 5, N_CASES)[:, None]  # every gene has the same variance
    found = choose(values, params=replace(PARAMS, top_fraction=0.1, both="keep"), sets=Signatures(SYMBOLS, SYMBOLS))
    assert found.genes == SYMBOLS[:6]


def test_scaling_is_that_of_the_training_cases(values):
    found = choose(values, params=replace(PARAMS, selection="all"))
    columns = [SYMBOLS.index(gene) for gene in found.genes]
    seen = values.astype(np.float32)[: len(TRAINING), columns].astype(np.float64)
    np.testing.assert_allclose(found.mean, seen.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.std, seen.std(0), rtol=1e-12)
    order = np.random.default_rng().permutation(N_GENES)
    scaled = found.apply(values[:, order], [SYMBOLS[i] for i in order])
    assert scaled.dtype == np.float32
    assert scaled.shape == (N_CASES, N_GENES)
    np.testing.assert_allclose(scaled[: len(TRAINING)].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(scaled[: len(TRAINING)].std(0), 1, atol=1e-5)


def test_constant_genes_are_floored_and_outliers_clipped(values):
    values[:9, 3] = 4.0
    values[9, 3] = 11.0
    found = choose(values, params=replace(PARAMS, selection="all", clip=6.0))
    column = found.genes.index("G03")
    scaled = found.apply(values, SYMBOLS)
    assert found.std[column] == 0.01
    assert scaled[0, column] == 0
    assert scaled[9, column] == 6


def test_missing_genes_stand_at_the_training_mean_up_to_a_share(values, caplog):
    found = choose(values, params=replace(PARAMS, selection="all", max_missing=0.05))  # 3 of 60
    left = [i for i in range(N_GENES) if i not in (7, 30, 59)]
    given = [SYMBOLS[i] for i in left]
    assert set(found.missing(given)) == {"G07", "G30", "G59"}
    scaled, whole = found.apply(values[:, left], given), found.apply(values, SYMBOLS)
    absent = np.isin(found.genes, ["G07", "G30", "G59"])
    assert (scaled[:, absent] == 0).all()
    np.testing.assert_array_equal(scaled[:, ~absent], whole[:, ~absent])
    assert "3 of 60 selected genes are not in the expression table (G" in caplog.text
    with pytest.raises(InputError, match=r"4 of 60 selected genes .* more than the share 0\.05 \(genes\.max_missing\)"):
        found.apply(values[:, left[1:]], given[1:])


def test_zscores_with_hvg_are_refused_and_with_all_taken(values):
    with pytest.raises(InputError, match=r"z-scores.*same variance.*genes.selection: all"):
        choose(values - 6, unit="zscore")
    assert choose(values - 6, unit="zscore", params=replace(PARAMS, selection="all")).unit == "zscore"


def test_too_few_genes_name_the_group_and_what_is_missing(values):
    sets = Signatures(tumour=("ABSENT", "GONE", "G01"), tme=SYMBOLS[20:40])
    with pytest.raises(InputError, match=r"fold 2: the tumour group .* 3 are listed, 1 of them are in the expression"):
        choose(values, params=GeneParams(), sets=sets)


@pytest.mark.parametrize("training", [[], ["c03"], ["c03", "c03"]])
def test_too_few_training_cases(values, training):
    with pytest.raises(InputError, match="training case"):
        choose(values, training=training)


@pytest.mark.parametrize("flavour", ["seurat", "cell_ranger", "seurat_v3"])
def test_scanpys_flavours_are_scanpys_on_the_training_cases(values, flavour):
    import anndata
    import scanpy

    draw = np.random.default_rng(3)
    counts = draw.poisson(draw.gamma(2, draw.uniform(1, 40, N_GENES), (N_CASES, N_GENES)))
    values, unit = (np.log1p(counts), "counts") if flavour == "seurat_v3" else (draw.gamma(2, 1, counts.shape), "log2")
    expression = replace(table(values, unit), raw=counts.astype(np.float32))
    params = replace(PARAMS, flavour=flavour, n_top=6, order="hvg_then_signatures")  # further down are ties
    found = select_genes(expression, TRAINING, params, "grade", 2, SETS)
    matrix = counts if flavour == "seurat_v3" else values.astype(np.float32)
    seen = anndata.AnnData(X=matrix[: len(TRAINING)].astype(np.float64))
    seen.uns["log1p"] = {"base": 2}
    theirs = scanpy.pp.highly_variable_genes(seen, flavor=flavour, n_top_genes=6, inplace=False)
    expected = {s for s, keep in zip(SYMBOLS, theirs["highly_variable"], strict=True) if keep}
    assert set(found.genes) == expected & set(SYMBOLS[:40])


def test_a_flavour_that_the_numbers_do_not_fit_is_refused(values, monkeypatch):
    with pytest.raises(InputError, match="seurat_v3 models the variance of counts; the table is in log2"):
        choose(values, params=replace(PARAMS, flavour="seurat_v3"))
    with pytest.raises(InputError, match="z-scores"):
        choose(values, params=replace(PARAMS, flavour="seurat_v3"), unit="zscore")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MachineError, match="scikit-misc, which is not installed"):
        choose(values, params=replace(PARAMS, flavour="seurat_v3"), unit="counts")


def test_a_number_of_genes_instead_of_a_share(values):
    found = choose(values, params=replace(PARAMS, n_top=7))
    assert set(found.genes) == most_variable(values, SYMBOLS[:40], 7 / 40 + 1e-9)
    with pytest.raises(InputError, match="n_top asks for 41 genes, there are 40"):
        choose(values, params=replace(PARAMS, n_top=41))


def test_elimination_keeps_what_tells_classes_apart_and_adds_cancer_genes(values, tmp_path):
    values[:, 7] = np.arange(N_CASES) % 2 * 5.0
    classes = {f"c{i:02d}": "ab"[i % 2] for i in range(N_CASES)}
    (tmp_path / "census.csv").write_text("Gene Symbol,Tier\nG50,1\nABSENT,1\n")
    params = replace(PARAMS, selection="rfe_svm", rfe_folds=3, cancer_genes=str(tmp_path / "census.csv"))
    found = select_genes(table(values - 6, "zscore"), TRAINING, params, "grade", 2, SETS, classes=classes)
    assert {"G07", "G50"} <= set(found.genes)
    assert found.elimination["kept"] + found.elimination["added"] == len(found.genes)
    assert found.elimination["classes"] == {"a": 5, "b": 4}
    with pytest.raises(InputError, match="there are none"):
        select_genes(table(values), TRAINING, params, "grade", 2, SETS)


def test_families_hold_selected_genes_in_order(values, tmp_path):
    (tmp_path / "f.gmt").write_text("one\td\tG05\tG01\tABSENT\nnone\td\tABSENT\ntwo\td\tG01\tG50\n")
    (tmp_path / "f.csv").write_text("one,none,two\nG05,ABSENT,G01\nG01,,G50\nABSENT,,\n")
    for name in ("f.gmt", "f.csv"):
        found = choose(values, params=replace(PARAMS, selection="all", families=str(tmp_path / name)))
        assert list(found.families.items()) == [("one", ("G01", "G05")), ("two", ("G01", "G50"))]
        np.testing.assert_array_equal([found.genes[c] for c in found.family_columns()["two"]], ["G01", "G50"])


def test_seurat_flavour_refuses_negative_logarithms(values):
    with pytest.raises(InputError, match="negative logarithms"):
        choose(values - 40, params=replace(PARAMS, flavour="seurat"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"selection": "hgv"}, "did you mean 'hvg'"),
        ({"order": "random"}, "genes.order"),
        ({"top_fraction": 0}, "genes.top_fraction"),
        ({"top_fraction": 1.5}, "genes.top_fraction"),
        ({"min_genes": 0}, "genes.min_genes"),
        ({"n_top": 0}, "genes.n_top"),
        ({"rfe_folds": 1}, "genes.rfe_folds"),
        ({"rfe_step": 1.0}, "genes.rfe_step"),
        ({"std_floor": 0}, "genes.std_floor"),
        ({"clip": float("nan")}, "genes.clip"),
    ],
)
def test_bad_parameters_name_their_key(change, message):
    with pytest.raises(InputError, match=message):
        GeneParams(**change)


def test_digest_follows_training_values_ids_and_parameters(values):
    base = choose(values).digest
    changed = values.copy()
    changed[2, 50] += 0.5  # a gene outside the sets counts too: it takes part in hvg_then_signatures
    assert choose(changed).digest != base
    assert choose(values, training=TRAINING[:-1]).digest != base
    assert choose(values, params=replace(PARAMS, clip=9.0)).digest != base
    assert choose(values, training=TRAINING[::-1]).digest == base


def leaky(expression, training_cases, params, task, fold, lists=None, *others):
    """The mistake that the leakage test must catch: genes chosen on every case of the table."""
    return select_genes(expression, expression.cases, params, task, fold, lists)


def artefacts(folder, values, selector, unit="log2", labels=None, survival=None, **change):
    """Bytes of the gene files of two folds for a table; c09 ... c13 are held out of fold 0."""
    folder.mkdir()
    write_expression(folder / "e.h5ad", table(values, unit))
    rows = []
    for i in range(N_CASES):
        case = f"c{i:02d}"
        rows += [
            SplitRow(case, 0, "train" if i < 9 else "val" if i < 11 else "test"),
            SplitRow(case, 1, "test" if i < 7 else "train"),
        ]
    write_splits(folder / "s.tsv", rows)
    lists = folder.parent / "lists.tsv"
    lists.write_text(
        "symbol\tset\n" + "".join(f"{s}\ttumour\n" for s in SYMBOLS[:20]) + "".join(f"{s}\ttme\n" for s in SYMBOLS[20:])
    )
    params = replace(PARAMS, tumour=str(lists), tme=str(lists), top_fraction=0.8, **change)
    out = [folder / "fold0.json", folder / "fold1.json"]
    labelled = [f"c{i:02d}" for i in range(N_CASES) if i != 4]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.genes.fold.select_genes", selector)
        select_genes_for_folds(
            folder / "e.h5ad", folder / "s.tsv", labelled, params, out, "grade", labels, survival=survival
        )
    return [path.read_bytes() for path in out]


def replace_held_out(values):
    """Other RNA for every case that fold 0 does not train on, the unlabelled one included."""
    other = values.copy()
    held_out = [4, *range(9, N_CASES)]
    other[held_out] = np.random.default_rng().uniform(0, 15, (len(held_out), N_GENES))
    return other


def classes_of(held_out_change=0):
    """Two classes; those of the cases that fold 0 does not train on are swapped if asked."""
    number = {f"c{i:02d}": (i + held_out_change * (i == 4 or i > 8)) % 2 for i in range(N_CASES)}
    return {case: "ab"[n] for case, n in number.items()}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"flavour": "seurat", "order": "hvg_then_signatures"},
        {"flavour": "cell_ranger", "order": "hvg_then_signatures"},
        {"flavour": "seurat_v3", "order": "hvg_then_signatures", "unit": "counts"},
        {"selection": "rfe_svm", "rfe_folds": 3},
        {"selection": "rfe_svm", "rfe_folds": 2, "survival": True},
    ],
    ids=lambda change: " ".join(map(str, change.values())) or "variance",
)
def test_other_inputs_of_held_out_cases_leave_the_file_byte_identical(tmp_path, values, change):
    other, runs = replace_held_out(values), []
    if change.get("unit") == "counts":
        values, other = np.rint(values * 30), np.rint(other * 30)
    for name, table_values, swapped in (("a", values, 0), ("b", other, 1)):
        options, classes = dict(change), classes_of(swapped)
        if options.pop("survival", False):
            outcomes = {case: (float(int(case[1:]) % 5 + 7 * (label == "b")), 1) for case, label in classes.items()}
            options |= {"survival": outcomes}
        else:
            options |= {"labels": classes}
        runs.append(artefacts(tmp_path / name, table_values, select_genes, **options))
    before, after = runs
    assert before[0] == after[0]
    assert before[1] != after[1]  # the test can fail
    assert json.loads(before[0])["n_training"] == 8


def test_elimination_follows_the_labels_of_training_cases(tmp_path, values):
    options = {"selection": "rfe_svm", "rfe_folds": 3}
    before = artefacts(tmp_path / "a", values, select_genes, labels=classes_of(), **options)
    other = classes_of() | {"c00": "b", "c01": "a"}
    assert artefacts(tmp_path / "b", values, select_genes, labels=other, **options)[0] != before[0]


def test_the_leakage_test_catches_a_leaky_selector(tmp_path, values):
    before = artefacts(tmp_path / "a", values, leaky)
    after = artefacts(tmp_path / "b", replace_held_out(values), leaky)
    assert before[0] != after[0]


def test_number_of_folds_must_agree(tmp_path, values):
    artefacts(tmp_path / "a", values, select_genes)
    with pytest.raises(InputError, match="2 folds, expected 3"):
        select_genes_for_folds(
            tmp_path / "a" / "e.h5ad", tmp_path / "a" / "s.tsv", ["c01"], PARAMS, ["x", "y", "z"], "grade"
        )


def test_round_trip_and_damage(tmp_path, values):
    found = choose(values)
    path = tmp_path / "fold2.json"
    write_genes(path, found)
    again = read_genes(path)
    np.testing.assert_array_equal(again.apply(values, SYMBOLS), found.apply(values, SYMBOLS))
    assert (again.genes, again.groups, again.digest, again.params) == (
        found.genes, found.groups, found.digest, dict(found.params),
    )  # fmt: skip
    body = json.loads(path.read_text())
    for damage in (
        {"format_version": 99},
        {"mean": body["mean"][:-1]},
        {"std": [0.0] * len(body["std"])},
        {"groups": {**body["groups"], "tme": ["UNKNOWN"]}},
    ):
        path.write_text(json.dumps({**body, **damage}))
        with pytest.raises(FormatError):
            read_genes(path)
    del body["groups"]
    path.write_text(json.dumps(body))
    with pytest.raises(FormatError, match="incomplete"):
        read_genes(path)
