"""Expression tables of every usual shape become one artefact; bad ones give one clear error."""

import csv
import gzip
import math
import re
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.contracts.errors import FormatError, InputError
from pipeline.contracts.expression import read_expression
from pipeline.expression import ExpressionParams, prepare_expression
from pipeline.expression.barcodes import match_samples
from pipeline.expression.centring import check_label_against_cohorts
from pipeline.expression.duplicates import gene_rows, merge_genes
from pipeline.expression.symbols import parse_gene
from pipeline.expression.units import detect_unit
from pipeline.signatures import load_signatures

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"
GENES = [*load_signatures().tumour[:12], *load_signatures().tme[:11]]
CASES = ["p1", "p2", "p3", "p4"]


def counts(n_genes=23, n_cases=4):
    return np.random.default_rng().integers(0, 5000, (n_genes, n_cases))


def write(path, values, rows=GENES, columns=CASES, corner="gene", sep="\t", transpose=False, head="", tail=""):
    if transpose:
        values, rows, columns = np.asarray(values).T, columns, rows
    lines = [sep.join([corner, *columns] if corner is not None else columns)]
    lines += [sep.join([row, *map(str, line)]) for row, line in zip(rows, np.asarray(values).tolist(), strict=True)]
    text = head + "\n".join(lines) + "\n" + tail
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.fixture
def prepare(tmp_path):
    def run(table, cases=CASES, **params):
        report = prepare_expression(table, tmp_path / "out.h5ad", ExpressionParams(**params), cases)
        return read_expression(tmp_path / "out.h5ad"), report

    return run


def in_order(values, rows=GENES):
    """Table values as [cases, genes], genes sorted."""
    return np.asarray(values)[np.argsort(rows)].T


# --- shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("name", ["t.tsv", "t.csv", "t.tsv.gz", "t.csv.gz"])
def test_text_tables_both_ways_round(tmp_path, prepare, name, transpose):
    values = counts()
    sep = "," if ".csv" in name else "\t"
    found, report = prepare(write(tmp_path / name, values, sep=sep, transpose=transpose))
    assert found.cases == tuple(CASES)
    assert found.symbols == tuple(sorted(GENES))
    assert found.unit == "counts"
    np.testing.assert_array_equal(found.raw, in_order(values))
    assert report["orientation"] == ("samples_in_rows" if transpose else "genes_in_rows")


def test_r_tables_without_a_name_for_the_first_column(tmp_path, prepare):
    values = counts()
    found, _ = prepare(write(tmp_path / "t.tsv", values, corner=None))
    np.testing.assert_array_equal(found.raw, in_order(values))


def test_windows_table_with_byte_order_mark_and_quotes(tmp_path, prepare):
    values = counts()
    lines = ['"gene",' + ",".join(f'"{c}"' for c in CASES)]
    lines += [f'"{g}",' + ",".join(map(str, row)) for g, row in zip(GENES, values.tolist(), strict=True)]
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    found, _ = prepare(tmp_path / "t.csv")
    np.testing.assert_array_equal(found.raw, in_order(values))


def test_merged_star_table(tmp_path, prepare):
    values = counts()
    head = "# gene-model: GENCODE v36\ngene_id\tgene_name\tgene_type\t" + "\t".join(CASES) + "\n"
    rows = [f"{n}\t\t\t" + "\t".join(["9"] * 4) for n in ("N_unmapped", "N_multimapping", "N_noFeature", "N_ambiguous")]
    idents = [f"ENSG{i:011d}.{i % 7}" for i in range(len(GENES))]
    rows += [
        f"{i}\t{g}\tprotein_coding\t" + "\t".join(map(str, v))
        for i, g, v in zip(idents, GENES, values.tolist(), strict=True)
    ]
    (tmp_path / "t.tsv").write_text(head + "\n".join(rows) + "\n")
    found, report = prepare(tmp_path / "t.tsv")
    np.testing.assert_array_equal(found.raw, in_order(values))
    assert found.ensembl == tuple(np.array(idents)[np.argsort(GENES)])
    assert report["summary_rows"] == 4


def test_folder_of_single_sample_star_files(tmp_path, prepare):
    values = counts(n_cases=2)
    (tmp_path / "rna").mkdir()
    for case, column in zip(("p1", "TCGA-02-0047-01A-11R-1849-01"), values.T.tolist(), strict=True):
        rows = ["# gene-model: GENCODE v36", "gene_id\tgene_name\tgene_type\tunstranded\ttpm_unstranded"]
        rows += ["N_unmapped\t\t\t7\t", *(f"ENSG{i:011d}.1\t{g}\tx\t{v}\t{v / 4}" for i, (g, v) in enumerate(zip(GENES, column, strict=True)))]  # fmt: skip  # noqa: E501
        (tmp_path / "rna" / f"{case}.rna_seq.star.tsv").write_text("\n".join(rows) + "\n")
    cases = ["p1", "TCGA-02-0047"]
    found, _ = prepare(tmp_path / "rna", cases)
    assert (found.cases, found.unit) == (("TCGA-02-0047", "p1"), "counts")
    np.testing.assert_array_equal(found.raw, in_order(values)[::-1])
    found, _ = prepare(tmp_path / "rna", cases, star_column="tpm_unstranded")
    assert found.unit == "tpm"
    np.testing.assert_allclose(found.raw, in_order(values)[::-1] / 4)
    for table in (tmp_path / "rna").iterdir():
        table.write_text(table.read_text().replace("tpm_unstranded", "fpkm_uq_unstranded"))
    assert prepare(tmp_path / "rna", cases, star_column="fpkm_uq_unstranded")[0].unit == "fpkm_uq"


