"""The simulated cohort: same seed, same bytes; whole or absent; and the truth is where it is said to be."""

from __future__ import annotations

import gzip
import hashlib
import os
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import tifffile
import yaml

from pipeline.contracts.cohort import read_cases, read_slides
from pipeline.contracts.errors import InputError
from pipeline.contracts.files import read_table
from workflow.configuration import checked
from workflow.simulation.__main__ import main
from workflow.simulation.cases import SimulatedSlide, SimulationParams, list_slides, simulate_cases
from workflow.simulation.cohort import simulate_cohort, slide_bytes
from workflow.simulation.counts import simulate_counts
from workflow.simulation.pyramids import pyramid_bytes
from workflow.simulation.render import render_slide
from workflow.simulation.stains import BASES, colour_table, paint
from workflow.simulation.symbols import read_symbols, signature_flags

ROOT = Path(__file__).resolve().parents[3]
SMALL = SimulationParams(patients=7, seed=3, size_px=640, genes=300)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def times(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*")}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    assert simulate_cohort(folder, SMALL, "data/slides")
    return folder


def test_same_seed_same_bytes_and_another_seed_other_bytes(cohort: Path, tmp_path: Path) -> None:
    simulate_cohort(tmp_path / "again", SMALL, "data/slides")
    assert digests(tmp_path / "again") == digests(cohort)
    simulate_cohort(tmp_path / "other", replace(SMALL, seed=4), "data/slides")
    one, other = digests(cohort), digests(tmp_path / "other")
    changed = {name for name in one if other[name] != one[name]}
    assert {"cases.tsv", "rna.tsv.gz", "slides/SIM-001-A.tif"} <= changed


def test_second_call_touches_nothing(cohort: Path) -> None:
    before = times(cohort)
    assert not simulate_cohort(cohort, SMALL, "data/slides")
    assert times(cohort) == before


def test_a_missing_or_damaged_file_is_replaced_and_the_rest_is_left(tmp_path: Path) -> None:
    params = replace(SMALL, patients=6)
    simulate_cohort(tmp_path, params)
    whole, before = digests(tmp_path), times(tmp_path / "slides")
    lost, cut = tmp_path / "slides" / "SIM-002-A.tif", tmp_path / "slides" / "SIM-004-A.tif"
    lost.unlink()
    os.truncate(cut, 1000)
    assert simulate_cohort(tmp_path, params)
    assert digests(tmp_path) == whole
    untouched = {k: v for k, v in before.items() if Path(k) not in (lost, cut, tmp_path / "slides")}
    assert untouched.items() <= times(tmp_path / "slides").items()


def test_an_interrupted_run_leaves_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr("workflow.simulation.cohort.slide_bytes", fail)
    with pytest.raises(KeyboardInterrupt):
        simulate_cohort(tmp_path, SMALL)
    assert not (tmp_path / "simulation.json").exists() and not list(tmp_path.rglob("*.part"))


def test_everything_says_simulated(cohort: Path) -> None:
    assert (cohort / "SIMULATED.txt").read_text().startswith("SIMULATED")
    cases = read_cases(cohort / "cases.tsv")
    assert all(row["cohort"] == "simulated" and case.startswith("SIM-") for case, row in cases.rows.items())
    with tifffile.TiffFile(cohort / "slides" / "SIM-001-A.tif") as file:
        assert "SIMULATED" in file.pages[0].description


def test_sheets_agree_with_each_other_and_with_the_files(cohort: Path) -> None:
    slides, cases = read_slides(cohort / "slides.tsv"), read_cases(cohort / "cases.tsv")
    assert {s.case_id for s in slides} == set(cases.rows)
    assert {s.path for s in slides} == {f"data/slides/{p.name}" for p in (cohort / "slides").iterdir()}
    samples = gzip.decompress((cohort / "rna.tsv.gz").read_bytes()).decode().splitlines()[0].split("\t")[1:]
    assert samples == [*cases.rows, "SIM-008"]  # one sample without a clinical row
    assert [s.slide_id for s in slides if s.exclude] == ["SIM-004-B"]
    assert [(s.slide_id, s.um_per_px) for s in slides if s.um_per_px] == [("SIM-004-A", 0.5)]


def test_the_demo_cohort_has_what_it_promises() -> None:
    cases = simulate_cases(SimulationParams())
    slides = list_slides(cases)
    assert len(cases) == 24 and 28 <= len(slides) <= 36
    kinds = [s.kind for s in slides]
    assert all(kinds.count(kind) == 1 for kind in ("pen", "untagged", "artefacts", "truncated", "blurred", "blank"))
    sound = {s.case_id for s in slides if s.kind in ("plain", "pen", "untagged", "artefacts")}
    assert sound == {c.case_id for c in cases}  # no patient is lost with a bad slide
    grades = [c.grade for c in cases]
    assert grades.count("G2") == grades.count("G3") == 12
    assert 10 <= sum(c.event for c in cases) <= 20 and min(c.time_days for c in cases) >= 1


def test_outcomes_follow_both_factors() -> None:
    cases = simulate_cases(SimulationParams(patients=600, seed=11))
    high = np.array([c.grade == "G3" for c in cases])
    tumour, tme = (np.array([getattr(c, key) for c in cases]) for key in ("tumour", "tme"))
    assert abs(np.corrcoef(tumour, tme)[0, 1]) < 0.01
    assert tumour[high].mean() - tumour[~high].mean() > 1 and tme[high].mean() - tme[~high].mean() > 0.5
    died = np.array([c.event for c in cases], bool)
    days = np.log([c.time_days for c in cases])
    assert np.corrcoef(days[died], tumour[died])[0, 1] < -0.3 and np.corrcoef(days[died], tme[died])[0, 1] < -0.3


def test_the_truncated_slide_is_found_out_by_reading_only(cohort: Path) -> None:
    (row,) = [r for r in read_table(cohort / "slides.tsv") if r["slide_id"] == "SIM-001-B"]
    assert not row["exclude"]
    with pytest.raises(openslide.OpenSlideError):
        openslide.OpenSlide(cohort / "slides" / "SIM-001-B.tif")


def test_pyramid_levels_tiles_and_scale(rng: np.random.Generator) -> None:
    image = cv2.resize(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8), (901, 603))
    Path("x.tif").write_bytes(pyramid_bytes(image, 0.25, (2, 4), "SIMULATED"))
    with openslide.OpenSlide("x.tif") as slide:
        assert slide.level_dimensions == ((901, 603), (450, 301), (225, 150))
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25, abs=1e-6)
        read = np.asarray(slide.read_region((0, 0), 0, (901, 603)))[..., :3]
    assert np.abs(read.astype(int) - image).mean() < 3
    Path("y.tif").write_bytes(pyramid_bytes(image, None, (4,), "SIMULATED"))
    with openslide.OpenSlide("y.tif") as slide:
        assert "openslide.mpp-x" not in slide.properties
    with tifffile.TiffFile("y.tif") as file:
        page = file.pages[0]
        assert page.is_tiled and page.compression.name == "JPEG" and "DateTime" not in page.tags


