"""The sheets: one error that names the row and the id."""

import pytest

from pipeline.contracts.cohort import BATCH_SLIDES, batches, read_cases, read_slides
from pipeline.contracts.errors import InputError

HEADER = "slide_id\tcase_id\tpath\tum_per_px\texclude\tbatch\n"


def sheet(tmp_path, *rows):
    path = tmp_path / "slides.tsv"
    path.write_text(HEADER + "".join("\t".join(row) + "\n" for row in rows))
    return path


def row(slide_id, case_id="c1", path="x.svs", um="", exclude="", batch=""):
    return slide_id, case_id, path, um, exclude, batch


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row("a"), row("a")], "slide_id 'a' occurs twice"),
        ([row("a"), row("A")], "'A' differs from 'a' in upper and lower case only"),
        ([row("..")], "row 2 (slide_id '..'): slide_id '..' is not allowed"),
        ([row("a/b")], "slide_id 'a/b' is not allowed"),
        ([row("a", case_id="")], "case_id '' is not allowed"),
        ([row("a", path="")], "path is empty"),
        ([row("a", um="big")], "um_per_px 'big' is not a number"),
        ([row("a", um="-1")], "um_per_px '-1' is not a number from 0.05 to 40"),
        ([row("a", batch="x y")], "batch 'x y' is not allowed"),
    ],
)
def test_one_error_that_names_the_row(tmp_path, rows, expected):
    with pytest.raises(InputError, match="Fix") as caught:
        read_slides(sheet(tmp_path, *rows))
    assert expected in str(caught.value)


def test_missing_file_and_column(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_slides(tmp_path / "nowhere.tsv")
    (tmp_path / "cases.tsv").write_text("case\nA\n")
    with pytest.raises(InputError, match="column case_id missing; found: case"):
        read_cases(tmp_path / "cases.tsv")


def test_duplicate_case(tmp_path):
    (tmp_path / "cases.tsv").write_text("case_id\tgrade\nA\tG2\na\tG3\n")
    with pytest.raises(InputError, match="differs from 'A'"):
        read_cases(tmp_path / "cases.tsv")


@pytest.mark.parametrize("n", [0, 1, BATCH_SLIDES, BATCH_SLIDES + 1, 700])
def test_batches_hold_every_slide_once_and_are_about_the_stated_size(tmp_path, n):
    slides = read_slides(sheet(tmp_path, *[row(f"s{i}") for i in range(n)]))
    grouped = batches(slides)
    assert sorted(s.slide_id for group in grouped.values() for s in group) == sorted(s.slide_id for s in slides)
    assert all(len(group) <= 2 * BATCH_SLIDES for group in grouped.values())


def test_a_new_slide_changes_one_batch(tmp_path):
    rows = [row(f"s{i}") for i in range(100)]
    before = batches(read_slides(sheet(tmp_path, *rows)))
    after = batches(read_slides(sheet(tmp_path, *rows, row("new"))))
    assert sum(before[name] != after[name] for name in after) == 1


def test_the_batch_column_decides(tmp_path):
    grouped = batches(read_slides(sheet(tmp_path, row("a", batch="site1"), row("b", batch="site1"), row("c"))))
    assert [s.slide_id for s in grouped["site1"]] == ["a", "b"]
    assert len(grouped) == 2
