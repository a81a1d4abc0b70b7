"""The stain benchmark: every figure is there and the pixels agree, on too few tiles to time anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks import stain, tile_reading
from benchmarks.stain import noisy, run, spams_angle


def test_figures_are_all_there_and_pixels_agree(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tile_reading, "ROUNDS", 1)
    for name, value in (("PEER_TILES", 2), ("FIT_PIXELS", 4000), ("SPAMS_STEPS", 1000)):
        monkeypatch.setattr(stain, name, value)
    figures = {figure.name.partition(": ")[2]: figure for figure in run(tmp_path / "no.svs", tmp_path / "none", 3)}
    assert figures["Vahadane fit from 4000 pixels, from spams"].holds
    assert figures["largest difference"].ours <= 1
    assert figures["repainting one 256-px tile"].needed == 15
    assert figures["slide of 3 tiles, staintools extrapolated from 2"].needed == 50


def test_tiles_of_a_slide_are_never_the_same_again() -> None:
    tiles = [np.full((4, 6, 3), 120, np.uint8), np.full((4, 6, 3), 90, np.uint8)]
    drawn = list(noisy(tiles, 6))
    assert len({tile.tobytes() for tile in drawn}) == 6
    assert abs(np.mean(drawn[2::2]) - 120) < 1.5


def test_the_angle_from_spams_sees_a_difference(monkeypatch) -> None:
    rng = np.random.default_rng()
    od = rng.gamma(2, 0.3, (3000, 2)) @ np.array([[0.6, 0.7, 0.4], [0.2, 0.85, 0.48]])
    pixels = np.clip(255 * np.exp(-od), 1, 255).astype(np.uint8)
    white = np.full(3, 255.0)
    assert spams_angle(pixels, white) < 2
    monkeypatch.setattr(stain, "SPAMS_STEPS", 500)
    fit = stain.fit_native
    monkeypatch.setattr(stain, "fit_native", lambda *a: type(fit(*a))(np.eye(3)[:2], np.ones(2), 90.0, 0.0, 1))
    assert spams_angle(pixels, white) > 10
