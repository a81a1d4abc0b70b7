"""The user's outlines as a mask: the classes that count, rasterised on the slide's thumbnail."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.contracts.annotations import Outline, read_annotations
from pipeline.contracts.errors import SlideError, nearest
from pipeline.outlines import fill


def annotated(
    path: str | Path,
    classes: Sequence[str] | None,
    dimensions: tuple[int, int],
    mask_size: tuple[int, int],
) -> tuple[np.ndarray, str]:
    """Mask of the pixels whose centres lie in an outline of one of `classes` (None: of any), holes left out.

    Parameters
    ----------
    dimensions : (width, height) of the slide in level-0 pixels
    mask_size : (width, height) of the mask, which covers the slide

    Returns
    -------
    mask : bool [rows, columns]
    remark : classes that do not occur; empty for none

    Raises
    ------
    SlideError : a bad file, or outlines that lie beyond the slide
    """
    outlines = read_annotations(path)
    names = {outline.name for outline in outlines}
    missing = [name for name in classes or () if name not in names]
    remark = "".join(_absence(path, name, names) for name in missing[:1])
    if len(missing) > 1:
        remark = f"{path}: no outline of class {', '.join(missing)}; {_listed(names)}"
    scale = dimensions[0] / mask_size[0], dimensions[1] / mask_size[1]
    mask = np.zeros(mask_size[::-1], bool)
    for outline in outlines:
        if classes is None or outline.name in classes:
            _check_place(path, outline, dimensions)
            _draw(mask, [ring / scale for ring in outline.rings])
    return mask, remark


def _absence(path: str | Path, name: str, names: set[str]) -> str:
    return f"{path}: no outline of class {name}{nearest(name, names)}; {_listed(names)}"


def _listed(names: set[str]) -> str:
    return f"its classes are {', '.join(sorted(name or '(none)' for name in names))}" if names else "it has no outline"


def _check_place(path: str | Path, outline: Outline, dimensions: tuple[int, int]) -> None:
    low, high = outline.rings[0].min(axis=0), outline.rings[0].max(axis=0)
    if (high <= 0).any() or (low >= dimensions).any():
        raise SlideError(
            f"{path} feature {outline.feature}: lies at x {low[0]:.0f} to {high[0]:.0f}, y {low[1]:.0f} to"
            f" {high[1]:.0f}, beyond the slide of {dimensions[0]} x {dimensions[1]} pixels. Fix: give the outlines of"
            " this very slide, in pixels of its full resolution."
        )


def _draw(mask: np.ndarray, rings: list[np.ndarray]) -> None:
    """Set the pixels inside one polygon, looking at no others."""
    left, top = np.maximum(np.floor(rings[0].min(axis=0)), 0).astype(int)
    right, bottom = np.minimum(np.ceil(rings[0].max(axis=0)), mask.shape[::-1]).astype(int)
    if left < right and top < bottom:
        mask[top:bottom, left:right] |= fill([[ring - (left, top) for ring in rings]], right - left, bottom - top)
