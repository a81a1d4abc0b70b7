"""The engine's benchmark: all figures are there, and its plain loop does the engine's work, on tiny slides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import embedding_engine
from benchmarks.embedding_engine import embed, make_cohort, plain, run
from pipeline.contracts.features import read_bag


def test_the_plain_loop_writes_what_the_engine_writes(tmp_path: Path) -> None:
    rows = make_cohort(tmp_path, [1024])
    plain(tmp_path, rows)
    embed(tmp_path, rows)
    one, other = read_bag(tmp_path / "plain.h5"), read_bag(tmp_path / f"features/{embedding_engine.SLUG}/20x/s0.h5")
    assert one.features.shape == other.features.shape and len(one.features) == 16
    np.testing.assert_array_equal(one.coords, other.coords)


@pytest.mark.full
def test_figures_are_all_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_engine, "ROUNDS", 1)
    figures = run(tmp_path, side=1024, slides=2, large=4096)
    assert len(figures) == 10 and all(figure.ours > 0 for figure in figures)
