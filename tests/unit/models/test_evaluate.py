"""Evaluation tables: values by hand, intervals that shrink, pairs on common cases, undefined metrics said."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from models.evaluate import EvaluationParams, evaluate_task
from pipeline.contracts.errors import InputError
from pipeline.contracts.files import read_table, write_table
from pipeline.contracts.predictions import (
    ENSEMBLE,
    ClassPrediction,
    LeftOut,
    SurvivalPrediction,
    left_out_path,
    write_left_out,
    write_predictions,
)
from tests.toy_cohort import GRADE, SURVIVAL


def classes(path, n=60, skill=2.0, seed=0, skip=()):
    rng = np.random.default_rng(seed)
    rows = []
    for k in range(n):
        scores = rng.normal(size=2) + skill * np.eye(2)[k % 2]
        p = np.exp(scores) / np.exp(scores).sum()
        if k not in skip:
            rows.append(ClassPrediction(f"C{k}", k % 5, tuple(p.tolist()), "AB"[k % 2], "AB"[int(p.argmax())]))
    write_predictions(path, ("A", "B"), rows)
    return path


def evaluated(tmp_path, task, tables, cases=None, **params):
    evaluate_task(task, tables, tmp_path / "e.tsv", tmp_path / "d.tsv", EvaluationParams(**params), cases)
    return read_table(tmp_path / "e.tsv"), read_table(tmp_path / "d.tsv")


def test_rows_values_and_intervals(tmp_path):
    path = classes(tmp_path / "a.tsv")
    write_left_out(left_out_path(path), [LeftOut("X", 0, "no RNA")])
    rows, differences = evaluated(tmp_path, GRADE, {"a": path}, bootstrap=300)
    assert [row["metric"] for row in rows] == [
        "auc", "balanced_accuracy", "accuracy", "macro_f1", "sensitivity", "specificity",
    ]  # fmt: skip
    assert differences == []
    for row in rows:
        assert float(row["low"]) < float(row["value"]) < float(row["high"])
        assert (row["n_cases"], row["n_folds"], row["n_left_out"], row["n_bootstrap"]) == ("60", "5", "1", "300")
    table = read_table(path)
    accuracy = np.mean([row["label"] == row["predicted"] for row in table])
    assert float(rows[2]["value"]) == pytest.approx(accuracy, abs=1e-6)


def test_more_cases_give_narrower_intervals(tmp_path):
    widths = []
    for n in (40, 400):
        rows, _ = evaluated(tmp_path, GRADE, {"a": classes(tmp_path / f"{n}.tsv", n)}, bootstrap=300)
        widths.append(float(rows[2]["high"]) - float(rows[2]["low"]))
    assert widths[1] < 0.5 * widths[0]


def test_cases_of_one_patient_are_not_independent(tmp_path):
    path = classes(tmp_path / "a.tsv", n=80)
    sheet = tmp_path / "cases.tsv"
    write_table(sheet, ["case_id", "patient_id"], [{"case_id": f"C{k}", "patient_id": f"P{k // 8}"} for k in range(80)])
    alone, _ = evaluated(tmp_path, GRADE, {"a": path}, bootstrap=200)
    grouped, _ = evaluated(tmp_path, GRADE, {"a": path}, sheet, bootstrap=200)
    assert (alone[0]["n_patients"], grouped[0]["n_patients"]) == ("80", "10")
    assert alone[2]["value"] == grouped[2]["value"] and alone[2]["low"] != grouped[2]["low"]


def test_differences_are_paired_on_common_cases(tmp_path):
    good, poor = classes(tmp_path / "g.tsv", 200, 2.5), classes(tmp_path / "p.tsv", 200, 0.3, seed=1, skip=range(10))
    _, rows = evaluated(tmp_path, GRADE, {"good": good, "poor": poor, "same": good}, bootstrap=300)
    by = {(r["experiment"], r["other"], r["metric"]): r for r in rows}
    clear = by["good", "poor", "auc"]
    assert clear["n_cases"] == "190" and float(clear["low"]) > 0
    zero = by["good", "same", "accuracy"]
    assert float(zero["difference"]) == float(zero["low"]) == float(zero["high"]) == 0
    assert zero["n_cases"] == "200"


def survival(path, risk, time, event, fold):
    rows = [
        SurvivalPrediction(f"C{k}", f, r, (0.5,), (10.0,), t, e)
        for k, (r, t, e, f) in enumerate(zip(risk, time, event, fold, strict=True))
    ]
    write_predictions(path, (), rows)
    return path


def test_survival_by_hand_and_undefined(tmp_path):
    path = survival(tmp_path / "s.tsv", [3.0, 2, 1, 9, 8], [1.0, 2, 3, 4, 5], [1, 1, 1, 0, 0], [0, 0, 0, 1, 1])
    none = survival(tmp_path / "n.tsv", [3.0, 2], [1.0, 2], [0, 0], [0, 1])
    rows, differences = evaluated(tmp_path, SURVIVAL, {"s": path, "none": none}, bootstrap=50)
    assert [row["metric"] for row in rows] == ["c_index", "c_index"]
    assert float(rows[0]["value"]) == 1 and int(rows[0]["n_bootstrap"]) <= 50
    assert rows[1]["value"] == "" and "undefined" in rows[1]["note"]
    assert differences[0]["difference"] == ""


def test_empty_tables_and_missing_classes_are_said(tmp_path):
    write_predictions(tmp_path / "empty.tsv", ("A", "B"), [])
    rows, differences = evaluated(tmp_path, GRADE, {"e": tmp_path / "empty.tsv", "a": classes(tmp_path / "a.tsv")})
    assert rows[0]["value"] == "" and rows[0]["note"] == "no case was predicted"
    assert differences[0]["note"] == "no case in common"
    one = [ClassPrediction(f"C{k}", 0, (0.9, 0.1, 0.0), "AB"[k % 2], "A") for k in range(6)]
    write_predictions(tmp_path / "one.tsv", ("A", "B", "Z"), one)
    rows, _ = evaluated(tmp_path, GRADE, {"one": tmp_path / "one.tsv"}, bootstrap=20)
    assert "no case of class Z" in rows[0]["note"] and float(rows[1]["value"]) == 0.5


def test_the_same_inputs_give_the_same_bytes(tmp_path):
    path = classes(tmp_path / "a.tsv")
    evaluated(tmp_path, GRADE, {"a": path, "b": path}, bootstrap=50)
    first = [(tmp_path / name).read_bytes() for name in ("e.tsv", "d.tsv")]
    evaluated(tmp_path, GRADE, {"a": path, "b": path}, bootstrap=50)
    assert first == [(tmp_path / name).read_bytes() for name in ("e.tsv", "d.tsv")]


@pytest.mark.parametrize("params", [{"bootstrap": 0}, {"confidence": 1.0}])
def test_parameters_are_checked(params):
    with pytest.raises(InputError, match=r"config\.yaml evaluation"):
        EvaluationParams(**params)


def test_external_cohorts_have_rows_of_their_own(tmp_path):
    """Cohort X: two folds of opposite quality, so that their mean is right; cohort Y: one case, AUC is undefined."""
    inside, outside = classes(tmp_path / "a.tsv"), tmp_path / "a_external.tsv"
    rows = []
    for case, label in (("X0", "A"), ("X1", "A"), ("X2", "B"), ("X3", "B"), ("Y0", "B")):
        good, poor = ((0.9, 0.1), (0.4, 0.6)) if label == "A" else ((0.1, 0.9), (0.6, 0.4))
        for fold, p in ((0, good), (1, poor), (ENSEMBLE, tuple(np.mean([good, poor], axis=0)))):
            rows.append(ClassPrediction(case, fold, p, label, "AB"[int(np.argmax(p))]))
    write_predictions(outside, ("A", "B"), rows)
    write_left_out(left_out_path(outside), [LeftOut("X9", ENSEMBLE, "no RNA")])
    cohort_of = {**{f"C{k}": "own" for k in range(60)}, **{f"X{k}": "X" for k in (0, 1, 2, 3, 9)}, "Y0": "Y"}
    sheet = [{"case_id": case, "cohort": name} for case, name in cohort_of.items()]
    write_table(tmp_path / "cases.tsv", ["case_id", "cohort"], sheet)
    evaluate_task(
        GRADE, {"a": inside, "b": inside}, tmp_path / "e.tsv", tmp_path / "d.tsv", EvaluationParams(50),
        tmp_path / "cases.tsv", {"a": outside, "b": outside},
    )  # fmt: skip
    table, differences = read_table(tmp_path / "e.tsv"), read_table(tmp_path / "d.tsv")
    found = {(r["evaluation"], r["cohort"], r["metric"]): r for r in table if r["experiment"] == "a"}
    parts = {("out-of-fold", ""), *product(("external-mean", "external-folds"), "XY")}
    assert {key[:2] for key in found} == parts
    mean, single = found["external-mean", "X", "auc"], found["external-folds", "X", "auc"]
    assert (mean["value"], single["value"]) == ("1.0", "0.5")
    assert (mean["n_cases"], single["n_cases"], single["n_folds"], single["n_left_out"]) == ("4", "4", "2", "1")
    assert found["external-folds", "X", "accuracy"]["value"] == "0.5"
    assert [found["external-mean", "Y", metric]["value"] for metric in ("auc", "accuracy")] == ["", "1.0"]
    pairs = {(r["evaluation"], r["cohort"]) for r in differences}
    assert pairs == {("out-of-fold", ""), ("external-mean", "X"), ("external-mean", "Y")}
    alone, _ = evaluated(tmp_path, GRADE, {"a": inside}, bootstrap=50)
    assert alone == [r for r in table if (r["experiment"], r["evaluation"]) == ("a", "out-of-fold")]
