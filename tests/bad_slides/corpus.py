"""Over two hundred ways to spoil a slide, each made anew from a seed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tests.bad_slides.sound import SOUND, write_sound
from tests.bad_slides.tiff_bytes import TiffBytes

Spoil = Callable[[bytes, np.random.Generator], bytes]

TIFFS = tuple(kind for kind, (ending, _) in SOUND.items() if ending in ("svs", "tif"))
TILED = tuple(kind for kind in TIFFS if not kind.endswith("strips"))
JPEGS = ("aperio-rgb", "aperio-ycc", "generic-420", "bigtiff")
APERIO = ("aperio-rgb", "aperio-ycc")
FIELDS = ("png", "jpg")

WIDTH_TAG, LENGTH_TAG, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES = 256, 257, 258, 259, 262, 277
DESCRIPTION, X_RESOLUTION, UNIT, PLANAR, PREDICTOR = 270, 282, 296, 284, 317
TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_COUNTS, SUBIFDS, JPEG_TABLES = 322, 323, 324, 325, 330, 347


@dataclass(frozen=True)
class Mutant:
    """A spoilt slide.

    fails : the slide must fail, since what is gone or absurd cannot be made up for
    intact : no pixel of a tile that still decodes has changed, so what is embedded must be as in the sound slide
    """

    name: str
    kind: str
    spoil: Spoil
    fails: bool = False
    intact: bool = False

    @property
    def slide_id(self) -> str:
        return self.name.replace("/", "-")

    @property
    def um_per_px(self) -> float | None:
        """Of the sheet."""
        return 0.5 if self.kind in FIELDS else None

    def write(self, folder: Path, seed: int) -> Path:
        path = folder / f"{self.slide_id}.{SOUND[self.kind][0]}"
        digest = hashlib.sha256(f"{seed} {self.name}".encode()).digest()
        path.write_bytes(self.spoil(sound_bytes(self.kind), np.random.default_rng(list(digest))))
        return path


@cache
def sound_bytes(kind: str) -> bytes:
    with TemporaryDirectory() as folder:
        return write_sound(kind, Path(folder) / f"a.{SOUND[kind][0]}").read_bytes()


def corpus() -> list[Mutant]:
    """All mutants, in a fixed order."""
    made = [m for family in (_truncated, _flipped, _tags, _sizes, _tiles, _chains, _texts, _others) for m in family()]
    names = [mutant.slide_id for mutant in made]
    assert len(set(names)) == len(names)
    return made


def _truncated() -> Iterator[Mutant]:
    """The end of the file is missing, as after a copy that broke off."""
    for kind in SOUND:
        for share in (0.02, 0.3, 0.7, 0.97):
            cut = lambda content, rng, share=share: content[: int(len(content) * share)]  # noqa: E731
            yield Mutant(f"{kind}/cut-{share:g}", kind, cut, fails=True, intact=True)
        last = lambda content, rng: content[:-1]  # noqa: E731
        yield Mutant(f"{kind}/cut-1-byte", kind, last, intact=True)
        zeros = lambda content, rng: content[: len(content) // 2] + bytes(len(content) - len(content) // 2)  # noqa: E731
        yield Mutant(f"{kind}/zeros-from-the-middle", kind, zeros)


def _flips(content: bytes, rng: np.random.Generator, start: int, end: int, number: int) -> bytes:
    spoilt = bytearray(content)
    for at in rng.integers(start, end, number):
        spoilt[at] ^= 1 << int(rng.integers(8))
    return bytes(spoilt)


def _flipped() -> Iterator[Mutant]:
    """Single bits are wrong: anywhere, in the first bytes, in a directory, in the pixels of one tile."""

    def anywhere(content: bytes, rng: np.random.Generator) -> bytes:
        return _flips(content, rng, 0, len(content), 20)

    def head(content: bytes, rng: np.random.Generator) -> bytes:
        return _flips(content, rng, 0, min(64, len(content)), 2)

    def directory(content: bytes, rng: np.random.Generator) -> bytes:
        tiff = TiffBytes(content)
        chosen = tiff.directories[int(rng.integers(len(tiff.directories)))]
        return _flips(content, rng, chosen.at, chosen.next_at + 4, 2)

    def tile(content: bytes, rng: np.random.Generator) -> bytes:
        offset, count = TiffBytes(content).tile(int(rng.integers(4, 16)) if b"\x44\x01" in content else 3)
        return _flips(content, rng, offset, offset + count, 3)

    for kind in SOUND:
        for trial in range(2):
            yield Mutant(f"{kind}/flips-anywhere-{trial}", kind, anywhere)
        yield Mutant(f"{kind}/flips-in-the-head", kind, head)
    for kind in TIFFS:
        for trial in range(3):
            yield Mutant(f"{kind}/flips-in-a-directory-{trial}", kind, directory)
        yield Mutant(f"{kind}/flips-in-a-tile", kind, tile)


def _edit(change: Callable[[TiffBytes], object]) -> Spoil:
    def spoil(content: bytes, rng: np.random.Generator) -> bytes:
        tiff = TiffBytes(content)
        change(tiff)
        return bytes(tiff.content)

    return spoil


def _tags() -> Iterator[Mutant]:
    """Single tags are wrong."""
    for kind in TIFFS:
        yield Mutant(f"{kind}/compression-unknown", kind, _edit(lambda t: t.set_value(COMPRESSION, 60000)), fails=True)
        yield Mutant(f"{kind}/photometric-cielab", kind, _edit(lambda t: t.set_value(PHOTOMETRIC, 8)))
        yield Mutant(f"{kind}/samples-4", kind, _edit(lambda t: t.set_value(SAMPLES, 4)))
        yield Mutant(f"{kind}/bits-64", kind, _edit(lambda t: [t.set_value(BITS, 64, k) for k in range(3)]))
    for kind in ("aperio-rgb", "generic-420", "deflate", "strips"):
        yield Mutant(f"{kind}/compression-none", kind, _edit(lambda t: t.set_value(COMPRESSION, 1)))
        yield Mutant(f"{kind}/compression-deflate", kind, _edit(lambda t: t.set_value(COMPRESSION, 8)))
        yield Mutant(f"{kind}/planar", kind, _edit(lambda t: t.set_tag(SAMPLES, PLANAR) or t.set_value(SAMPLES, 2)))
    for kind in ("aperio-rgb", "lzw", "subifds"):
        yield Mutant(f"{kind}/type-double", kind, _edit(lambda t: t.set_type(WIDTH_TAG, 12)))
        yield Mutant(f"{kind}/type-0", kind, _edit(lambda t: t.set_type(LENGTH_TAG, 0)))
        yield Mutant(f"{kind}/width-tag-missing", kind, _edit(lambda t: t.set_tag(WIDTH_TAG, 65000)))
        yield Mutant(f"{kind}/offsets-tag-missing", kind, _edit(lambda t: t.set_tag(TILE_OFFSETS, 65000)), fails=True)
        yield Mutant(f"{kind}/counts-tag-missing", kind, _edit(lambda t: t.set_tag(TILE_COUNTS, 65000)))
        yield Mutant(f"{kind}/offsets-too-few", kind, _edit(lambda t: t.set_count(TILE_OFFSETS, 2)), fails=True)
        yield Mutant(
            f"{kind}/offsets-2-billion", kind, _edit(lambda t: t.set_count(TILE_OFFSETS, 2**31 - 1)), fails=True
        )
    for kind in APERIO:
        yield Mutant(f"{kind}/tables-missing", kind, _edit(lambda t: t.set_tag(JPEG_TABLES, 65000)), fails=True)
        yield Mutant(f"{kind}/tables-short", kind, _edit(lambda t: t.set_count(JPEG_TABLES, 20)), fails=True)
        yield Mutant(f"{kind}/tables-2-GB", kind, _edit(lambda t: t.set_count(JPEG_TABLES, 2**31 - 1)), fails=True)
        yield Mutant(f"{kind}/photometric-swapped", kind, _edit(_swap_photometric))


def _swap_photometric(tiff: TiffBytes) -> None:
    tiff.set_value(PHOTOMETRIC, 2 if tiff.values(PHOTOMETRIC)[0] == 6 else 6)


def _sizes() -> Iterator[Mutant]:
    """Images and tiles of no size, or of a size that no disk holds."""

    def sized(width: int, height: int) -> Spoil:
        return _edit(lambda t: (t.set_wide(WIDTH_TAG, width), t.set_wide(LENGTH_TAG, height)))

    def tiled(side: int) -> Spoil:
        return _edit(lambda t: (t.set_wide(TILE_WIDTH, side), t.set_wide(TILE_LENGTH, side)))

    for kind in TIFFS:
        for side in (0, 2**31 - 1, 10**9):
            yield Mutant(f"{kind}/side-{side}", kind, sized(side, side), fails=True)
    for kind in ("aperio-rgb", "generic-420", "deflate", "raw-strips"):
        yield Mutant(f"{kind}/side-4294967295", kind, sized(2**32 - 1, 2**32 - 1), fails=True)
        yield Mutant(f"{kind}/wide", kind, sized(200_000, 320), fails=True)
        yield Mutant(f"{kind}/side-40000", kind, sized(40_000, 40_000), fails=True)
    for kind in TILED:
        yield Mutant(f"{kind}/tiles-of-0-px", kind, tiled(0), fails=True)
        yield Mutant(f"{kind}/tiles-of-a-million-px", kind, tiled(2**20), fails=True)
    for kind in ("aperio-rgb", "generic-420", "lzw"):
        yield Mutant(f"{kind}/tiles-of-17-px", kind, tiled(17), fails=True)
        yield Mutant(
            f"{kind}/level-1-huge", kind, _edit(lambda t: t.set_wide(WIDTH_TAG, 10**9, page=len(t.directories) - 1))
        )


def _every(tag: int, value: Callable[[int], int]) -> Spoil:
    def change(tiff: TiffBytes) -> None:
        for index, now in enumerate(tiff.values(tag)):
            tiff.set_value(tag, value(now), index)

    return _edit(change)


def _tiles() -> Iterator[Mutant]:
    """Tiles that are not where the directory says, or not what they were."""

    def emptied(tiff: TiffBytes) -> None:
        offset, count = tiff.tile(8)
        tiff.set_bytes(offset, bytes(count))

    def half_gone(tiff: TiffBytes) -> None:
        offset, count = tiff.tile(8)
        tiff.set_bytes(offset + count // 2, bytes(count - count // 2))

    for kind in TILED:
        yield Mutant(f"{kind}/no-tiles", kind, _every(TILE_COUNTS, lambda count: 0), fails=True)
        yield Mutant(f"{kind}/beyond-the-file", kind, _every(TILE_OFFSETS, lambda offset: 2**31), fails=True)
        yield Mutant(f"{kind}/all-at-one-place", kind, _edit(_overlap))
        yield Mutant(f"{kind}/counts-halved", kind, _every(TILE_COUNTS, lambda count: count // 2), fails=kind in JPEGS)
        one = lambda t: t.set_value(TILE_OFFSETS, 2**31, 8)  # noqa: E731
        yield Mutant(f"{kind}/a-tile-beyond-the-file", kind, _edit(one), fails=True, intact=True)
        short = lambda t: t.set_value(TILE_COUNTS, t.values(TILE_COUNTS)[8] // 2, 8)  # noqa: E731
        yield Mutant(f"{kind}/a-tile-cut-short", kind, _edit(short), intact=True)
        yield Mutant(f"{kind}/a-tile-zeroed", kind, _edit(emptied), intact=True)
        # JPEG 2000 has no checksum, and OpenSlide does not look at that of deflate
        sees = kind not in ("deflate", "jpeg2000")
        yield Mutant(f"{kind}/a-tile-half-zeroed", kind, _edit(half_gone), intact=sees)


def _overlap(tiff: TiffBytes) -> None:
    first = tiff.values(TILE_OFFSETS)[0]
    for index in range(len(tiff.values(TILE_OFFSETS))):
        tiff.set_value(TILE_OFFSETS, first + index, index)


def _chains() -> Iterator[Mutant]:
    """Directories that lead nowhere or in a circle."""

    def self_sub(tiff: TiffBytes) -> None:
        tiff.set_value(SUBIFDS, tiff.directories[0].at)

    for kind in TIFFS:
        yield Mutant(f"{kind}/chain-to-the-first", kind, _edit(lambda t: t.set_next(t.directories[0].at)), fails=True)
        itself = _edit(lambda t: t.set_next(t.directories[-1].at))
        yield Mutant(f"{kind}/chain-to-itself", kind, itself, fails=True)
        yield Mutant(f"{kind}/chain-into-pixels", kind, _edit(lambda t: t.set_next(t.tile(0)[0])))
        yield Mutant(f"{kind}/chain-beyond-the-file", kind, _edit(lambda t: t.set_next(2**30)), fails=True)
        nowhere = lambda t: t.set_bytes(t.first_at, bytes(8 if t.big else 4))  # noqa: E731
        yield Mutant(f"{kind}/no-directory", kind, _edit(nowhere), fails=True)
    yield Mutant("subifds/sub-to-itself", "subifds", _edit(self_sub), fails=True)
    yield Mutant("subifds/sub-beyond", "subifds", _edit(lambda t: t.set_value(SUBIFDS, 2**30)), fails=True)


def _texts() -> Iterator[Mutant]:
    """um per pixel that cannot be, in text of the same length and in the resolution tags."""
    texts = {"nan": b"nan", "negative": b"-.5", "zero": b"0.0", "huge": b"9e9", "tiny": b"1e-9"[:3], "word": b"abc"}
    for name, text in texts.items():
        for kind in APERIO:
            spoil = lambda content, rng, text=text: content.replace(b"MPP = 0.5", b"MPP = " + text)  # noqa: E731
            yield Mutant(f"{kind}/mpp-{name}", kind, spoil)
    control = lambda content, rng: content.replace(b"Aperio Image", b"Aperio\0\xff\xfeage")  # noqa: E731
    yield Mutant("aperio-rgb/description-not-text", "aperio-rgb", control)
    long = _edit(lambda t: t.set_count(DESCRIPTION, 2**30))
    yield Mutant("aperio-rgb/description-1-GB", "aperio-rgb", long)
    for kind in ("generic-420", "lzw", "strips"):
        entry = lambda t: t.directories[0].entries[X_RESOLUTION]  # noqa: E731
        divided = lambda t, entry=entry: t.set_bytes(entry(t).values_at + 4, bytes(4))  # noqa: E731
        yield Mutant(f"{kind}/resolution-divided-by-0", kind, _edit(divided), fails=True)
        zero = lambda t, entry=entry: t.set_bytes(entry(t).values_at, bytes(4))  # noqa: E731
        yield Mutant(f"{kind}/resolution-0", kind, _edit(zero), fails=True)
        yield Mutant(f"{kind}/resolution-unit-9", kind, _edit(lambda t: t.set_value(UNIT, 9)), fails=True)


def _others() -> Iterator[Mutant]:
    """What is no slide at all, whatever its name."""
    things: dict[str, Spoil] = {
        "empty": lambda content, rng: b"",
        "one-byte": lambda content, rng: b"I",
        "text": lambda content, rng: b"slide_id\tcase_id\n" * 100,
        "noise": lambda content, rng: rng.bytes(20_000),
        "tiff-head-alone": lambda content, rng: b"II*\0\x08\0\0\0",
        "zip": lambda content, rng: b"PK\x03\x04" + rng.bytes(2000),
    }
    for kind in ("aperio-rgb", "generic-420", "png", "jpg"):
        for name, spoil in things.items():
            yield Mutant(f"{kind}/{name}", kind, spoil, fails=True)
    png = lambda content, rng: _png_header(content, 2**31 - 1)  # noqa: E731
    yield Mutant("png/side-2147483647", "png", png, fails=True)
    yield Mutant("png/side-30000", "png", lambda content, rng: _png_header(content, 30_000), fails=True)
    yield Mutant("jpg/side-65535", "jpg", _jpeg_side, fails=True)


def _png_header(content: bytes, side: int) -> bytes:
    import zlib

    head = b"IHDR" + side.to_bytes(4, "big") * 2 + content[24:29]
    return content[:12] + head + zlib.crc32(head).to_bytes(4, "big") + content[33:]


def _jpeg_side(content: bytes, rng: np.random.Generator) -> bytes:
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + b"\xff\xff\xff\xff" + content[at + 4 :]


def write_unreadable(folder: Path) -> dict[str, Path]:
    """What cannot be opened as a file: nothing, a folder, a link to nothing or itself, no permission, a pipe."""
    paths = {name: folder / f"{name}.svs" for name in ("absent", "folder", "dangling", "loop", "locked", "pipe")}
    paths["folder"].mkdir()
    paths["dangling"].symlink_to(folder / "nothing.svs")
    paths["loop"].symlink_to(paths["loop"])
    paths["locked"].write_bytes(sound_bytes("aperio-rgb"))
    paths["locked"].chmod(0)
    os.mkfifo(paths["pipe"])
    return paths
