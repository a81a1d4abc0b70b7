"""The planted cohorts, and the table of fusion models on them: its pairs, its intervals, and a run in small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks import fusion_models
from benchmarks.fusion_models import (
    COMPARED,
    NO_RNA,
    NO_SLIDES,
    ORACLE,
    OURS,
    Score,
    Trial,
    chosen,
    difference,
    report,
    run_cohort,
)
from benchmarks.planted_cohort import TERMS, Truth, read_truth, write_planted
from pipeline.contracts.expression import read_expression
from pipeline.contracts.features import read_bag

NOTHING = dict.fromkeys(TERMS, 0.0)


def test_terms_are_where_they_are_said_to_be(tmp_path: Path) -> None:
    """What is only in the slides, or only in the genes, can be read there and not in the other."""
    write_planted(tmp_path, 60, 2, 3)
    truth = read_truth(tmp_path)
    table = read_expression(tmp_path / "expression.h5ad")
    means = [read_bag(tmp_path / "features" / "20x" / f"{case}.h5").features.mean(axis=0) for case in table.cases]
    sides = {"slides": np.array(means, dtype=float), "genes": table.values.astype(float)}
    assert sides["slides"].shape == (60, 48) and sides["genes"].shape == (60, 200)
    for term in ("slides", "genes"):
        planted = np.array([truth[case][term] for case in table.cases])
        strongest = {
            name: max(abs(np.corrcoef(column, planted)[0, 1]) for column in values.T) for name, values in sides.items()
        }
        other = next(name for name in sides if name != term)
        assert strongest[term] > strongest[other] + 0.1, strongest
    hidden = Truth(*np.random.default_rng(0).normal(size=(4, 9)))
    gate = 1 / (1 + np.exp(2.5 * hidden.evasion))
    np.testing.assert_allclose(hidden.burden, 0.9 * (hidden.atypia + hidden.stroma) - 1.4 * hidden.immune * gate)


def test_interval_is_that_of_a_paired_t_test() -> None:
    rng = np.random.default_rng(4)
    ours, other = rng.normal(0.8, 0.02, 5), rng.normal(0.75, 0.03, 5)
    runs = [
        {("grade", OURS): Score(a, NOTHING), ("grade", "x"): Score(b, NOTHING)}
        for a, b in zip(ours, other, strict=True)
    ]
    found = difference(runs, "grade", OURS, "x")
    theirs = stats.ttest_rel(ours, other).confidence_interval(0.95)
    np.testing.assert_allclose((found.mean, found.low, found.high), ((ours - other).mean(), *theirs))
    assert found.verdict == ("better" if theirs.low > 0 else "no difference shown")
    assert difference(runs, "grade", "x", OURS).mean == -found.mean


@pytest.mark.parametrize(("gap", "verdict"), [(0.1, "better"), (-0.1, "worse"), (0.0, "no difference shown")])
def test_verdicts(gap: float, verdict: str) -> None:
    noise = np.array([0.01, -0.01, 0.02, -0.02, 0.0])
    runs = [{("grade", OURS): Score(0.7 + gap + n, NOTHING), ("grade", "x"): Score(0.7, NOTHING)} for n in noise]
    assert difference(runs, "grade", OURS, "x").verdict == verdict


def test_kept_scores_are_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def scores_of(trial: Trial, seed: int) -> dict[tuple[str, str], Score]:
        asked.append((seed, trial.models))
        return {(t, m): Score(seed / 200, NOTHING) for t in ("grade", "survival") for m in trial.models}

    monkeypatch.setattr(fusion_models, "run_cohort", scores_of)
    kept = tmp_path / "scores.json"
    trial = Trial(cohorts=2, first_seed=100, models=(OURS,))
    first = fusion_models.run(trial, kept=kept)
    more = replace(trial, cohorts=3, models=(OURS, "snn"))
    lines = fusion_models.run(more, kept=kept)
    assert asked == [(100, (OURS,)), (101, (OURS,)), (100, ("snn",)), (101, ("snn",)), (102, (OURS, "snn"))]
    assert len(first) == 2 and len(lines) == 6
    assert fusion_models.run(more, kept=kept) == lines and len(asked) == 5
    with pytest.raises(AssertionError, match="another size"):
        fusion_models.run(replace(trial, patients=20), kept=kept)


def test_runs_small() -> None:
    trial = Trial(patients=24, cohorts=1, folds=2, epochs=1, models=(OURS, "snn"))
    scores = run_cohort(trial, 5)
    assert set(scores) == {(t, m) for t in ("grade", "survival") for m in (OURS, NO_RNA, NO_SLIDES, "snn", ORACLE)}
    assert all(np.isfinite([s.value, *s.terms.values()]).all() for s in scores.values())
    assert scores["grade", ORACLE].value > 0.75
    lines = report([scores, scores])
    pairs = [(a, b) for a, b in COMPARED if {a, b} <= {OURS, NO_RNA, NO_SLIDES, "snn"}]
    assert len(lines) == 2 * (5 + len(pairs))


def test_what_a_model_starts_from_and_is_taught_by_is_trained_before_it() -> None:
    names = [e.name for e in chosen(Trial(models=("student", "mirror-probe"), epochs=3))]
    assert names == ["teacher", "student-alone", "student", "pretrained", "mirror-probe"]
    assert {e.epochs for e in chosen(Trial(models=("student",), epochs=3))} == {3}
    scores = run_cohort(Trial(patients=24, cohorts=1, epochs=1, models=("mirror-probe",)), 6)
    assert set(scores) == {(t, m) for t in ("grade", "survival") for m in ("mirror-probe", ORACLE)}


def test_coarser_tiles_are_the_mean_of_those_they_cover(tmp_path: Path) -> None:
    write_planted(tmp_path, 4, 2, 7)
    for case in ("SIM-001", "SIM-002"):
        fine, coarse = (read_bag(tmp_path / "features" / m / f"{case}.h5") for m in ("20x", "10x"))
        assert len(coarse.cell) < len(fine.cell) and (fine.parent >= 0).all()
        np.testing.assert_array_equal(coarse.cell[fine.parent], fine.cell // 2)
        for row in range(len(coarse.cell)):
            np.testing.assert_allclose(
                coarse.features[row], fine.features[fine.parent == row].mean(axis=0), rtol=1e-5, atol=1e-6
            )