UUIDS = [f"{k}b1fcd38-bd25-4c18-b2d2-0e5a{k}c3e4f5a" for k in range(5)]


def download(folder, values, suffix=""):
    """A folder as gdc-client leaves it, a STAR file per column of `values`; the names of the files."""
    names = []
    for uuid, column in zip(UUIDS, values.T.tolist(), strict=False):
        lines = ["# gene-model: GENCODE v36", "gene_id\tgene_name\tgene_type\tunstranded\ttpm_unstranded"]
        lines += [f"ENSG{i:011d}.1\t{g}\tx\t{v}\t{v / 4}" for i, (g, v) in enumerate(zip(GENES, column, strict=True))]
        names.append(f"{uuid[::-1]}.rna_seq.augmented_star_gene_counts.tsv")
        (folder / uuid / "logs").mkdir(parents=True)
        text = "\n".join(lines) + "\n"
        (folder / uuid / (names[-1] + suffix)).write_bytes(gzip.compress(text.encode()) if suffix else text.encode())
        (folder / uuid / "logs" / f"{names[-1]}.parcel").write_bytes(b"\0")
    (folder / UUIDS[0] / "annotations.txt").write_text("id\tsubmitter_id\n")
    (folder / "MANIFEST.txt").write_text("id\tfilename\n")
    (folder / "gdc_manifest.2024-05-01.txt").write_text("id\tfilename\n")
    (folder / ".hidden.tsv").write_text("x")
    return names


def sample_sheet(folder, names, samples, cases, types, column="Sample Type"):
    lines = [f"File ID\tFile Name\tCase ID\tSample ID\t{column}"]
    lines += ["\t".join(("x", *row)) for row in zip(names, cases, samples, types, strict=True)]
    lines += ["x\tslide.svs\tQ\tQ-1\tPrimary Tumor"]
    (folder / "gdc_sample_sheet.2024-05-01.tsv").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_gdc_download_with_its_sample_sheet(tmp_path, prepare, suffix):
    values = counts(n_cases=4)
    names = download(tmp_path / "rna", values, suffix)
    samples = ["TCGA-02-0047-01A", "TCGA-02-0047-11A", "TCGA-02-0001-01A", "TCGA-ZZ-0001-01A"]
    types = ["Primary Tumor", "Solid Tissue Normal", "Primary Tumor", "Primary Tumor"]
    sample_sheet(tmp_path / "rna", names, samples, [name[:12] for name in samples], types)
    found, report = prepare(tmp_path / "rna", ["TCGA-02-0001", "TCGA-02-0047"])
    assert found.cases == ("TCGA-02-0001", "TCGA-02-0047")
    np.testing.assert_array_equal(found.raw, in_order(values)[[2, 0]])
    assert report["samples_not_tumour"]["examples"] == ["TCGA-02-0047-11A"]
    assert report["samples_of_no_case"]["examples"] == ["TCGA-ZZ-0001-01A"]


@pytest.mark.parametrize(
    ("column", "types"),
    [
        ("Sample Type", ["Solid Tissue Normal", "Primary Tumor", "Metastatic"]),
        ("Tissue Type", ["Normal", "Tumor", "Abnormal"]),
    ],
)
def test_gdc_samples_of_other_programmes_go_by_their_case(tmp_path, prepare, column, types):
    values = counts(n_cases=3)
    names = download(tmp_path / "rna", values)
    cases = ["C3L-00001", "C3L-00001", "C3N-00002"]
    sample_sheet(tmp_path / "rna", names, ["C3L-00001-06", "C3L-00001-01", "C3N-00002-03"], cases, types, column)
    found, report = prepare(tmp_path / "rna", sorted(set(cases)))
    np.testing.assert_array_equal(found.raw, in_order(values)[[1, 2]])
    assert report["samples_of_no_case"]["examples"] == ["C3L-00001-06"], "normal tissue is no case's tumour"


def test_normal_tissue_without_a_sample_id_is_no_tumour(tmp_path, prepare):
    values = counts(n_cases=2)
    names = download(tmp_path / "rna", values)
    sample_sheet(tmp_path / "rna", names, ["", ""], ["p1", "p1"], ["Normal", "Tumor"], "Tissue Type")
    found, report = prepare(tmp_path / "rna")
    np.testing.assert_array_equal(found.raw, in_order(values)[[1]])
    assert report["samples_of_no_case"]["examples"] == ["p1-normal"]


