"""Old symbols, synonyms and Ensembl ids are brought up to date where that is no guess, and everything is counted."""

import numpy as np
import pytest

from pipeline.contracts.errors import InputError
from pipeline.contracts.expression import read_expression
from pipeline.contracts.files import read_table
from pipeline.expression import ExpressionParams, prepare_expression
from pipeline.expression.aliases import PATH, builtin_aliases, read_aliases
from pipeline.signatures import current_symbols, load_signatures

HGNC = """hgnc_id\tsymbol\tname\tstatus\talias_symbol\tprev_symbol\tensembl_gene_id
HGNC:1\tKMT2D\tlysine\tApproved\t"ALR|CAGL114"\tMLL2\tENSG00000167548
HGNC:2\tKMT2B\tlysine\tApproved\t"MLL2|WBP7"\tMLL4\tENSG00000272333
HGNC:3\tRBFOX1\tbinding\tApproved\tFOX-1\tA2BP1\tENSG00000078328
HGNC:4\tDELEC1\tdeleted\tApproved\t\tDEC1\tENSG00000173077
HGNC:5\tBHLHE40\thelix\tApproved\tDEC1|STRA13\tBHLHB2\tENSG00000134107
HGNC:6\tCENPX\tcentromere\tApproved\tSTRA13|MHF2\t\tENSG00000169689
HGNC:7\tMS4A1\tmembrane\tApproved\tCD20|B1\t\tENSG00000156738
HGNC:8\tOLD1\tone\tApproved\t\tSPLIT\t
HGNC:9\tOLD2\tother\tApproved\t\tSPLIT\t
HGNC:10\tMERGED\tmerged\tApproved\t\tPART1|PART2\t
"""


@pytest.fixture
def hgnc(tmp_path):
    path = tmp_path / "hgnc_complete_set.txt"
    path.write_text(HGNC)
    return path


def prepared(tmp_path, names, aliases=None, **params):
    values = np.random.default_rng().integers(0, 5000, (len(names), 2))
    lines = ["gene\tp1\tp2", *(f"{n}\t{a}\t{b}" for n, (a, b) in zip(names, values.tolist(), strict=True))]
    (tmp_path / "t.tsv").write_text("\n".join(lines) + "\n")
    params = ExpressionParams(aliases=aliases and str(aliases), **params)
    report = prepare_expression(tmp_path / "t.tsv", tmp_path / "out.h5ad", params, ["p1", "p2"])
    return read_expression(tmp_path / "out.h5ad"), report, dict(zip(names, values, strict=True))


def test_previous_symbols_and_synonyms_of_the_users_file(tmp_path, hgnc):
    names = ["MLL2", "A2BP1", "CD20", "DEC1", "STRA13", "SPLIT", "NOBODY", "KMT2B", "IL8"]
    found, report, values = prepared(tmp_path, names, hgnc)
    renamed = {"MLL2": "KMT2D", "A2BP1": "RBFOX1", "CD20": "MS4A1", "DEC1": "DELEC1", "IL8": "CXCL8"}
    assert set(found.symbols) == {renamed.get(name, name) for name in names}
    for name, counts in values.items():
        assert found.raw[:, found.symbols.index(renamed.get(name, name))].tolist() == counts.tolist()
    assert report["previous_symbols_renamed"] == 4
    assert report["synonyms_renamed"] == {"number": 1, "examples": ["CD20"]}
    assert report["ambiguous_symbols_kept"] == {"number": 2, "examples": ["STRA13", "SPLIT"]}
    assert report["symbols_unknown_to_the_alias_file"] == {"number": 1, "examples": ["NOBODY"]}


def test_a_gene_under_both_names_keeps_both(tmp_path, hgnc):
    found, report, _ = prepared(tmp_path, ["A2BP1", "RBFOX1", "TP53"], hgnc)
    assert found.symbols == ("A2BP1", "RBFOX1", "TP53")
    assert report["previous_symbols_renamed"] == 0


def test_two_synonyms_of_one_gene_are_not_guessed(tmp_path, hgnc):
    found, report, _ = prepared(tmp_path, ["CD20", "B1", "TP53"], hgnc)
    assert found.symbols == ("B1", "CD20", "TP53")
    assert report["ambiguous_symbols_kept"]["number"] == 2


