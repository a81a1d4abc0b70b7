"""Clinical columns as numbers, fitted on training cases; the model on them; what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from models.checkpoint import read_checkpoint
from models.clinical import ClinicalConfig
from models.covariates import Covariates, check_columns, fit_covariates
from models.data import Cohort
from models.experiment import Experiment
from models.predict import predict_cases
from models.train import train_folds
from pipeline.contracts.errors import InputError
from pipeline.contracts.files import write_table
from tests.toy_cohort import GRADE, make_toy


def rows(**columns: list[str]) -> list[dict[str, str]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def test_numbers_categories_and_unknown_values():
    train = rows(age=["30", "50", "", "NA"], sex=["m", "f", "m", "f"], site=["1", "2", "2", ""])
    made = fit_covariates(train, ["age", "sex", "site"], ["site"])
    assert made.width == 2 + 2 + 3
    held_out = rows(age=["60", ""], sex=["x", "f"], site=["2", "7"])
    expected = [[2, 0, 0, 0, 0, 1, 0], [0, 1, 1, 0, 0, 0, 0]]  # age, unknown | f, m | 1, 2, unknown
    np.testing.assert_array_equal(made.encoded(held_out), expected)
    assert made.encoded(held_out).dtype == np.float32
    assert made.encoded([]).shape == (0, 7)


def test_standardisation_is_that_of_the_training_cases():
    values = np.random.default_rng(0).normal(60, 12, 40)
    made = fit_covariates(rows(age=[repr(float(v)) for v in values]), ["age"], [])
    encoded = made.encoded(rows(age=[repr(float(v)) for v in values]))
    np.testing.assert_allclose(encoded[:, 0], (values - values.mean()) / values.std(), rtol=1e-5, atol=1e-6)
    assert fit_covariates(rows(age=["5", "5"]), ["age"], []).encoded(rows(age=["6"])) == [[1.0]]


def test_encoding_survives_json():
    made = fit_covariates(rows(age=["1.1", ""], sex=["m", "f"]), ["age", "sex"], [])
    assert Covariates.from_values(json.loads(json.dumps(asdict(made)))) == made


def test_what_cannot_be_encoded_is_named():
    with pytest.raises(InputError, match=r"'age'.*no training case has a value"):
        fit_covariates(rows(age=["", "na"]), ["age"], [])
    made = fit_covariates(rows(age=["1", "2"]), ["age"], [])
    with pytest.raises(InputError, match="'old' is not a number"):
        made.encoded(rows(age=["old"]))
    with pytest.raises(InputError, match=r"no column 'agee'.*age"):
        check_columns(["agee"], ["case_id", "age"], [], "cases.tsv")
    with pytest.raises(InputError, match="'grade' is what the task predicts"):
        check_columns(["grade"], ["case_id", "grade"], ["grade"], "cases.tsv")


@pytest.mark.parametrize(
    "params", [{"columns": "age"}, {"columns": []}, {"columns": ["a", "a"]}, {"columns": ["a"], "categorical": ["b"]}]
)
def test_settings_at_fault(params):
    with pytest.raises(InputError):
        ClinicalConfig(**params)


def test_trains_on_its_columns_alone(tmp_path):
    """Neither slides nor genes are given; a changed column that is not named changes nothing."""
    toy = make_toy(folds=2)
    made = Experiment("clinical", "clinical", params={"columns": ["age", "sex"]})

    def digests(folder: str) -> list[str]:
        given = toy.write(tmp_path / folder)
        alone = type(given)(given.splits, given.cases)
        found = train_folds(made, GRADE, alone, tmp_path / folder / "o", tmp_path / folder / "i.tsv", device="cpu")
        assert [row.status for row in found] == ["ok", "ok"]
        return [row.digest for row in found]

    first = digests("a")
    checkpoint = read_checkpoint(tmp_path / "a" / "o" / "fold0" / "checkpoint.pt")
    assert [c.column for c in checkpoint.covariates.columns] == ["age", "sex"]
    assert "unknown for some training cases: age" in checkpoint.notes
    assert checkpoint.state["weight"].shape == (3, checkpoint.covariates.width)
    outcomes, _ = predict_cases(checkpoint, Cohort(cases=tmp_path / "a" / "cases.tsv"), ["C03", "C01"])
    assert [outcome.probability.shape for outcome in outcomes] == [(3,), (3,)]
    assert predict_cases(checkpoint, Cohort(), ["C03"]) == ([], {"C03": "no row in the case sheet"})
    write_table(tmp_path / "other.tsv", ["case_id", "age"], [{"case_id": "C03", "age": "5"}])
    with pytest.raises(InputError, match="no column 'sex'"):
        predict_cases(checkpoint, Cohort(cases=tmp_path / "other.tsv"), ["C03"])
    toy.rows["C07"]["site"] = "elsewhere"
    assert digests("b") == first
    toy.rows["C07"]["age"] = "99"
    assert digests("c") != first


def test_a_missing_column_is_an_error_of_the_whole_run(tmp_path):
    made = Experiment("clinical", "clinical", params={"columns": ["stage"]})
    with pytest.raises(InputError, match="no column 'stage'"):
        train_folds(made, GRADE, make_toy(folds=2).write(tmp_path), tmp_path / "o", tmp_path / "i.tsv", device="cpu")
