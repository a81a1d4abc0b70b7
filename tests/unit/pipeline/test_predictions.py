"""Prediction tables and the training index: round trips and refusals."""

from __future__ import annotations

import csv

import pytest

from pipeline.contracts.errors import FormatError
from pipeline.contracts.predictions import (
    ClassPrediction,
    LeftOut,
    Predictions,
    SurvivalPrediction,
    left_out_path,
    read_left_out,
    read_predictions,
    write_left_out,
    write_predictions,
)
from pipeline.contracts.tasks import read_labels
from pipeline.contracts.training import FoldRow, read_folds, write_folds


def test_classes_round_trip_sorted(tmp_path):
    rows = [
        ClassPrediction("b", 1, (0.1 + 0.2, 0.7 - 1e-17), "G2", "G 3", "abc", "no RNA"),
        ClassPrediction("a", 0, (1.0, 0.0), "", "G2", "abd"),
    ]
    write_predictions(tmp_path / "t.tsv", ("G2", "G 3"), rows)
    table = read_predictions(tmp_path / "t.tsv")
    assert table.classes == ("G2", "G 3")
    assert table.rows == (rows[1], rows[0])
    header = (tmp_path / "t.tsv").read_text().splitlines()[0]
    assert header.split("\t") == [
        "case_id", "fold", "p_G2", "p_G 3", "label", "predicted", "lacking", "checkpoint", "format_version"
    ]  # fmt: skip


def test_class_names_of_any_text_go_from_the_sheet_to_the_table_and_back(tmp_path):
    names = ["a  b", 'say "x"', '"y" said', "a,b", "ü", "it's", "p_p_q", "50 % #"]
    with open(tmp_path / "cases.tsv", "w", newline="", encoding="utf-8") as handle:
        table = csv.writer(handle, delimiter="\t", lineterminator="\n")
        table.writerows([("case_id", "grade"), *((f"c{k}", name) for k, name in enumerate(names))])
    labels = read_labels(tmp_path / "cases.tsv", {"name": "t", "kind": "classification", "label": "grade"})
    assert set(labels.classes) == {"a b", *names[1:]}
    rows = [
        ClassPrediction(case, 0, tuple(float(name == label) for name in labels.classes), label, label, "d")
        for case, label in labels.label.items()
    ]
    write_predictions(tmp_path / "t.tsv", labels.classes, rows)
    assert read_predictions(tmp_path / "t.tsv") == Predictions(labels.classes, tuple(rows))


def test_survival_round_trip_with_fewer_intervals_in_one_fold(tmp_path):
    rows = [
        SurvivalPrediction("a", 0, -1.25, (0.9, 0.4, 0.1), (10.0, 20.0, 33.3), 15.0, 1, "x"),
        SurvivalPrediction("b", 1, 3e-9, (0.5,), (40.0,), None, None, "y", "no usable slide at 20x"),
    ]
    write_predictions(tmp_path / "t.tsv", (), rows)
    table = read_predictions(tmp_path / "t.tsv")
    assert table.rows == tuple(rows) and table.classes == ()


def test_empty_tables(tmp_path):
    write_predictions(tmp_path / "c.tsv", ("A", "B"), [])
    write_predictions(tmp_path / "s.tsv", (), [])
    assert read_predictions(tmp_path / "c.tsv").classes == ("A", "B")
    assert read_predictions(tmp_path / "c.tsv").rows == read_predictions(tmp_path / "s.tsv").rows == ()


def test_refuses_other_versions_and_repeated_cases(tmp_path):
    path = tmp_path / "t.tsv"
    row = ClassPrediction("a", 0, (1.0, 0.0), "A", "A", "d")
    write_predictions(path, ("A", "B"), [row])
    good = path.read_text()
    path.write_text(good.replace("\t2\n", "\t3\n"))
    with pytest.raises(FormatError, match="version"):
        read_predictions(path)
    path.write_text(good + good.splitlines()[1] + "\n")
    with pytest.raises(FormatError, match="occurs twice"):
        read_predictions(path)
    path.write_text(good.replace("1.0", "one"))
    with pytest.raises(FormatError, match="one"):
        read_predictions(path)


def test_left_out_round_trip(tmp_path):
    path = left_out_path(tmp_path / "abmil.tsv")
    assert path.name == "abmil_left_out.tsv"
    write_left_out(path, [LeftOut("b", 0, "no RNA"), LeftOut("a", 2, "no usable slide")])
    assert read_left_out(path) == [LeftOut("a", 2, "no usable slide"), LeftOut("b", 0, "no RNA")]


def test_training_index_round_trip(tmp_path):
    rows = [FoldRow(1, "failed", "no event", seconds=0.25), FoldRow(0, "ok", "", "d", 10, 2, 5, 3, 1.5)]
    write_folds(tmp_path / "index.tsv", rows)
    assert read_folds(tmp_path / "index.tsv") == rows[::-1]
    (tmp_path / "index.tsv").write_text((tmp_path / "index.tsv").read_text().replace("failed", "fail"))
    with pytest.raises(FormatError, match="unknown status"):
        read_folds(tmp_path / "index.tsv")
