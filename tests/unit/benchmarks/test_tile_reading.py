"""The reading benchmark: what its figures mean, on a slide too small to time anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks import tile_reading
from benchmarks.tile_reading import Figure, normalise, run


def test_figures_are_all_there_and_pixels_equal(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tile_reading, "ROUNDS", 1)
    figures = run(tmp_path, tmp_path / "absent.svs", 2304, 2048)
    assert len(figures) == 10 and all("generated" in figure.name for figure in figures)
    (difference,) = (figure for figure in figures if "difference" in figure.name)
    assert difference.ours == 0 and difference.holds
    assert "the codec alone, 16 decodes for 16 tiles" in figures[1].name and figures[1].ours > 0
    assert "jpeg-tiles" in figures[0].name and figures[0].needed == 5 and figures[0].ours > 0


def test_normalised_tiles_are_centred_and_scaled() -> None:
    rng = np.random.default_rng()
    pixels = rng.integers(0, 256, (3, 256, 256, 3), dtype=np.uint8)
    got = normalise(pixels, np.empty((5, 256, 256, 3), np.float32))
    want = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_figure_says_when_it_is_missed() -> None:
    good, bad = Figure("a", 1.0, "limit", 1.5, "CPU-ms"), Figure("a", 1.0, "openslide", 4.0, "CPU-ms", 5.0)
    assert good.holds and "MISSED" not in str(good) and good.ratio == 1.5
    assert not bad.holds and "MISSED (needed 5)" in str(bad) and "ratio  4.00" in str(bad)
    assert not Figure("difference", 3.0, "openslide", 0.0, "levels").holds
