"""Stains: the exact solver against others, planted stains found again, and tiles repainted as promised."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import nnls

from pipeline.contracts import layout
from pipeline.contracts.errors import FormatError, InputError, SlideError
from pipeline.contracts.stains import BACKENDS, FORMAT_VERSION, colours_from, read_stain
from pipeline.stain import StainParams, StainStage
from pipeline.stain_fit import estimate_white, fit_pixels, implausible, pool_pixels
from pipeline.stain_separation import (
    classify_pixels,
    concentrations,
    describe,
    fit_macenko,
    fit_vahadane,
    optical_density,
)
from pipeline.stain_transfer import BUILTIN_TARGET, StainTransfer, apply
from tests.stain_fields import REAL, UPSTREAM, E, H, colours, degrees, make_slide, random_matrix, real_field, render

WHITE = np.full(3, 255.0)


# --- the solver
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lasso", [0.0, 0.01, 0.3])
def test_concentrations_are_the_exact_minimum(lasso: float) -> None:
    """Reference: Lawson-Hanson non-negative least squares on the completed square."""
    rng = np.random.default_rng()
    cases = set()
    for _ in range(12):
        matrix = rng.random((2, 3))  # rows need not have unit length here
        od = rng.normal(0.3, 0.8, (60, 3))  # negative densities reach the cases in which a stain is absent
        found = concentrations(od, matrix, lasso)
        lower = np.linalg.cholesky(matrix @ matrix.T)
        wanted = [nnls(lower.T, np.linalg.solve(lower, matrix @ row - lasso))[0] for row in od]
        np.testing.assert_allclose(found, wanted, atol=1e-8)
        cases |= {(bool(c[0] > 0), bool(c[1] > 0)) for c in found}
    assert len(cases) == 4, f"only the cases {cases} were exercised"


def test_concentrations_agree_with_spams() -> None:
    spams = pytest.importorskip("spams")
    rng = np.random.default_rng()
    matrix, od = random_matrix(rng), rng.gamma(2, 0.3, (500, 3))
    theirs = spams.lasso(
        X=np.asfortranarray(od.T), D=np.asfortranarray(matrix.T), mode=2, lambda1=0.01, pos=True, numThreads=1
    ).toarray()
    np.testing.assert_allclose(concentrations(od, matrix), theirs.T, atol=1e-6)


def test_optical_density_by_hand() -> None:
    rgb = np.array([[[240, 120, 0], [255, 240, 24]]], np.uint8)
    found = optical_density(rgb, np.array([240.0, 240, 240]))
    np.testing.assert_allclose(found, [[[0, np.log(2), np.log(240)], [0, 0, np.log(10)]]])


# --- the fit
# ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "within"), [("vahadane", 3.0), ("macenko", 6.0)])
def test_planted_stains_are_found(method: str, within: float) -> None:
    rng = np.random.default_rng()
    for _ in range(4):
        matrix, white = random_matrix(rng), rng.uniform(225, 245) + rng.uniform(-8, 8, 3)
        field = render(rng, matrix, white)
        seen, source = estimate_white(field)
        assert source == "slide" and np.abs(seen - white).max() < 2
        pixels, _ = pool_pixels([field], seen, 50_000, 0)
        used, fallback, fit = fit_pixels(pixels, seen, method)
        assert (used, fallback) == (method, "")
        assert degrees(fit.matrix, matrix).max() < within, f"{fit.matrix} for {matrix}"
        np.testing.assert_allclose((fit.matrix**2).sum(axis=1), 1)
        assert fit.matrix[0, 0] > fit.matrix[1, 0] and (fit.matrix >= 0).all()


def test_planted_matrix_does_not_depend_on_the_start_or_the_order_of_pixels() -> None:
    rng = np.random.default_rng()
    field = render(rng, random_matrix(rng), WHITE)
    od = optical_density(field[classify_pixels(field, WHITE).stained], WHITE)
    one = fit_vahadane(od, np.array(BUILTIN_TARGET.matrix))
    other = fit_vahadane(rng.permutation(od), np.array([[0.3, 0.9, 0.3], [0.7, 0.5, 0.5]]))
    assert degrees(one.matrix, other.matrix).max() < 0.05


@pytest.mark.parametrize("name", ["histolab_green_pen.png", "histolab_green_pen_no_tissue.png"])
def test_fields_with_ink_take_no_part(name: str) -> None:
    field = real_field(name)
    pixels, counts = pool_pixels([field], WHITE, 50_000, 0)
    assert len(pixels) == 0 and counts["fields_with_ink"] == 1 and counts["ink_fraction"] > 0.05
    with pytest.raises(SlideError, match="0 stained pixels"):
        fit_pixels(pixels, WHITE, "vahadane")


def test_a_field_with_some_ink_is_left_out_whole() -> None:
    rng = np.random.default_rng()
    clean, inked = (render(rng, random_matrix(rng), WHITE, (64, 80)) for _ in range(2))
    inked[:10] = np.rint(inked[:10] * (0.3, 0.8, 0.7))  # a green pen over a sixth of it
    one, _ = pool_pixels([clean], WHITE, 50_000, 0)
    both, counts = pool_pixels([clean, inked], WHITE, 50_000, 0)
    np.testing.assert_array_equal(one, both)
    assert counts["fields_with_ink"] == 1 and counts["ink_fraction"] > 0.02


def test_clean_fields_have_no_ink() -> None:
    for name in REAL:
        assert classify_pixels(real_field(name), WHITE).ink.mean() < 0.01, name


def test_pixel_classes_by_hand() -> None:
    rgb = np.array(
        [[250, 248, 250], [150, 80, 140], [90, 70, 150], [40, 160, 140], [220, 60, 30], [3, 2, 3]], np.uint8
    )  # glass, eosin, haematoxylin, green pen, red pen, black
    found = classify_pixels(rgb, WHITE)
    assert found.stained.tolist() == [False, True, True, False, False, False]
    assert found.ink.tolist() == [False, False, False, True, True, False]
    assert found.saturated.tolist() == [False, False, False, False, False, True]


def test_pooled_pixels_are_as_many_as_asked_and_the_same_again() -> None:
    rng = np.random.default_rng()
    fields = [render(rng, random_matrix(rng), WHITE, (64, 80)) for _ in range(3)]
    one, counts = pool_pixels(fields, WHITE, 2000, 7)
    assert one.shape == (2000, 3) and 0.05 < counts["background_fraction"] < 0.2
    np.testing.assert_array_equal(one, pool_pixels(fields, WHITE, 2000, 7)[0])
    assert (one != pool_pixels(fields, WHITE, 2000, 8)[0]).any()


def test_one_colour_is_refused_in_words() -> None:
    pixels = np.full((5000, 3), (150, 80, 140), np.uint8)
    with pytest.raises(SlideError, match=r"vahadane stain fit implausible.*macenko stain fit implausible.*Fix"):
        fit_pixels(pixels, WHITE, "vahadane")


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_stain_falls_back_to_macenko_and_says_so(backend: str) -> None:
    """Haematoxylin alone with noise: Vahadane finds it twice, Macenko the two ends of the noise."""
    rng = np.random.default_rng()
    od = rng.gamma(12, 0.1, (20_000, 1)) * random_matrix(rng)[0] + rng.normal(0, 0.025, (20_000, 3))
    pixels = np.clip(np.rint(255 * np.exp(-od)), 0, 255).astype(np.uint8)
    method, fallback, fit = fit_pixels(pixels, WHITE, "vahadane", backend=backend)
    assert method == "macenko" and implausible(fit) == ""
    assert re.fullmatch(r"vahadane stain fit implausible \(\d.\d degrees.*\), macenko used instead", fallback)


def test_plausibility_bounds() -> None:
    rng = np.random.default_rng()
    field = render(rng, random_matrix(rng), WHITE)
    fit = fit_macenko(optical_density(field[classify_pixels(field, WHITE).stained], WHITE))
    assert implausible(fit) == ""
    assert "haematoxylin" in implausible(replace(fit, matrix=np.array([[0.1, 0.1, 0.99], fit.matrix[1]])))
    assert "absent" in implausible(replace(fit, concentrations=np.array([1.0, 0.0])))
    assert "unexplained" in implausible(replace(fit, residual=0.5))
    assert "finite" in implausible(replace(fit, concentrations=np.array([1.0, np.nan])))
    assert "brighter (-0.30" in implausible(replace(fit, negative=0.3))


def test_rows_point_to_absorption_and_negative_entries_are_told() -> None:
    """A row with its sign turned is the same stain; what is negative beside it is cut off, and said."""
    rng = np.random.default_rng()
    od = rng.gamma(2, 0.3, (600, 2)) @ np.stack([H, E])
    turned = describe(od, np.array([-H, E]), 0)
    np.testing.assert_allclose(turned.matrix, [H, E], atol=1e-12)
    assert turned.negative == 0
    odd = describe(od, np.array([H, [-0.3, 0.8, 0.52]]), 0)
    assert odd.negative == pytest.approx(0.3 / np.sqrt(0.09 + 0.64 + 0.2704)) and (odd.matrix >= 0).all()
    np.testing.assert_allclose((odd.matrix**2).sum(axis=1), 1)
    assert "brighter" in implausible(odd)


def test_white_without_glass_is_assumed() -> None:
    field = np.full((50, 60, 3), (150, 80, 140), np.uint8)
    white, source = estimate_white(field)
    assert source == "assumed" and white.tolist() == [255, 255, 255]


def test_filled_places_do_not_count_as_glass() -> None:
    field = np.full((100, 60, 3), 255, np.uint8)
    field[60:, :, :] = (236, 233, 240)
    assert estimate_white(field)[0].tolist() == [236, 233, 240]
    assert estimate_white(field[:60])[0].tolist() == [255, 255, 255]


# --- repainting
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [101, pytest.param(1, marks=pytest.mark.full)])
def test_repainting_is_the_written_out_formula(step: int) -> None:
    """Every step-th of all colours, from a random one on, is float64's rounded to nearest."""
    rng = np.random.default_rng()
    for _ in range(5):
        source, target = colours(rng, rng.uniform(225, 255)), colours(rng, rng.uniform(240, 255))
        number = np.arange(rng.integers(step), 1 << 24, step, dtype="<u4")
        for part in np.array_split(number, -(-len(number) // (1 << 18))):
            rgb = part.view(np.uint8).reshape(-1, 4)[:, :3]
            coded = concentrations(optical_density(rgb, np.array(source.white)), np.array(source.matrix))
            coded = coded * np.array(target.concentrations) / np.array(source.concentrations)
            wanted = np.array(target.white) * np.exp(-coded @ np.array(target.matrix))
            assert np.abs(apply(rgb, source, target) - wanted).max() < 0.501


def test_same_source_and_target_changes_little() -> None:
    """The sparse term of 0.01 takes at most 0.01 * 255 / e levels; noise beside the stains' plane goes."""
    rng = np.random.default_rng()
    own = colours(rng)
    coded = rng.gamma(2, 0.4, (40, 60, 2)) + 0.02
    od = coded @ np.array(own.matrix)
    rgb = np.rint(255 * np.exp(-od)).astype(np.uint8)
    change = np.abs(apply(rgb, own, own).astype(int) - rgb)[od.max(axis=-1) < 3]
    assert change.max() <= 3 and change.mean() < 1.5


def test_white_stays_white_and_order_of_brightness_is_kept() -> None:
    rng = np.random.default_rng()
    source = colours(rng, 238)
    white = np.array([[[255, 255, 255], [238, 238, 238], [250, 244, 239]]], np.uint8)
    assert (apply(white, source) == 255).all()
    dark_to_light = apply(np.repeat(np.arange(1, 256, dtype=np.uint8)[:, None], 3, axis=1), source)
    assert (np.diff(dark_to_light.astype(int), axis=0) >= 0).all()


def test_odd_shapes_and_none() -> None:
    rng = np.random.default_rng()
    source = colours(rng)
    assert apply(np.empty((0, 3), np.uint8), source).shape == (0, 3)
    one = apply(np.array([120, 60, 140], np.uint8), source)
    assert one.shape == (3,) and one.dtype == np.uint8
    stack = rng.integers(0, 256, (3, 70, 90, 3), dtype=np.uint8)
    painted = apply(stack, source)
    np.testing.assert_array_equal(painted[1], apply(stack[1], source))
    np.testing.assert_array_equal(apply(stack[:, ::2, ::-1], source), painted[:, ::2, ::-1])
    np.testing.assert_array_equal(apply(stack, None), stack)


def test_what_a_colour_becomes_does_not_depend_on_its_place() -> None:
    rng = np.random.default_rng()
    transfer = StainTransfer(colours(rng), colours(rng))
    pixels = rng.integers(0, 256, (40_077, 3), dtype=np.uint8)
    order = rng.permutation(len(pixels))
    with ThreadPoolExecutor(2) as pool:
        here, elsewhere = pool.map(transfer, [pixels, pixels[order]])
    np.testing.assert_array_equal(here[order], elsewhere)
    few = rng.choice(len(pixels), 7)
    np.testing.assert_array_equal(transfer(pixels)[few], [transfer(pixel) for pixel in pixels[few]])


def test_normalising_brings_two_slides_together() -> None:
    """Refitting a normalised field finds the target's stains and strengths."""
    rng = np.random.default_rng()
    white = np.full(3, 244.0)
    field = render(rng, random_matrix(rng, 0.04), white)
    _, _, fit = fit_pixels(pool_pixels([field], white, 50_000, 0)[0], white, "vahadane")
    painted = apply(field, colours_from(fit.matrix, fit.concentrations, white))
    _, _, again = fit_pixels(pool_pixels([painted], WHITE, 50_000, 0)[0], WHITE, "vahadane")
    assert degrees(again.matrix, np.array(BUILTIN_TARGET.matrix)).max() < 3
    np.testing.assert_allclose(again.concentrations, BUILTIN_TARGET.concentrations, rtol=0.15)


# --- the stage
# ----------------------------------------------------------------------------------------------------


def test_stage_fits_finds_and_is_the_same_again(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    matrix = random_matrix(rng)
    make_slide(tmp_path, rng, matrix)
    stage = StainStage(tmp_path, StainParams())
    digest = stage.digest(UPSTREAM)
    assert stage.find("s1", digest) is None
    assert stage.make("s1", digest) == ""
    path = Path(layout.stain_fit(tmp_path, "s1"))
    first, fit = path.read_bytes(), read_stain(path)
    assert degrees(fit.colours.matrix, matrix).max() < 4
    assert fit.um_per_px == 0.5 and fit.method == "vahadane" and fit.white_source == "slide"
    np.testing.assert_allclose(fit.colours.white, (240, 243, 238), atol=2)
    assert stage.find("s1", digest) == "" and stage.find("s1", "other") is None
    stage.make("s1", digest)
    assert path.read_bytes() == first


def test_damaged_or_foreign_files_are_made_again(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    make_slide(tmp_path, rng, random_matrix(rng))
    stage = StainStage(tmp_path, StainParams())
    stage.make("s1", "d")
    path = Path(layout.stain_fit(tmp_path, "s1"))
    whole = path.read_text()
    for broken in (whole[:200], whole.replace(f'"format_version": {FORMAT_VERSION}', '"format_version": 9'), "{}", ""):
        path.write_text(broken)
        assert stage.find("s1", "d") is None
        with pytest.raises(FormatError):
            read_stain(path)


def test_method_none_says_so_and_reads_no_slide(tmp_path: Path) -> None:
    stage = StainStage(tmp_path, StainParams(method="none"))
    stage.make("s1", "d")
    fit = read_stain(layout.stain_fit(tmp_path, "s1"))
    assert fit.method == "none" and fit.colours is None


def test_digest_follows_the_fit_and_not_the_target(tmp_path: Path) -> None:
    def digest(**changes: object) -> str:
        return StainStage(tmp_path, StainParams(**changes)).digest(UPSTREAM)

    assert digest() == digest(target="other.png") != digest(pixels=10_000)
    assert digest() != digest(method="macenko") != digest(method="none")
    assert digest(method="none") == digest(method="none", pixels=10_000)


@pytest.mark.parametrize("bad", [{"method": "vahadan"}, {"pixels": 3}, {"fields": 0}, {"um_per_px": 50}])
def test_parameters_name_their_key(bad: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"config.yaml stain.{next(iter(bad))}"):
        StainParams(**bad)
