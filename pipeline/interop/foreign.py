"""What a feature file of another tool says, before anything in it is believed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.contracts.errors import SlideError


@dataclass(frozen=True)
class ForeignBag:
    """One file of features. Pairs are (x, y); what the tool does not store is None.

    Attributes
    ----------
    features : float [tiles, width], finite
    coords : int64 [tiles, 2], upper-left corners in level-0 pixels
    size_px : side of a tile in pixels as it was cut
    size_level0_px : side of a tile in level-0 pixels
    level0_um_per_px : exact, where the file itself says so
    nominal_um_per_px : of level 0, from the magnification that is written on the objective
    target_magnification : what the file says it was made at
    level0_size_px : (width, height) of the slide
    overlap : of neighbouring tiles, in pixels of `size_px`
    encoder : as the file names it, or empty
    """

    features: np.ndarray
    coords: np.ndarray
    size_px: int
    size_level0_px: tuple[float, float]
    level0_um_per_px: tuple[float, float] | None = None
    nominal_um_per_px: float | None = None
    level0_magnification: int | None = None
    target_magnification: float | None = None
    level0_size_px: tuple[int, int] | None = None
    overlap: int = 0
    encoder: str = ""


def read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """``features`` [N, D], ``coords`` [N, 2] and the attributes of both, those of `features` as ``features.{name}``.

    Raises SlideError for a file that is damaged, still being written, or of another shape.
    """
    if path.with_name(path.name + ".lock").exists():
        raise SlideError(f"{path.name}.lock lies beside it: it is being written, or its writer was killed")
    try:
        with h5py.File(path, "r") as file:
            features, coords = file["features"][()], file["coords"][()]
            attributes = {**{f"features.{k}": v for k, v in file["features"].attrs.items()}, **file["coords"].attrs}
    except (OSError, KeyError, RuntimeError, AttributeError, TypeError) as error:
        raise SlideError(f"not readable as features and coords ({error})") from error
    if features.ndim == 3 and features.shape[0] == 1:  # some writers keep the batch axis
        features = features[0]
    if features.ndim != 2 or coords.shape != (len(features), 2):
        raise SlideError(f"features {list(features.shape)} and coords {list(coords.shape)} do not fit each other")
    if not len(features):
        raise SlideError("it holds no tile")
    if features.dtype.kind != "f" or not np.isfinite(features.astype(np.float32)).all():
        raise SlideError("features are not all finite floats")
    return features.astype(np.float32), coords.astype(np.int64), attributes


def number(attributes: Mapping[str, Any], name: str) -> float | None:
    """A positive number among the attributes, else None."""
    try:
        value = float(np.asarray(attributes[name]).reshape(()))
    except (KeyError, TypeError, ValueError):
        return None
    return value if np.isfinite(value) and value > 0 else None


def pair(attributes: Mapping[str, Any], name: str) -> tuple[float, float] | None:
    """Two positive numbers (x, y) among the attributes, else None."""
    try:
        x, y = (float(value) for value in np.asarray(attributes[name]).reshape(2))
    except (KeyError, TypeError, ValueError):
        return None
    return (x, y) if min(x, y) > 0 and np.isfinite([x, y]).all() else None
