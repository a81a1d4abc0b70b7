"""The tables of the glioma cohort: who takes part, how differences are signed, and a config that the workflow takes."""

from __future__ import annotations

import pytest
import yaml

from benchmarks.glioma_tables import DATA, TASKS, experiments, table, write_inputs
from models.registry import MODELS
from pipeline.contracts.cohort import read_cases
from workflow.configuration import check_cohort, checked


def test_every_model_without_slides_takes_part_and_idh_only_where_it_is_not_the_label():
    chosen = {x["name"]: x for x in experiments()}
    assert set(chosen) >= {"age", "idh", "linear", "snn", "clinical"}
    assert all("slides" not in MODELS[x["model"]].needs for x in chosen.values())
    assert chosen["idh"]["tasks"] == ["grade", "survival"]


def test_differences_are_those_of_the_model_less_the_baseline():
    metric = {"low": "0.7", "high": "0.9", "n_cases": "9", "metric": "c_index"}
    metrics = [{**metric, "experiment": name, "value": value} for name, value in (("age", "0.75"), ("snn", "0.8"))]
    pair = {
        "experiment": "age",
        "other": "snn",
        "metric": "c_index",
        "difference": "-0.05",
        "low": "-0.2",
        "high": "0.1",
    }
    lines = table(TASKS[-1], metrics, [pair]).splitlines()
    assert lines[-2:] == [
        "| age | 9 | 0.750 (0.700 to 0.900) | - | - |",
        "| snn | 9 | 0.800 (0.700 to 0.900) | +0.050 (-0.100 to +0.200) | - |",
    ]
    both = [{**row, "metric": name} for row in metrics for name in ("auc", "balanced_accuracy")]
    assert table(TASKS[0], both, []).splitlines()[-1] == "| idh | the label itself | - | - | - |"


def test_the_config_passes_the_checks_of_the_workflow(tmp_path, monkeypatch):
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not here")
    write_inputs(tmp_path, "all", 10)
    monkeypatch.chdir(tmp_path)
    config = checked(yaml.safe_load((tmp_path / "config.yaml").read_text()))
    check_cohort(config, [], read_cases("cases.tsv"))
    assert len(read_cases("cases.tsv").rows) == 451
