"""The directories of a TIFF as they stand in the file: read within bounds, whatever a damaged file says.

Slide libraries abort the process, turn in circles or take memory without limit on some damaged directories, so a new
slide's are looked through here before any library opens it. References: TIFF 6.0 (Adobe, 1992), sections 2, 8 and 15;
BigTIFF (https://libtiff.gitlab.io/libtiff/specification/bigtiff.html); for Hamamatsu's NDPI, whose directories end in
an 8-byte offset, https://openslide.org/formats/hamamatsu/.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

MAX_SIDE_PX = 2_000_000  #: of an image: 10 cm at 0.05 um/px
MAX_TILE_PX = 2**14  #: side of a tile
MAX_STRIP_BYTES = 2**31  #: decoded; a strip is decoded whole
MAX_DIRECTORIES = 10_000
MAX_ENTRIES = 4096
MAX_VALUES = 50_000_000

_FORMS = {
    1: "u1",
    2: "u1",
    3: "u2",
    4: "u4",
    6: "i1",
    7: "u1",
    8: "i2",
    9: "i4",
    13: "u4",
    16: "u8",
    17: "i8",
    18: "u8",
}
_WIDTH, _LENGTH, _BITS, _COMPRESSION, _SAMPLES, _PLANAR = 256, 257, 258, 259, 277, 284
_STRIP_OFFSETS, _ROWS_PER_STRIP, _STRIP_COUNTS = 273, 278, 279
_TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_COUNTS, _SUBIFDS = 322, 323, 324, 325, 330
NDPI_MARK = 65420
_READ = (_WIDTH, _LENGTH, _BITS, _COMPRESSION, _SAMPLES, _PLANAR, _STRIP_OFFSETS, _ROWS_PER_STRIP, _STRIP_COUNTS,
         _TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_COUNTS, _SUBIFDS, NDPI_MARK)  # fmt: skip
_OLD_JPEG = 6  # places its one stream by tags of its own
_PLAIN = 1
_SEPARATE = 2
_4_GIB = 2**32


class Damaged(Exception):
    """What is wrong with a file's directories."""


@dataclass(frozen=True)
class Directory:
    """One image's entries: int64 values by tag number."""

    number: int
    values: dict[int, np.ndarray]

    def one(self, tag: int, default: int = 0) -> int:
        found = self.values.get(tag)
        return int(found[0]) if found is not None and len(found) else default

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.one(_WIDTH), self.one(_LENGTH)


def read_directories(handle: BinaryIO, size: int) -> list[Directory]:
    """Directories of a TIFF of `size` bytes, those of SubIFDs behind the one that names them; none if it is no TIFF.

    Raises
    ------
    Damaged : a directory or its values lie beyond the file, the chain turns in a circle or does not end
    """
    order = {b"II": "<", b"MM": ">"}.get(_read(handle, 0, 2))
    if order is None or size < 8:
        return []
    version = struct.unpack(order + "H", _read(handle, 2, 2))[0]
    if version not in (42, 43):
        return []
    reader = _Reader(handle, size, order, version == 43)
    return list(reader.chain())


def _read(handle: BinaryIO, at: int, number: int) -> bytes:
    handle.seek(at)
    return handle.read(number)


class _Reader:
    def __init__(self, handle: BinaryIO, size: int, order: str, big: bool) -> None:
        self._handle, self._size, self._order, self._big = handle, size, order, big
        self._seen: set[int] = set()

    def chain(self) -> Iterator[Directory]:
        # A classic TIFF has 32-bit offsets: a larger file can only be an NDPI.
        first, form = (8, "Q") if self._big else (4, "Q" if self._size > _4_GIB else "I")
        at = self._number(first, form)
        if not at:
            raise Damaged("it names no image")
        while at:
            directory, at = self._directory(at)
            yield directory
            for child in directory.values.get(_SUBIFDS, ()):
                yield self._directory(int(child))[0]

    def _bytes(self, at: int, number: int) -> bytes:
        content = _read(self._handle, at, number) if at + number <= self._size else b""
        if len(content) < number:
            raise Damaged(
                f"image {len(self._seen) - 1} is described up to byte {at + number}, the file has {self._size}"
                if self._seen
                else f"its first image is described at byte {at}, the file has {self._size}"
            )
        return content

    def _number(self, at: int, form: str) -> int:
        return struct.unpack(self._order + form, self._bytes(at, struct.calcsize(form)))[0]

    def _directory(self, at: int) -> tuple[Directory, int]:
        """The directory at a byte of the file, and where the next one lies (0: nowhere)."""
        if at in self._seen:
            raise Damaged(f"its directories turn in a circle at byte {at}")
        self._seen.add(at)
        if len(self._seen) > MAX_DIRECTORIES:
            raise Damaged(f"it has more than {MAX_DIRECTORIES} directories")
        counter, width, offset = ("Q", 20, "Q") if self._big else ("H", 12, "I")
        number = self._number(at, counter)
        if not 0 < number <= MAX_ENTRIES:
            raise Damaged(f"image {len(self._seen) - 1} has {number} entries")
        start = at + struct.calcsize(counter)
        table = self._bytes(start, number * width)
        heads = [struct.unpack_from(self._order + "HH" + offset, table, k * width) for k in range(number)]
        ndpi = any(tag == NDPI_MARK for tag, _, _ in heads) and not self._big
        values = {
            tag: self._values(kind, count, table[k * width + 4 + struct.calcsize(offset) : (k + 1) * width], at * ndpi)
            for k, (tag, kind, count) in enumerate(heads)
            if tag in _READ and kind in _FORMS
        }
        after = self._number(start + number * width, "Q" if ndpi else offset)
        return Directory(len(self._seen) - 1, values), after

    def _values(self, kind: int, count: int, room: bytes, below: int) -> np.ndarray:
        """int64 [count], from the entry's own `room` or from where it points.

        `below` is 0, or where an NDPI's directory lies: its values are the nearest before it with these low 32 bits.
        """
        form = np.dtype(self._order + _FORMS[kind])
        if count > MAX_VALUES:
            raise Damaged(f"image {len(self._seen) - 1} has an entry of {count} values")
        length = count * form.itemsize
        if length > len(room):
            at = struct.unpack(self._order + ("Q" if self._big else "I"), room)[0]
            at = below - (below - at) % _4_GIB if below else at
            room = self._bytes(at, length)
        return np.frombuffer(room[:length], form).astype(np.int64)


