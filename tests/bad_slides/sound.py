"""Small pyramidal slides of every kind that the readers tell apart, with tissue on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from tests.slide_files import GLASS, half, write_tiff

WIDTH, HEIGHT = 384, 320  # level-0 pixels at 0.5 um/px: 6 x 5 tiles of 64 px
TILE = 64
_APERIO = "Aperio Image Library v12.0.15 \r\n{w}x{h} [0,0 {w}x{h}] ({t}x{t}) JPEG/RGB Q=85|AppMag = 20|MPP = 0.5"
_TABLES = (0xDB, 0xC4)  # quantisation and Huffman


def field(seed: int = 0) -> np.ndarray:
    """uint8 [HEIGHT, WIDTH, 3]: pink tissue with dark nuclei on glass, all but a margin."""
    rng = np.random.default_rng(seed)
    pixels = np.empty((HEIGHT, WIDTH, 3), np.float32)
    pixels[:] = GLASS
    texture = cv2.GaussianBlur(rng.normal(size=(HEIGHT, WIDTH)).astype(np.float32), (0, 0), 3)
    tissue = np.array([205, 130, 175]) + 120 * texture[..., None] * np.array([0.6, 1, 0.7])
    pixels[20:-12, 14:-26] = tissue[20:-12, 14:-26]
    for x, y in zip(rng.integers(20, WIDTH - 30, 260), rng.integers(26, HEIGHT - 18, 260), strict=True):
        cv2.circle(pixels, (int(x), int(y)), int(rng.integers(2, 5)), (95, 60, 140), -1)
    noisy = pixels + rng.normal(scale=3, size=pixels.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def _without_tables(stream: bytes) -> tuple[bytes, bytes]:
    """Split a JPEG stream into one of its tables alone and one of everything else."""
    tables, rest, at = b"", b"", 2
    while stream[at + 1] != 0xDA:  # start of scan
        end = at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        if stream[at + 1] in _TABLES:
            tables += stream[at:end]
        else:
            rest += stream[at:end]
        at = end
    return b"\xff\xd8" + tables + b"\xff\xd9", b"\xff\xd8" + rest + stream[at:]


def _jpeg(path: Path, colours: str, subsampling: str, aperio: bool, tables: bool, bigtiff: bool = False) -> None:
    base = field()
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as writer:
        for index, level in enumerate((base, half(base))):
            h, w = level.shape[:2]
            rows, columns = -(-h // TILE), -(-w // TILE)
            padded = np.pad(level, ((0, rows * TILE - h), (0, columns * TILE - w), (0, 0)), "edge")
            blocks = padded.reshape(rows, TILE, columns, TILE, 3).swapaxes(1, 2).reshape(-1, TILE, TILE, 3)
            streams = [
                imagecodecs.jpeg8_encode(
                    np.ascontiguousarray(b), 85, colorspace="RGB", outcolorspace=colours, subsampling=subsampling
                )
                for b in blocks
            ]
            extra = []
            if tables:
                split = [_without_tables(stream) for stream in streams]
                extra, streams = [(347, 7, len(split[0][0]), split[0][0], True)], [rest for _, rest in split]
            writer.write(
                iter(streams), shape=level.shape, dtype=np.uint8, tile=(TILE, TILE), compression="jpeg",
                photometric="rgb" if colours == "RGB" else "ycbcr",
                compressionargs={"outcolorspace": colours.lower()},  # else the tag says YCbCr whatever the streams are
                subsampling=None if colours == "RGB" else {"422": (2, 1), "420": (2, 2)}[subsampling],
                description=_APERIO.format(w=w, h=h, t=TILE) if aperio else None, metadata=None, extratags=extra,
                subfiletype=0 if aperio or not index else 1,
                resolution=(2e4 / 2**index, 2e4 / 2**index), resolutionunit="CENTIMETER",
            )  # fmt: skip
            if aperio and not index:
                writer.write(half(base, 4), photometric="rgb", compression="jpeg", rowsperstrip=16, metadata=None)


def _strips(path: Path, compression: str | None) -> None:
    with tifffile.TiffWriter(path) as writer:
        writer.write(
            field(), photometric="rgb", compression=compression, rowsperstrip=32, metadata=None,
            resolution=(2e4, 2e4), resolutionunit="CENTIMETER",
        )  # fmt: skip


def _subifds(path: Path) -> None:
    base = field()
    options = {"tile": (TILE, TILE), "photometric": "rgb", "compression": "deflate", "metadata": None}
    with tifffile.TiffWriter(path) as writer:
        writer.write(base, subifds=1, resolution=(2e4, 2e4), resolutionunit="CENTIMETER", **options)
        writer.write(half(base), subfiletype=1, resolution=(1e4, 1e4), resolutionunit="CENTIMETER", **options)


def _pyramid(compression: str) -> Callable[[Path], object]:
    return lambda path: write_tiff(path, [field(), half(field())], compression=compression)


#: name -> (file ending, writer)
SOUND: dict[str, tuple[str, Callable[[Path], object]]] = {
    "aperio-rgb": ("svs", lambda path: _jpeg(path, "RGB", "444", aperio=True, tables=True)),
    "aperio-ycc": ("svs", lambda path: _jpeg(path, "YCBCR", "422", aperio=True, tables=True)),
    "generic-420": ("tif", lambda path: _jpeg(path, "YCBCR", "420", aperio=False, tables=False)),
    "bigtiff": ("tif", lambda path: _jpeg(path, "RGB", "444", aperio=False, tables=False, bigtiff=True)),
    "deflate": ("tif", _pyramid("deflate")),
    "lzw": ("tif", _pyramid("lzw")),
    "jpeg2000": ("tif", _pyramid("jpeg2000")),
    "subifds": ("tif", _subifds),
    "strips": ("tif", lambda path: _strips(path, "lzw")),
    "raw-strips": ("tif", lambda path: _strips(path, None)),
    "png": ("png", lambda path: Image.fromarray(field()).save(path)),
    "jpg": ("jpg", lambda path: Image.fromarray(field()).save(path, quality=90)),
}


def write_sound(kind: str, path: Path) -> Path:
    """Write a sound slide of `kind`; a plain field needs its 0.5 um/px from the sheet."""
    SOUND[kind][1](path)
    return path
