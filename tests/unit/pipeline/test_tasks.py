"""Tasks and labels: what is refused, with which words, and which cases are left out."""

from __future__ import annotations

import pytest

from pipeline.contracts.cohort import CaseSheet
from pipeline.contracts.errors import InputError
from pipeline.contracts.tasks import PRETRAINING_TASK, Task, read_labels

GRADE = {"name": "grade", "kind": "classification", "label": "grade"}
SURVIVAL = {"name": "os", "kind": "survival", "time": "days", "event": "dead", "time_unit": "days"}


def sheet(columns: str, *rows: str) -> CaseSheet:
    names = ("case_id", *columns.split())
    table = [dict(zip(names, row.split("|"), strict=True)) for row in rows]
    return CaseSheet("cases.tsv", names, {row["case_id"]: row for row in table})


def test_classes_are_sorted_and_cases_without_label_listed():
    labels = read_labels(sheet("grade", "a|G3", "b|", "c|G2", "d|NA", "e|G3"), GRADE)
    assert labels.classes == ("G2", "G3")
    assert labels.cases == ("a", "c", "e")
    assert labels.label["a"] == "G3"
    assert labels.missing == {"b": "no grade", "d": "no grade"}


def test_patients_of_several_cases_are_named():
    labels = read_labels(sheet("grade patient_id", "a|G3|p", "b||p", "c|G2|", "d|G2|q", "e|G2|"), GRADE)
    assert labels.patient == {"a": "p", "b": "p"}
    assert not read_labels(sheet("grade", "a|G3", "b|G2"), GRADE).patient


def test_pretraining_takes_every_case_and_no_label():
    labels = read_labels(sheet("grade", "a|G3", "b|", "c|G2"), PRETRAINING_TASK)
    assert labels.cases == ("a", "b", "c") and not labels.missing and not labels.label
    assert Task(**{"name": "_pretrain", "kind": "pretraining"}) == PRETRAINING_TASK
    for other in ({"name": "mine", "kind": "pretraining"}, {**GRADE, "name": "_pretrain"}):
        with pytest.raises(InputError):
            Task(**other)


def test_names_that_differ_in_white_space_are_one_class():
    labels = read_labels(sheet("grade", "a|a  b", "b|a b", "c|a\t b", "d| x ", "e|x", "f|  "), GRADE)
    assert labels.classes == ("a b", "x")
    assert [labels.label[case] for case in "abcde"] == ["a b", "a b", "a b", "x", "x"]
    assert labels.missing == {"f": "no grade"}


def test_outcomes_and_their_missing_parts():
    labels = read_labels(sheet("days dead", "a|10|1", "b||1", "c|0|0", "d|5.5|1.0", "e|NA|"), SURVIVAL)
    assert labels.time == {"a": 10.0, "c": 0.0, "d": 5.5}
    assert labels.event == {"a": 1, "c": 0, "d": 1}
    assert labels.missing == {"b": "no days", "e": "no days and no dead"}
    assert labels.cases == ("a", "c", "d")


def test_reads_a_file(tmp_path):
    path = tmp_path / "cases.tsv"
    path.write_text("case_id\tgrade\na\tG2\nb\tG3\n")
    assert read_labels(path, Task(**GRADE)).label == {"a": "G2", "b": "G3"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("a|ten|1", ["case_id 'a'", "column 'days'", "'ten' is not a time"]),
        ("a|inf|1", ["'inf' is not a time"]),
        ("a|-3|1", ["-3 is negative"]),
        ("a|3|2", ["column 'dead'", "'2' is not 0 or 1"]),
        ("a|3|yes", ["'yes' is not 0 or 1"]),
    ],
)
def test_bad_outcomes_name_case_and_column(row, words):
    with pytest.raises(InputError) as error:
        read_labels(sheet("days dead", row, "b|4|1"), SURVIVAL)
    assert all(word in str(error.value) for word in words), error.value


def test_missing_column_names_the_nearest():
    with pytest.raises(InputError, match=r"needs column 'grade', which is missing; did you mean 'grades'\?"):
        read_labels(sheet("grades", "a|G2"), GRADE)


def test_one_class_no_class_and_no_event():
    with pytest.raises(InputError, match="found only 'G2'"):
        read_labels(sheet("grade", "a|G2", "b|G2"), GRADE)
    with pytest.raises(InputError, match="no value at all"):
        read_labels(sheet("grade", "a|", "b|"), GRADE)
    with pytest.raises(InputError, match="every case is censored"):
        read_labels(sheet("days dead", "a|3|0", "b|4|0"), SURVIVAL)
    with pytest.raises(InputError, match="no case has both values"):
        read_labels(sheet("days dead", "a||0", "b|4|"), SURVIVAL)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "clasification"}, "did you mean 'classification'"),
        ({"label": None}, "key 'label' is missing"),
        ({"time": "days"}, "'time' does not belong to a classification task"),
        ({"time_unit": "weeks"}, "time_unit 'weeks' is unknown"),
        ({"name": "a/b"}, "task name 'a/b' is not allowed"),
    ],
)
def test_task_entries_are_checked(change, words):
    with pytest.raises(InputError, match=words):
        Task(**{**GRADE, **change})
