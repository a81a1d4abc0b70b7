"""Tiny slide files with known pixels, written with tifffile, and where the real ones are."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"

GLASS = (243, 243, 243)
TISSUE = (200, 120, 170)


def real_file(name: str) -> str:
    """Path of a real slide or field below shared/data; skips where the data are absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"real data absent: {path}")
    return str(path)


def image(width: int, height: int, colour=GLASS) -> np.ndarray:
    out = np.empty((height, width, 3), np.uint8)
    out[:] = colour
    return out


def noise(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def half(pixels: np.ndarray, factor: int = 2) -> np.ndarray:
    size = (pixels.shape[1] // factor, pixels.shape[0] // factor)
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def write_tiff(path: Path, levels, mpp=(0.5, 0.5), compression="lzw", description=None, unit="CENTIMETER") -> Path:
    """A tiled pyramidal TIFF (lossless unless asked otherwise); `mpp` None leaves the resolution tags out."""
    with tifffile.TiffWriter(path) as writer:
        for index, level in enumerate(levels):
            resolution = {}
            if mpp is not None:
                scale = levels[0].shape[1] / level.shape[1]
                resolution = {"resolution": [1e4 / m / scale for m in mpp], "resolutionunit": unit}
            writer.write(
                level,
                tile=(64, 64),
                photometric="rgb",
                compression=compression,
                subfiletype=1 if index else 0,
                metadata=None,
                description=description if index == 0 else None,
                **resolution,
            )
    return path


def write_svs(path: Path, levels, mpp: float | None = 0.25, objective: float | None = 40) -> Path:
    """An Aperio file with a thumbnail, as OpenSlide expects it."""
    height, width = levels[0].shape[:2]
    head = f"Aperio Image Library v11.2.1 \r\n{width}x{height} [0,0 {width}x{height}] (64x64) JPEG/RGB Q=85"
    facts = (f"|AppMag = {objective:g}" if objective else "") + (f"|MPP = {mpp:g}" if mpp else "")
    tiled = {"tile": (64, 64), "photometric": "rgb", "compression": "jpeg", "metadata": None, "subfiletype": 0}
    with tifffile.TiffWriter(path) as writer:
        writer.write(levels[0], description=head + facts, **tiled)
        thumbnail = half(levels[0], 4)
        writer.write(
            thumbnail, photometric="rgb", compression="jpeg", rowsperstrip=16, metadata=None, description=head + facts
        )
        for level in levels[1:]:
            writer.write(level, description=f"{head} -> {level.shape[1]}x{level.shape[0]} JPEG/RGB Q=85", **tiled)
    return path
