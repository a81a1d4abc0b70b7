"""Imports of TRIDENT and CLAM features: resolution is checked, tiles get cells and parents, and nothing is silent."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from pipeline.bag_index import collect_bags
from pipeline.batches import run_batch
from pipeline.contracts import layout
from pipeline.contracts.batches import FAILED, OK, BatchRow
from pipeline.contracts.errors import SlideError
from pipeline.contracts.features import read_bag, read_index, verify_bag
from pipeline.contracts.files import read_table
from pipeline.interop.adopting import AdoptionStage
from pipeline.interop.lattice import find_lattice
from tests.imported_bags import SLUG, make_run
from workflow.cli.main import main


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bring(name, *more, encoder="uni"):
    return main(["import", "job", "--layout", name, "--encoder", encoder, *map(str, more)])


def table(encoder="uni"):
    rows = read_table(f"imported/{encoder}/import.tsv")
    return {(row["slide_id"], row["magnification"]): row for row in rows}


def trident_file(stem, coords, magnification=20, size=256, level0=40, encoder="uni", side=None, features=None, **attrs):
    """A feature file with the names and attributes that TRIDENT writes, and its older versions (no width, height)."""
    path = Path(f"job/{magnification}x_{size}px_0px_overlap/features_{encoder}/{stem}.h5")
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng()
    if features is None:
        features = rng.normal(size=(len(coords), 5)).astype(np.float32)
    with h5py.File(path, "w") as file:
        file["features"], file["coords"] = features, coords
        file["features"].attrs.update({"name": stem, "savetodir": "x", "encoder": "uni_v1"})
        side = size * level0 // magnification if side is None else side
        own = {"patch_size": size, "patch_size_level0": side, "level0_magnification": level0}
        own |= {"target_magnification": magnification, "overlap": 0, "name": stem, "savetodir": "x"}
        file["coords"].attrs.update(own | attrs)
    return features


def clam_file(stem, coords, patch_size=None, downsample=None):
    features = np.random.default_rng().normal(size=(len(coords), 5)).astype(np.float32)
    path = Path(f"job/h5_files/{stem}.h5")
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["features"], file["coords"] = features, np.asarray(coords, np.int32)
    if patch_size:
        Path("job/patches").mkdir(exist_ok=True)
        with h5py.File(f"job/patches/{stem}.h5", "w") as file:
            file["coords"] = np.asarray(coords, np.int32)
            file["coords"].attrs.update({"patch_size": patch_size, "patch_level": 1, "downsample": downsample})
    return features


def grid(side, columns=range(3, 7), rows=range(10, 13)):
    return np.array([(c * side, r * side) for r in rows for c in columns], np.int64)


def sheet(*rows):
    Path("slides.tsv").write_text(
        "slide_id\tcase_id\tpath\tum_per_px\texclude\n" + "".join("\t".join(r) + "\n" for r in rows)
    )


def test_a_run_comes_back_from_trident_as_it_went():
    """Features, corners, cells, parents and the exact um/px survive the way out and back."""
    bags = make_run(Path("results"))
    assert main(["export", "--layout", "trident", "--out", "job"]) == 0
    assert bring("trident", encoder=SLUG) == 0
    records = read_index(f"imported/{SLUG}/index.tsv")
    assert {(r.slide_id, r.magnification) for r in records} == set(bags)
    for record in records:
        bag, before = read_bag(record.path), bags[record.slide_id, record.magnification]
        for name in ("features", "coords", "cell", "parent"):
            np.testing.assert_array_equal(getattr(bag, name), getattr(before, name), err_msg=name)
        for name in ("um_per_px", "size_px", "level0_um_per_px", "level0_size_px", "savetodir", "slide_magnifications"):
            assert getattr(bag.source, name) == getattr(before.source, name), name
        assert bag.source.size_level0_px == pytest.approx(before.source.size_level0_px, rel=1e-12)
        assert bag.source.achieved_um_per_px == pytest.approx((record.um_per_px,) * 2, rel=1e-12)
        assert (bag.source.weights, bag.source.stain, record.weights) == ("imported", "unknown", "imported")
        assert "imported from TRIDENT" in bag.source.encoder_name and np.isnan(bag.tissue_fraction).all()
        assert record.digest == bag.source.digest
    rows = table(SLUG)
    assert {row["source"] for row in rows.values()} == {"feature file"} and not any(r["reason"] for r in rows.values())
    assert len({row["sha256"] for row in rows.values()}) == len(rows)


def test_a_file_of_trident_itself_has_nominal_resolution_and_it_is_said(capsys):
    fine = grid(512, range(4, 9), range(10, 15))
    features = trident_file("s1", fine)
    trident_file("s1", grid(1024, range(2, 5), range(5, 8)), magnification=10)
    assert bring("trident") == 0
    bag = read_bag("imported/uni/20x/s1.h5")
    np.testing.assert_array_equal(bag.features, features)
    np.testing.assert_array_equal(bag.cell, fine // 512)
    coarse = read_bag("imported/uni/10x/s1.h5")
    np.testing.assert_array_equal(coarse.cell[bag.parent], bag.cell // 2)
    assert bag.source.level0_um_per_px == (0.25, 0.25) and bag.source.level0_size_px == (0, 0)
    assert "nominal (40x on the objective)" in table()["s1", "20"]["reason"]
    out = capsys.readouterr().out
    assert "2 imported" in out and "{slug: uni, weights: imported, path: imported/uni}" in out


def test_the_sheet_the_file_and_then_the_name_of_the_objective_decide_the_resolution(capsys):
    """A tile of 512 level-0 px is 20x at 0.25 um/px, but not at 0.3: the name 40x on the objective hides it."""
    for stem in ("given", "file", "coarse", "left_out", "Alias"):
        trident_file(stem, grid(512))
    trident_file("stray", grid(512))
    Image.new("RGB", (4000, 7000)).save("file.png")
    sheet(
        ("given", "c1", "gone.svs", "0.2525", ""),
        ("file", "c1", "file.png", "", ""),
        ("coarse", "c2", "x.svs", "0.3", ""),
        ("left_out", "c2", "x.svs", "0.25", "torn"),
        ("renamed", "c3", "a/Alias.svs", "0.25", ""),
        ("none", "c4", "n.svs", "", ""),
    )
    assert bring("trident") == 0
    rows = table()
    assert (rows["given", "20"]["status"], rows["given", "20"]["source"]) == ("imported", "slide sheet")
    assert float(rows["given", "20"]["um_per_px"]) == pytest.approx(0.505)
    assert rows["given", "20"]["case_id"] == "c1"
    assert rows["file", "20"]["source"] == "nominal magnification", "a PNG says no um/px"
    assert "its tiles have 0.6 x 0.6 um/px (from the slide sheet), 20x asks for 0.5" in rows["coarse", "20"]["reason"]
    assert (rows["left_out", "20"]["status"], rows["left_out", "20"]["reason"]) == ("excluded", "torn")
    assert rows["renamed", "20"]["status"] == "imported", "found by the name of its file"
    assert rows["none", "20"]["status"] == "absent" and rows["stray", "20"]["status"] == "not in the sheet"
    assert {r.slide_id for r in read_index("imported/uni/index.tsv")} == {"given", "file", "renamed"}
    assert bring("trident", "--tolerance", 0.25) == 0
    assert table()["coarse", "20"]["status"] == "imported"


def test_the_slide_files_own_resolution(tmp_path):
    """By the slide that lies there: a TIFF with 0.23 um/px is more than 5 % off what 40x stands for."""
    import tifffile

    trident_file("s1", grid(512))
    pixels = np.random.default_rng().integers(0, 256, (600, 800, 3), dtype=np.uint8)
    per_cm = 1e4 / 0.23
    tifffile.imwrite(
        "s1.tif", pixels, tile=(256, 256), photometric="rgb", resolution=(per_cm, per_cm), resolutionunit="CENTIMETER"
    )
    sheet(("s1", "c1", "s1.tif", "", ""))
    assert bring("trident") == 1
    assert "0.46 x 0.46 um/px (from the slide file)" in table()["s1", "20"]["reason"]
    assert bring("trident", "--tolerance", 0.1) == 0
    assert read_bag("imported/uni/20x/s1.h5").source.level0_size_px == (800, 600)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda: trident_file("s1", grid(512), target_magnification=10), "attributes say 10x, its folder 20x"),
        (lambda: trident_file("s1", grid(512), side=700), "0.6836 x 0.6836 um/px"),
        (lambda: trident_file("s1", grid(256), overlap=128), "overlap by 128 px"),
        (lambda: trident_file("s1", np.array([[0, 0], [700, 1], [33, 500]])), "off every lattice"),
        (lambda: trident_file("s1", np.array([[0, 0], [512, 0], [0, 0]])), "1 tiles lie in the cell of another"),
        (lambda: trident_file("s1", np.zeros((0, 2), np.int64)), "holds no tile"),
        (lambda: trident_file("s1", grid(512), features=np.full((12, 3), np.nan, np.float32)), "not all finite"),
        (lambda: trident_file("s1", grid(512), features=np.zeros((11, 3), np.float32)), "do not fit each other"),
        (lambda: Path("job/20x_256px_0px_overlap/features_uni/s1.h5").write_bytes(b"\x89HDF\r\n"), "not readable"),
        (lambda: Path("job/20x_256px_0px_overlap/features_uni/s1.h5.lock").touch(), "s1.h5.lock lies beside it"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(spoil, expected):
    trident_file("s1", grid(512))
    trident_file("s2", grid(512))
    spoil()
    assert bring("trident") == 0, "the other slide came in"
    rows = table()
    assert rows["s1", "20"]["status"] == "refused" and expected in rows["s1", "20"]["reason"]
    assert rows["s2", "20"]["status"] == "imported"
    assert not Path("imported/uni/20x/s1.h5").exists()


def test_half_precision_and_a_kept_batch_axis_are_read():
    coords = grid(512)
    features = np.random.default_rng().normal(size=(1, len(coords), 4)).astype(np.float16)
    trident_file("s1", coords, features=features)
    assert bring("trident") == 0
    np.testing.assert_array_equal(read_bag("imported/uni/20x/s1.h5").features, features[0].astype(np.float32))


def test_clam_says_nothing_of_resolution_so_the_sheet_must(capsys):
    coords = grid(512)
    features = clam_file("s1", coords, patch_size=256, downsample=(2.0, 2.0))
    assert bring("clam", "--magnification", 20) == 1
    assert "nothing says its um/px (no slide sheet was given)" in table()["s1", "20"]["reason"]
    sheet(("s1", "c1", "gone.svs", "0.252", ""))
    assert bring("clam") == 1
    assert "CLAM stores none" in capsys.readouterr().err
    assert bring("clam", "--magnification", 20) == 0
    bag = read_bag("imported/uni/20x/s1.h5")
    np.testing.assert_array_equal(bag.features, features)
    np.testing.assert_array_equal(bag.cell, coords // 512)
    assert bag.source.achieved_um_per_px == pytest.approx((0.504, 0.504)) and bag.source.size_px == 256
    assert bring("clam", "--magnification", 10) == 1
    assert "10x asks for 1" in table()["s1", "10"]["reason"]


def test_clam_steps_of_a_truncated_downsample_are_found_out():
    """A level at 3.999 is stepped by 3: tiles of 256 x 3.999 px stand 768 px apart and overlap."""
    clam_file("s1", grid(768), patch_size=256, downsample=(3.999, 3.999))
    sheet(("s1", "c1", "gone.svs", "0.125", ""))
    assert bring("clam", "--magnification", 20) == 1
    assert "off every lattice" in table()["s1", "20"]["reason"]


def test_clam_contours_that_start_anywhere_need_a_word():
    """Two pieces of tissue, each on a lattice of its own: refused, or put into the nearest cells when asked."""
    two = np.concatenate([grid(512), grid(512, range(20, 22), range(30, 32)) + np.array([200, -90])])
    clam_file("s1", two)
    sheet(("s1", "c1", "gone.svs", "0.25", ""))
    sizes = ("--size-px", 256, "--size-level0-px", 512)
    assert bring("clam", "--magnification", 20) == 1
    assert "nothing says how large its patches are" in table()["s1", "20"]["reason"]
    assert bring("clam", "--magnification", 20, *sizes) == 1
    assert "--off-lattice nearest" in table()["s1", "20"]["reason"]
    assert bring("clam", "--magnification", 20, *sizes, "--off-lattice", "nearest") == 0
    assert "nearest cells, up to 200 level-0 px away" in table()["s1", "20"]["reason"]
    assert len(np.unique(read_bag("imported/uni/20x/s1.h5").cell, axis=0)) == len(two)


@pytest.mark.parametrize("pitch", [(597.333, 597.333), (511.0, 514.0), (443.564, 446.215)])
def test_lattice_of_any_pitch_and_origin(pitch):
    """Rounded corners of a random set of cells give the same steps between tiles as the cells."""
    rng = np.random.default_rng()
    cell = np.unique(rng.integers(0, 90, (60, 2)), axis=0)
    for origin in ((0, 0), (137, 23)):
        found = find_lattice(np.rint(origin + cell * np.array(pitch)).astype(np.int64), pitch)
        np.testing.assert_array_equal(found.cell - found.cell.min(axis=0), cell - cell.min(axis=0))
    stepped = np.array([(c * 597, r * 597) for c in range(60) for r in (0, 3)])  # a tool that cuts 597.33 to 597
    assert len(np.unique(find_lattice(stepped, (597.333, 597.333)).cell, axis=0)) == len(stepped)


def test_lattices_that_do_not_nest_give_no_parents():
    trident_file("s1", grid(512, range(4, 8), range(4, 8)))
    trident_file("s1", grid(1024, range(2, 4), range(2, 4)) + 300, magnification=10)
    assert bring("trident") == 0
    assert (read_bag("imported/uni/20x/s1.h5").parent == -1).all()


def test_which_run_of_a_job_folder_is_meant(capsys):
    trident_file("s1", grid(512))
    trident_file("s1", grid(448), size=224)
    assert bring("trident") == 1
    assert "two runs hold features at 20x" in capsys.readouterr().err
    assert bring("trident", encoder="un") == 1
    assert "did you mean 'uni'?; encoders here: uni" in capsys.readouterr().err
    assert bring("trident", "--magnification", 5) == 1
    assert "no features of 'uni' at 5x" in capsys.readouterr().err
    Path("imported/uni").mkdir(parents=True)
    Path("imported/uni/notes.txt").write_text("mine")
    assert main(["import", "job", "--layout", "trident", "--encoder", "uni"]) == 1


def test_a_run_adopts_imported_bags_without_a_slide_and_names_what_is_missing():
    trident_file("s1", grid(512))
    trident_file("bad", grid(512), side=700)
    assert bring("trident") == 0
    rows = {s: BatchRow(s, "c", OK, "cohort") for s in ("s1", "bad", "never")}
    stage = AdoptionStage("results", "uni", "imported/uni")
    adopted = {row.slide_id: row for row in run_batch(stage, rows, "results/features/uni/_batches/b.tsv")}
    assert adopted["s1"].status == OK
    assert adopted["bad"].status == FAILED and "20x refused: its tiles have" in adopted["bad"].reason
    assert adopted["never"].status == FAILED and "the import did not list it" in adopted["never"].reason
    (record,) = collect_bags("results", "uni", adopted.values())
    assert verify_bag(record.path, adopted["s1"].digest) and record.weights == "imported"
    again = run_batch(AdoptionStage("results", "uni", "imported/uni"), rows, "results/features/uni/_batches/b.tsv")
    assert {row.slide_id: row.seconds for row in again}["s1"] == 0, "found finished"

    before = adopted["s1"].digest
    trident_file("s1", grid(512))  # other features: another digest, so that the run takes the new file
    assert bring("trident") == 0
    (row,) = run_batch(AdoptionStage("results", "uni", "imported/uni"), {"s1": rows["s1"]}, "results/b.tsv")
    assert row.digest != before
    np.testing.assert_array_equal(
        read_bag(layout.features("results", "uni", 20, "s1")).features, read_bag("imported/uni/20x/s1.h5").features
    )


def test_a_bag_damaged_after_its_import_is_not_adopted():
    trident_file("s1", grid(512))
    assert bring("trident") == 0
    path = Path("imported/uni/20x/s1.h5")
    path.write_bytes(path.read_bytes()[:-800])
    (row,) = run_batch(
        AdoptionStage("results", "uni", "imported/uni"), {"s1": BatchRow("s1", "c", OK, "cohort")}, "b.tsv"
    )
    assert row.status == FAILED and "damaged or of another import" in row.reason
    with pytest.raises(SlideError, match="no imported features"):
        AdoptionStage("results", "uni", "imported/uni").digest(BatchRow("x", "c", OK, "cohort"))
