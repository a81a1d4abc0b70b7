"""The check: facts on record, and every way in which a file can be unusable."""

from __future__ import annotations

import json
import os

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline.batches import run_batch
from pipeline.check import CheckStage, check_directories, check_slide, probe
from pipeline.contracts.batches import FAILED, OK, BatchRow
from pipeline.contracts.cohort import Slide
from pipeline.contracts.errors import FormatError, SlideError
from pipeline.contracts.slides import read_slide_facts
from pipeline.slide import open_slide
from tests.slide_files import half, noise, real_file, write_svs, write_tiff


@pytest.fixture
def base():
    return cv2.GaussianBlur(noise(400, 300, np.random.default_rng()), (0, 0), 2)


def run(slides, results):
    """One pass of the stage; rows by slide id."""
    stage = CheckStage({s.slide_id: s for s in slides}, results)
    upstream = {s.slide_id: BatchRow(s.slide_id, s.case_id, OK, "sheet") for s in slides}
    return {row.slide_id: row for row in run_batch(stage, upstream, results / "index.tsv")}


def test_facts_are_recorded_and_read_back(tmp_path, base):
    path = write_svs(tmp_path / "a.svs", [base, half(base)], mpp=0.32)
    row = run([Slide("s", "c", str(path))], tmp_path / "out")["s"]
    assert row.status == OK and "objective 40x" in row.reason
    facts = read_slide_facts(tmp_path / "out/slides/s.json")
    assert facts.dimensions == (400, 300) and facts.levels == ((400, 300, 1.0, 1.0), (200, 150, 2.0, 2.0))
    assert facts.um_per_px == (0.32, 0.32) and facts.um_per_px_source == "vendor" and facts.objective == 40
    assert facts.bounds == (0, 0, 400, 300) and facts.path == str(path) and facts.um_per_px_override is None
    assert facts.digest == row.digest and len(facts.warnings) == 1
    assert facts.identity["size"] == path.stat().st_size


def test_sheet_overrides_and_enters_the_digest(tmp_path, base):
    path = str(write_svs(tmp_path / "a.svs", [base]))
    first = run([Slide("s", "c", path)], tmp_path / "out")["s"]
    second = run([Slide("s", "c", path, um_per_px=0.3)], tmp_path / "out")["s"]
    facts = read_slide_facts(tmp_path / "out/slides/s.json")
    assert first.digest != second.digest
    assert facts.um_per_px == (0.3, 0.3) and facts.um_per_px_source == "sheet" and facts.um_per_px_override == 0.3
    assert "vendor says 0.25" in second.reason


def test_a_finished_slide_is_not_opened_again(tmp_path, base, monkeypatch):
    slides = [Slide("s", "c", str(write_svs(tmp_path / "a.svs", [base])))]
    first = run(slides, tmp_path / "out")["s"]
    monkeypatch.setattr("pipeline.check.check_slide", lambda *_: pytest.fail("opened again"))
    again = run(slides, tmp_path / "out")["s"]
    assert (again.status, again.digest, again.reason) == (first.status, first.digest, first.reason)


def test_a_replaced_or_moved_file_is_checked_again(tmp_path, base):
    path = write_svs(tmp_path / "a.svs", [base])
    first = run([Slide("s", "c", str(path))], tmp_path / "out")["s"]
    moved = tmp_path / "b.svs"
    os.rename(path, moved)
    second = run([Slide("s", "c", str(moved))], tmp_path / "out")["s"]
    assert second.digest == first.digest  # the same bytes: nothing after the check need be redone
    assert read_slide_facts(tmp_path / "out/slides/s.json").path == str(moved)
    write_svs(moved, [255 - base])
    assert run([Slide("s", "c", str(moved))], tmp_path / "out")["s"].digest != first.digest


def test_damaged_facts_are_made_again(tmp_path, base):
    slides = [Slide("s", "c", str(write_svs(tmp_path / "a.svs", [base])))]
    run(slides, tmp_path / "out")
    facts = tmp_path / "out/slides/s.json"
    want = facts.read_bytes()
    for damage in (want[:50], b"", want.replace(b'"format_version": 2', b'"format_version": 99'), b"{}"):
        facts.write_bytes(damage)
        with pytest.raises(FormatError, match=r"s\.json"):
            read_slide_facts(facts)
        assert run(slides, tmp_path / "out")["s"].status == OK
        assert facts.read_bytes() == want


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.995])
@pytest.mark.parametrize("kind", ["svs", "tif", "png", "jpg"])
def test_truncated_files_fail_and_the_batch_goes_on(tmp_path, base, kind, share):
    path = tmp_path / f"a.{kind}"
    if kind == "svs":
        write_svs(path, [base, half(base)])
    elif kind == "tif":
        write_tiff(path, [base, half(base)], compression="jpeg")
    else:
        Image.fromarray(base).save(path)
    good = tmp_path / "good.png"
    Image.fromarray(base).save(good)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    rows = run([Slide("bad", "c", str(path), 0.5), Slide("good", "c", str(good), 0.5)], tmp_path / "out")
    assert rows["bad"].status == FAILED and path.name in rows["bad"].reason and "Fix:" in rows["bad"].reason
    assert rows["good"].status == OK
    with pytest.raises(SlideError, match=r"Fix:"):
        read_slide_facts(tmp_path / "out/slides/bad.json")


