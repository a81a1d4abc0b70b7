"""The benchmark of tile quality: its figures, on slides too small to time anything."""

from __future__ import annotations

from pathlib import Path

from benchmarks import tile_reading
from benchmarks.tile_quality import run


def test_figures_are_all_there(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tile_reading, "ROUNDS", 1)
    figures = run(tmp_path, 1300, 1100)
    assert len(figures) == 3 and all(figure.ours > 0 and figure.unit == "CPU-ms" for figure in figures)
