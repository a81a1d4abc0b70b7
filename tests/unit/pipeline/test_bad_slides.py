"""Spoilt slides through the real stages: no crash, no hang, a reason for each, and no harm to their neighbours."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.check import check_slide
from pipeline.contracts import layout
from pipeline.contracts.batches import FAILED, OK, VOID, BatchRow
from pipeline.contracts.cohort import Slide
from pipeline.contracts.errors import SlideError
from pipeline.contracts.features import read_bag
from pipeline.contracts.tiles import read_tiles
from tests.bad_slides import stages
from tests.bad_slides.corpus import TILED, Mutant, corpus, sound_bytes, write_unreadable
from tests.bad_slides.sound import SOUND, write_sound
from tests.bad_slides.tiff_bytes import TiffBytes
from tests.slide_files import real_file

REPOSITORY = Path(__file__).resolve().parents[3]
MUTANTS = corpus()
SEED = 1
NEIGHBOURS = ("aperio-rgb", "subifds")
MEMORY_BYTES, SECONDS = 6 * 2**30, 300  # of the job; each slide has the tighter limits of `stages.LIMITS`


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run_job(folder: Path, slides: list[Slide]) -> dict[str, BatchRow]:
    """All stages in a process with limits; the last stage's rows."""
    stages.lay_out(folder, slides)
    command = [sys.executable, "-m", "tests.bad_slides.stages", str(folder)]
    with open(folder / "log", "w") as log:
        done = subprocess.run(command, cwd=REPOSITORY, stdout=log, stderr=log, timeout=SECONDS, preexec_fn=limited)
    assert done.returncode == 0, (folder / "log").read_text()[-3000:]
    return stages.index(folder, "features")


