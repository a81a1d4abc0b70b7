"""The cohort report names every mismatch, and the verdict names every failure."""

import pytest

from pipeline.conclude import conclude
from pipeline.contracts.batches import FAILED, OK, VOID, BatchRow, write_batch
from pipeline.contracts.errors import HistoweaveError, InputError
from pipeline.contracts.files import read_table, write_table
from pipeline.join import join_cohort

TASK = {"name": "grade", "kind": "classification", "label": "grade"}


@pytest.fixture
def cohort(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.svs", "b.svs"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "cases.tsv").write_text("case_id\tgrade\nA\tG2\nB\tG3\nC\t\nD\tG3\n")
    (tmp_path / "slides.tsv").write_text(
        "slide_id\tcase_id\tpath\texclude\ns1\tA\ta.svs\t\ns2\tB\tb.svs\t\ns3\tB\tb.svs\t\n"
        "s4\tb\ta.svs\t\ns5\tC\tgone.svs\t\ns6\tD\ta.svs\tblurred\n"
    )
    (tmp_path / "rna.tsv").write_text("gene\tA\tB\tD\tE\n" + "".join(f"{g}\t1\t2\t3\t4\n" for g in ("TP53", "EGFR")))
    return tmp_path


def report(slides="slides.tsv", expression="rna.tsv", tasks=(TASK,)):
    join_cohort("cases.tsv", slides, expression, {}, tasks, "report.tsv", "report.html")
    return {(row["severity"], row["kind"], row["id"]): row["problem"] for row in read_table("report.tsv")}


def test_every_mismatch_is_named(cohort):
    found = report()
    assert found["error", "slide_of_unknown_case", "s4"].startswith("case 'b' is unknown")
    assert "gone.svs" in found["error", "slide_file_missing", "s5"]
    assert found["warning", "case_without_rna", "C"]
    assert found["warning", "case_without_slide", "D"]
    assert "'s2'" in found["warning", "same_file_twice", "s3"]
    assert found["info", "slide_excluded", "s6"] == "blurred"
    assert found["info", "no_label", "C"] == "grade: no grade"
    assert "E" in found["info", "expression_table", "rna.tsv"]
    page = (cohort / "report.html").read_text()
    assert "slide_of_unknown_case" in page and "4 cases, 6 slides" in page


def test_a_clean_cohort_has_no_finding(cohort):
    (cohort / "slides.tsv").write_text("slide_id\tcase_id\tpath\ns1\tA\ta.svs\ns2\tB\tb.svs\n")
    (cohort / "cases.tsv").write_text("case_id\tgrade\nA\tG2\nB\tG3\n")
    (cohort / "rna.tsv").write_text("gene\tA\tB\nTP53\t1\t2\nEGFR\t1\t2\n")
    assert report() == {}


@pytest.mark.parametrize("part", ["slides", "expression"])
def test_single_modality(cohort, part):
    kinds = {kind for _, kind, _ in report(**{part: None})}
    assert not kinds & ({"case_without_slide"} if part == "slides" else {"case_without_rna"})


def test_samples_that_never_meet_a_case_are_an_error(cohort):
    (cohort / "rna.tsv").write_text("gene\tX\tY\nTP53\t1\t2\nEGFR\t1\t2\n")
    with pytest.raises(InputError, match=r"rna\.tsv"):
        report()


def test_markup_in_ids_is_escaped(cohort):
    (cohort / "slides.tsv").write_text("slide_id\tcase_id\tpath\texclude\ns1\tA\ta.svs\t<b>bad</b>\n")
    report()
    assert "<b>bad" not in (cohort / "report.html").read_text()


def test_conclude_lists_failures_unless_allowed(tmp_path):
    rows = [BatchRow("a", "A", OK, "features"), BatchRow("b", "B", FAILED, "check", "cut"),
            BatchRow("c", "C", VOID, "tissue", "none")]  # fmt: skip
    write_batch(tmp_path / "one.tsv", rows)
    index = tmp_path / "models" / "grade" / "snn" / "index.tsv"
    folds = [{"fold": 0, "status": "ok", "reason": ""}, {"fold": 1, "status": "failed", "reason": "no event"}]
    write_table(index, ["fold", "status", "reason"], folds)
    with pytest.raises(HistoweaveError) as caught:
        conclude([tmp_path / "one.tsv"] * 2, [], [index], False, tmp_path / "verdict.tsv")
    assert "2 failed" in str(caught.value)
    assert "slide b at check: cut" in str(caught.value)
    assert "model grade/snn/fold1 at train: no event" in str(caught.value)
    assert not (tmp_path / "verdict.tsv").exists()
    assert len(conclude([tmp_path / "one.tsv"], [], [index], True, tmp_path / "verdict.tsv")) == 2
    assert conclude([], [], [], False, tmp_path / "empty.tsv") == []


def test_conclude_finds_a_list_of_features_that_was_not_made_anew(tmp_path):
    """Slide b failed when the list was made, and was embedded later: when another encoder was added."""
    batch, other = tmp_path / "features/uni/_batches/b0.tsv", tmp_path / "features/uni2/_batches/b0.tsv"
    listed = tmp_path / "features/uni/index.tsv"
    write_batch(batch, [BatchRow("a", "A", OK, "features"), BatchRow("b", "B", FAILED, "features", "cut")])
    write_batch(other, [BatchRow("a", "A", OK, "features"), BatchRow("b", "B", OK, "features")])
    write_table(listed, ["slide_id"], [{"slide_id": "a"}])
    conclude([batch, other], [listed], [], True, tmp_path / "verdict.tsv")
    write_batch(batch, [BatchRow("a", "A", OK, "features"), BatchRow("b", "B", OK, "features")])
    with pytest.raises(HistoweaveError, match=r"uni/index\.tsv: the list .* is older.*: b\. Fix:.*index_features"):
        conclude([batch, other], [listed], [], True, tmp_path / "verdict.tsv")
