"""The fast and the careful way to read a text table give the same table, and ids alone are the ids of the whole."""

import gzip

import numpy as np
import pytest

from pipeline.expression import ExpressionParams, text_tables
from pipeline.expression.samples import table_cases
from pipeline.expression.tables import read_ids, read_raw


def both_ways(path, monkeypatch):
    fast = read_raw(path)
    with monkeypatch.context() as patch:
        patch.setattr(text_tables, "_read_blocks", lambda *_: None)
        careful = read_raw(path)
    return fast, careful


def text_table(n_rows=40, n_columns=7, head=""):
    draw = np.random.default_rng()
    values = draw.choice([0.0, 1.0, 12.5, 1e-7, 123456.789, -3.25e4], (n_rows, n_columns)) * draw.random(
        (n_rows, n_columns)
    )
    lines = [head + "\t".join(["gene", "description", *(f"p{i}" for i in range(n_columns))])]
    lines += ["\t".join([f"G{r}", f"some gene {r}", *map(repr, row)]) for r, row in enumerate(values.tolist())]
    return values, "\n".join(lines) + "\n"


@pytest.mark.parametrize("head", ["", "# made by hand\n", "\n\n"])
@pytest.mark.parametrize("packed", [False, True])
def test_blocks_and_the_whole_agree_to_the_bit(tmp_path, monkeypatch, head, packed):
    values, text = text_table(head=head)
    monkeypatch.setattr(text_tables, "ROWS_PER_BLOCK", 3)
    monkeypatch.setattr(text_tables, "BLOCK_BYTES", (400, 700))
    path = tmp_path / "t.tsv"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    fast, careful = both_ways(path, monkeypatch)
    assert text_tables._read_blocks(path, text_tables._layout(path, ""), [2]) is not None
    np.testing.assert_array_equal(fast.values, values.astype(np.float32))
    np.testing.assert_array_equal(fast.values, careful.values)
    assert (fast.rows, fast.columns, fast.annotations) == (careful.rows, careful.columns, careful.annotations)
    assert fast.rows == [f"G{r}" for r in range(40)] and fast.annotations["description"][7] == "some gene 7"


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("G30\t", '"G30"\t'),  # a quote below the first rows
        lambda text: text.replace("some gene 30", '"some\tgene 30"'),
        lambda text: text.replace("G30\tsome", "G30\tNA\tsome").replace("\tsome gene 30", "", 1),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\nG30", "\n\nG30"),
    ],
)
def test_irregular_tables_are_read_the_same(tmp_path, monkeypatch, change):
    (tmp_path / "t.tsv").write_text(change(text_table()[1]), newline="")
    fast, careful = both_ways(tmp_path / "t.tsv", monkeypatch)
    np.testing.assert_array_equal(fast.values, careful.values)
    assert fast.rows == careful.rows and fast.columns == careful.columns


def test_empty_cells_and_text_are_kept_for_the_message(tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_text("gene,p1,p2\nTP53,1,\nEGFR,high,4\n")
    fast, careful = both_ways(tmp_path / "t.csv", monkeypatch)
    assert fast.bad_cells == careful.bad_cells == {0: (1, "high")}
    np.testing.assert_array_equal(fast.values, careful.values)
    (tmp_path / "t.csv").write_text("gene,p1,p2\nTP53,1,\nEGFR,2,4\n")
    fast, careful = both_ways(tmp_path / "t.csv", monkeypatch)
    np.testing.assert_array_equal(fast.values, [[1, np.nan], [2, 4]])
    np.testing.assert_array_equal(fast.values, careful.values)


@pytest.mark.parametrize("transpose", [False, True])
def test_ids_without_values(tmp_path, transpose):
    rows, columns = [f"G{i}" for i in range(300)], ["p1", "p2", "TCGA-AA-0001-01A", "TCGA-AA-0001-11A"]
    cases = ["p2", "TCGA-AA-0001", "other"]
    if transpose:
        rows, columns = columns, rows
    lines = ["\t".join(["id", *columns]), *("\t".join([r, *["1"] * len(columns)]) for r in rows)]
    (tmp_path / "t.tsv").write_text("\n".join(lines) + "\n")
    found, read = read_ids(tmp_path / "t.tsv", "unstranded", cases)
    assert read == columns and found == (rows if transpose else rows[:200])  # no more than it takes
    names, remarks = table_cases(str(tmp_path / "t.tsv"), ExpressionParams(), cases)
    assert names == ["TCGA-AA-0001", "p2"]
    assert [remark for _, remark in remarks] == [
        "1 samples belong to no case of the sheet: p1",
        "1 samples are normal tissue and are left out: TCGA-AA-0001-11A",
    ]


def test_the_cohort_report_reads_no_value(tmp_path, monkeypatch):
    (tmp_path / "t.tsv").write_text(text_table()[1])
    monkeypatch.setattr("pipeline.expression.tables.read_text", None)
    assert table_cases({"one": str(tmp_path / "t.tsv")}, ExpressionParams(), ["p3", "q"])[0] == ["p3"]
