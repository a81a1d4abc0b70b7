"""The fusion model of this project beside others on cohorts with a planted truth (`benchmarks.planted_cohort`).

All models are trained and judged on the same patient folds of the same cohorts, by the code of a real cohort, with the
same epochs, learning rate, batches and patience; a fold's validation cases choose the epoch. The cohorts' seeds begin
at `FIRST_SEED`; settings were chosen on other seeds.

Intervals are those of a paired t test over the cohorts (degrees of freedom: cohorts less one). A cohort differs from
the next in its patients, their slides and genes, its folds and all random numbers of training.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks.feature_cohort import inputs_of
from benchmarks.planted_cohort import TASKS, TERMS, read_truth, write_planted
from models.evaluate import metrics
from models.experiment import Experiment, Inputs
from models.predict import predict_folds
from models.registry import FINE_TUNE, entry
from models.train import train_folds
from pipeline.contracts.expression import read_expression, write_expression
from pipeline.contracts.features import read_index, write_index
from pipeline.contracts.files import read_json, write_json
from pipeline.contracts.predictions import ClassPrediction, Predictions, SurvivalPrediction, read_predictions
from pipeline.contracts.tasks import PRETRAIN, PRETRAINING_TASK, Task

FIRST_SEED = 200
METRIC = {"grade": "auc", "survival": "c_index"}
OURS, ORACLE = "subspace-tokens", "the planted burden itself"
NO_RNA, NO_SLIDES = f"{OURS} without RNA", f"{OURS} without slides"
KEPT = ("fusion-scores", 1)  # kind and version of the file that keeps scores
SETTINGS = {"epochs": 40, "batch_size": 16, "lr": 1e-3, "patience": 8}
SHORTER = {**SETTINGS, "epochs": 20}  # for models of which a step takes long
POOL = {"width": 64, "hidden": 32}
MIRROR = {"width": 96}  # an eighth of what is published, for cohorts of this size
PRETRAINING = {**MIRROR, "prototypes": 300, "style_hidden": 64, "style_width": 32, "latent": 16}
EXPERIMENTS = (
    Experiment(OURS, OURS, magnification=20, **{**SETTINGS, "lr": 5e-4}),
    Experiment("linear", "linear"),
    Experiment("snn", "snn", **SETTINGS),
    Experiment("meanpool", "meanpool", magnification=20),
    Experiment("abmil", "abmil", magnification=20, params=POOL, **SETTINGS),
    Experiment("concat", "concat", magnification=20, params=POOL, **SETTINGS),
    Experiment("mcat", "mcat", magnification=20, params={"width": 64}, **SETTINGS),
    Experiment("subspace", "subspace", magnification=20, **SHORTER),
    Experiment("teacher", "disentangled-teacher", magnification=(20, 10), **SHORTER),
    Experiment("student-alone", "disentangled-student", magnification=(20, 10), **SHORTER),
    Experiment(
        "student", "disentangled-student", magnification=(20, 10), init_from=("teacher", "student-alone"),
        **{**SHORTER, "lr": 2e-4},
    ),
    Experiment("pretrained", "mirror-pretraining", magnification=20, params=PRETRAINING, **{**SETTINGS, "patience": 0}),
    Experiment("mirror-probe", "mirror", magnification=20, init_from="pretrained", params=MIRROR, **SETTINGS),
    Experiment(
        "mirror-tuned", "mirror", magnification=20, init_from="pretrained", params={**MIRROR, "mode": FINE_TUNE},
        **SHORTER,
    ),
)  # fmt: skip
BY_NAME = {experiment.name: experiment for experiment in EXPERIMENTS}
OTHERS = tuple(e.name for e in EXPERIMENTS[1:] if not entry(e.model).task_free)
COMPARED = (
    *((OURS, other) for other in (*OTHERS, NO_RNA, NO_SLIDES)),
    *((NO_RNA, other) for other in ("meanpool", "abmil", "student")),
    *((NO_SLIDES, other) for other in ("linear", "snn")),
)


@dataclass(frozen=True)
class Trial:
    """How large a comparison is; `epochs` None takes those of `SETTINGS`."""

    patients: int = 300
    cohorts: int = 5
    folds: int = 2
    first_seed: int = FIRST_SEED
    epochs: int | None = None
    models: tuple[str, ...] = (OURS, *OTHERS)


QUICK = Trial(patients=90, cohorts=2, epochs=8)


@dataclass(frozen=True)
class Score:
    """One model on one task of one cohort: its metric, and the rank correlation of what it predicts with each planted
    term, within folds."""

    value: float
    terms: dict[str, float]


Scores = dict[tuple[str, str], Score]  # (task, model) -> score


def run_cohort(trial: Trial, seed: int) -> Scores:
    """Simulate one cohort, train every model on both tasks, and judge the held-out predictions."""
    logging.disable(logging.INFO)
    found: Scores = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_planted(folder, trial.patients, trial.folds, seed)
        truth = read_truth(folder)
        for experiment in chosen(trial):
            if entry(experiment.model).task_free:
                _trained(folder, PRETRAINING_TASK, experiment)
                continue
            for task in TASKS:
                tables = _predicted(folder, task, experiment)
                found |= {(task.name, model): score(task, table, truth) for model, table in tables.items()}
                found[task.name, ORACLE] = score(task, _oracle(next(iter(tables.values())), truth), truth)
    return found


def chosen(trial: Trial) -> list[Experiment]:
    """The experiments of a trial and those that they start from or are taught by, which come before them."""
    names = set(trial.models)
    for experiment in reversed(EXPERIMENTS):
        names |= set(experiment.init_from or ()) if experiment.name in names else set()
    return [
        e if trial.epochs is None or e.epochs is None else replace(e, epochs=trial.epochs)
        for e in EXPERIMENTS
        if e.name in names
    ]


def _trained(folder: Path, task: Task, experiment: Experiment) -> tuple[Inputs, Path]:
    """What a model is trained on, and the folder of its checkpoints, which is made."""
    sources = {
        name: folder / "models" / (PRETRAIN if entry(BY_NAME[name].model).task_free else task.name) / name
        for name in experiment.init_from or ()
    }
    inputs = replace(inputs_of(folder, task), sources=sources)
    models = folder / "models" / task.name / experiment.name
    rows = train_folds(experiment, task, inputs, models, models / "index.tsv", device="cpu")
    assert all(row.status == "ok" for row in rows), rows
    return inputs, models


def _predicted(folder: Path, task: Task, experiment: Experiment) -> dict[str, Predictions]:
    """Held-out predictions of one model; of ours also with one side taken away."""
    inputs, models = _trained(folder, task, experiment)
    given = {experiment.name: inputs}
    if experiment.name == OURS:
        given |= {NO_RNA: _without_rna(folder, inputs), NO_SLIDES: _without_slides(folder, inputs)}
    tables = {}
    for name, of in given.items():
        path = folder / "predictions" / task.name / f"{name}.tsv"
        left_out = predict_folds(experiment, task, of, models, path, device="cpu")
        assert not left_out, left_out
        tables[name] = read_predictions(path)
    return tables


def _without_rna(folder: Path, inputs: Inputs) -> Inputs:
    """The same cohort with the expression of somebody else."""
    assert inputs.expression is not None
    table, path = read_expression(inputs.expression), folder / "somebody_else.h5ad"
    if not path.exists():
        write_expression(
            path, replace(table, cases=("SOMEBODY-ELSE",), values=table.values[:1], raw=table.raw[:1], cohorts=())
        )
    return replace(inputs, expression=path)


def _without_slides(folder: Path, inputs: Inputs) -> Inputs:
    """The same cohort with one slide of somebody else."""
    assert inputs.features_index is not None
    path = folder / "features" / "somebody_else.tsv"
    write_index(path, [replace(read_index(inputs.features_index)[0], case_id="SOMEBODY-ELSE")])
    return replace(inputs, features_index=path)


def _oracle(table: Predictions, truth: Mapping[str, Mapping[str, float]]) -> Predictions:
    """The table with the planted burden in place of what a model predicts."""
    rows: list[ClassPrediction | SurvivalPrediction] = []
    for row in table.rows:
        burden = truth[row.case_id]["burden"]
        if isinstance(row, ClassPrediction):
            high = float(1 / (1 + np.exp(-burden)))
            probability = tuple(high if name == "high" else 1 - high for name in table.classes)
            rows.append(replace(row, probability=probability))
        else:
            rows.append(replace(row, risk=burden))
    return replace(table, rows=tuple(rows))


def score(task: Task, table: Predictions, truth: Mapping[str, Mapping[str, float]]) -> Score:
    """AUC or C-index, and which planted terms the predictions follow."""
    said = np.array(
        [r.probability[table.classes.index("high")] if isinstance(r, ClassPrediction) else r.risk for r in table.rows]
    )
    fold = np.array([row.fold for row in table.rows])
    follows = {}
    for term in TERMS:
        planted = np.array([truth[row.case_id][term] for row in table.rows])
        each = [stats.spearmanr(said[fold == k], planted[fold == k])[0] for k in np.unique(fold)]
        follows[term] = float(np.mean(each))
    return Score(float(metrics(task, table)[METRIC[task.name]][0]), follows)


@dataclass(frozen=True)
class Difference:
    """One model less another on one task: mean over cohorts and its interval."""

    task: str
    model: str
    other: str
    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        return "better" if self.low > 0 else "worse" if self.high < 0 else "no difference shown"

    def __str__(self) -> str:
        interval = f"{self.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f})"
        return f"{self.task} {METRIC[self.task]}, {self.model} less {self.other}: {interval}: {self.verdict}"


def difference(runs: Sequence[Scores], task: str, model: str, other: str) -> Difference:
    """Paired over cohorts, with the 95 % interval of Student's t."""
    each = np.array([run[task, model].value - run[task, other].value for run in runs])
    mean, half = float(each.mean()), float("inf")
    if len(each) > 1:
        half = float(stats.t.ppf(0.975, len(each) - 1) * each.std(ddof=1) / len(each) ** 0.5)
    return Difference(task, model, other, mean, mean - half, mean + half)


