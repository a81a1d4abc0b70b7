"""Pictures to look at: tissue, ink and dropped pieces; kept tiles and those left out, by reason."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from pipeline.contracts.files import whole_file
from pipeline.contracts.tiles import TileGrid

PICTURE_PX = 1200
TISSUE, INK, DROPPED = (20, 150, 40), (220, 30, 30), (240, 140, 0)
KEPT = (20, 150, 40)
REASONS = {"pen": (220, 30, 30), "dark": (0, 0, 0), "fold": (150, 40, 200), "focus": (30, 90, 230)}
_TINT = 0.45
_LEGEND_PX = 26


def draw_tissue(rgb: np.ndarray, tissue: np.ndarray, ink: np.ndarray, dropped: np.ndarray) -> np.ndarray:
    """The thumbnail with tissue outlined in green, ink in red, pieces too small to be kept in orange.

    Masks are bool [rows, columns]. Returns uint8 [rows, columns, 3], at most 1200 px.
    """
    picture = _reduced(rgb)
    height, width = picture.shape[:2]
    for mask, colour, thickness in ((dropped, DROPPED, 1), (tissue, TISSUE, 2), (ink, INK, 2)):
        # area averages, so that a piece narrower than a pixel of the picture still shows
        small = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
        shown = (small > 0 if mask is dropped else small >= 0.5).astype(np.uint8)
        outlines, _ = cv2.findContours(shown, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, colour, thickness)
    return picture


def draw_tiles(
    rgb: np.ndarray, px_per_rgb_px: tuple[float, float], grids: dict[float, TileGrid], pen_px: int = 1
) -> np.ndarray:
    """The thumbnail with the tiles of the finest magnification outlined, those left out tinted by reason.

    Parameters
    ----------
    rgb : uint8 [rows, columns, 3]
    px_per_rgb_px : (x, y), level-0 pixels per pixel of it

    Returns
    -------
    uint8 [rows, columns, 3], the thumbnail at most 1200 px, a legend below it
    """
    picture = _reduced(rgb)
    if not grids:
        return picture
    magnification, grid = next(iter(grids.items()))
    scale = np.asarray(px_per_rgb_px) * (rgb.shape[1] / picture.shape[1], rgb.shape[0] / picture.shape[0])
    tinted = picture.copy()
    for reason, cells in grid.excluded.items():
        for low, high in _boxes(grid, cells, scale):
            cv2.rectangle(tinted, low, high, REASONS[reason], -1)
    picture = cv2.addWeighted(tinted, _TINT, picture, 1 - _TINT, 0)
    for low, high in _boxes(grid, grid.cell, scale):
        cv2.rectangle(picture, low, high, KEPT, pen_px)
    entries = [(f"{len(grid)} tiles at {magnification:g}x", KEPT)]
    entries += [(f"{len(c)} left out: {reason}", REASONS[reason]) for reason, c in grid.excluded.items() if len(c)]
    return np.vstack([picture, _legend(entries, picture.shape[1])])


def write_picture(path: str | Path, rgb: np.ndarray) -> None:
    """Write a PNG, whole or not at all."""
    with whole_file(path) as part:
        part.write_bytes(cv2.imencode(".png", rgb[..., ::-1])[1].tobytes())


def _reduced(rgb: np.ndarray) -> np.ndarray:
    factor = min(1.0, PICTURE_PX / max(rgb.shape[:2]))
    size = (max(1, round(rgb.shape[1] * factor)), max(1, round(rgb.shape[0] * factor)))
    return cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)


def _boxes(grid: TileGrid, cells: np.ndarray, scale: np.ndarray) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """First and last pixel (x, y) of each cell on the picture."""
    low = np.rint((grid.origin + cells * grid.pitch) / scale).astype(int)
    high = np.rint((grid.origin + (cells + 1) * grid.pitch) / scale).astype(int) - 1
    return [(tuple(a), tuple(b)) for a, b in zip(low.tolist(), high.tolist(), strict=True)]


def _legend(entries: list[tuple[str, tuple[int, int, int]]], width: int) -> np.ndarray:
    """One line per entry, a square of its colour before the text."""
    out = np.full((_LEGEND_PX * len(entries), width, 3), 255, np.uint8)
    for line, (text, colour) in enumerate(entries):
        top = line * _LEGEND_PX
        cv2.rectangle(out, (6, top + 6), (20, top + 20), colour, -1)
        cv2.putText(out, text, (28, top + 18), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return out
