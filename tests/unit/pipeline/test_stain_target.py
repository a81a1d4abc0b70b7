"""Targets of stain normalisation: every kind, the cohort's median by hand, and when that is made again."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.contracts import layout
from pipeline.contracts.batches import BatchRow, write_batch
from pipeline.contracts.errors import FormatError, InputError
from pipeline.contracts.stain_targets import FORMAT_VERSION, StainTarget, read_target_file, target_kind, write_target
from pipeline.contracts.stains import StainFit, colours_from, read_stain, write_stain
from pipeline.stain import StainParams, StainStage
from pipeline.stain_references import make_target, median_target
from pipeline.stain_target import read_target
from pipeline.stain_transfer import BUILTIN_TARGET
from tests.slide_files import write_tiff
from tests.stain_fields import colours, degrees, make_slide, random_matrix, render


def fit(slide_id: str, rng: np.random.Generator, fallback: str = "") -> StainFit:
    return StainFit(slide_id, "vahadane", "vahadane", fallback, colours(rng, 240), "slide", 0.5, {}, slide_id)


def cohort(results: Path, fits: list[StainFit], lost: tuple[str, ...] = ()) -> list[Path]:
    """Write fits in two batches, whose indexes are returned; `lost` slides failed."""
    for one in fits:
        write_stain(layout.stain_fit(results, one.slide_id), one)
    rows = [BatchRow(one.slide_id, "c", "ok", "stain", digest=one.digest) for one in fits]
    rows += [BatchRow(slide_id, "c", "failed", "tiles", reason="it is upside down") for slide_id in lost]
    indexes = [results / "a.tsv", results / "b.tsv"]
    for index, part in zip(indexes, (rows[::2], rows[1::2]), strict=True):
        write_batch(index, part)
    return indexes


def test_kinds() -> None:
    wanted = {
        "builtin": "builtin", "cohort": "cohort", "s1": "slide", "s1.json": "stains", "a/s1.PNG": "image",
        "field.jpeg": "image", "s1.svs": "slide_file", "a.tif": "slide_file",
    }  # fmt: skip
    assert {target: target_kind(target, ["s1", "s2"]) for target in wanted} == wanted


def test_median_by_hand(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    fits = [fit(f"s{i}", rng) for i in range(4)] + [fit("s4", rng, fallback="vahadane implausible, macenko used")]
    indexes = cohort(tmp_path, fits[::-1], lost=("s5",))
    made = make_target(StainParams(target="cohort"), "cohort", tmp_path, indexes)
    middle = np.sort([f.colours.matrix for f in fits[:4]], axis=0)[1:3].mean(axis=0)
    np.testing.assert_allclose(made.colours.matrix, middle / np.linalg.norm(middle, axis=1, keepdims=True))
    strengths = np.sort([f.colours.concentrations for f in fits[:4]], axis=0)[1:3].mean(axis=0)
    np.testing.assert_allclose(made.colours.concentrations, strengths)
    assert made.colours.white == (240, 240, 240)
    assert made.slides == ("s0", "s1", "s2", "s3")
    assert made.left_out == {"s4": "vahadane implausible, macenko used"}
    assert read_target_file(layout.stain_target(tmp_path)) == made
    assert read_target(StainParams(target="cohort"), tmp_path)[0] == made.colours


def test_one_slide_is_its_own_median() -> None:
    one = fit("s0", np.random.default_rng())
    np.testing.assert_allclose(median_target([one], "").colours.matrix, one.colours.matrix)


def test_a_cohort_without_plausible_fits_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    for fits in ([], [fit("s0", rng, fallback="implausible")]):
        indexes = cohort(tmp_path, fits, lost=("s5",))
        with pytest.raises(InputError, match="cohort: no slide with plausible stains"):
            make_target(StainParams(target="cohort"), "cohort", tmp_path, indexes)


def test_the_median_stays_when_slides_come_and_goes_with_the_way_of_fitting(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    fits = [fit(f"s{i}", rng) for i in range(5)]
    params = StainParams(target="cohort")
    first = make_target(params, "cohort", tmp_path, cohort(tmp_path, fits[:3]))
    declared, kept = (Path(path(tmp_path)) for path in (layout.stain_target, layout.cohort_stains))
    whole = declared.read_bytes()
    assert kept.read_bytes() == whole
    declared.unlink()  # as Snakemake does before it runs the rule again
    assert make_target(params, "cohort", tmp_path, cohort(tmp_path, fits)) == first
    assert declared.read_bytes() == whole
    other = make_target(replace(params, pixels=4000), "cohort", tmp_path, cohort(tmp_path, fits))
    assert len(other.slides) == 5 and other.colours != first.colours
    shutil.rmtree(kept.parent)
    assert len(make_target(params, "cohort", tmp_path, cohort(tmp_path, fits)).slides) == 5


def test_a_slide_of_the_cohort(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    fits = [fit("s0", rng), fit("s1", rng)]
    indexes = cohort(tmp_path, fits, lost=("s5",))
    made = make_target(StainParams(target="s1"), "slide", tmp_path, indexes)
    assert made.colours == fits[1].colours and made.slides == ("s1",)
    with pytest.raises(InputError, match="s5 cannot be a target: failed at stage tiles: it is upside down"):
        make_target(StainParams(target="s5"), "slide", tmp_path, indexes)


@pytest.mark.parametrize("backend", ["native", "staintools"])
def test_an_image(tmp_path: Path, backend: str) -> None:
    rng = np.random.default_rng()
    matrix = random_matrix(rng)
    path = tmp_path / "target.png"
    Image.fromarray(render(rng, matrix, np.full(3, 245.0))).save(path)
    made = make_target(StainParams(target=str(path), backend=backend), "image", tmp_path)
    assert degrees(made.colours.matrix, matrix).max() < 3
    np.testing.assert_allclose(made.colours.white, 245, atol=2)


def test_stain_files_of_earlier_runs(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    make_slide(tmp_path, rng, random_matrix(rng))
    StainStage(tmp_path, StainParams()).make("s1", "d")
    own = read_stain(layout.stain_fit(tmp_path, "s1"))
    shutil.copy(layout.stain_fit(tmp_path, "s1"), tmp_path / "slide.json")
    assert make_target(StainParams(target=str(tmp_path / "slide.json")), "stains", tmp_path).colours == own.colours
    median = median_target([fit("s0", rng)], "")
    write_target(tmp_path / "frozen.json", median)
    assert make_target(StainParams(target=str(tmp_path / "frozen.json")), "stains", tmp_path).colours == median.colours
    write_stain(tmp_path / "none.json", replace(own, method="none", colours=None))
    with pytest.raises(InputError, match="method none"):
        make_target(StainParams(target=str(tmp_path / "none.json")), "stains", tmp_path)


def test_a_slide_file_goes_through_the_stages_of_a_slide(tmp_path: Path) -> None:
    """A field in the middle of glass; nothing but the target is left behind."""
    rng = np.random.default_rng()
    matrix = random_matrix(rng)
    rgb = np.full((1024, 1280, 3), 243, np.uint8)
    rgb[200:800, 300:1100] = render(rng, matrix, np.full(3, 243.0), (600, 800))
    path = write_tiff(tmp_path / "reference.tif", [rgb])
    made = make_target(StainParams(target=str(path)), "slide_file", tmp_path / "results")
    assert degrees(made.colours.matrix, matrix).max() < 4
    np.testing.assert_allclose(made.colours.white, 243, atol=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["reference.tif", "results"]


def test_slide_files_that_cannot_be_say_why(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "glass.tif", [np.full((600, 700, 3), 243, np.uint8)])
    (tmp_path / "broken.svs").write_bytes(b"II*\0 not a slide")
    for name, stage in (("glass.tif", "tissue"), ("broken.svs", "check")):
        with pytest.raises(InputError, match=rf"{name} cannot be a target: \w+ at stage {stage}: "):
            make_target(StainParams(target=str(path.parent / name)), "slide_file", tmp_path)


def test_a_target_is_read_for_the_setting_that_it_was_made_for(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    assert read_target(StainParams(), tmp_path)[0] == BUILTIN_TARGET
    with pytest.raises(InputError, match=r"stain\.target: .*was not made yet"):
        read_target(StainParams(target="cohort"), tmp_path)
    target = StainTarget("s1", "slide", colours(rng), ("s1",), {}, "")
    write_target(layout.stain_target(tmp_path), target)
    found, digest = read_target(StainParams(target="s1"), tmp_path)
    assert found == target.colours
    with pytest.raises(InputError, match="was made for 's1'"):
        read_target(StainParams(target="cohort"), tmp_path)
    write_target(layout.stain_target(tmp_path), replace(target, colours=colours(rng)))
    assert read_target(StainParams(target="s1"), tmp_path)[1] != digest != read_target(StainParams(), tmp_path)[1]


def test_damaged_target_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    target = StainTarget("s1", "slide", colours(np.random.default_rng()), ("s1",), {}, "")
    write_target(path, target)
    whole = path.read_text()
    write_target(path, replace(target, colours=colours_from([[1, 0, 0], [0, 0.5, 0]], [1, 1], [255, 255, 255])))
    not_unit = path.read_text()
    other_version = whole.replace(f'"format_version": {FORMAT_VERSION}', '"format_version": 9')
    for broken in (whole[:80], "{}", other_version, not_unit):
        path.write_text(broken)
        with pytest.raises(FormatError):
            read_target_file(path)
