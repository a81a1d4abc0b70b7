"""Slides at an address: the same pixels, facts and features as on the disk, and errors that name address and fix."""

from __future__ import annotations

import zipfile

import fsspec
import numpy as np
import pytest

from pipeline import slide_backends
from pipeline.check import check_slide, slide_identity
from pipeline.contracts import layout
from pipeline.contracts.batches import FAILED, OK
from pipeline.contracts.cohort import Slide, read_slides
from pipeline.contracts.errors import MachineError, SlideError
from pipeline.contracts.features import read_bag
from pipeline.contracts.slide_files import is_remote, local_path
from pipeline.slide import open_slide
from tests.bad_slides import stages
from tests.bad_slides.corpus import corpus, sound_bytes
from tests.bad_slides.sound import SOUND
from workflow.cli import doctor


@pytest.fixture
def store():
    """Puts bytes at an address in memory."""
    system = fsspec.filesystem("memory")

    def put(name: str, content: bytes) -> str:
        system.pipe_file(f"/slides/{name}", content)
        return f"memory://slides/{name}"

    yield put
    system.rm("/slides", recursive=True)


def both(store, tmp_path, kind: str) -> tuple[str, str]:
    """The same slide on the disk and in memory."""
    name = f"{kind}.{SOUND[kind][0]}"
    (tmp_path / name).write_bytes(sound_bytes(kind))
    return str(tmp_path / name), store(name, sound_bytes(kind))


@pytest.mark.parametrize(
    ("path", "remote"),
    [
        ("s3://bucket/a.svs", True), ("zip://a.tif::/data/b.zip", True), ("simplecache::https://host/a.svs", True),
        ("memory://a.tif", True),
        ("slides/a.svs", False), ("/data/a.svs", False), ("C:\\a.svs", False), ("a:b.svs", False),
    ],
)  # fmt: skip
def test_what_is_remote(path, remote):
    assert is_remote(path) == remote


def test_a_file_url_is_a_path(tmp_path):
    assert local_path("file:///data/a b.svs") == "/data/a b.svs" and local_path("file.svs") == "file.svs"
    (tmp_path / "s.tsv").write_text("slide_id\tcase_id\tpath\na\tc\tfile:///data/a.svs\nb\tc\ts3://x/y.svs\n")
    assert [slide.path for slide in read_slides(tmp_path / "s.tsv")] == ["/data/a.svs", "s3://x/y.svs"]


@pytest.mark.parametrize("kind", SOUND)
def test_pixels_and_facts_equal_those_of_the_local_file(store, tmp_path, kind):
    local, remote = both(store, tmp_path, kind)
    with open_slide(local, 0.5) as ours, open_slide(remote, 0.5) as theirs:
        assert (ours.levels, ours.um_per_px, ours.objective) == (theirs.levels, theirs.um_per_px, theirs.objective)
        for level, size in enumerate(ours.levels):
            np.testing.assert_array_equal(
                ours.read(level, -5, -7, size.width + 9, size.height + 11),
                theirs.read(level, -5, -7, size.width + 9, size.height + 11),
            )
    facts, wanted = check_slide(Slide("s", "c", remote, 0.5)), check_slide(Slide("s", "c", local, 0.5))
    assert facts.backend == ("pillow" if kind in ("png", "jpg") else "tiffslide") and facts.path == remote
    assert (facts.vendor, facts.dimensions, facts.um_per_px) == (wanted.vendor, wanted.dimensions, wanted.um_per_px)


def test_features_equal_those_of_the_local_file(store, tmp_path):
    local, remote = both(store, tmp_path, "aperio-ycc")
    slides = [Slide("local", "c", local), Slide("remote", "c", remote)]
    stages.run(stages.lay_out(tmp_path / "out", slides), stain="none")
    assert [row.status for row in stages.index(tmp_path / "out", "features").values()] == [OK, OK]
    for magnification in (20, 10):
        a, b = (
            read_bag(layout.features(tmp_path / "out/results", "tiny", magnification, slide.slide_id))
            for slide in slides
        )
        assert len(a.features) > 5
        np.testing.assert_array_equal(a.features, b.features)
        np.testing.assert_array_equal(a.cell, b.cell)


