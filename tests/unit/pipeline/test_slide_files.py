"""The files that a slide consists of."""

from pathlib import Path

import pytest

from pipeline.check import slide_identity
from pipeline.contracts.files import file_identity
from pipeline.contracts.slide_files import files_of_slide


def lay(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def names(path):
    found = files_of_slide(path)
    assert found[0] == Path(path)
    return [file.relative_to(found[0].parent).as_posix() for file in found[1:]]


@pytest.mark.parametrize("ending", ["svs", "tif", "ndpi", "png", "SVS", "czi"])
def test_a_plain_slide_is_one_file_and_its_folder_is_not_read(tmp_path, ending, monkeypatch):
    path = lay(tmp_path, f"a.{ending}", "a.dat", f"b.{ending}", "a/x.dat") / f"a.{ending}"
    monkeypatch.setattr(Path, "iterdir", lambda folder: pytest.fail("a folder was read"))
    assert files_of_slide(str(path)) == [path]
    assert slide_identity(path) == file_identity(path), "digests of plain slides must stay as they were"


def test_mirax_has_a_folder(tmp_path):
    lay(tmp_path, "a.mrxs", "a/Slidedat.ini", "a/Data1.dat", "b/Data1.dat", "a.dat")
    assert names(tmp_path / "a.mrxs") == ["a/Data1.dat", "a/Slidedat.ini"]
    lay(tmp_path, "alone.MRXS")
    assert names(tmp_path / "alone.MRXS") == []


def test_hamamatsu_names_its_parts(tmp_path):
    lay(tmp_path, "s 1.jpg", "s(1,0).jpg", "macro.jpg", "s.opt", "s.txt", "out/x.jpg", "ü.jpg")
    (tmp_path / "s.vms").write_text(
        "[Virtual Microscope Specimen]\nNoLayers=1\nImageFile=s 1.jpg\r\nImageFile(1,0)= s(1,0).jpg\n"
        f"MacroImage=macro.jpg\nOptimisationFile=s.opt\nMapFile=gone.jpg\nAuthCode=\nX=.\nY=..\nL={'ü' * 200}\n"
        "U=ü.jpg\nZ=out/x.jpg\nQ=s.vms\n",
        encoding="utf-8",
    )
    assert names(tmp_path / "s.vms") == ["macro.jpg", "s 1.jpg", "s(1,0).jpg", "s.opt", "ü.jpg"]


def test_hamamatsu_without_a_part_that_exists_takes_its_siblings(tmp_path):
    lay(tmp_path, "s.ngr", "s.txt", "t.ngr", "s.d/x")
    (tmp_path / "s.vmu").write_bytes(b"\xff\xfe\0ImageFile=\0gone\n")
    assert names(tmp_path / "s.vmu") == ["s.ngr", "s.txt"]


def test_dicom_levels_lie_in_one_folder(tmp_path):
    lay(tmp_path, "x/1.dcm", "x/0.DCM", "x/note.txt", "y/1.dcm")
    assert names(tmp_path / "x/1.dcm") == ["0.DCM"]
    assert names(tmp_path / "y/1.dcm") == []


@pytest.mark.parametrize("name", ["a.svs", "a.mrxs", "a.vms", "a.dcm", "nowhere/a.dcm"])
def test_a_slide_that_is_not_there_has_no_identity(tmp_path, name):
    with pytest.raises(OSError):
        slide_identity(tmp_path / name)


@pytest.mark.parametrize(("slide", "part"), [("a.mrxs", "a/1.dat"), ("a.vms", "a.jpg"), ("a.dcm", "b.dcm")])
def test_the_identity_sees_a_changed_part(tmp_path, slide, part):
    lay(tmp_path, slide)
    alone = slide_identity(tmp_path / slide)
    lay(tmp_path, part)
    whole = slide_identity(tmp_path / slide)
    (tmp_path / part).write_bytes(b"half")
    assert alone != whole != slide_identity(tmp_path / slide)
    assert "parts" not in alone
