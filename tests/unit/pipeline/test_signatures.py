"""The built-in gene lists hold what they promise; lists of the user's are checked."""

import gzip
import re
from collections import Counter
from pathlib import Path

import pytest

from pipeline.contracts.errors import InputError
from pipeline.contracts.files import read_table
from pipeline.signatures import COLUMNS, PATH, builtin_genes, current_symbols, load_signatures

ROOT = Path(__file__).resolve().parents[3]
RSEM = ROOT.parent / "shared" / "data" / "rna-raw-format" / "brca10_rsem_raw.tsv.gz"


def test_every_row_has_a_symbol_a_set_a_group_and_sources_of_the_reference_list():
    references = set(re.findall(r"^\| (\w+\d{4}) \|", PATH.with_name("README.md").read_text(), re.MULTILINE))
    used = set()
    for row in read_table(PATH, COLUMNS):
        assert re.fullmatch(r"[A-Z][A-Z0-9]*(-[A-Z0-9]+)?", row["symbol"])
        assert row["set"] in ("tumour", "tme")
        assert re.fullmatch(r"[a-z][a-z0-9_]*", row["group"])
        used |= set(row["source"].split("; "))
    assert used == references


def test_no_gene_is_twice_in_a_set_and_both_sets_hold_hundreds():
    counts = Counter((gene.symbol, gene.set) for gene in builtin_genes())
    assert max(counts.values()) == 1
    sets = load_signatures()
    assert len(sets.tumour) > 300
    assert len(sets.tme) > 300
    assert len(sets.both) < 10


def test_previous_symbols_lead_to_one_gene_and_are_no_current_symbol():
    current = {gene.symbol for gene in builtin_genes()}
    old = Counter(name for gene in {g.symbol: g for g in builtin_genes()}.values() for name in gene.previous)
    assert max(old.values()) == 1
    assert not set(old) & current
    assert current_symbols()["MLL2"] == "KMT2D"


def test_every_symbol_is_in_a_real_table_under_its_present_or_a_previous_name():
    if not RSEM.exists():
        pytest.skip(f"real TCGA table absent: {RSEM}")
    with gzip.open(RSEM, "rt") as handle:
        known = {line.split("|")[0] for line in handle}
    lost = [g.symbol for g in builtin_genes() if not ({g.symbol, *g.previous} & known)]
    assert lost == []


def test_simulated_symbols_hold_the_builtin_genes_once_each():
    rows = [row["symbol"] for row in read_table(ROOT / "workflow" / "simulation" / "symbols.tsv", ["symbol"])]
    assert 2500 <= len(rows) == len(set(rows))
    assert {gene.symbol for gene in builtin_genes()} <= set(rows)


def test_user_lists_gmt_and_tables(tmp_path):
    (tmp_path / "a.gmt").write_text("one\tsource\tTP53\tMLL2\ntwo\t\tTP53\tEGFR\n\n")
    (tmp_path / "b.csv").write_text("symbol,set\nCD8A,tme\nMYC,tumour\nCD3D,tme\n")
    sets = load_signatures(str(tmp_path / "a.gmt"), str(tmp_path / "b.csv"))
    assert sets.tumour == ("EGFR", "KMT2D", "TP53")
    assert sets.tme == ("CD3D", "CD8A")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "symbol\nTP53\nTP53\n", "'TP53' occurs twice"),
        ("a.tsv", "genes\nTP53\n", "column symbol missing"),
        ("a.tsv", "symbol\n", "no gene for genes.tumour"),
        ("a.tsv", "symbol\nENSG00000141510.18\n", "Ensembl id"),
        ("a.tsv", "symbol\tset\nTP53\ttumor\n", "row 2: set 'tumor'"),
        ("a.gmt", "one\tsource\n", "line 1 (gene set 'one'): no gene"),
        ("a.gmt", "one\ts\tTP53\tTP53\n", "occurs twice"),
    ],
)
def test_bad_user_lists_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=re.escape(message)):
        load_signatures(tumour=str(tmp_path / name))


@pytest.mark.parametrize("name", ["missing.gmt", "missing.tsv"])
def test_missing_user_list(tmp_path, name):
    with pytest.raises(InputError, match="does not exist"):
        load_signatures(tme=str(tmp_path / name))
