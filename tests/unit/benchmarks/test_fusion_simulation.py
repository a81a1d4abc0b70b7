"""The feature-level benchmark: what its arms change, its comparisons, and (in full) its statements."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from benchmarks.fusion_simulation import TASKS, Size, compare, run, write_cohort
from pipeline.contracts.features import read_bag
from pipeline.contracts.predictions import ClassPrediction, Predictions, SurvivalPrediction

TINY = Size(patients=30, seeds=1, folds=2, resamples=50)


def digests(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_an_arm_changes_only_what_it_says(tmp_path: Path) -> None:
    for name, change in (
        ("plain", {}),
        ("again", {}),
        ("shuffled", {"shuffle_slides": True}),
        ("permuted", {"permute_labels": True}),
    ):
        write_cohort(tmp_path / name, TINY, 3, **change)
    plain = digests(tmp_path / "plain")
    assert digests(tmp_path / "again") == plain
    shuffled = digests(tmp_path / "shuffled")
    changed = {name for name in plain if shuffled[name] != plain[name]}
    assert len(changed) >= 25 and all(name.startswith("features/20x/") for name in changed)
    permuted = digests(tmp_path / "permuted")
    assert permuted["cases.tsv"] != plain["cases.tsv"] and permuted["expression.h5ad"] == plain["expression.h5ad"]
    assert all(permuted[name] == plain[name] for name in plain if name.startswith("features/"))


def test_shuffled_slides_lose_the_tumour_factor(tmp_path: Path) -> None:
    size = Size(patients=120, folds=2)
    write_cohort(tmp_path / "plain", size, 1)
    write_cohort(tmp_path / "shuffled", size, 1, shuffle_slides=True)
    high = _column(tmp_path / "plain" / "cases.tsv", "grade") == "high"
    gaps = []
    for name in ("plain", "shuffled"):
        bags = [read_bag(p).features.mean(axis=0) for p in sorted((tmp_path / name / "features" / "20x").iterdir())]
        means = np.array(bags)
        gaps.append(np.linalg.norm(means[high].mean(axis=0) - means[~high].mean(axis=0)))
    assert gaps[0] > 2 * gaps[1]


def _column(path: Path, name: str) -> np.ndarray:
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    return np.array([line[lines[0].index(name)] for line in lines[1:]])


def made_up(seed: int, n: int = 200, **quality: float) -> dict[tuple[str, str], Predictions]:
    """Predictions of both tasks whose scores follow the truth as well as asked."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=n)
    found = {}
    for arm, weight in quality.items():
        score = weight * truth + rng.normal(size=n)
        p = 1 / (1 + np.exp(-score))
        classes = [
            ClassPrediction(f"c{i:03d}", i % 3, (1 - p[i], p[i]), "ab"[int(truth[i] > 0)], "a") for i in range(n)
        ]
        times = [
            SurvivalPrediction(f"c{i:03d}", i % 3, score[i], (), (), float(np.exp(-truth[i])), 1) for i in range(n)
        ]
        found["grade", arm] = Predictions(("a", "b"), tuple(classes))
        found["survival", arm] = Predictions((), tuple(times))
    return found


def verdicts(**quality: float) -> list[bool]:
    runs = [made_up(seed, **quality) for seed in range(3)]
    return [figure.holds for figure in compare(runs, Size(patients=200, seeds=3, resamples=200))]


def test_statements_hold_when_they_are_true_and_fail_when_not() -> None:
    assert verdicts(genes=1, slides=1, fusion=3, shuffled=1, permuted=0) == [True] * 8
    assert verdicts(genes=3, slides=3, fusion=3, shuffled=3, permuted=0)[:2] == [False, False]
    assert verdicts(genes=1, slides=1, fusion=3, shuffled=3, permuted=2)[2:4] == [False, False]


def test_runs_small() -> None:
    figures = run(TINY)
    assert len(figures) == 4 * len(TASKS)
    assert all(np.isfinite([f.ours, f.theirs, f.low, f.high]).all() and f.low <= f.high for f in figures)
    assert "difference" in str(figures[0])


@pytest.mark.full
def test_statements_hold() -> None:
    assert all(figure.holds for figure in run(Size(), processes=2))