def check_image(directory: Directory, file_size: int) -> None:
    """Look whether an image's size, tiles and their places can be.

    Raises
    ------
    Damaged : no size or an impossible one, fewer tiles or strips than the size needs, or some beyond the file
    """
    name, (width, height) = f"image {directory.number}", directory.size
    if not (0 < width <= MAX_SIDE_PX and 0 < height <= MAX_SIDE_PX):
        raise Damaged(f"{name} is {width} x {height} px")
    tiled = any(tag in directory.values for tag in (_TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS))
    needed = _tiles(directory, name) if tiled else _strips(directory, name)
    if directory.one(_PLANAR) == _SEPARATE:
        needed *= directory.one(_SAMPLES, 1)
    tags = (_TILE_OFFSETS, _TILE_COUNTS) if tiled else (_STRIP_OFFSETS, _STRIP_COUNTS)
    offsets, counts = (directory.values.get(tag, np.zeros(0, np.int64)) for tag in tags)
    what = "tiles" if tiled else "strips"
    if directory.one(_COMPRESSION, 1) == _OLD_JPEG:
        return
    if min(len(offsets), len(counts)) < needed:
        raise Damaged(f"{name} lists {min(len(offsets), len(counts))} {what}, its size needs {needed}")
    if (offsets < 0).any() or (counts < 0).any():
        raise Damaged(f"{name} has {what} at impossible places")
    stored = (counts[:needed] > 0) & (offsets[:needed] > 0)
    if not stored.any():
        raise Damaged(f"{name} stores none of its {needed} {what}")
    last = int((offsets[:needed] + counts[:needed])[stored].max())
    if tiled and directory.one(_COMPRESSION, 1) == _PLAIN:
        full = directory.one(_TILE_WIDTH) * directory.one(_TILE_LENGTH) * _pixel_bits(directory) // 8
        if int(counts[:needed][stored].min()) < full:
            raise Damaged(f"{name} stores {int(counts[:needed][stored].min())} bytes of a tile that needs {full}")
    if last > file_size:
        raise Damaged(f"{name} needs {last} bytes, the file has {file_size}")


def _tiles(directory: Directory, name: str) -> int:
    """Tiles that the image's size needs."""
    sides = directory.one(_TILE_WIDTH), directory.one(_TILE_LENGTH)
    if not all(0 < side <= MAX_TILE_PX for side in sides):
        raise Damaged(f"{name} has tiles of {sides[0]} x {sides[1]} px")
    across, down = (-(-whole // side) for whole, side in zip(directory.size, sides, strict=True))
    return across * down


def _pixel_bits(directory: Directory) -> int:
    """Bits of a pixel within one tile or strip."""
    samples = 1 if directory.one(_PLANAR) == _SEPARATE else directory.one(_SAMPLES, 1)
    return samples * directory.one(_BITS, 1)


def _strips(directory: Directory, name: str) -> int:
    width, height = directory.size
    rows = min(directory.one(_ROWS_PER_STRIP, height), height)
    if rows <= 0:
        raise Damaged(f"{name} has strips of {rows} rows")
    whole = NDPI_MARK not in directory.values  # whose one strip per level has marks to start from within
    if whole and width * rows * _pixel_bits(directory) // 8 > MAX_STRIP_BYTES:
        raise Damaged(f"{name} has strips of {width} x {rows} px, too large to be decoded")
    return -(-height // rows)