def test_gdc_download_without_a_sample_sheet_says_what_is_needed(tmp_path, prepare):
    download(tmp_path / "rna", counts(n_cases=2))
    with pytest.raises(InputError, match=r"named by case or sample barcode, or lie beside GDC's sample sheet"):
        prepare(tmp_path / "rna")
    (tmp_path / "none" / "sub").mkdir(parents=True)
    with pytest.raises(InputError, match=r"holds? no table .*named by case or sample barcode"):
        prepare(tmp_path / "none")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("star_gene", "other"), "names no sample for it"),
        (lambda text: text.replace("TCGA-02-0047-01A", "TCGA-02-0047-01A, TCGA-02-0047-10A"), "names 2 samples"),
        (lambda text: text + text.splitlines()[1].replace("0047", "0048") + "\n", "names 2 samples"),
        (lambda text: text.replace("Case ID", "A").replace("Sample ID", "B"), "neither column Sample ID nor Case ID"),
        (lambda text: text.replace("File Name", "Name"), "column File Name missing"),
    ],
)
def test_gdc_sample_sheets_that_do_not_tell(tmp_path, prepare, change, words):
    names = download(tmp_path / "rna", counts(n_cases=1))
    sample_sheet(tmp_path / "rna", names, ["TCGA-02-0047-01A"], ["TCGA-02-0047"], ["Primary Tumor"])
    sheet = tmp_path / "rna/gdc_sample_sheet.2024-05-01.tsv"
    sheet.write_text(change(sheet.read_text()))
    with pytest.raises(InputError, match=words):
        prepare(tmp_path / "rna", ["TCGA-02-0047"])


def test_digest_covers_nested_files_and_the_sample_sheet(tmp_path, prepare):
    values = counts(n_cases=2)
    names = download(tmp_path / "rna", values)
    digests = []
    for cases in (["p1", "p2"], ["p2", "p1"]):
        sample_sheet(tmp_path / "rna", names, cases, cases, ["Primary Tumor"] * 2)
        digests.append(prepare(tmp_path / "rna")[0].digest)
    path = tmp_path / "rna" / UUIDS[0] / names[0]
    path.write_text(path.read_text().replace("\tx\t", "\tx\t1", 1))
    digests.append(prepare(tmp_path / "rna")[0].digest)
    assert prepare(tmp_path / "rna")[0].digest == digests[-1]
    assert len(set(digests)) == 3


def test_rsem_ids_and_tcga_barcodes(tmp_path, prepare):
    rows = ["?|100133144", *(f"{g}|{i + 5}" for i, g in enumerate(GENES)), f"{GENES[3]}|999"]
    columns = [
        "TCGA-AA-0001-02A-11R-A1-07",  # a recurrence of the first case
        "TCGA-AA-0001-01A-11R-A1-07",
        "TCGA-AA-0001-01B-11R-A1-07",
        "TCGA-AA-0001-11A-11R-A1-07",  # normal tissue
        "TCGA-BB-0002-11A-11R-A1-07",  # normal tissue only
        "TCGA-CC-0003-03A-11R-A1-07",
        "TCGA-ZZ-9999-01A-11R-A1-07",  # not in the sheet
    ]
    values = counts(len(rows), len(columns))
    found, report = prepare(
        write(tmp_path / "t.tsv", values, rows, columns), ["TCGA-AA-0001", "TCGA-BB-0002", "TCGA-CC-0003"]
    )
    assert found.cases == ("TCGA-AA-0001", "TCGA-CC-0003")
    row = found.symbols.index(GENES[0])
    assert found.raw[:, row].tolist() == values[1, [1, 5]].tolist()
    row = found.symbols.index(GENES[3])
    np.testing.assert_allclose(found.raw[:, row], (values[4, [1, 5]] + values[-1, [1, 5]]) / 2)
    assert report["rows_without_symbol"] == {"number": 1, "examples": ["?|100133144"]}
    assert report["duplicate_symbols"] == 1
    assert report["samples_not_tumour"]["number"] == 2
    assert report["samples_of_no_case"]["number"] == 1
    assert report["cases_with_several_samples"] == {"number": 1, "examples": ["TCGA-AA-0001"]}
    assert report["cases_without_rna"] == {"number": 1, "examples": ["TCGA-BB-0002"]}