def report(runs: Sequence[Scores]) -> list[str]:
    """Lines: every model's metric and terms, then the differences."""
    lines = []
    for task in TASKS:
        models = [model for of, model in runs[0] if of == task.name]
        for model in models:
            scores = [run[task.name, model] for run in runs]
            follows = ", ".join(f"{term} {np.mean([s.terms[term] for s in scores]):+.2f}" for term in TERMS)
            value = float(np.mean([s.value for s in scores]))
            lines.append(f"{task.name} {METRIC[task.name]}, {model}: {value:.3f}; follows {follows}")
        compared = [(a, b) for a, b in COMPARED if a in models and b in models]
        lines += [str(difference(runs, task.name, a, b)) for a, b in compared]
    return lines


def run(trial: Trial, processes: int = 1, kept: Path | None = None) -> list[str]:
    """Simulate, train and compare; cohorts are independent and may run in `processes` at a time.

    What the file `kept` holds of the same cohorts is not trained again, and what is new is added to it.
    """
    runs: dict[int, Scores] = {seed: {} for seed in range(trial.first_seed, trial.first_seed + trial.cohorts)}
    known = _read_scores(kept, trial) if kept is not None and kept.exists() else {}
    trials = {}
    for seed, scores in runs.items():
        scores.update(known.get(seed, {}))
        lacking = tuple(name for name in trial.models if (TASKS[0].name, name) not in scores)
        if lacking:
            trials[seed] = replace(trial, models=lacking)
    pool = ProcessPoolExecutor(processes) if processes > 1 else None
    with pool or nullcontext():
        for seed, scores in zip(trials, (pool.map if pool else map)(run_cohort, trials.values(), trials), strict=True):
            runs[seed].update(scores)
            if kept is not None:
                _write_scores(kept, trial, {**known, **runs})
            print(f"cohort {seed} is done", file=sys.stderr, flush=True)
    return report(list(runs.values()))


def _write_scores(path: Path, trial: Trial, runs: Mapping[int, Scores]) -> None:
    rows = [
        {"seed": seed, "task": task, "model": model, **asdict(score)}
        for seed, scores in runs.items()
        for (task, model), score in scores.items()
    ]
    write_json(path, *KEPT, {"size": [trial.patients, trial.folds, trial.epochs], "scores": rows})


def _read_scores(path: Path, trial: Trial) -> dict[int, Scores]:
    body = read_json(path, *KEPT)
    assert body["size"] == [trial.patients, trial.folds, trial.epochs], "scores of cohorts of another size"
    runs: dict[int, Scores] = {}
    for row in body["scores"]:
        runs.setdefault(row["seed"], {})[row["task"], row["model"]] = Score(row["value"], row["terms"])
    return runs