def artefacts(results: Path, slide_id: str) -> dict[str, bytes]:
    found = [*results.glob(f"*/{slide_id}.*"), *results.glob(f"features/*/*/{slide_id}.h5")]
    return {str(path.relative_to(results)): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def neighbours(tmp_path_factory) -> tuple[list[Slide], Path]:
    """Sound slides that go with every batch, and the results of a batch without any other."""
    folder = tmp_path_factory.mktemp("neighbours")
    slides = [
        Slide(f"sound-{kind}", "c", str(write_sound(kind, folder / f"{kind}.{SOUND[kind][0]}"))) for kind in NEIGHBOURS
    ]
    stages.lay_out(folder, slides)
    stages.run(folder)
    return slides, folder / "results"


def assert_survived(folder: Path, mutants: list[Mutant], neighbours: tuple[list[Slide], Path]) -> None:
    sound, alone = neighbours
    folder.mkdir(exist_ok=True)
    bad = [Slide(m.slide_id, "c", str(m.write(folder, SEED)), m.um_per_px) for m in mutants]
    half = len(bad) // 2
    rows = run_job(folder, [sound[0], *bad[:half], sound[1], *bad[half:]])
    assert set(rows) == {slide.slide_id for slide in [*sound, *bad]}
    for slide in sound:
        assert rows[slide.slide_id].status == OK
        assert artefacts(folder / "results", slide.slide_id) == artefacts(alone, slide.slide_id)
        assert len(artefacts(alone, slide.slide_id)) >= 6
    for mutant in mutants:
        row = rows[mutant.slide_id]
        assert row.status in ({FAILED} if mutant.fails else {OK, VOID, FAILED}), row
        assert row.status == OK or row.reason, row
        assert row.status != FAILED or "Fix:" in row.reason, row
        if row.status == OK:
            assert_whole(folder / "results", mutant.slide_id)


def assert_whole(results: Path, slide_id: str) -> None:
    """Every tile of the grid has its features or is counted as failed."""
    for magnification, grid in read_tiles(layout.tiles(results, slide_id)).magnifications.items():
        bag = read_bag(layout.features(results, "tiny", magnification, slide_id))
        assert len(bag.features) + len(bag.failed_cells) == len(grid) and np.isfinite(bag.features).all()


def sample(number: int) -> list[Mutant]:
    return [MUTANTS[k] for k in np.random.default_rng(SEED).choice(len(MUTANTS), number, replace=False)]


def test_the_corpus_is_large_and_always_the_same(tmp_path):
    assert len(MUTANTS) >= 200
    assert {mutant.kind for mutant in MUTANTS} == set(SOUND)
    for mutant in sample(20):
        first = mutant.write(tmp_path, SEED).read_bytes()
        assert mutant.write(tmp_path, SEED).read_bytes() == first


def test_a_sample_of_the_corpus(tmp_path, neighbours):
    assert_survived(tmp_path / "batch", sample(20), neighbours)


@pytest.mark.full
@pytest.mark.parametrize("part", range(0, len(MUTANTS), 15))
def test_the_whole_corpus(tmp_path, neighbours, part):
    assert_survived(tmp_path / "batch", MUTANTS[part : part + 15], neighbours)


def test_what_is_no_file(tmp_path):
    slides = [Slide(name, "c", str(path), 0.5) for name, path in write_unreadable(tmp_path).items()]
    if os.geteuid() == 0:  # who may read everything
        slides = [slide for slide in slides if slide.slide_id != "locked"]
    rows = run_check(tmp_path, slides)
    for slide in slides:
        assert rows[slide.slide_id].status == FAILED and slide.path in rows[slide.slide_id].reason, rows
        assert "Fix:" in rows[slide.slide_id].reason


def run_check(folder: Path, slides: list[Slide]) -> dict[str, BatchRow]:
    stages.run(stages.lay_out(folder / "out", slides), ["check"])
    return stages.index(folder / "out", "check")


# --- per-tile truth -----------------------------------------------------------------------------------------------

INTACT = [m for m in MUTANTS if m.intact and not m.fails and m.kind in TILED and "a-tile" in m.name]
FEW = ["aperio-rgb/a-tile-zeroed", "deflate/a-tile-cut-short", "subifds/a-tile-zeroed"]  # direct, OpenSlide, TiffSlide


@pytest.mark.parametrize(
    "mutant", [pytest.param(m, id=m.name, marks=() if m.name in FEW else pytest.mark.full) for m in INTACT]
)
def test_an_unreadable_tile_is_counted_and_the_others_are_as_in_the_sound_slide(tmp_path, mutant):
    """Tile 8 of 6 x 5 is cell (2, 1) at 20x; the pixels of 10x come from the next level, which is whole."""
    sound = write_sound(mutant.kind, tmp_path / f"sound.{SOUND[mutant.kind][0]}")
    slides = [Slide("sound", "c", str(sound)), Slide("bad", "c", str(mutant.write(tmp_path, SEED)))]
    stages.run(stages.lay_out(tmp_path / "out", slides), guard=False, stain="none")
    rows = stages.index(tmp_path / "out", "features")
    assert [row.status for row in rows.values()] == [OK, OK]
    assert "could not be read at 20x: 1" in rows["bad"].reason and "overview" in rows["bad"].reason
    for magnification in (20, 10):
        bags = {s: read_bag(layout.features(tmp_path / "out/results", "tiny", magnification, s)) for s in rows}
        lost = {tuple(cell) for cell in bags["bad"].failed_cells}
        assert lost == ({(2, 1)} if magnification == 20 else set())
        wanted = {tuple(c): f for c, f in zip(bags["sound"].cell, bags["sound"].features, strict=True)}
        assert len(wanted) > 5
        for cell, features in zip(bags["bad"].cell, bags["bad"].features, strict=True):
            np.testing.assert_array_equal(features, wanted.pop(tuple(cell)))
        assert set(wanted) == lost


def test_too_many_unreadable_tiles_fail_the_slide(tmp_path):
    """Ten of thirty tiles; the check looks at the corners and the centre, which are whole."""
    tiff = TiffBytes(sound_bytes("deflate"))
    for index in (1, 2, 3, 4, 7, 8, 9, 10, 13, 16):
        offset, count = tiff.tile(index)
        tiff.set_bytes(offset, bytes(count))
    (tmp_path / "a.tif").write_bytes(bytes(tiff.content))
    folder = stages.lay_out(tmp_path / "out", [Slide("a", "c", str(tmp_path / "a.tif"))])
    stages.run(folder, guard=False, stain="none")
    row = stages.index(folder, "features")["a"]
    assert row.status == FAILED and row.stage == "features" and "may fail" in row.reason
    assert not (folder / "results/features/tiny/20x/a.h5").exists()


# --- the real files -----------------------------------------------------------------------------------------------

NO_SCALE = "no um per pixel"
PRINTED = "outside 0.05-40"
REAL = {
    "slides/CMU-1-Small-Region.svs": ((2220, 2967), 0.499, "jpeg-tiles"),
    "slides/C3L-00601-26_5x_pyramid.tif": ((5477, 5154), 1.977, "jpeg-tiles"),
    "slides/test3-DAPI.ndpi": ((3968, 4864), 0.2282, "openslide"),
    "slides/camelyon_lowres.dcm": ((1152, 700), 28.97, "openslide"),
}
PATCHES = (
    "glioma_TCGA-06-0174_GBM.png glioma_TCGA-HT-7470_LGG.png histolab_green_pen.png histolab_green_pen_no_tissue.png"
    " histolab_high_nuclei.png histolab_low_nuclei_fat.png histolab_medium_nuclei.png histolab_red_pen.png"
    " histolab_tcga_lung.png histoprep_slide_region.jpeg tiatoolbox_target.png torchstain_source.png"
    " torchstain_target.png nct_crc_ADI-AAQEFMRI.tif nct_crc_BACK-AAQSHYMA.tif nct_crc_DEB-ACHGAMCT.tif"
    " nct_crc_LYM-AATTSRNN.tif nct_crc_MUC-AAQTMGMA.tif nct_crc_MUS-AACVWIEK.tif nct_crc_NORM-AAAWMSFI.tif"
    " nct_crc_STR-AACRYYNQ.tif nct_crc_TUM-AACHEHDV.tif"
).split()


@pytest.mark.parametrize("name", REAL)
def test_real_slides_pass_the_check(name):
    dimensions, um_per_px, backend = REAL[name]
    facts = check_slide(Slide("s", "c", real_file(name)))
    assert facts.dimensions == dimensions and facts.backend == backend
    assert facts.um_per_px == pytest.approx((um_per_px, um_per_px), rel=1e-3)


@pytest.mark.parametrize("name", PATCHES)
def test_real_fields_need_their_scale_and_pass_with_it(name):
    path = real_file(f"he-patches/{name}")
    with pytest.raises(SlideError, match=rf"{NO_SCALE}|{PRINTED}"):
        check_slide(Slide("s", "c", path))
    facts = check_slide(Slide("s", "c", path, 0.5))
    assert facts.um_per_px == (0.5, 0.5) and facts.um_per_px_source == "sheet"
    assert facts.backend == ("tiffslide" if name.endswith(".tif") else "pillow")


@pytest.mark.parametrize("name", ["camelyon_lowres.dcm", "test3-DAPI.ndpi", "CMU-1-Small-Region.svs"])
def test_real_slides_with_flipped_bits_come_to_a_verdict(tmp_path, name):
    """Four of each file: flips in the first bytes, in the last, and anywhere. DICOM and NDPI have no writer here."""
    with open(real_file(f"slides/{name}"), "rb") as handle:
        content = handle.read()
    rng = np.random.default_rng(SEED)
    slides = []
    for trial, (start, end) in enumerate([(0, 2000), (0, 200), (len(content) - 2000, len(content)), (0, len(content))]):
        spoilt = bytearray(content)
        for at in rng.integers(start, end, 8):
            spoilt[at] ^= 1 << int(rng.integers(8))
        path = tmp_path / str(trial) / name
        path.parent.mkdir()
        path.write_bytes(bytes(spoilt))
        slides.append(Slide(f"s{trial}", "c", str(path)))
    for row in run_check(tmp_path, slides).values():
        assert row.status == OK or (row.status == FAILED and "Fix:" in row.reason), row
