"""Does fusion find what neither modality has alone? A simulation at feature level, where the answer is known.

300 patients per seed with two independent hidden factors: a tumour factor in the tile features of their slides, a TME
factor in their gene expression. Outcomes depend on both alike. The artefacts are written through the contracts, and
genes are chosen, models trained, cases predicted and compared by the code that a real cohort goes through. Over 5
seeds, on patient folds:

- fusion beats genes alone and slides alone, by a paired interval that excludes zero;
- slides shuffled between patients bring fusion back to genes alone: an interval below what the slides had added;
- permuted labels bring fusion to chance: its interval contains 0.5.

Then `benchmarks.fusion_models` sets the fusion model of this project beside the others, on cohorts with a truth of more
parts; there is nothing to hold in it, the table says what it says.

One command, ``python -m benchmarks.fusion_simulation``; one line per figure: name, ours, what it is compared with,
their difference and its interval. Exit status 1 if a statement above does not hold. The data are simulated.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks import fusion_models
from benchmarks.feature_cohort import inputs_of, write_folds, write_genes, write_slides
from benchmarks.fusion_models import QUICK, Trial
from models.evaluate import metrics
from models.experiment import Experiment
from models.metrics import interval, resamples
from models.predict import predict_folds
from models.train import train_folds
from pipeline.contracts.files import write_table
from pipeline.contracts.predictions import Predictions, read_predictions
from pipeline.contracts.tasks import Task
from workflow.simulation.symbols import read_symbols, signature_flags

TASKS = (
    (Task("grade", "classification", label="grade"), "auc"),
    (Task("survival", "survival", time="days", event="event"), "c_index"),
)
SETTINGS = {"epochs": 20, "batch_size": 16, "lr": 1e-3, "patience": 6}
EXPERIMENTS = (
    Experiment("genes", "snn", **SETTINGS),
    Experiment("slides", "abmil", magnification=20, params={"width": 64, "hidden": 32}, **SETTINGS),
    Experiment("fusion", "concat", magnification=20, params={"width": 64, "hidden": 32}, **SETTINGS),
)
WIDTH = 32  # features per tile
GENES = 60  # genes of each signature


@dataclass(frozen=True)
class Size:
    """How large a trial is; `resamples` of the bootstrap over patients."""

    patients: int = 300
    seeds: int = 5
    folds: int = 3
    resamples: int = 1000


@dataclass(frozen=True)
class Figure:
    """One line of the benchmark: a metric, what it is compared with, the difference and its interval."""

    name: str
    ours: float
    theirs: float
    low: float
    high: float
    holds: bool

    def __str__(self) -> str:
        verdict = "holds" if self.holds else "DOES NOT HOLD"
        return (
            f"{self.name}: {self.ours:.3f} against {self.theirs:.3f}, difference {self.ours - self.theirs:+.3f}"
            f" ({self.low:+.3f} to {self.high:+.3f}): {verdict}"
        )


def write_cohort(
    folder: Path, size: Size, seed: int, shuffle_slides: bool = False, permute_labels: bool = False
) -> None:
    """Write sheets, bags, expression, folds and genes of one simulated cohort below `folder`.

    A patient has one slide of 8 to 20 tiles; in a third of them the tumour factor shifts the features along one
    direction. TME genes follow the TME factor; tumour genes follow the tumour factor weakly (correlation 0.3).
    """
    factors, outcomes, tiles, genes, order = (np.random.default_rng([seed, part]) for part in range(5))
    n = size.patients
    case_ids = [f"SIM-{i + 1:03d}" for i in range(n)]
    tumour, tme = factors.normal(size=(2, n))
    _write_outcomes(folder / "cases.tsv", case_ids, tumour + tme, outcomes, permute_labels)
    owner = order.permutation(n) if shuffle_slides else np.arange(n)
    _write_bags(folder, case_ids, tumour[owner], tiles)
    _write_genes(folder / "expression.h5ad", case_ids, tumour, tme, genes)
    write_folds(folder, [task for task, _ in TASKS], size.folds, seed)


def _write_outcomes(
    path: Path, case_ids: Sequence[str], burden: np.ndarray, rng: np.random.Generator, permute: bool
) -> None:
    n = len(case_ids)
    event_time = 1000 * (rng.exponential(1, n) / np.exp(1.2 * burden)) ** (1 / 1.3)
    follow_up = rng.uniform(400, 4000, n)
    score = burden + rng.normal(0, 0.5, n)
    rows = [
        {"grade": "high" if score[i] > np.median(score) else "low", "event": int(event_time[i] <= follow_up[i]),
         "days": round(float(min(event_time[i], follow_up[i])) + 1, 1)}
        for i in range(n)
    ]  # fmt: skip
    if permute:
        rows = [rows[i] for i in rng.permutation(n)]
    rows = [{"case_id": case, **row} for case, row in zip(case_ids, rows, strict=True)]
    write_table(path, ["case_id", "grade", "days", "event"], rows)


def _write_bags(folder: Path, case_ids: Sequence[str], tumour: np.ndarray, rng: np.random.Generator) -> None:
    direction = rng.normal(size=WIDTH)
    direction /= np.linalg.norm(direction)
    slides = {}
    for case, factor in zip(case_ids, tumour, strict=True):
        n = int(rng.integers(8, 21))
        features = rng.normal(size=(n, WIDTH))
        shifted = rng.random(n) < 1 / 3
        shifted[0] = True
        features[shifted] += 2.5 * direction * factor + 2.0 * np.roll(direction, 1)  # the second term marks such tiles
        slides[case] = [(features, np.stack([np.arange(n) % 5, np.arange(n) // 5], axis=1))]
    write_slides(folder, slides)


def _write_genes(
    path: Path, case_ids: Sequence[str], tumour: np.ndarray, tme: np.ndarray, rng: np.random.Generator
) -> None:
    symbols = np.array(read_symbols(10**6))
    is_tumour, is_tme = signature_flags(symbols)
    chosen = np.sort(np.r_[np.flatnonzero(is_tumour & ~is_tme)[:GENES], np.flatnonzero(is_tme & ~is_tumour)[:GENES]])
    chosen = chosen[np.argsort(symbols[chosen])]
    is_tumour, is_tme = is_tumour[chosen], is_tme[chosen]
    n = len(case_ids)
    seen = 0.3 * tumour + np.sqrt(1 - 0.3**2) * rng.normal(size=n)
    loading = rng.uniform(0.3, 0.8, len(chosen))
    factor = np.where(is_tme, tme[:, None], seen[:, None])
    values = 6 + loading * factor + rng.normal(size=(n, len(chosen)))
    write_genes(path, case_ids, symbols[chosen], values, is_tumour, is_tme)


def run_cohort(folder: Path, experiments: Sequence[Experiment]) -> dict[tuple[str, str], Predictions]:
    """Train and predict every experiment on every task; out-of-fold predictions by (task, experiment)."""
    found = {}
    for task, _ in TASKS:
        inputs = inputs_of(folder, task)
        for experiment in experiments:
            models = folder / "models" / task.name / experiment.name
            train_folds(experiment, task, inputs, models, models / "index.tsv", device="cpu")
            table = folder / "predictions" / task.name / f"{experiment.name}.tsv"
            predict_folds(experiment, task, inputs, models, table, device="cpu")
            found[task.name, experiment.name] = read_predictions(table)
    return found


def run_seed(seed: int, size: Size) -> dict[tuple[str, str], Predictions]:
    """All arms of one seed: genes, slides and fusion, fusion of shuffled slides, fusion of permuted labels."""
    logging.disable(logging.INFO)
    fusion = EXPERIMENTS[-1:]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        write_cohort(Path(folder), size, seed)
        found |= run_cohort(Path(folder), EXPERIMENTS)
    for arm, change in (("shuffled", {"shuffle_slides": True}), ("permuted", {"permute_labels": True})):
        with tempfile.TemporaryDirectory() as folder:
            write_cohort(Path(folder), size, seed, **change)
            tables = run_cohort(Path(folder), fusion)
            found |= {(task, arm): table for (task, _), table in tables.items()}
    return found


def measure(
    task: Task, metric: str, arm: str, runs: Sequence[dict[tuple[str, str], Predictions]], size: Size
) -> tuple[float, np.ndarray]:
    """Mean metric over seeds, and its bootstrap: patients are resampled within each seed, then seeds are averaged.

    Resamples depend on the seed's number alone, so two arms of one call are paired patient by patient.
    """
    values, drawn = [], []
    for number, run in enumerate(runs):
        table = run[task.name, arm]
        weights = resamples([row.case_id for row in table.rows], size.resamples, number)
        values.append(metrics(task, table)[metric][0])
        drawn.append(metrics(task, table, weights)[metric])
    return float(np.mean(values)), np.mean(drawn, axis=0)


def compare(runs: Sequence[dict[tuple[str, str], Predictions]], size: Size) -> list[Figure]:
    """The figures of both tasks, in the order of the module's statements."""
    figures = []
    for task, metric in TASKS:
        arms = {
            arm: measure(task, metric, arm, runs, size) for arm in ("genes", "slides", "fusion", "shuffled", "permuted")
        }
        value, drawn = arms["fusion"]
        for other in ("genes", "slides"):
            low, high, _ = interval(drawn - arms[other][1])
            figures.append(
                Figure(f"{task.name} {metric}, fusion and {other}", value, arms[other][0], low, high, low > 0)
            )
        gained = value - arms["genes"][0]
        low, high, _ = interval(arms["shuffled"][1] - arms["genes"][1])
        name = f"{task.name} {metric}, fusion of shuffled slides and genes"
        # Useless inputs may cost a little; what must be gone is the gain.
        back = low <= 0 or high < gained / 4
        figures.append(Figure(name, arms["shuffled"][0], arms["genes"][0], low, high, back and high < gained))
        low, high, _ = interval(arms["permuted"][1] - 0.5)
        name = f"{task.name} {metric}, fusion on permuted labels and chance"
        figures.append(Figure(name, arms["permuted"][0], 0.5, low, high, low <= 0 <= high))
    return figures


