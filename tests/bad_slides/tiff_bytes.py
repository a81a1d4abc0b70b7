"""TIFF directories as bytes to be spoilt: where each entry lies, for classic and BigTIFF, little-endian."""

from __future__ import annotations

import struct
from dataclasses import dataclass

TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_FORMAT = {1: "B", 2: "c", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}


@dataclass(frozen=True)
class Entry:
    """A directory entry: `at` is where its 12 or 20 bytes lie, `values_at` where its values do."""

    tag: int
    type: int
    count: int
    at: int
    values_at: int


@dataclass(frozen=True)
class Directory:
    """`at` is where the directory lies, `next_at` where the offset of the next one is stored."""

    at: int
    entries: dict[int, Entry]
    next_at: int


class TiffBytes:
    """The content of a TIFF file with setters that know nothing of what is legal."""

    def __init__(self, content: bytes) -> None:
        assert content[:2] == b"II"
        self.content = bytearray(content)
        self.big = content[2] == 43
        self.offset = "<Q" if self.big else "<I"
        self.first_at = 8 if self.big else 4
        self.directories: list[Directory] = []
        at = self._get(self.offset, self.first_at)
        while at:
            directory = self._directory(at)
            self.directories.append(directory)
            at = self._get(self.offset, directory.next_at)

    def _get(self, form: str, at: int) -> int:
        return struct.unpack_from(form, self.content, at)[0]

    def _directory(self, at: int) -> Directory:
        counter, step = ("<Q", 20) if self.big else ("<H", 12)
        number, start = self._get(counter, at), at + struct.calcsize(counter)
        entries = [self._entry(start + k * step) for k in range(number)]
        return Directory(at, {entry.tag: entry for entry in entries}, start + number * step)

    def _entry(self, at: int) -> Entry:
        tag, kind = struct.unpack_from("<HH", self.content, at)
        count = self._get(self.offset, at + 4)
        inline_at = at + (12 if self.big else 8)
        fits = count * TYPE_BYTES[kind] <= (8 if self.big else 4)
        return Entry(tag, kind, count, at, inline_at if fits else self._get(self.offset, inline_at))

    def values(self, tag: int, page: int = 0) -> list[int]:
        entry = self.directories[page].entries[tag]
        return list(struct.unpack_from(f"<{entry.count}{_FORMAT[entry.type]}", self.content, entry.values_at))

    def set_value(self, tag: int, value: int, index: int = 0, page: int = 0) -> None:
        """Set one value; a too large one keeps its low bits."""
        entry = self.directories[page].entries[tag]
        width = TYPE_BYTES[entry.type]
        self.set_bytes(entry.values_at + index * width, (value % (1 << (8 * width))).to_bytes(width, "little"))

    def set_wide(self, tag: int, value: int, page: int = 0) -> None:
        """Make a single value a 32-bit one (64-bit in a BigTIFF) so that any number fits."""
        entry = self.directories[page].entries[tag]
        self.set_bytes(entry.at + 2, struct.pack("<H", 16 if self.big else 4))
        self.set_bytes(entry.at + 4, struct.pack(self.offset, 1))
        self.set_bytes(entry.at + (12 if self.big else 8), struct.pack(self.offset, value))

    def set_type(self, tag: int, kind: int, page: int = 0) -> None:
        self.set_bytes(self.directories[page].entries[tag].at + 2, struct.pack("<H", kind))

    def set_count(self, tag: int, count: int, page: int = 0) -> None:
        self.set_bytes(self.directories[page].entries[tag].at + 4, struct.pack(self.offset, count))

    def set_tag(self, tag: int, new: int, page: int = 0) -> None:
        self.set_bytes(self.directories[page].entries[tag].at, struct.pack("<H", new))

    def set_next(self, offset: int, page: int = -1) -> None:
        """Where the directory says that the next one lies."""
        self.set_bytes(self.directories[page].next_at, struct.pack(self.offset, offset))

    def set_bytes(self, at: int, values: bytes) -> None:
        self.content[at : at + len(values)] = values

    def tile(self, index: int, page: int = 0) -> tuple[int, int]:
        """(offset, bytes) of a tile or strip."""
        tags = (324, 325) if 324 in self.directories[page].entries else (273, 279)
        return self.values(tags[0], page)[index], self.values(tags[1], page)[index]
