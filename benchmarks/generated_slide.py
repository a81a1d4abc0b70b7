"""Large slides made by code: H&E-like JPEG tiles laid out at random, in a pyramid of any levels."""

from __future__ import annotations

from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import tifffile

TILE_PX = 256
_UNIQUE = 64  # encoded tiles that all levels are laid out from: decoding costs the same as if all were different
_PINK, _VIOLET = np.array([228.0, 165.0, 205.0]), np.array([96.0, 60.0, 140.0])


def write_slide(
    path: Path,
    width: int = 16384,
    height: int = 12288,
    um_per_px: float = 0.25,
    downsamples: tuple[int, ...] = (1, 2, 4, 8),
    seed: int = 0,
) -> Path:
    """Write a tiled JPEG TIFF (quality 85, YCbCr 4:2:0) of `width` x `height` px with a level per downsample.

    Levels are not reductions of each other: nothing that is measured here compares them.
    """
    rng = np.random.default_rng(seed)
    streams = [
        imagecodecs.jpeg8_encode(tissue(rng), 85, colorspace="RGB", outcolorspace="YCBCR", subsampling="420")
        for _ in range(_UNIQUE)
    ]
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for downsample in downsamples:
            rows, columns = height // downsample, width // downsample
            n = -(-rows // TILE_PX) * -(-columns // TILE_PX)
            writer.write(
                iter([streams[k] for k in rng.integers(0, _UNIQUE, n)]), shape=(rows, columns, 3), dtype=np.uint8,
                tile=(TILE_PX, TILE_PX), compression="jpeg", photometric="ycbcr", subsampling=(2, 2), metadata=None,
                subfiletype=int(downsample > 1), resolution=(1e4 / um_per_px / downsample,) * 2,
                resolutionunit="CENTIMETER",
            )  # fmt: skip
    return path


def tissue(rng: np.random.Generator) -> np.ndarray:
    """A tile of stroma with nuclei, uint8 [TILE_PX, TILE_PX, 3]."""
    texture = cv2.GaussianBlur(rng.normal(0, 60, (TILE_PX, TILE_PX)), (0, 0), 2.0)
    nuclei = np.zeros((TILE_PX, TILE_PX), np.float32)
    for x, y in rng.integers(0, TILE_PX, (45, 2)):
        axes = tuple(int(a) for a in rng.integers(5, 11, 2))
        cv2.ellipse(nuclei, (int(x), int(y)), axes, float(rng.uniform(0, 180)), 0, 360, 1.0, -1)
    share = cv2.GaussianBlur(nuclei, (0, 0), 1.2)[..., None]
    pixels = _PINK * (1 - share) + _VIOLET * share + texture[..., None] + rng.normal(0, 3, (TILE_PX, TILE_PX, 3))
    return np.ascontiguousarray(np.clip(pixels, 0, 255).astype(np.uint8))