@pytest.fixture
def rng(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.random.Generator:
    monkeypatch.chdir(tmp_path)
    return np.random.default_rng(8)


@pytest.mark.parametrize("site", BASES)
def test_colours_obey_beer_lambert(site: str, rng: np.random.Generator) -> None:
    basis = BASES[site]
    assert np.linalg.norm(basis.matrix(), axis=1) == pytest.approx([1, 1])
    assert colour_table(basis)[0, 0].tolist() == [round(v) for v in basis.white]
    amounts = rng.integers(0, 120, (2, 5, 7), dtype=np.uint8)
    density = -np.log(paint(amounts[0], amounts[1], basis) / np.array(basis.white))
    recovered = density @ np.linalg.pinv(basis.matrix())
    assert recovered == pytest.approx(np.moveaxis(amounts, 0, -1) / 100, abs=0.03)


def test_tumour_factor_shows_in_the_image_and_tme_hardly() -> None:
    case = simulate_cases(SMALL)[0]
    slide = SimulatedSlide("x", case.case_id, 0.5)

    def dark(**factors: float) -> float:
        shares = []
        for seed in range(3):
            image = render_slide(slide, replace(case, **factors), (700, 600), seed)
            tissue = image[..., 1] < 220
            shares.append((image[..., 0][tissue] < 130).mean())
        return float(np.mean(shares))

    low, middle, high = (dark(tumour=t, tme=0) for t in (-1.8, 0.0, 1.8))
    assert low < middle < high and high > 1.8 * low
    assert abs(dark(tumour=0, tme=1.8) - dark(tumour=0, tme=-1.8)) < 0.2 * (high - low)


def test_kinds_look_as_named() -> None:
    case = simulate_cases(SMALL)[0]
    plain, pen, blank, blurred, artefacts = (
        render_slide(SimulatedSlide("x", case.case_id, 0.5, kind), case, (700, 600), 5)
        for kind in ("plain", "pen", "blank", "blurred", "artefacts")
    )
    assert plain.shape == (600, 700, 3)
    green = (pen[..., 1].astype(int) - pen[..., 0] > 60).mean()
    assert green > 0.01 > (plain[..., 1].astype(int) - plain[..., 0] > 60).mean()
    assert np.ptp(blank) < 10 and 0.2 < (plain[..., 1] < 220).mean() < 0.8
    assert cv2.Laplacian(blurred, cv2.CV_64F).var() < 0.1 * cv2.Laplacian(plain, cv2.CV_64F).var()
    left, right = np.s_[:, :400], np.s_[:, 500:]
    assert cv2.Laplacian(artefacts[right], cv2.CV_64F).var() < 0.2 * cv2.Laplacian(plain[right], cv2.CV_64F).var()
    changed = (artefacts[left] != plain[left]).any(axis=2)
    assert changed.any() and (artefacts[left][changed] <= plain[left][changed]).mean() > 0.9


def test_sides_are_unequal() -> None:
    cases = simulate_cases(SMALL)
    for number, slide in enumerate(list_slides(cases)[:3]):
        with tifffile.TiffFile(BytesIO(slide_bytes(slide, cases[0], SMALL, number))) as file:
            height, width = file.pages[0].shape[:2]
            assert width > height


def test_counts_are_overdispersed_whole_numbers_that_follow_the_factors() -> None:
    rng = np.random.default_rng(2)
    tumour, tme = rng.normal(size=(2, 400))
    gene = np.arange(500)  # most follow neither factor, so that a sample's total does not either
    is_tumour, is_tme = gene < 30, (gene >= 30) & (gene < 60)
    counts = simulate_counts(tumour, tme, is_tumour, is_tme, 0)
    assert counts.dtype.kind == "i" and counts.min() >= 0
    log = np.log1p(counts / counts.sum(axis=0) * 1e6)
    on_tme, on_tumour = (np.abs([np.corrcoef(row, f)[0, 1] for row in log]) for f in (tme, tumour))
    assert np.median(on_tme[is_tme]) > 0.7 and np.median(on_tme[~is_tme]) < 0.2
    assert 0.05 < np.median(on_tumour[is_tumour]) < 0.4  # seen mostly in the image
    plain = counts[60:]
    assert (plain.var(axis=1) > 1.5 * plain.mean(axis=1))[plain.mean(axis=1) > 20].all()
    assert (simulate_counts(tumour, tme, is_tumour, is_tme, 0) == counts).all()
    assert (simulate_counts(tumour, tme, is_tumour, is_tme, 1) != counts).any()


def test_symbols_hold_the_signatures() -> None:
    symbols = read_symbols(3000)
    is_tumour, is_tme = signature_flags(symbols)
    assert len(symbols) == len(set(symbols)) == 3000
    assert is_tumour.sum() > 200 and is_tme.sum() > 200 and (is_tumour & is_tme).mean() < 0.01
    assert (~is_tumour & ~is_tme).sum() > 1500


@pytest.mark.parametrize(("key", "value"), [("patients", 2), ("size_px", 10), ("seed", -1), ("genes", 1.5)])
def test_parameters_out_of_range_are_named(key: str, value: object) -> None:
    with pytest.raises(InputError, match=key):
        replace(SMALL, **{key: value})


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = [
        str(tmp_path / "d"),
        "--patients",
        "6",
        "--size",
        "512",
        "--genes",
        "60",
        "--slide-root",
        "data/slides",
    ]
    main(arguments)
    main(arguments)
    assert [line.rsplit(maxsplit=4)[-1] for line in capsys.readouterr().out.splitlines()] == ["written", "date"]
    assert read_slides(tmp_path / "d" / "slides.tsv")[0].path == "data/slides/SIM-001-A.tif"


def test_demo_config_is_valid_and_fits_the_cohort(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = yaml.safe_load((ROOT / "demo" / "config.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    for key in ("slides", "cases", "expression"):
        path = Path(config["inputs"][key])
        path.parent.mkdir(exist_ok=True)
        path.touch()
    resolved = checked(config)
    assert resolved["inputs"]["simulated"] and resolved["inputs"]["allow_failed"]
    columns = {"grade", "time_days", "event"}
    assert {task[key] for task in config["tasks"] for key in ("label", "time", "event") if key in task} == columns
    assert all(entry["weights"] == "random" for entry in resolved["encoders"])