def test_h5ad_and_our_own_artefact_again(tmp_path, prepare):
    import anndata
    import scipy.sparse

    values = counts()
    table = anndata.AnnData(X=scipy.sparse.csr_matrix(values.T.astype(np.float32)))
    table.obs_names, table.var_names = CASES, GENES
    table.write_h5ad(tmp_path / "t.h5ad")
    found, _ = prepare(tmp_path / "t.h5ad")
    np.testing.assert_array_equal(found.raw, in_order(values))
    (tmp_path / "out.h5ad").rename(tmp_path / "ours.h5ad")
    again, _ = prepare(tmp_path / "ours.h5ad")
    assert again.unit == "counts"
    np.testing.assert_array_equal(again.values, found.values)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("TP53", ("TP53", "")),
        ("TP53|7157", ("TP53", "")),
        ("?|100133144", ("", "")),
        ("ENSG00000141510.18", ("", "ENSG00000141510.18")),
        ("ENSG00000182378.15_PAR_Y", ("", "ENSG00000182378.15_PAR_Y")),
        ("ENSG00000141510.18|TP53", ("TP53", "ENSG00000141510.18")),
        (" HLA-A ", ("HLA-A", "")),
        ("NA", ("", "")),
        ("", ("", "")),
    ],
)
def test_gene_ids(text, expected):
    assert parse_gene(text) == expected


# --- cases and orientation ------------------------------------------------------------------------


def test_samples_match_whole_ids_then_the_longest_barcode_prefix():
    samples = ["TCGA.AA.0001.01A.11R", "TCGA-AA-0001-02A", "tumour7", "TCGA-BB-0002-11A", "TCGA-CC-0003-01A"]
    cases = ["TCGA-AA-0001", "TCGA-AA-0001-02", "tumour", "TCGA-BB-0002-11A", "TCGA-CC-0003"]
    match = match_samples(samples, cases)
    assert match.columns == {
        "TCGA-AA-0001": [0], "TCGA-AA-0001-02": [1], "TCGA-BB-0002-11A": [3], "TCGA-CC-0003": [4],
    }  # fmt: skip
    assert match.unmatched == ["tumour7"]


def test_the_same_sample_twice_takes_the_first_or_as_asked(tmp_path, prepare):
    values = counts(n_cases=3)
    table = write(tmp_path / "t.tsv", values, columns=["p1", "p2", "p1"])
    assert (prepare(table)[0].raw[0] == in_order(values)[0]).all()
    np.testing.assert_allclose(prepare(table, aliquots="mean")[0].raw[0], in_order(values)[[0, 2]].mean(0))
    with pytest.raises(InputError, match="case p1: 2 samples: p1, p1"):
        prepare(table, aliquots="error")


def test_no_common_case_shows_examples_of_both(tmp_path, prepare):
    table = write(tmp_path / "t.tsv", counts())
    with pytest.raises(InputError, match=r"no row and no column is a case.*columns: 'p1', 'p2', 'p3' .*cases: 'q1'"):
        prepare(table, ["q1"])


def test_wrong_declared_orientation_is_refused(tmp_path, prepare):
    table = write(tmp_path / "t.tsv", counts(), transpose=True)
    with pytest.raises(
        InputError, match=r"4 case ids stand in the rows\. Fix: set expression\.orientation: samples_in_rows"
    ):
        prepare(table, orientation="genes_in_rows")
    assert prepare(table, orientation="samples_in_rows")[0].cases == tuple(CASES)


def test_normal_tissue_alone_is_refused(tmp_path, prepare):
    table = write(tmp_path / "t.tsv", counts(n_cases=1), columns=["TCGA-AA-0001-11A"])
    with pytest.raises(InputError, match="normal tissue, such as TCGA-AA-0001-11A"):
        prepare(table, ["TCGA-AA-0001"])


def test_one_case_and_one_gene(tmp_path, prepare):
    found, _ = prepare(write(tmp_path / "t.tsv", [[120]], ["TP53"], ["p1"]))
    assert found.values.shape == (1, 1)
    assert math.isclose(found.values[0, 0], math.log1p(1e4), rel_tol=1e-6)


# --- symbols --------------------------------------------------------------------------------------


def test_lower_case_symbols_are_folded_and_reported(tmp_path, prepare):
    rows = [*(g.lower() for g in GENES), "C1orf112"]
    found, report = prepare(write(tmp_path / "t.tsv", counts(len(rows)), rows))
    assert set(found.symbols) == {*GENES, "C1orf112"}
    assert report["symbols_folded_to_upper_case"] == len(GENES)
    assert found.tumour.sum() == 12 and found.tme.sum() == 11


def test_lower_case_symbols_that_collide_are_refused(tmp_path, prepare):
    rows = [*(g.lower() for g in GENES), GENES[0]]
    with pytest.raises(InputError, match=rf"'{GENES[0].lower()}' and '{GENES[0]}' differ in upper and lower case"):
        prepare(write(tmp_path / "t.tsv", counts(len(rows)), rows))


def test_mouse_style_symbols_are_refused_unless_declared(tmp_path, prepare):
    table = write(tmp_path / "t.tsv", counts(), [g.capitalize() for g in GENES])
    with pytest.raises(InputError, match="as for the mouse"):
        prepare(table)
    found, _ = prepare(table, symbols="as_is")
    assert found.tumour.sum() == 0


def test_mixed_case_symbols_of_a_human_table_are_left_alone(tmp_path, prepare):
    rows = [*GENES, "C1orf112", "mir-21", "Xist"]
    found, report = prepare(write(tmp_path / "t.tsv", counts(len(rows)), rows))
    assert {"C1orf112", "mir-21", "Xist"} <= set(found.symbols)
    assert report["symbols_folded_to_upper_case"] == 0