def test_missing_tile_bytes_are_found_without_reading_pixels(tmp_path, base):
    """The last tile lies in the file's middle when the directory comes after it, as libtiff writes it."""
    path = write_tiff(tmp_path / "a.tif", [base])
    assert check_directories(path) == [(400, 300)]
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(SlideError, match=f"has {len(content) - 1}"):
        check_directories(path)


def test_a_sparse_tile_is_not_a_missing_one(tmp_path, base):
    path = write_tiff(tmp_path / "a.tif", [base])
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tag = tiff.pages[0].tags["TileByteCounts"]
        tag.overwrite([0, *tag.value[1:]])
        places = tiff.pages[0].tags["TileOffsets"]
        places.overwrite([10**9, *places.value[1:]])  # means nothing where the length is 0
    assert check_directories(path) == [(400, 300)]


def test_undecodable_corner_is_found(tmp_path, base):
    path = write_tiff(tmp_path / "a.tif", [base], compression="jpeg")
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[-1], tiff.pages[0].databytecounts[-1]
    content = bytearray(path.read_bytes())
    content[offset : offset + count] = b"\0" * count
    path.write_bytes(bytes(content))
    with open_slide(path) as reader, pytest.raises(SlideError, match="cannot be decoded"):
        probe(reader)


@pytest.mark.parametrize("name", ["a.svs", "a.png", "a.dcm"])
def test_empty_and_missing_files_say_so(tmp_path, name):
    slide = Slide("s", "c", str(tmp_path / name), 0.5)
    row = run([slide], tmp_path / "out")["s"]
    assert row.status == FAILED and name in row.reason and "slides.tsv" in row.reason
    (tmp_path / name).write_bytes(b"")
    row = run([slide], tmp_path / "out")["s"]
    assert row.status == FAILED and "0 bytes" in row.reason and name in row.reason


def test_facts_of_a_file_that_has_gone_do_not_stay(tmp_path, base):
    path = write_svs(tmp_path / "a.svs", [base])
    run([Slide("s", "c", str(path))], tmp_path / "out")
    path.unlink()
    assert run([Slide("s", "c", str(path))], tmp_path / "out")["s"].status == FAILED
    assert not (tmp_path / "out/slides/s.json").exists()


def test_an_unusable_slide_is_tried_again(tmp_path, base):
    path = write_tiff(tmp_path / "a.tif", [base], mpp=None)
    row = run([Slide("s", "c", str(path))], tmp_path / "out")["s"]
    assert row.status == FAILED and "um_per_px" in row.reason
    assert json.loads((tmp_path / "out/slides/s.json").read_text())["usable"] is False
    assert run([Slide("s", "c", str(path), 0.5)], tmp_path / "out")["s"].status == OK


def test_mirax_identity_sees_its_folder(tmp_path):
    from pipeline.check import slide_identity

    (tmp_path / "a.mrxs").write_bytes(b"index")
    alone = slide_identity(tmp_path / "a.mrxs")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "Data0001.dat").write_bytes(b"pixels")
    assert slide_identity(tmp_path / "a.mrxs") != alone


def test_real_truncated_dicom_and_svs(tmp_path):
    for name in ("camelyon_lowres.dcm", "CMU-1-Small-Region.svs", "test3-DAPI.ndpi"):
        with open(real_file(f"slides/{name}"), "rb") as handle:
            content = handle.read()
        whole, part = tmp_path / name, tmp_path / f"half-{name}"
        whole.write_bytes(content)
        assert check_slide(Slide("s", "c", str(whole))).dimensions[0] > 1000
        for share in (0.2, 0.7, 0.99):
            part.write_bytes(content[: int(len(content) * share)])
            with pytest.raises(SlideError, match=name):
                check_slide(Slide("s", "c", str(part)))
