"""Every registered model from a config like the demo's: trained, killed after its first epoch, and gone on with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

import models.train as train_module
from models.experiment import Experiment
from models.registry import MODELS
from models.train import train_folds
from pipeline.contracts.tasks import PRETRAIN, PRETRAINING_TASK, Task
from tests.toy_cohort import GRADE, SMALL_PARAMS, SURVIVAL, make_toy
from workflow.configuration import checked

DEMO = Path(__file__).resolve().parents[2] / "demo" / "config.yaml"
SOURCES = {name: sorted((entry.starts_from | entry.taught_by) - {name})[-1:] for name, entry in MODELS.items()}


def demo_with_every_model(folder: Path) -> dict:
    """The demo's config, read as the Snakefile reads it, with one experiment per model for two epochs."""
    config = yaml.safe_load(DEMO.read_text())
    for path in config["inputs"].values():
        if isinstance(path, str):
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text("case_id\n")
    config["experiments"] = []
    for name in MODELS:
        params = {key: value for key, value in SMALL_PARAMS.get(name, {}).items() if key != "mode"}  # a linear probe
        experiment = {"name": name, "model": name, "epochs": 2, "batch_size": 6, "params": params}
        config["experiments"].append({**experiment, **({"init_from": SOURCES[name]} if SOURCES[name] else {})})
    return checked(config)


class Killed(BaseException):
    """Stands in for a signal."""


def killed_once(monkeypatch, *args) -> None:
    """Train until the first state or checkpoint of the second fold has been begun, and die."""
    calls = []

    def dying(real):
        def write(path, content):
            if "fold1" in str(path):
                calls.append(path)
            if len(calls) == 2 or (calls and real.__name__ == "write_checkpoint"):
                raise Killed
            real(path, content)

        return write

    with monkeypatch.context() as patched:
        for name in ("write_bytes", "write_checkpoint"):
            patched.setattr(train_module, name, dying(getattr(train_module, name)))
        with pytest.raises(Killed):
            train_folds(*args, device="cpu")


@pytest.mark.full
@pytest.mark.parametrize("task", [GRADE, SURVIVAL], ids=lambda t: t.name)
def test_every_model_trains_and_goes_on_to_the_same_bytes(tmp_path, monkeypatch, task):
    monkeypatch.chdir(tmp_path)
    config = demo_with_every_model(tmp_path)
    inputs = make_toy(n=18, folds=2, pair=True).write(tmp_path / "data")
    assert Task(**next(t for t in config["tasks"] if t["kind"] == task.kind)).kind == task.kind
    different = []
    for values in config["experiments"]:
        made = Experiment(**values)
        own_task = PRETRAINING_TASK if values["tasks"] == [PRETRAIN] else task
        given = replace(inputs, sources={name: tmp_path / "whole" / name for name in made.init_from or ()})
        whole, killed = (tmp_path / run / made.name for run in ("whole", "killed"))
        rows = train_folds(made, own_task, given, whole, whole / "index.tsv", device="cpu")
        assert [row.status for row in rows] == ["ok", "ok"], (made.name, rows[0].reason)
        killed_once(monkeypatch, made, own_task, given, killed, killed / "index.tsv")
        torch.manual_seed(99)
        rows = train_folds(made, own_task, given, killed, killed / "index.tsv", device="cpu")
        assert [row.seconds == 0 for row in rows] == [True, False]  # the first fold is verified and kept
        for path in sorted(whole.rglob("*")):
            if path.is_file() and path.name != "index.tsv":
                other = killed / path.relative_to(whole)
                if not other.exists() or other.read_bytes() != path.read_bytes():
                    different.append(str(path.relative_to(tmp_path / "whole")))
    assert not different
