"""Write an image as a pyramidal, tiled JPEG TIFF, the same bytes every time."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
import tifffile

TILE_PX = 256
JPEG_QUALITY = 82


def pyramid_bytes(image: np.ndarray, um_per_px: float | None, downsamples: tuple[int, ...], description: str) -> bytes:
    """Encode `image` (uint8 [height, width, RGB]) and its area-averaged reductions.

    `um_per_px` goes into the resolution tags (pixels per centimetre); None leaves them out. `downsamples`
    are the reductions below level 0, for instance (2, 4).
    """
    buffer = io.BytesIO()
    tags: dict[str, Any] = (
        {} if um_per_px is None else {"resolution": (1e4 / um_per_px,) * 2, "resolutionunit": "CENTIMETER"}
    )
    height, width = image.shape[:2]
    with tifffile.TiffWriter(buffer) as writer:
        for downsample in (1, *downsamples):
            level = image
            if downsample > 1:
                size = max(1, width // downsample), max(1, height // downsample)
                level = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            if um_per_px is not None:
                tags["resolution"] = (1e4 / um_per_px / downsample,) * 2
            writer.write(
                level,
                tile=(TILE_PX, TILE_PX),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": JPEG_QUALITY},
                subfiletype=int(downsample > 1),
                description=description if downsample == 1 else None,
                software=False,
                metadata=None,
                maxworkers=1,
                **tags,
            )
    return buffer.getvalue()
