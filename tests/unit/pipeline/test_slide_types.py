"""TCGA slide types by barcode: what is kept, what is left out, and that it is said."""

import pytest

from pipeline.contracts.batches import EXCLUDED, OK
from pipeline.contracts.cohort import Slide
from pipeline.contracts.files import read_table
from pipeline.contracts.slide_types import SlideType, select_types, slide_type
from pipeline.eligibility import sheet_verdicts
from pipeline.join import join_cohort
from workflow.cli.init import type_advice

DIAGNOSTIC = "TCGA-06-0174-01Z-00-DX1.AB12.svs"
FROZEN = "TCGA-06-0174-01A-02-TSB.cd34.svs"
NORMAL = "TCGA-06-0174-11A-01-BS1.ef56.svs"
NO_TYPE = "TCGA-06-0174-01A.svs"


def slides(*names):
    return [Slide(f"s{i}", "TCGA-06-0174", f"a/{name}") for i, name in enumerate(names)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (DIAGNOSTIC, SlideType("DX", 1)),
        (FROZEN, SlideType("TS", 1)),
        (NORMAL, SlideType("BS", 11)),
        ("tcga-ab-1234-02c-01-ms2.svs", SlideType("MS", 2)),
        ("batch_TCGA-06-0174-01Z-00-DX1.svs", SlideType("DX", 1)),
        (NO_TYPE, SlideType("", 1)),
        ("TCGA-06-0174-01A-01-XX1.svs", SlideType("", 1)),
        ("TCGA-06-0174.svs", None),
        ("CMU-1-DX1.svs", None),
    ],
)
def test_barcode(name, expected):
    assert slide_type(Slide("x", "c", f"folder/{name}")) == expected


def test_the_id_counts_where_the_file_name_has_no_barcode():
    assert slide_type(Slide(DIAGNOSTIC.removesuffix(".svs"), "c", "1.svs")) == SlideType("DX", 1)
    assert slide_type(Slide("TCGA-06-0174-01A-01-TS1", "c", DIAGNOSTIC)).slide == "DX", "the file's own name wins"


@pytest.mark.parametrize(
    ("types", "keep_normal", "kept"),
    [(None, False, [0, 1, 3, 4]), (None, True, [0, 1, 2, 3, 4]), (["DX"], False, [0, 3, 4]), (["BS"], True, [2, 3, 4])],
)
def test_selection(types, keep_normal, kept):
    rows = select_types(slides(DIAGNOSTIC, FROZEN, NORMAL, NO_TYPE, "other.svs"), types, keep_normal)
    assert [i for i, slide in enumerate(rows) if not slide.exclude] == kept


def test_an_excluded_slide_says_why_and_the_sheets_own_reason_stays():
    sheet = [*slides(FROZEN, NORMAL), Slide("torn", "TCGA-06-0174", FROZEN, exclude="torn")]
    rows = sheet_verdicts(select_types(sheet, ["DX"]), ["TCGA-06-0174"])
    assert {row.status for row in rows.values()} == {EXCLUDED}
    assert rows["s0"].reason == "TCGA slide type TS not among DX (inputs.slide_types)"
    assert rows["torn"].reason == "torn"
    (normal,) = select_types(slides(NORMAL))
    assert normal.exclude == "TCGA sample type 11 is not a tumour (inputs.keep_normal)"
    assert sheet_verdicts(select_types(slides(NORMAL), keep_normal=True), ["TCGA-06-0174"])["s0"].status == OK


@pytest.fixture
def report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cases.tsv").write_text("case_id\nTCGA-06-0174\n")
    names = (DIAGNOSTIC, FROZEN, NORMAL, NO_TYPE)
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    rows = "".join(f"s{i}\tTCGA-06-0174\t{name}\n" for i, name in enumerate(names))
    (tmp_path / "slides.tsv").write_text("slide_id\tcase_id\tpath\n" + rows)

    def run(**wanted):
        join_cohort("cases.tsv", "slides.tsv", None, {}, [], "report.tsv", "report.html", **wanted)
        return {(row["severity"], row["kind"], row["id"]): row["problem"] for row in read_table("report.tsv")}

    return run


def test_the_cohort_report_lists_what_was_left_out_and_what_is_mixed(report):
    found = report()
    assert "1 DX, 1 TS" in found["warning", "slide_types_mixed", "all slides"]
    assert "sample type 11" in found["info", "slide_excluded", "s2"]
    found = report(slide_types=["DX"])
    assert "TS not among DX" in found["info", "slide_excluded", "s1"]
    assert found["warning", "slide_type_unknown", "s3"].startswith("kept")
    assert ("warning", "slide_types_mixed", "all slides") not in found


def test_init_suggests_one_kind_of_section():
    text = "\n".join(type_advice(slides(DIAGNOSTIC, FROZEN, NORMAL)))
    assert "1 DX, 1 TS, 1 BS" in text and "slide_types: [DX]" in text and "1 slides are not of a tumour (s2)" in text
    assert type_advice(slides("a.svs", "b.svs")) == []
    assert type_advice(slides(DIAGNOSTIC)) == ["TCGA slide types: 1 DX."]