def run(size: Size, processes: int = 1) -> list[Figure]:
    """Simulate, train and compare. Seeds are independent and may run in `processes` at a time."""
    seeds = range(size.seeds)
    if processes == 1:
        return compare([run_seed(seed, size) for seed in seeds], size)
    with ProcessPoolExecutor(processes) as pool:
        return compare(list(pool.map(run_seed, seeds, [size] * size.seeds)), size)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fusion_simulation", description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=Size.patients)
    parser.add_argument("--seeds", type=int, default=Size.seeds)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", choices=("statements", "models"), help="the statements, or the table of models")
    parser.add_argument("--models", nargs="+", choices=(fusion_models.OURS, *fusion_models.OTHERS), help="some of them")
    parser.add_argument("--first-seed", type=int, default=fusion_models.FIRST_SEED, help="of the table of models")
    parser.add_argument(
        "--scores", type=Path, help="file that keeps the scores of the table, to add models to it later"
    )
    parser.add_argument("--quick", action="store_true", help="a few small cohorts, to see that it runs")
    options = parser.parse_args(arguments)
    size = Size(patients=options.patients, seeds=options.seeds)
    trial = Trial(size.patients, size.seeds, first_seed=options.first_seed)
    if options.quick:
        size, trial = Size(patients=90, seeds=2, resamples=200), replace(QUICK, first_seed=options.first_seed)
    if options.models:
        trial = replace(trial, models=tuple(options.models))
    started, holds = time.monotonic(), True
    if options.only != "models":
        print(f"simulated: {size.patients} patients, {size.seeds} seeds, {size.folds} folds by patient", flush=True)
        figures = run(size, options.processes)
        print(*figures, sep="\n", flush=True)
        holds = all(figure.holds for figure in figures)
    if options.only != "statements":
        print(f"simulated, planted truth: {trial.patients} patients, {trial.cohorts} cohorts", flush=True)
        print(*fusion_models.run(trial, options.processes, options.scores), sep="\n")
    print(f"{time.monotonic() - started:.0f} s")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