def test_two_previous_symbols_of_one_gene_are_rows_of_one_gene(tmp_path, hgnc):
    found, report, values = prepared(tmp_path, ["PART2", "PART1", "TP53"], hgnc)
    assert found.symbols == ("MERGED", "TP53")
    assert report["previous_symbols_renamed"] == 2 and report["duplicate_symbols"] == 1
    assert found.raw[:, 0].tolist() == ((values["PART1"] + values["PART2"]) / 2).tolist()


def test_without_a_file_the_built_in_table_serves(tmp_path):
    found, report, _ = prepared(tmp_path, ["PVRL1", "TP53"])
    assert found.symbols == ("NECTIN1", "TP53")
    assert report["previous_symbols_renamed"] == 1
    assert "symbols_unknown_to_the_alias_file" not in report  # the built-in table does not know every gene


def test_ensembl_ids_alone_are_named_by_hgnc_or_by_a_star_file(tmp_path, hgnc):
    idents = ["ENSG00000167548.16", "ENSG00000156738", "ENSG00000999999.1"]
    star = tmp_path / "star.tsv"
    star.write_text(
        "# gene-model: GENCODE v36\ngene_id\tgene_name\tgene_type\tunstranded\nN_unmapped\t\t\t5\n"
        "ENSG00000167548.15\tKMT2D\tx\t1\nENSG00000156738.18\tMS4A1\tx\t2\n"
    )
    for aliases in (hgnc, star):
        found, report, values = prepared(tmp_path, idents, aliases)
        assert found.symbols == ("KMT2D", "MS4A1")
        assert found.ensembl == ("ENSG00000167548.16", "ENSG00000156738")
        assert found.raw[:, 0].tolist() == values[idents[0]].tolist()
        assert report["named_by_ensembl_id"] == 2
        assert report["rows_without_symbol"] == {"number": 1, "examples": [idents[2]]}


@pytest.mark.parametrize(
    ("text", "message"),
    [("a\tb\n1\t2\n", "neither the columns symbol, prev_symbol, alias_symbol nor gene_id"), ("", "an empty file")],
)
def test_files_that_name_nothing(tmp_path, text, message):
    path = tmp_path / "names.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_aliases(path)
    with pytest.raises(InputError, match=r"expression\.aliases: .*does not exist"):
        read_aliases(tmp_path / "absent.txt")


def test_gene_lists_follow_the_same_names(tmp_path, hgnc):
    (tmp_path / "mine.tsv").write_text("symbol\nCD20\nA2BP1\nSPLIT\n")
    mine = load_signatures("builtin", str(tmp_path / "mine.tsv"), read_aliases(hgnc).current)
    assert mine.tme == ("MS4A1", "RBFOX1", "SPLIT")


def test_the_built_in_table_renames_nothing_that_is_current():
    rows = read_table(PATH, ["previous", "symbol"])
    old = {row["previous"] for row in rows}
    assert len(old) == len(rows) and not old & {row["symbol"] for row in rows} and not old & current_symbols().keys()
    assert builtin_aliases().current("A2BP1") == "RBFOX1" and builtin_aliases().current("SEPT9") == "SEPTIN9"
    assert builtin_aliases().current("NO_SUCH_GENE") == "NO_SUCH_GENE"


def test_copies_on_the_y_chromosome_do_not_halve_a_gene(tmp_path):
    rows = ["ENSG00000182378.15|PLCXD1", "ENSG00000182378.15_PAR_Y|PLCXD1", "ENSG00000141510.18|TP53"]
    (tmp_path / "t.tsv").write_text(
        "gene\tp1\n" + "".join(f"{r}\t{v}\n" for r, v in zip(rows, (80, 0, 30), strict=True))
    )
    report = prepare_expression(tmp_path / "t.tsv", tmp_path / "o.h5ad", ExpressionParams(), ["p1"])
    assert read_expression(tmp_path / "o.h5ad").raw.tolist() == [[80, 30]]
    assert report["pseudoautosomal_rows_of_y"] == 1 and report["duplicate_symbols"] == 0