def test_a_file_in_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("in/a.tif", sound_bytes("deflate"))
    path = f"zip://in/a.tif::{tmp_path / 'a.zip'}"
    assert check_slide(Slide("s", "c", path)).dimensions == (384, 320)


def test_identity_follows_the_content(store):
    url = store("a.tif", sound_bytes("deflate"))
    first = slide_identity(url)
    assert first == slide_identity(url) and first["size"] == len(sound_bytes("deflate"))
    store("a.tif", sound_bytes("lzw"))
    assert slide_identity(url)["quick_hash"] != first["quick_hash"]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("memory://slides/none.tif", "there is no such file"),
        ("s3://bucket/a.svs", "pip install s3fs"),
        ("nowhere://a.svs", "Protocol not known: nowhere"),
        ("zip://a.tif::/no/such.zip", "no such file"),
    ],
)
def test_what_cannot_be_had_names_address_and_fix(tmp_path, url, says):
    if url.startswith("s3"):
        with pytest.raises(ImportError):
            import s3fs  # noqa: F401
    stages.run(stages.lay_out(tmp_path, [Slide("a", "c", url)]), ["check"])
    row = stages.index(tmp_path, "check")["a"]
    assert row.status == FAILED and url in row.reason and says in row.reason and "Fix:" in row.reason


def test_spoilt_remote_slides_have_a_reason(store, tmp_path):
    chosen = [
        m for m in corpus() if m.name in ("deflate/cut-0.7", "lzw/chain-to-itself", "aperio-rgb/empty", "png/text")
    ]
    assert len(chosen) == 4
    slides = []
    for mutant in chosen:
        path = mutant.write(tmp_path, 0)
        slides.append(Slide(mutant.slide_id, "c", store(path.name, path.read_bytes()), mutant.um_per_px))
    stages.run(stages.lay_out(tmp_path / "out", slides), ["check"])
    for row in stages.index(tmp_path / "out", "check").values():
        assert row.status == FAILED and "memory://" in row.reason and "Fix:" in row.reason, row


def test_a_lost_connection_is_tried_again_and_is_no_tiles_fault(store, monkeypatch):
    url, fails = store("a.tif", sound_bytes("deflate")), [True]
    monkeypatch.setattr(slide_backends.time, "sleep", lambda seconds: None)
    with open_slide(url) as slide:
        read = slide._backend._slide.read_region

        def read_region(*args: object, **options: object) -> np.ndarray:
            if fails and fails.pop():
                raise TimeoutError("gone")
            return read(*args, **options)

        monkeypatch.setattr(slide._backend._slide, "read_region", read_region)
        wanted = slide.read(0, 0, 0, 50, 40)
        fails[:] = [True]
        np.testing.assert_array_equal(slide.read(0, 0, 0, 50, 40), wanted)
        fails[:] = [True] * 9
        with pytest.raises(MachineError, match=r"memory://.*connection failed"):
            slide.read(0, 0, 0, 50, 40)


def test_a_remote_slide_is_not_missing_and_not_cut_off_like_a_path():
    with pytest.raises(SlideError, match=r"s3://bucket/folder/a\.svs"):
        open_slide("s3://bucket/folder/a.svs")


def test_doctor_looks_up_one_slide_of_each_protocol(store):
    url = store("a.tif", sound_bytes("deflate"))
    slides = [Slide("a", "c", url), Slide("b", "c", "memory://slides/none.tif"), Slide("d", "c", "s3://bucket/a.svs")]
    found = {finding.mark: finding.text for finding in doctor._remote(slides)}
    assert "memory slides: a is there" in found["ok"] and "pip install s3fs" in found["fail"] and len(found) == 2
