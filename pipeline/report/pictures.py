"""Pictures within a page, as data URIs: photographs as JPEG, layers as PNG."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Picture:
    """A picture within the page: its data URI and the width to show it at (CSS pixels, 96 per inch)."""

    uri: str
    width: int


def photograph(image: np.ndarray, quality: int = 82) -> Picture:
    """uint8 [height, width, RGB] as a JPEG, shown at its own size."""
    ok, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise ValueError("the image could not be encoded")
    return Picture(data_uri("jpeg", encoded.tobytes()), image.shape[1])


def png_image(image: np.ndarray) -> Picture:
    """uint8 [height, width, RGBA] without loss, shown at its own size."""
    ok, encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGBA2BGRA), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    if not ok:
        raise ValueError("the image could not be encoded")
    return Picture(data_uri("png", encoded.tobytes()), image.shape[1])


def data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