def test_previous_symbols_become_current_unless_both_are_there(tmp_path, prepare):
    rows = [*GENES, "MLL2", "WISP1", "CCN4"]
    found, report = prepare(write(tmp_path / "t.tsv", counts(len(rows)), rows))
    assert "KMT2D" in found.symbols and "MLL2" not in found.symbols
    assert {"WISP1", "CCN4"} <= set(found.symbols)
    assert report["previous_symbols_renamed"] == 1


def test_ensembl_ids_alone_are_refused_with_the_way_out(tmp_path, prepare):
    rows = [f"ENSG{i:011d}.2" for i in range(5)]
    with pytest.raises(InputError, match=r"no row has a gene symbol \(5 Ensembl ids\).*gene_name"):
        prepare(write(tmp_path / "t.tsv", counts(5), rows))


def test_genes_that_a_spreadsheet_turned_into_dates_are_counted(tmp_path, prepare):
    rows = [*GENES, "1-Mar", "2023-09-02 00:00:00"]
    found, report = prepare(write(tmp_path / "t.tsv", counts(len(rows)), rows))
    assert report["names_turned_into_dates"]["number"] == 2
    assert set(found.symbols) == set(GENES)


def test_unknown_symbols_can_be_an_error(tmp_path, prepare):
    with pytest.raises(InputError, match=r"row '\?\|7': no gene symbol"):
        prepare(write(tmp_path / "t.tsv", counts(24), [*GENES, "?|7"]), unknown="error")


@pytest.mark.parametrize(
    ("rule", "unit", "expected"),
    [
        ("mean", "linear", [160.5, 3.5]),
        ("sum", "linear", [321.0, 7.0]),
        ("max", "linear", [300.5, 4.5]),
        ("first", "linear", [20.5, 4.5]),
    ],
)
def test_rules_for_repeated_genes(tmp_path, prepare, rule, unit, expected):
    table = write(tmp_path / "t.tsv", [[20.5, 4.5], [300.5, 2.5], [900.5, 1.5]], ["EGFR", "EGFR", "TP53"], CASES[:2])
    found, _ = prepare(table, duplicates=rule, unit=unit)
    assert found.raw[:, 0].tolist() == expected


def test_repeated_genes_on_the_log_scale_are_averaged_on_the_linear_one(tmp_path, prepare):
    pseudo = 0.001
    linear = np.random.default_rng().gamma(1, 50, (3, 4))
    rows = ["EGFR", "EGFR", "TP53"]
    merged = merge_genes(np.log2(linear + pseudo).T, gene_rows(rows, "mean", "t"), "mean", "log2")
    np.testing.assert_allclose(np.exp2(merged[:, 0]) - pseudo, linear[:2].mean(0), rtol=1e-9)
    table = write(tmp_path / "t.tsv", np.log2(linear + pseudo), rows)
    found, _ = prepare(table, unit="log2")
    single = np.log2(linear + pseudo).astype(np.float32).astype(np.float64)  # the artefact's raw layer is float32
    expected = np.log2(np.mean(np.exp2(single[:2]), axis=0)).astype(np.float32)
    np.testing.assert_array_equal(found.raw[:, 0], expected)
    with pytest.raises(InputError, match="log2 values cannot be summed"):
        prepare(table, unit="log2", duplicates="sum")


# --- cells ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("", "empty or NaN; 1 such cells"),
        ("NaN", "empty or NaN"),
        ("inf", "infinite"),
        ("high", "'high' is not a number"),
        ("1,5", "'1,5' is not a number"),
        ("-3", "a negative value"),
    ],
)
def test_bad_cells_name_gene_and_sample(tmp_path, prepare, cell, message, transpose):
    values = counts().astype(object)
    values[5, 2] = cell
    table = write(tmp_path / "t.tsv", values, transpose=transpose)
    with pytest.raises(InputError, match=rf"t.tsv gene {GENES[5]}, sample p3: .*{re.escape(message)}"):
        prepare(table)


def test_bad_cells_of_samples_that_are_not_used_do_not_matter(tmp_path, prepare):
    values = counts(n_cases=5).astype(object)
    values[:, 4] = "text"
    found, report = prepare(write(tmp_path / "t.tsv", values, columns=[*CASES, "remark"]))
    assert found.cases == tuple(CASES)
    assert report["samples_of_no_case"] == {"number": 1, "examples": ["remark"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("gene\tp1\n", "a header and no rows"),
        ("gene\nTP53\n", "one column only"),
        ("gene\tp1\tp2\nTP53\t1\n", "2 fields under 3 column names"),
        ("gene\tp1\nTP53\t1\nEGFR\t1\t2\n", "not a rectangular table"),
        ("gene\tgene_name\nENSG00000000001\tTP53\n", "no column of values"),
    ],
)
def test_files_that_are_no_table(tmp_path, prepare, text, message):
    (tmp_path / "t.tsv").write_text(text)
    with pytest.raises(InputError, match=message):
        prepare(tmp_path / "t.tsv")


