"""Directories of a TIFF, as another library reads them, and NDPI's places beyond 4 GiB."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import tifffile

from pipeline.tiff_directories import NDPI_MARK, Damaged, check_image, read_directories
from tests.bad_slides.sound import SOUND, write_sound
from tests.slide_files import noise

TIFFS = [kind for kind, (ending, _) in SOUND.items() if ending in ("svs", "tif")]


def directories(path):
    with open(path, "rb") as handle:
        return read_directories(handle, path.stat().st_size)


@pytest.mark.parametrize("kind", TIFFS)
def test_sound_files_are_read_as_tifffile_reads_them(tmp_path, kind):
    path = write_sound(kind, tmp_path / "a.tif")
    with tifffile.TiffFile(path) as tiff:
        pages = [part for page in tiff.pages for part in (page, *(page.pages or ()))]
        found = directories(path)
        assert [d.size for d in found] == [(p.imagewidth, p.imagelength) for p in pages]
        for directory, page in zip(found, pages, strict=True):
            check_image(directory, path.stat().st_size)
            tags = (324, 325) if page.is_tiled else (273, 279)
            np.testing.assert_array_equal(directory.values[tags[0]], page.dataoffsets)
            np.testing.assert_array_equal(directory.values[tags[1]], page.databytecounts)


def test_big_endian_and_planar_files_are_sound(tmp_path):
    rng = np.random.default_rng()
    for name, options in (("a", {"byteorder": ">"}), ("b", {"byteorder": ">", "bigtiff": True})):
        with tifffile.TiffWriter(tmp_path / name, **options) as writer:
            writer.write(
                noise(100, 70, rng).transpose(2, 0, 1), photometric="rgb", planarconfig="separate", tile=(32, 32)
            )
        (found,) = directories(tmp_path / name)
        assert found.size == (100, 70) and len(found.values[324]) == 3 * 4 * 3
        check_image(found, (tmp_path / name).stat().st_size)


def test_what_is_no_tiff_has_no_directories(tmp_path):
    for content in (b"", b"II", b"II*\0", b"\x89PNG\r\n\x1a\n" + bytes(100), b"II\x09\0" + bytes(100)):
        (tmp_path / "a").write_bytes(content)
        assert directories(tmp_path / "a") == []


def ndpi(start: int, next_at: int, strip_at: int, strip_bytes: int) -> bytes:
    """A directory of one strip as NDPI has it: 32-bit places, an 8-byte offset of the next."""
    entries = [(256, 4, 50_000), (257, 4, 40_000), (258, 4, 8), (259, 4, 7), (273, 4, strip_at % 2**32),
               (277, 4, 3), (278, 4, 40_000), (279, 4, strip_bytes % 2**32), (NDPI_MARK, 4, 1)]  # fmt: skip
    table = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return struct.pack("<H", len(entries)) + table + struct.pack("<Q", next_at)


def test_ndpi_beyond_4_gib(tmp_path):
    """A sparse file of 5 GiB: its directories lie beyond what a classic TIFF can reach."""
    path, first, second = tmp_path / "a.ndpi", 5 * 2**30, 5 * 2**30 + 4096
    with open(path, "wb") as handle:
        handle.write(b"II*\0" + struct.pack("<Q", first))
        handle.seek(first)
        handle.write(ndpi(first, second, 2**32 + 100, 2**29))
        handle.seek(second)
        handle.write(ndpi(second, 0, 4096, 2**29))
    found = directories(path)
    assert [d.size for d in found] == [(50_000, 40_000)] * 2
    for directory in found:
        check_image(directory, path.stat().st_size)
    with open(path, "r+b") as handle:
        handle.seek(first)
        handle.write(ndpi(first, first, 100, 2**29))
    with pytest.raises(Damaged, match="circle"):
        directories(path)