def test_truncated_gzip_and_missing_file(tmp_path, prepare):
    table = write(tmp_path / "t.tsv.gz", counts())
    table.write_bytes(table.read_bytes()[:-40])
    with pytest.raises(InputError, match="not readable as text"):
        prepare(table)
    with pytest.raises(InputError, match="does not exist"):
        prepare(tmp_path / "absent.tsv")
    (tmp_path / "bad.h5ad").write_bytes(b"no HDF5")
    with pytest.raises(InputError, match="not readable as h5ad"):
        prepare(tmp_path / "bad.h5ad")


# --- units ----------------------------------------------------------------------------------------


def transcriptome(n_genes=2000, n_cases=6):
    return np.random.default_rng().lognormal(1, 2, (n_genes, n_cases)) * 20


@pytest.mark.parametrize(
    ("unit", "values"),
    [
        ("counts", np.rint(transcriptome())),
        ("tpm", (lambda x: x / x.sum(0) * 1e6)(transcriptome())),
        ("linear", transcriptome()),
        ("log2", np.log2(transcriptome() + 1)),
        ("log2", np.log2(transcriptome() + 0.001)),
        ("log2", np.log2(transcriptome() + 1)[:, :1]),
        ("zscore", np.vstack([np.random.default_rng().normal(0, 1, (500, 20)), np.full((1, 20), 3515.0)])),
    ],
)
def test_units_are_told_apart(unit, values):
    names = [f"g{i}" for i in range(len(values))]
    assert detect_unit(values, names, [f"c{i}" for i in range(values.shape[1])], "t")[0] == unit


def test_a_unit_that_cannot_be_told_must_be_declared():
    with pytest.raises(InputError, match=r"cannot be told from values of 0.5 to 60.*declare expression.unit"):
        detect_unit(np.array([[0.5, 60.0]]), ["g"], ["a", "b"], "t")


@pytest.mark.parametrize(
    ("declared", "values", "message"),
    [
        ("counts", transcriptome(), r"gene g0, sample p1: no whole number under unit counts"),
        ("counts", -np.rint(transcriptome()), r"a negative value under unit counts"),
        ("tpm", transcriptome() * 1e5, r"sample p\d: unit tpm, but the sample sums to"),
        ("tpm", np.rint(transcriptome()), r"all values are whole numbers"),
        ("fpkm", np.log2(transcriptome() + 1), r"these look like logarithms"),
        ("linear", np.log2(transcriptome() + 0.001), r"a negative value under unit linear"),
        ("log2", transcriptome(), r"gene g\d+, sample p\d: unit log2, but the value is"),
        ("zscore", np.log2(transcriptome() + 1), r"no value is negative"),
        ("zscore", np.log2(transcriptome(n_cases=12) + 0.001), r"the genes are not centred .*declare log2"),
        ("log2", np.random.default_rng().normal(0, 1, (500, 200)), r"standard deviation near 1 .*declare zscore"),
        ("tpm", (lambda x: x / x.max() * 100)(transcriptome(16000)), r"half of the samples sum to .* over 16000 genes"),
        ("fpkm", (lambda x: x / x.sum(0) * 1e6)(transcriptome()), r"every sample sums to a million.*declare tpm"),
        ("fpkm_uq", np.rint(transcriptome()), r"unit fpkm_uq, but all values are whole numbers"),
    ],
)
def test_declarations_that_the_numbers_contradict(tmp_path, prepare, declared, values, message):
    columns = [f"p{i + 1}" for i in range(values.shape[1])]
    table = write(tmp_path / "t.tsv", values, [f"g{i}" for i in range(len(values))], columns)
    with pytest.raises(InputError, match=message):
        prepare(table, columns, unit=declared)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unit": "log"}, "expression.unit: 'log' is none of"),
        ({"duplicates": "median"}, "expression.duplicates"),
        ({"clip": 0}, "expression.clip"),
        ({"target_sum": -1}, "expression.target_sum"),
    ],
)
def test_bad_parameters_name_their_key(change, message):
    with pytest.raises(InputError, match=message):
        ExpressionParams(**change)


# --- normalisation --------------------------------------------------------------------------------


def test_counts_are_scaled_to_the_target_and_logged(tmp_path, prepare):
    values = counts()
    found, _ = prepare(write(tmp_path / "t.tsv", values), target_sum=1e6)
    expected = np.log1p(in_order(values) / values.sum(0)[:, None] * 1e6)
    np.testing.assert_allclose(found.values, expected, rtol=1e-5)
    assert found.scale == "log1p"


def test_a_case_without_any_count_is_named(tmp_path, prepare):
    values = counts()
    values[:, 1] = 0
    with pytest.raises(InputError, match="sample p2: every count is 0"):
        prepare(write(tmp_path / "t.tsv", values))


@pytest.mark.parametrize(
    ("unit", "scale", "transform"),
    [
        ("tpm", "log1p", np.log1p),
        ("fpkm", "log1p", np.log1p),
        ("linear", "log1p", np.log1p),
        ("log2", "log2", lambda x: x),
    ],
)
def test_other_units(tmp_path, prepare, unit, scale, transform):
    values = np.random.default_rng().uniform(0, 40, (len(GENES), 4))
    found, _ = prepare(write(tmp_path / "t.tsv", values), unit=unit)
    assert (found.unit, found.scale) == (unit, scale)
    np.testing.assert_allclose(found.values, transform(in_order(values)), rtol=1e-6)


def test_zscores_are_clipped_and_counted(tmp_path, prepare):
    values = np.random.default_rng().normal(0, 1, (len(GENES), 4))
    values[3, 1], values[4, 2] = 3515, -12
    found, report = prepare(write(tmp_path / "t.tsv", values), unit="zscore", clip=8)
    assert report["values_clipped"] == 2
    assert (found.values.min(), found.values.max()) == (-8, 8)
    assert found.raw.max() == 3515


def test_no_case_depends_on_another(tmp_path, prepare):
    values = counts()
    before, _ = prepare(write(tmp_path / "t.tsv", values))
    other = values.copy()
    other[:, 2:] = counts(n_cases=2) * 3
    after, _ = prepare(write(tmp_path / "t.tsv", other))
    np.testing.assert_array_equal(before.values[:2], after.values[:2])
    assert not np.array_equal(before.values[2:], after.values[2:])


# --- the artefact ---------------------------------------------------------------------------------


def test_same_input_same_bytes_and_digest_follows_the_input(tmp_path, prepare):
    values = counts()
    table = write(tmp_path / "t.tsv", values)
    digest = prepare(table)[0].digest
    before = (tmp_path / "out.h5ad").read_bytes()
    time.sleep(1.1)  # HDF5 object times have a resolution of a second
    assert prepare(table)[0].digest == digest
    assert (tmp_path / "out.h5ad").read_bytes() == before
    assert prepare(table, target_sum=1e6)[0].digest != digest
    values[0, 0] += 1
    assert prepare(write(tmp_path / "t.tsv", values))[0].digest != digest


def test_anndata_opens_it(tmp_path, prepare):
    import anndata

    prepare(write(tmp_path / "t.tsv", counts()))
    table = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert table.uns["unit"] == "counts"
    assert list(table.var) == ["symbol", "ensembl", "tumour", "tme"]
    assert table.layers["raw"].shape == table.shape == (4, len(GENES))


def test_unknown_versions_and_damage_are_refused(tmp_path, prepare):
    prepare(write(tmp_path / "t.tsv", counts()))
    path = tmp_path / "out.h5ad"
    with h5py.File(path, "r+") as file:
        file["X"][0, 0] = np.nan
    with pytest.raises(FormatError, match="not finite"):
        read_expression(path)
    with h5py.File(path, "r+") as file:
        file["uns/format_version"][()] = 99
    with pytest.raises(FormatError, match="version 99"):
        read_expression(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(FormatError, match="not readable"):
        read_expression(path)


# --- real tables ----------------------------------------------------------------------------------


def real(name):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"real table absent: {path}")
    return path


def test_real_tcga_rsem_counts(prepare):
    path = real("rna-raw-format/brca10_rsem_raw.tsv.gz")
    with gzip.open(path, "rt") as handle:
        cases = [name[:12] for name in handle.readline().split()[1:]]
    found, report = prepare(path, cases)
    assert (found.unit, len(found.cases), len(found.symbols)) == ("linear", 5, 20501)
    assert report["samples_not_tumour"]["number"] == 5
    assert report["tumour_genes_missing"] == report["tme_genes_missing"] == []
    with pytest.raises(InputError, match=r"gene \S+, sample TCGA-\S+: no whole number .*expected_counts"):
        prepare(path, cases, unit="counts")


@pytest.mark.parametrize(
    ("name", "unit", "n_cases", "n_genes"),
    [
        ("glioma-geo/phillips_expr.csv.gz", "log2", 100, 12703),
        ("glioma-tcga/rna_zscores.csv.gz", "zscore", 451, 1544),
        ("tcga-gi-tpm/coadread_rna.csv.gz", "log2", 317, 1577),
    ],
)
def test_real_tables_of_other_units(prepare, name, unit, n_cases, n_genes):
    path = real(name)
    with gzip.open(path, "rt") as handle:
        cases = [line.split(",", 1)[0] for line in handle][1:]
    found, _ = prepare(path, cases)
    assert (found.unit, *found.values.shape) == (unit, n_cases, n_genes)


def first_column(path):
    with gzip.open(path, "rt") as handle:
        return [line.split(",", 1)[0] for line in handle][1:]


def test_real_raw_rsem_to_the_log_scale(prepare):
    path = real("rna-raw-format/brca10_rsem_raw.tsv.gz")
    with gzip.open(path, "rt") as handle:
        header, *lines = [line.rstrip("\n").split("\t") for line in handle]
    found, report = prepare(path, [name[:12] for name in header[1:]], unit="expected_counts")
    assert (
        report["rows_without_symbol"]["number"] == 28 and report["rows_without_symbol"]["examples"][0] == "?|100133144"
    )
    assert report["duplicate_symbols"] == 1 and report["samples_not_tumour"]["number"] == 5
    assert report["previous_symbols_renamed"] == 230
    assert {"KMT2D", "RBFOX1", "SEPTIN9"} <= set(found.symbols) and not {"MLL2", "A2BP1", "SEPT9"} & set(found.symbols)
    case = found.cases[0]
    column = next(i for i, name in enumerate(header) if name.startswith(f"{case}-01"))
    counts = {row[0].split("|")[0]: float(row[column]) for row in lines if not row[0].startswith("?")}
    pair = [float(row[column]) for row in lines if row[0].startswith("SLC35E2|")]
    total = sum(counts.values()) - counts["SLC35E2"] + np.mean(pair)
    for gene in ("TP53", "ESR1", "GAPDH"):
        expected = np.log1p(counts[gene] * 1e4 / total)
        np.testing.assert_allclose(found.values[0, found.symbols.index(gene)], expected, rtol=1e-5)
    np.testing.assert_allclose(found.raw[0, found.symbols.index("SLC35E2")], np.mean(pair), rtol=1e-6)


def test_real_patients_with_two_samples(prepare):
    path = real("tcga-gi-tpm/coadread_rna.csv.gz")
    cases = first_column(path)
    found, report = prepare(path, cases)
    twice = ["TCGA-G4-6317", "TCGA-G5-6572", "TCGA-NH-A8F7"]
    assert report["cases_with_several_samples"] == {"number": 3, "examples": twice}
    assert report["samples_not_chosen"]["number"] == 3
    with gzip.open(path, "rt") as handle:
        rows = [line.rstrip("\n").split(",") for line in handle]
    gene = rows[0].index("FMO2")
    pair = [float(row[gene]) for row in rows if row[0] == twice[0]]
    place = (found.cases.index(twice[0]), found.symbols.index("FMO2"))
    assert pair[0] != pair[1] and found.raw[place] == np.float32(pair[0])
    mean, _ = prepare(path, cases, aliquots="mean")
    np.testing.assert_allclose(mean.raw[place], np.log2(np.mean(np.exp2(pair))), rtol=1e-6)
    with pytest.raises(InputError, match="case TCGA-G4-6317: 2 samples"):
        prepare(path, cases, aliquots="error")


def test_real_microarray_with_old_symbols(prepare):
    path = real("glioma-geo/phillips_expr.csv.gz")
    cases = first_column(path)
    found, report = prepare(path, cases)
    assert "RBFOX1" in found.symbols and "A2BP1" not in found.symbols
    assert report["previous_symbols_renamed"] == 198 and report["duplicate_symbols"] == 0
    _, as_is = prepare(path, cases, symbols="as_is")
    missing = [len(r["tumour_genes_missing"]) + len(r["tme_genes_missing"]) for r in (report, as_is)]
    assert missing == [69, 91]  # genes of the built-in lists that the old names would have hidden


def test_real_zscores_of_two_studies_are_no_base_for_telling_the_studies_apart(prepare, tmp_path):
    path = real("glioma-tcga/rna_zscores.csv.gz")
    with open(real("glioma-tcga/clinical.csv"), newline="") as handle:
        rows = {row["case_id"]: row for row in csv.DictReader(handle)}
    study = {case: "GBM" if row["oncotree_code"] == "GBM" else "LGG" for case, row in rows.items()}
    prepare_expression(path, tmp_path / "z.h5ad", ExpressionParams(), rows, cohorts=study)
    panel = read_expression(tmp_path / "z.h5ad")
    with pytest.raises(InputError, match="its label follows the cohort"):
        check_label_against_cohorts(panel, study, "study", False)
    for column in ("idh_codel_subtype", "grade", "is_female"):
        labels = {case: row[column] for case, row in rows.items() if row[column]}
        check_label_against_cohorts(panel, labels, column, False)
        check_label_against_cohorts(replace(panel, cohorts=()), labels, column, False)


def test_real_cohorts_on_an_absolute_scale_are_joined(prepare):
    tables = {name: str(real(f"tcga-gi-tpm/{name}_rna.csv.gz")) for name in ("coadread", "stad")}
    found, report = prepare(tables, [*first_column(tables["coadread"]), *first_column(tables["stad"])])
    assert found.values.shape == (317 + 336, 1577) and report["tables"] == 2
    check_label_against_cohorts(found, found.cohort_of(), "organ", False)
    with pytest.raises(InputError, match=r"different units \(coadread: log2, glioma: zscore\)"):
        glioma = str(real("glioma-tcga/rna_zscores.csv.gz"))
        prepare({"coadread": tables["coadread"], "glioma": glioma},
                [*first_column(tables["coadread"]), *first_column(glioma)])  # fmt: skip
